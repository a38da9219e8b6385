"""What a sweep came to: one row a stack and choice of values, over its seeds; and rows along the values of a name."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hyperstack.rivals import read_optimizer
from hyperstack.sweep.grid import Cell


@dataclass(frozen=True)
class Row:
    """`stack`, which is `template` with its names bound to `values`; over `runs` seeds that have ended, of which
    `diverged` so many: mean and standard deviation (with n - 1; nan for a single one) of the test error, 0 to 1, of all
    that have ended.
    """

    template: str
    stack: str
    values: tuple[tuple[str, float], ...]
    runs: int
    diverged: int
    mean: float
    deviation: float


def rows(cells: Sequence[Cell], results: Mapping[int, Mapping[str, Any]]) -> list[Row]:
    """The rows in the order of their first cells; those of which no run has ended are left out."""
    groups: dict[str, list[int]] = {}
    for i, cell in enumerate(cells):
        if i in results:
            groups.setdefault(str(cell.stack), []).append(i)
    found = []
    for stack, places in groups.items():
        errors = [float(results[i]["test_error"]) for i in places]
        known = len(errors) > 1 and all(map(math.isfinite, errors))
        spread = statistics.stdev(errors) if known else math.nan
        diverged = sum(bool(results[i]["diverged"]) for i in places)
        first = cells[places[0]]
        mean = statistics.fmean(errors)
        found.append(Row(first.template, stack, first.values, len(places), diverged, mean, spread))
    return found


def axis_name(grid: Mapping[str, Sequence[float]]) -> str | None:
    """The name along which a sweep is drawn: that with the most values, the first of these; None without any."""
    return max(grid, key=lambda name: len(grid[name]), default=None)


def along(name: str | None, template: str, values: Sequence[tuple[str, float]]) -> str:
    """The curve to which a cell belongs: its stack with all names bound but the one that it is drawn along."""
    return str(read_optimizer(template).bind(**{other: value for other, value in values if other != name}))
