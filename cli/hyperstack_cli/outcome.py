"""What came of a run, in lines, and how to go on with one that has not come to its end."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hyperstack.reports.text import number, percent


def outcome(summary: Mapping[str, Any], plan: Mapping[str, Any], path: Path) -> list[str]:
    """The result of a run that ended, and for one that was interrupted, how to go on."""
    if not summary["finished"]:
        checkpoint = ", with a checkpoint" if is_trained(plan) else ""
        heading = f"interrupted after step {summary['steps']:,}{checkpoint}; to go on:"
        return [heading, f"  {again(plan, path, summary['steps'])}"]
    lines = []
    if summary["diverged"]:
        place = f" in epoch {summary['epochs']}" if summary["epochs"] is not None else ""
        lines.append(f"diverged{place}: the loss or the network holds numbers that are not finite")
    figures = f"{summary['seconds']:,.1f} s, {summary['steps']:,} steps"
    if is_trained(plan) or summary["test_error"] is not None:
        figures = f"test error {percent(summary['test_error'])}, train loss {number(summary['train_loss'])}, {figures}"
    return [*lines, figures]


def is_trained(plan: Mapping[str, Any]) -> bool:
    """Whether `hyperstack train` made the run, and not a loop of the user's own."""
    return "epochs" in plan


def again(plan: Mapping[str, Any], path: Path, step: int) -> str:
    """What goes on with a run behind its last checkpoint, or in a loop of the user's own behind `step`."""
    if is_trained(plan):
        return f"hyperstack train {shlex.quote(plan['task'])} --out {shlex.quote(str(path))} --resume"
    return f"hs.record(opt, {str(path)!r}, after={step})"


def inspect_line(path: Path) -> str:
    """What shows more of a run."""
    return f"inspect    hyperstack inspect {shlex.quote(str(path))}"
