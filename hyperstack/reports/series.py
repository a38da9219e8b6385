"""Series of numbers as a line of text."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from hyperstack.telemetry.record import Column

BLOCKS, ASCII = "▁▂▃▄▅▆▇█", "_.:-=+*#"


def binned(values: Column, width: int, log: bool = False) -> Column:
    """A series in at most `width` numbers: the mean of each part, or with `log` of its logarithm to base 10.

    Only what is finite counts, with `log` only what is positive; NaN where a part has nothing of that.
    """
    if not len(values):
        return np.empty(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        series = np.log10(values) if log else values
    known = np.isfinite(series)
    starts = np.unique(np.arange(min(width, len(values))) * len(values) // min(width, len(values)))
    counts = np.add.reduceat(known.astype(float), starts)
    scale = np.abs(series[known]).max(initial=1.0)  # so that the sum of large numbers stays finite
    sums = np.add.reduceat(np.where(known, series, 0.0) / scale, starts)
    means: Column = np.full(len(starts), np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    means *= scale
    return means


def sparkline(values: Column, width: int, log: bool = False, ascii_only: bool = False) -> str:
    """A series as a line of at most `width` bars, from its smallest part to its largest; a gap where nothing is finite.

    log: the heights are those of the logarithm, and what is not positive is a gap.
    """
    heights = binned(values, width, log)
    return bars(heights, *extent([heights]), ascii_only)


def extent(series: Iterable[Column]) -> tuple[float, float]:
    """The smallest and the largest of what is finite in any of these series; (0, 0) where nothing is."""
    known = [column[np.isfinite(column)] for column in series]
    lows, highs = ([f(column) for column in known if len(column)] for f in (np.min, np.max))
    return (float(min(lows)), float(max(highs))) if lows else (0.0, 0.0)


def bars(heights: Column, low: float, high: float, ascii_only: bool = False) -> str:
    """A bar for each height, on the scale from `low` to `high`; a gap where it is not finite."""
    ramp = ASCII if ascii_only else BLOCKS
    span = high / 2 - low / 2  # halves, because the difference of large numbers may be infinite
    flat = not span > 1e-12 * max(abs(low), abs(high))
    scaled = heights * 0 if flat else (heights / 2 - low / 2) / span * len(ramp)
    return "".join(" " if math.isnan(x) else ramp[min(int(x), len(ramp) - 1)] for x in scaled.tolist())
