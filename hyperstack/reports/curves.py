"""The same series of several runs as lines of text that compare: one scale of heights, one scale of steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hyperstack.reports.series import bars, binned, extent
from hyperstack.telemetry.record import Column, Record

LARGEST = 308.25  # power of ten that a number can hold
DECADES = 2.0  # powers of ten between smallest and largest, from which on a scale is logarithmic


class Curves:
    """Sparklines of one column of several records, on a common scale of at most `width` characters.

    The longest record has all of the width, and others as much of it as they have of its steps. The heights go from
    the smallest to the largest mean of any of them; by their logarithm where all that is recorded is positive and
    spans more than two powers of ten, unless `log` is False.
    """

    def __init__(
        self, records: Sequence[Record], column: str, width: int, absolute: bool = False, log: bool = True
    ) -> None:
        series = [record.columns.get(column, np.empty(0)) for record in records]
        series = [np.abs(values) for values in series] if absolute else series
        low, high = extent(series)
        smallest, _ = extent([values[values > 0] for values in series]) if absolute else (low, high)
        self.log = bool(log and smallest > 0 and np.log10(high) - np.log10(smallest) > DECADES)
        self.flat = all(low == high for low, high in (extent([values]) for values in series))
        ends = [float(record.steps[-1]) if len(values) else 0.0 for record, values in zip(records, series, strict=True)]
        starts = [float(record.steps[0]) for record, values in zip(records, series, strict=True) if len(values)]
        start, end = min(starts, default=0.0), max(ends)
        sizes = [max(1, round(width * (last - start + 1) / (end - start + 1))) for last in ends]
        self.heights = [_stretched(binned(v, size, self.log), size) for v, size in zip(series, sizes, strict=True)]
        self.low, self.high = extent(self.heights)

    @property
    def range(self) -> tuple[float, float]:
        """What the lowest and the highest bar stand for, in the unit of the column."""
        return (10.0**self.low, 10.0 ** min(self.high, LARGEST)) if self.log else (self.low, self.high)

    def lines(self, ascii_only: bool = False) -> list[str]:
        """A line for each record, empty where it lacks the column."""
        return [bars(heights, self.low, self.high, ascii_only) for heights in self.heights]


def _stretched(heights: Column, width: int) -> Column:
    """A short series as wide as its steps are: each number as often as needed."""
    return heights[np.arange(width) * len(heights) // width] if len(heights) else heights
