"""How the entrants of a comparison stand, on the screen and as pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from hyperstack.experiments.comparison import START
from hyperstack.reports.panels import Line, Panel
from hyperstack.reports.text import number
from hyperstack.schedule import CONSTANT
from hyperstack_cli.published import item, part_line, plus_minus, show_head


def show_comparison(console: Console, found: dict[str, Any]) -> None:
    """All of the outcome: errors by start, best and area, what the figures say, what was not run, and by which rule."""
    show_head(console, found)
    for part in found["parts"]:
        console.print(f"\n{part_line(part)}")
        for each in part["entrants"]:
            console.print(f"  {written(each)}", soft_wrap=True)
        console.print(f"{found['measure']}, {found['unit']}, by {START}")
        for starts in _apart(part):
            console.print(_table(errors(part, starts, found["digits"], "\n")))
            console.print()
        console.print(_table(summary(part, found["digits"])))
        for sentence in part["says"]:
            console.print(item("-", sentence))
    for each in found["not_run"]:
        console.print(f"\nnot run: {each['row']}: {each['why']}")
    for title, lines in (("remarks", found["remarks"]), ("how it is measured", found["rule"])):
        console.print(f"\n{title}")
        for line in lines:
            console.print(item("-", line))


def written(entrant: dict[str, Any]) -> str:
    """An entrant in a line."""
    course = "" if entrant["schedule"] == CONSTANT else f", schedule {entrant['schedule']}"
    return f"{entrant['label']}: {entrant['stack']}{course}"


def starts_of(part: dict[str, Any]) -> list[float]:
    """All that anybody was trained from."""
    return sorted({row["start"] for each in part["entrants"] for row in each["rows"]})


def _apart(part: dict[str, Any]) -> list[list[float]]:
    """The starts of all, and those of some alone: side by side they do not fit 80 columns."""
    finer = [start for start in starts_of(part) if start not in part["starts"]]
    return [part["starts"], finer] if finer else [part["starts"]]


def errors(part: dict[str, Any], starts: Sequence[float], digits: int, between: str = " ") -> list[list[str]]:
    """A heading and a row for each entrant that was trained from any of these starts: its error from each."""
    rows = []
    for each in part["entrants"]:
        found = {row["start"]: _cell(row, digits, between, part) for row in each["rows"]}
        if found.keys() & {*starts}:
            rows.append([each["label"], *(found.get(start, "") for start in starts)])
    return [["", *map(number, starts)], *rows]


def _cell(row: dict[str, Any], digits: int, between: str, part: dict[str, Any]) -> str:
    """Mean and deviation, with a star where runs diverged, and where some are still to come, of how many."""
    if row["mean"] is None:
        return "-"
    star = "*" if row["diverged"] else ""
    spread = "" if row["deviation"] is None else f"{between}± {row['deviation']:.{digits}f}"
    asked = row.get("seeds", len(part["seeds"]))  # which earlier outcomes did not have
    so_far = "" if len(row["figures"]) == asked else f"{between}of {len(row['figures'])}"
    return f"{row['mean']:.{digits}f}{star}{spread}{so_far}"


def summary(part: dict[str, Any], digits: int) -> list[list[str]]:
    """A heading and a row for each entrant: its best and of how many runs a seed, at its default, and the area.

    How many runs diverged stands in a last column, where there are any.
    """
    rows = [["", "best", f"at {START}", "of runs", "default", "area", "diverged"]]
    for each in part["entrants"]:
        at = {row["start"]: _cell(row, digits, " ", part) for row in each["rows"]}
        total = each["area"]
        middle = "-" if total["mean"] is None else f"{total['mean']:.{digits}f}{plus_minus(total['half'], digits)}"
        diverged = sum(row["diverged"] for row in each["rows"])
        best = ["-", "-"] if each["best"] is None else [at[each["best"]], number(each["best"])]
        default = "" if each["default"] is None else at[each["default"]]
        rows.append([each["label"], *best, str(each["runs"]), default, middle, str(diverged) if diverged else ""])
    return rows if any(row[-1] for row in rows[1:]) else [row[:-1] for row in rows]


def _table(rows: list[list[str]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for i, title in enumerate(rows[0]):
        table.add_column(title, justify="right" if i else "left", no_wrap=bool(i))
    for row in rows[1:]:
        table.add_row(*row)
    return table


def comparison_pictures(found: dict[str, Any]) -> list[Panel]:
    """A panel for each part that has results: mean errors against the start, from the least to the largest of the seeds
    in bands.
    """
    panels = []
    for part in found["parts"]:
        lines = []
        for place, each in enumerate(part["entrants"]):
            rows = [row for row in each["rows"] if row["mean"] is not None]
            if not rows:
                continue
            figures = [list(row["figures"].values()) for row in rows]
            least, largest = (np.array([pick(x) for x in figures], np.float64) for pick in (min, max))
            starts, means = (np.array([row[key] for row in rows], np.float64) for key in ("start", "mean"))
            lines.append(Line(each["label"], starts, means, least, largest, place))
        log = all(value > 0 for line in lines for value in line.values if not math.isnan(value))
        unit = f"{found['measure']}, {found['unit']}"
        if lines:
            panels.append(Panel(part["name"], unit, lines, log, several=True, across=START, log_across=True))
    return panels
