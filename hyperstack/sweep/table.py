"""What a sweep came to: one row a stack and choice of values, over its seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hyperstack.sweep.grid import Cell


@dataclass(frozen=True)
class Row:
    """`stack` with its names bound; over `runs` seeds that have ended, of which `diverged` so many: mean and standard
    deviation (with n - 1; nan for a single one) of the test error, 0 to 1, of all that have ended.
    """

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
        spread = statistics.stdev(errors) if len(errors) > 1 else math.nan
        diverged = sum(bool(results[i]["diverged"]) for i in places)
        values = cells[places[0]].values
        found.append(Row(stack, values, len(places), diverged, statistics.fmean(errors), spread))
    return found
