"""The runs below a folder, each with what its plan and its summary say; records are not read."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hyperstack.errors import InputError
from hyperstack.reports.run import state
from hyperstack.telemetry.runfolder import RunFolder

DAMAGED = "damaged"
STATES = ("finished", "diverged", "interrupted", "running", "stopped", DAMAGED)
PLAN = "plan.json"  # what makes a folder a run
NUMERAL = re.compile(r"(?<![\w.])\d+(?:\.\d*)?(?:e[-+]?\d+)?(?![\w.])")


@dataclass(frozen=True)
class Entry:
    """A run in the list: where it lies, when it was last written to, its plan and its summary (None: not ended).

    `state`: one of `STATES`. A damaged one has a `problem`, in one line, and an empty plan where that is what is
    damaged. So has a folder that may not be read.
    """

    path: Path
    when: datetime
    plan: dict[str, Any]
    summary: dict[str, Any] | None
    state: str
    problem: str = ""

    @property
    def task(self) -> str | None:
        """What it trained; None where that cannot be read."""
        return self.plan.get("task")

    @property
    def stack(self) -> str | None:
        """The text of its stack; None where that cannot be read."""
        return self.plan.get("stack")

    def figure(self, name: str) -> Any:
        """A figure of its summary, None where there is none."""
        return self.summary.get(name) if self.summary else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON but for numbers that are not finite."""
        figures = {name: self.figure(name) for name in ("epochs", "steps", "seconds", "train_loss", "test_error")}
        head = {"path": str(self.path), "when": self.when.isoformat(), "state": self.state, "problem": self.problem}
        return {**head, "task": self.task, "stack": self.stack, "seed": self.plan.get("seed"), **figures}


def listed(folder: Path) -> list[Entry]:
    """Every run in `folder` and below it, the one written to last first; an InputError where there is no folder.

    Links are not followed, hidden folders and what lies within a run are passed over. What cannot be read is listed
    as damaged, and what disappears meanwhile is left out.
    """
    if not os.path.isdir(folder):
        why = "it is not a folder" if os.path.exists(folder) else "it does not exist, or may not be read"
        raise InputError(f"there is no folder {folder}", why=why, instead="name a folder that holds runs")
    found = [entry for path, problem in _runs(folder) if (entry := _entry(path, problem))]
    return sorted(found, key=lambda e: (-e.when.timestamp(), str(e.path)))


def resembles(stack: str, text: str) -> bool:
    """Whether `text` is a part of a stack's text, without regard to spaces, case, and how numbers are written."""
    forms = [(_bare(stack), _bare(text))]
    forms += [tuple(NUMERAL.sub(lambda m: repr(float(m[0])), form) for form in forms[0])]  # type: ignore[list-item]
    return any(wanted in whole for whole, wanted in forms)


def _bare(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _runs(folder: Path) -> Iterator[tuple[Path, str]]:
    """Each run folder from `folder` down, and each folder that cannot be read, with the reason."""
    waiting = [str(folder)]
    while waiting:
        path = waiting.pop()
        try:
            with os.scandir(path) as inside:
                entries = list(inside)
                if any(entry.name == PLAN and entry.is_file() for entry in entries):
                    yield Path(path), ""
                    continue
                waiting += [e.path for e in entries if e.name[0] != "." and e.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            continue
        except OSError as error:
            yield Path(path), f"cannot read the folder: {error.strerror or error}"


def _entry(path: Path, problem: str) -> Entry | None:
    """A run as it is listed; None where it is gone."""
    plan: dict[str, Any] = {}
    summary: dict[str, Any] | None = None
    how = DAMAGED
    if not problem:
        try:
            folder = RunFolder.existing(path)
            plan, summary = folder.read_heading(), folder.read_summary()
            how = state(path, summary)
        except InputError as error:
            if not os.path.isfile(path / PLAN):
                return None
            problem = ": ".join(part for part in (error.what, error.why) if part)
    when = _when(path)
    return None if when is None else Entry(path, when, plan, summary, how, " ".join(problem.split()))


def _when(path: Path) -> datetime | None:
    """When a file of the folder was last written, in local time; None where the folder is gone."""
    times = []
    with suppress(OSError), os.scandir(path) as inside:
        for entry in inside:
            with suppress(OSError):
                if entry.is_file(follow_symlinks=False):
                    times.append(entry.stat(follow_symlinks=False).st_mtime)
    try:
        latest = max(times) if times else os.stat(path).st_mtime
        return datetime.fromtimestamp(latest, timezone.utc).astimezone()
    except (OSError, OverflowError, ValueError):  # gone, or written in a year that there is not
        return datetime.fromtimestamp(0, timezone.utc) if os.path.lexists(path) else None
