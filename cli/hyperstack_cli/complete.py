"""What a shell offers for a word that is begun: run folders and names of tasks, found without loading torch."""

from __future__ import annotations

import ast
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import click
from click.shell_completion import CompletionItem

DEEP = 3  # folders below the one that the word names
MANY = 2000  # folders that are looked into, at most


class RunPath(click.Path):
    """The path of a run folder."""

    name = "run"

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The run folders that begin so, at the place itself or further down."""
        return [CompletionItem(path) for path in runs(incomplete)]


def runs(incomplete: str) -> list[str]:
    """Run folders whose paths begin with what was typed, in the words of whoever typed it."""
    typed, begun = os.path.split(incomplete)
    root = os.path.expanduser(typed or os.curdir)
    found: list[str] = []
    level, left = [""], MANY
    for depth in range(1 + DEEP):
        below: list[str] = []
        for place in level:
            for name in _folders(os.path.join(root, place)):
                hidden = name.startswith(".") and not (depth == 0 and begun.startswith("."))
                if hidden or (depth == 0 and not name.startswith(begun)) or left == 0:
                    continue
                left -= 1
                path = os.path.join(place, name)
                isrun = os.path.isfile(os.path.join(root, path, "plan.json"))
                (found if isrun else below).append(path)
        level = below
    return [os.path.join(typed, path) for path in sorted(found)]


def _folders(path: str) -> Iterator[str]:
    try:
        with os.scandir(path) as entries:
            yield from (e.name for e in entries if e.is_dir())
    except OSError:
        return


def task_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The tasks that begin so: read from the sources, because the tasks themselves need torch."""
    package = importlib.util.find_spec("hyperstack")
    folders = [Path(p) / "tasks" for p in (package.submodule_search_locations or [])] if package else []
    names = [name for folder in folders for file in folder.glob("*.py") for name in _names(file)]
    return sorted(name for name in {*names} if name.startswith(incomplete))


def _names(file: Path) -> Iterator[str]:
    """The names that the classes of a file give themselves, as in `name: ClassVar[str] = "mnist"`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        for line in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(line, ast.AnnAssign) and getattr(line.target, "id", "") == "name":
                yield from [str(line.value.value)] if isinstance(line.value, ast.Constant) else []
