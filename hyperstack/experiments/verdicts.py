"""What a measured figure says of a published one: intervals, and the rule by which verdicts are given."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = "reproduced", "not reproduced", "inconclusive"
RULE = (
    "A figure: m is the mean of n seeds, s their standard deviation (n - 1); p is the published figure, the mean of N "
    "runs. D = t sqrt(s²/n + S²/N) + half a unit of p's last digit is the difference that chance allows, at 95 %: t is "
    "Student's with n - 1 degrees of freedom, S the published standard deviation, or s where none is given.",
    "It is reproduced where |m - p| <= D, and not reproduced where |m - p| > D. It is inconclusive where |m - p| <= D "
    "says little, because D is over half of p; of percentages, over half of p or of 100 - p, whichever is less.",
    "A claim that one stack is better than another: reproduced where the 95 % t-interval of the differences between "
    "runs of one seed is wholly on the claimed side of 0, not reproduced where no part of it is, else inconclusive. Of "
    "a claim that two are alike, the claimed side is from minus to plus the difference that it names.",
    "With fewer than two seeds, or fewer epochs than published, everything is inconclusive.",
    "The intervals take means to be normal. Where some runs train and others fail, they are not: one run in three that "
    "fares differently moves a figure by 30 points, and a verdict on it says little, whichever it is.",
)
"""The rule in words, as it is shown with every result."""

# The 0.975 quantile of Student's t with 1, 2, ... degrees of freedom.
QUANTILES = (
    12.7062, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.30600, 2.26216, 2.22814,
    2.20099, 2.17881, 2.16037, 2.14479, 2.13145, 2.11991, 2.10982, 2.10092, 2.09302, 2.08596,
    2.07961, 2.07387, 2.06866, 2.06390, 2.05954, 2.05553, 2.05183, 2.04841, 2.04523, 2.04227,
)  # fmt: skip
NORMAL = 1.959964
WIDEST = 0.5


@dataclass(frozen=True)
class Verdict:
    """`mean` of what was measured, or of differences; `half`: of its 95 % t-interval, None for fewer than two numbers;
    `allowed`: the difference D that chance allows, None where no figure is judged.
    """

    verdict: str
    mean: float
    half: float | None
    allowed: float | None = None


def quantile(freedom: int) -> float:
    """The 0.975 quantile of Student's t; beyond 30 degrees of freedom by its expansion around the normal one."""
    if freedom <= len(QUANTILES):
        return QUANTILES[freedom - 1]
    z = NORMAL
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def judged(
    figures: Sequence[float],
    published: float,
    *,
    spread: float | None,
    runs: int,
    digits: int,
    percent: bool,
    whole: bool,
) -> Verdict:
    """Whether a published figure is reproduced.

    figures: measured, one a seed, in the unit of `published`, which is the mean of `runs` runs with the standard
    deviation `spread` and has so many `digits` behind the point. whole: whether the runs had all their epochs.
    """
    mean, half = interval(figures)
    if half is None:
        return Verdict(INCONCLUSIVE, mean, None)
    n, own = len(figures), statistics.stdev(figures)
    deviation = math.hypot(own / math.sqrt(n), (own if spread is None else spread) / math.sqrt(runs))
    allowed = quantile(n - 1) * deviation + 0.5 * 10.0**-digits
    size = min(published, 100 - published) if percent else abs(published)
    if not whole:
        verdict = INCONCLUSIVE
    elif abs(mean - published) > allowed * (1 + 1e-12):
        verdict = NOT_REPRODUCED
    else:
        verdict = REPRODUCED if allowed <= WIDEST * size else INCONCLUSIVE
    return Verdict(verdict, mean, half, allowed)


def compared(gains: Sequence[float], within: float | None, whole: bool) -> Verdict:
    """Whether a comparison is reproduced: `gains`, by how much the first is better, seed by seed."""
    mean, half = interval(gains)
    if half is None or not whole:
        return Verdict(INCONCLUSIVE, mean, half)
    low, high = mean - half, mean + half
    if within is None:
        verdict = REPRODUCED if low > 0 else NOT_REPRODUCED if high <= 0 else INCONCLUSIVE
    else:
        inside, outside = -within <= low and high <= within, low > within or high < -within
        verdict = REPRODUCED if inside else NOT_REPRODUCED if outside else INCONCLUSIVE
    return Verdict(verdict, mean, half)


def interval(numbers: Sequence[float]) -> tuple[float, float | None]:
    """The mean and the half width of its 95 % t-interval, None for a single number."""
    mean, n = statistics.fmean(numbers), len(numbers)
    return mean, quantile(n - 1) * statistics.stdev(numbers) / math.sqrt(n) if n > 1 else None
