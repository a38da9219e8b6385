"""What the pictures of runs show, before anything is drawn: the loss, each hyperparameter, and its hypergradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hyperstack.reports.series import binned
from hyperstack.telemetry.record import Column

if TYPE_CHECKING:
    from hyperstack.reports.run import Run

POINTS = 1000  # of a line: more than a screen has columns
LARGEST = 1e150
DECADES = 2  # powers of ten between the least and the largest value, from which on a linear axis hides the small ones


@dataclass(frozen=True)
class Line:
    """One run in a panel: `values` over `steps`; what is NaN is a gap.

    `least`, `largest`: of the steps whose mean a value is; None where each is one step. `place`: which of the runs it
    is, from 0, so that a run looks the same in every panel, also where others are missing. `marked`: values that get a
    cross, one flag each; None where none does.
    """

    label: str
    steps: Column
    values: Column
    least: Column | None = None
    largest: Column | None = None
    place: int = 0
    marked: Column | None = None


@dataclass(frozen=True)
class Panel:
    """One picture: `title` names what is shown, `unit` what its vertical axis counts; `log`: a logarithmic axis.

    `several`: whether there is more than one run to tell from others, here or in another panel.
    `across`: what the horizontal axis counts, the `steps` of the lines; `log_across`: a logarithmic one, all above 0.
    """

    title: str
    unit: str
    lines: list[Line]
    log: bool
    several: bool = False
    across: str = "step"
    log_across: bool = False


def panels(runs: Sequence[tuple[str, Run]], keys: Sequence[str] | None, log: bool) -> list[Panel]:
    """The pictures of runs, each with its label: the loss, then the value and the hypergradient of each key.

    Where a key is measured at averages, its cosine and its displacement stand behind these.

    keys: such as "0.lr"; None: of all runs, in the order of the first that has them. What no run has is left out.
    log: hypergradients that span a power of ten stand on a logarithmic axis, and so do losses and values that are all
    positive and span two. The absolute value of a hypergradient is shown; on a logarithmic axis 0 is a gap.

    NaN and infinity are gaps. A line has at most 1000 points: a longer one is cut into 1000 equal parts, of each of
    which the mean (on a logarithmic axis that of logarithms), the least and the largest value are kept, so that no
    spike is lost.
    """
    if keys is None:
        keys = list(dict.fromkeys(key for _, run in runs for key in run.record.keys))
    found = [_panel("loss", "mean of the step's batch", runs, "loss", log)]
    for key in keys:
        found.append(_panel(key, "value", runs, f"{key}.value", log))
        found.append(_panel(f"hypergradient of {key}", "norm before clipping", runs, f"{key}.grad", log, norm=True))
        found.append(_panel(f"cosine of {key}", "-1: too low, 1: too high", runs, f"{key}.cosine", False))
        found.append(_panel(f"displacement of {key}", "norm", runs, f"{key}.displacement", log, norm=True))
    return [panel for panel in found if panel.lines]


def drawable(values: Column, log: bool) -> Column:
    """What an axis can show: NaN for all that is not finite, and on a logarithmic one for what is not positive.

    Magnitudes beyond 1e150 are drawn as 1e150, those below 1e-150 as 0: the arithmetic of axes would overflow.
    """
    with np.errstate(invalid="ignore"):
        bounded = np.where(np.abs(values) < 1 / LARGEST, 0.0, np.clip(values, -LARGEST, LARGEST))
        shown: Column = np.where(np.isfinite(values) & ((bounded > 0) | (not log)), bounded, np.nan)
    return shown


def reduced(label: str, steps: Column, values: Column, log: bool, points: int = POINTS) -> Line:
    """A line in at most `points` points; each the mean of a part, of logarithms with `log`, where there are more."""
    if len(values) <= points:
        return Line(label, steps, values)
    means = binned(values, points, log)
    starts = np.arange(points) * len(values) // points
    least, largest = np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts)
    return Line(label, binned(steps, points), 10**means if log else means, least, largest)


def _panel(title: str, unit: str, runs: Sequence[tuple[str, Run]], column: str, log: bool, norm: bool = False) -> Panel:
    """The panel of one column of all runs that have it."""
    having = [(place, label, run) for place, (label, run) in enumerate(runs) if column in run]
    columns = [np.abs(run[column]) if norm else run[column] for _, _, run in having]
    log = log and _fits_log(columns, norm)
    lines = [
        replace(reduced(label, run["step"], drawable(values, log), log), place=place)
        for (place, label, run), values in zip(having, columns, strict=True)
    ]
    return Panel(title, unit, lines, log, len(runs) > 1)


def _fits_log(columns: list[Column], norm: bool) -> bool:
    """Whether a logarithmic axis shows these better; a norm may be 0 here and there."""
    known = [values[np.isfinite(values) & ((values != 0) if norm else True)] for values in columns]
    ends = [(float(values.min()), float(values.max())) for values in known if len(values)]
    least, largest = min((low for low, _ in ends), default=0.0), max((high for _, high in ends), default=0.0)
    return least > 0 and float(np.log10(largest) - np.log10(least)) >= (1 if norm else DECADES)
