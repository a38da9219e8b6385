"""A run as it lies in its folder: what it was, how it ended, and its numbers by name."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperstack.telemetry.record import Column, Record
from hyperstack.telemetry.runfolder import RunFolder
from hyperstack.telemetry.sinks import is_being_written

if TYPE_CHECKING:
    from hyperstack.reports.view import View


@dataclass(frozen=True, eq=False, repr=False)
class Run(Mapping[str, Column]):
    """A run, as `load_run` returns it: a mapping from the names of columns to float64 arrays, a number a recorded step.

    `run["step"]`, `run["loss"]`, and for each learned hyperparameter KEY, such as "0.lr": `run["0.lr.value"]` in
    natural units, `run["0.lr.grad"]`, its raw hypergradient before clipping, `run["0.lr.clip"]`, the factor that
    clipping applied, and where it is clipped by the cumulative average of its norm, `run["0.lr.average"]`.
    `run.keys()` names all of them. NaN and infinity are as they were.

    `plan`: what was asked for, as in plan.json. `summary`: the result, as in summary.json; None where the run has not
    ended. `record`: the numbers. `when`: when the run was last written to.
    """

    path: Path
    plan: dict[str, Any]
    summary: dict[str, Any] | None
    record: Record
    when: datetime

    @property
    def stack(self) -> str:
        """The canonical text of its stack."""
        return str(self.plan["stack"])

    @property
    def stacks(self) -> list[str]:
        """The text of each stack, where param groups have different ones; else the one."""
        found = self.plan.get("stacks")
        return [str(text) for text in found] if isinstance(found, list) and found else [self.stack]

    @property
    def levels(self) -> list[str]:
        """The text of each level of its stack, the primary one first."""
        return levels(self.stack)

    @property
    def state(self) -> str:
        """One of "finished", "diverged", "interrupted", "running", and "stopped" for one that was killed."""
        return state(self.path, self.summary)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.stack!r}, {self.state}, {len(self.record):,} steps recorded)"

    def __str__(self) -> str:
        return str(self.__rich__())

    def __rich__(self) -> View:
        from hyperstack.reports.view import View

        return View(self)

    def _repr_html_(self) -> str:
        """The run as a notebook shows it."""
        from hyperstack.reports.page import fragment  # which nobody else waits for

        return fragment(self)

    def __getitem__(self, name: str) -> Column:
        return self.record.columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.record.columns)

    def __len__(self) -> int:
        return len(self.record.columns)


def load_run(path: str | Path) -> Run:
    """Read the run in the folder `path`: one that `hyperstack train` or `hs.record` made.

    Runs that still train, or were killed, are read as far as they were recorded. An InputError where there is no run,
    or it is damaged, or of a newer format.
    """
    folder = RunFolder.existing(Path(path))
    plan = folder.read_heading()
    return Run(folder.path, plan, folder.read_summary(), folder.read_record(), last_written(folder))


def last_written(folder: RunFolder) -> datetime:
    """When a file of the run was last written, in local time."""
    files = [f for f in folder.path.iterdir() if f.is_file()]
    return datetime.fromtimestamp(max(f.stat().st_mtime for f in files), timezone.utc).astimezone()


def state(path: Path, summary: dict[str, Any] | None) -> str:
    """How the run in `path` ended, if it has: see `Run.state`."""
    if summary is None:
        return "running" if is_being_written(RunFolder(path).record) else "stopped"
    return "diverged" if summary.get("diverged") else "finished" if summary["finished"] else "interrupted"


def levels(stack: str) -> list[str]:
    """The text of each level of a stack. Unlike `hyperstack.parse` it knows no rules, and needs no torch."""
    try:
        node = ast.parse(stack, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [stack]
    above: list[str] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        above.append(_segment(stack, node.right))
        node = node.left
    return [_segment(stack, node), *reversed(above)]


def _segment(text: str, node: ast.expr) -> str:
    return ast.get_source_segment(text, node) or ast.unparse(node)
