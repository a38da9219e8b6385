"""Figures over several runs: means, standard deviations, and the summary of a hyperparameter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hyperstack.reports.statistics import Statistics


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (with n - 1) of the finite ones of some numbers, and how many these are.

    `mean` is None where there is none, `std` where there are fewer than two.
    """

    mean: float | None
    std: float | None
    n: int

    @classmethod
    def of(cls, numbers: Iterable[float | None]) -> Spread:
        """The spread of these numbers; None, NaN and infinity do not count."""
        known = np.array([x for x in numbers if x is not None and math.isfinite(x)], np.float64)
        if not len(known):
            return cls(None, None, 0)
        scale = float(np.abs(known).max()) or 1.0  # so that the sums of large numbers stay finite
        with np.errstate(over="ignore"):
            std = float((known / scale).std(ddof=1) * scale) if len(known) > 1 else None
        return cls(float((known / scale).mean() * scale), std, len(known))

    @property
    def error(self) -> float | None:
        """The standard error of the mean; None where there are fewer than two numbers."""
        return None if self.std is None else self.std / math.sqrt(self.n)


@dataclass(frozen=True)
class KeySummary:
    """A hyperparameter over the runs of a group.

    `last`: its value after the last recorded step. `median`: of the absolute raw hypergradient before clipping.
    `clipped`: the share of steps in which it was clipped. Each is spread over the runs. `max`: the largest absolute
    hypergradient of any of the runs, None where nothing finite was recorded.
    """

    last: Spread
    median: Spread
    max: float | None
    clipped: Spread

    @classmethod
    def of(cls, found: Sequence[Statistics]) -> KeySummary:
        """The summary of one hyperparameter's statistics in each run."""
        largest = [s.grad_max for s in found if s.grad_max is not None]
        spreads = (Spread.of(getattr(s, name) for s in found) for name in ("last", "grad_median", "clipped"))
        last, median, clipped = spreads
        return cls(last, median, max(largest, default=None), clipped)
