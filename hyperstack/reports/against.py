"""Error against a value that is varied: what the pictures of sweeps and of published experiments show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from hyperstack.reports.panels import Line, Panel
from hyperstack.telemetry.record import Column

DIVERGED = "X: runs diverged"


def curve(
    label: str,
    values: Iterable[float | None],
    means: Iterable[float | None],
    halves: Iterable[float | None] | None = None,
    diverged: Iterable[int] = (),
    most: float = math.inf,
) -> Line:
    """Means over values, in a band of so much to both sides, cut off at 0 and at `most`; None is a gap, and no band.

    diverged: how many runs did at each value.
    """
    steps, middle, broken = _column(values), _column(means), np.array([*diverged], dtype=bool)
    marked = broken if broken.any() else None
    if halves is None:
        return Line(label, steps, middle, marked=marked)
    wide = np.nan_to_num(_column(halves))
    low, high = (np.clip(middle + sign * wide, 0, most) for sign in (-1, 1))
    return Line(label, steps, middle, low, high, marked=marked)


def against(name: str, title: str, unit: str, lines: Sequence[Line]) -> Panel:
    """The panel of these lines over the values of a name."""
    unit = f"{unit}, {DIVERGED}" if any(line.marked is not None for line in lines) else unit
    placed = [replace(line, place=i) for i, line in enumerate(lines)]
    log = logarithmic(np.unique(np.concatenate([line.steps for line in lines])))
    return Panel(title, unit, placed, False, several=len(lines) > 1, across=name, log_across=log)


def logarithmic(values: Column) -> bool:
    """Whether rising values stand at more even distances by their logarithms; two do if they are decades apart."""
    if len(values) < 2 or values[0] <= 0:
        return False
    if len(values) == 2:
        return bool(values[1] >= 100 * values[0])
    linear, log = (gaps.max() / gaps.min() for gaps in (np.diff(values), np.diff(np.log(values))))
    return bool(log < linear)


def _column(values: Iterable[float | None]) -> Column:
    return np.array([math.nan if value is None else value for value in values], np.float64)
