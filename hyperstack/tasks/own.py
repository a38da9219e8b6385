"""Tasks from outside the package: a class in a file (`path/to/file.py:MyTask`), and entry points of packages."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

from hyperstack.errors import InputError
from hyperstack.tasks.base import Task

__all__ = ["GROUP", "from_entry_point", "from_file", "is_in_a_file", "offered", "same_task"]

GROUP = "hyperstack.tasks"
HINT = "write path/to/file.py:MyTask, MyTask being a subclass of hyperstack.tasks.Task in that file"


def is_in_a_file(text: str) -> bool:
    """Whether a text names a file, as in `path/to/file.py:MyTask`, and not a task by its name."""
    path, _, name = text.rpartition(":")
    return any(part.endswith(".py") or "/" in part or "\\" in part for part in (path, name))


def same_task(one: str, other: str) -> bool:
    """Whether two texts name the same task. A file may be reached by another path, from another folder: what counts
    are its own name and that of the class.
    """
    if not (is_in_a_file(one) and is_in_a_file(other)):
        return one == other
    (path, name), (its_path, its_name) = (text.rpartition(":")[::2] for text in (one, other))
    return name == its_name and Path(path).name == Path(its_path).name


def from_file(text: str) -> Task:
    """The task that `path/to/file.py:MyTask` names; a relative path starts in the current folder.

    The file is imported once in a process, and may import what lies beside it. `InputError` where there is no such
    file, where importing it fails, and where it holds no such task.
    """
    path, _, name = text.rpartition(":")
    if not path.endswith(".py") or not name.isidentifier():
        raise InputError(f"{text!r} does not name a class in a file", instead=HINT)
    module = _module(Path(path).expanduser())
    found = vars(module).get(name)
    if found is None:
        known = [n for n, value in vars(module).items() if _is_task(value) and value.__module__ == module.__name__]
        why = f"its tasks are {', '.join(known)}" if known else "it holds no task"
        raise InputError(f"{path} holds no {name}", why=why, instead=f"use {path}:{known[0]}" if known else HINT)
    return _made(found, text)


def _module(path: Path) -> ModuleType:
    """The file as a module, imported where that has not been done yet."""
    place = path.resolve()
    if not place.is_file():
        why = "it is not a file" if place.exists() else f"it does not exist, or may not be read: {place}"
        raise InputError(f"there is no file {path}", why=why, instead=HINT)
    # Two files of one name are two modules, and one file is one however its path is written.
    name = f"hyperstack_task_{place.stem}_{hashlib.sha256(str(place).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, place)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} can't be imported", instead=HINT)
    module = importlib.util.module_from_spec(spec)
    if str(place.parent) not in sys.path:
        sys.path.append(str(place.parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputError(f"{path} can't be imported", why=_line(error), instead="correct that file") from error
    return module


def offered() -> dict[str, list[importlib.metadata.EntryPoint]]:
    """The entry points of installed packages by their name, without importing any of them."""
    found: dict[str, list[importlib.metadata.EntryPoint]] = {}
    for point in importlib.metadata.entry_points(group=GROUP):
        if point.value not in (other.value for other in found.setdefault(point.name, [])):
            found[point.name].append(point)
    return found


def from_entry_point(points: list[importlib.metadata.EntryPoint]) -> Task:
    """The task of the one entry point of a name; `InputError` where there are several, or it fails."""
    name = points[0].name
    owners = ", ".join(sorted({point.dist.name if point.dist else point.value for point in points}))
    if len(points) > 1:
        why = f"they are {', '.join(point.value for point in points)}"
        raise InputError(f"several packages have a task {name!r}: {owners}", why=why, instead="uninstall all but one")
    try:
        found = points[0].load()
    except (Exception, SystemExit) as error:
        what = f"the task {name!r} of the package {owners} can't be imported"
        raise InputError(what, why=_line(error), instead=f"repair or uninstall {owners}") from error
    return _made(found, points[0].value)


def _is_task(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, Task) and not inspect.isabstract(value)


def _made(found: object, text: str) -> Task:
    """An instance of what should be a task."""
    if not (inspect.isclass(found) and issubclass(found, Task)):
        raise InputError(f"{text} is no task", why="it is no subclass of hyperstack.tasks.Task", instead=HINT)
    if inspect.isabstract(found):
        lacking = ", ".join(sorted(found.__abstractmethods__))
        raise InputError(f"{text} is not whole", why=f"it lacks {lacking}", instead="write what it lacks")
    name = getattr(found, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
        why = "its runs are filed under its `name`, a word of letters, digits, '.', '-' and '_'"
        raise InputError(f"{text} has the name {name!r}", why=why, instead='give the class a name, as in name = "mine"')
    try:
        return found()
    except (Exception, SystemExit) as error:
        raise InputError(f"{text} can't be made", why=_line(error), instead="correct its __init__") from error


def _line(error: BaseException) -> str:
    """What an exception says, in one line."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
