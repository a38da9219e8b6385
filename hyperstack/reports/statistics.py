"""What a record says of each hyperparameter, and of each parameter of the network, in a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from hyperstack.reports.leveltext import is_clipped, is_norm
from hyperstack.telemetry.record import Column, Record


@dataclass(frozen=True)
class Statistics:
    """One hyperparameter over the recorded steps; None where nothing finite was recorded.

    Where hypergradients are measured at averages, every so many steps, all that is said of them here is of probes
    instead of steps: each of those that were recorded counts once.

    `first`, `last`, `min`, `max`: of the value, in natural units. `grad_median`, `grad_95`, `grad_max`: quantiles of
    the absolute raw hypergradient before clipping, and `grad_max_step`, the step of the largest. `average`: the
    cumulative average of its norm after the last step, which is the threshold of the next; None without such a clip.
    `clipped`: the share of steps in which clipping made the hypergradient smaller; `factor`: by what, on average over
    these steps. `flips`: the share of steps in which it had another sign than in the recorded step before, of those
    where neither was 0; one half for pure noise. `nonfinite`: in how many recorded steps it was not finite.
    """

    first: float | None
    last: float | None
    min: float | None
    max: float | None
    grad_median: float | None
    grad_95: float | None
    grad_max: float | None
    grad_max_step: int | None
    average: float | None
    clipped: float | None
    factor: float | None
    flips: float | None
    nonfinite: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class TensorStatistics:
    """One parameter of the network over the recorded steps; None where it was not recorded.

    `norm_median`, `norm_max`: of its gradient before the transforms. `clipped`: the share of steps in which they made
    it smaller, `factor`: by what, on average over these steps. `trust_median`, `trust_max`: its trust ratio, under a
    layer-wise rule.
    """

    norm_median: float | None
    norm_max: float | None
    clipped: float | None
    factor: float | None
    trust_median: float | None
    trust_max: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ProbeStatistics:
    """The probes of one hyperparameter that is learned at averages; None where nothing finite was recorded.

    `probes`: how many there were up to the last recorded step. `cosine_median`, `cosine_last`: of the gradient at the
    average with what a shift of the hyperparameter moved, from -1 to 1. `displacement_median`, `displacement_last`: how
    far that was.
    """

    probes: int
    cosine_median: float | None
    cosine_last: float | None
    displacement_median: float | None
    displacement_last: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def probe_statistics(record: Record) -> dict[str, ProbeStatistics]:
    """The statistics of the probes of every hyperparameter that has any, by key."""
    found: dict[str, ProbeStatistics] = {}
    for key in record.probed:
        counts, fresh = record.probes(key), record.fresh(key)
        known = [finite(record.columns[f"{key}.{what}"][fresh]) for what in ("cosine", "displacement")]
        pairs = [(float(np.median(x)), float(x[-1])) if len(x) else (None, None) for x in known]
        found[key] = ProbeStatistics(int(counts[-1]) if len(counts) else 0, *pairs[0], *pairs[1])
    return found


def tensor_statistics(record: Record) -> dict[str, TensorStatistics]:
    """The statistics of every parameter of which something was recorded, those first that were clipped most often."""
    found = {name: _of_tensor(columns) for name, columns in record.tensors.items()}
    return dict(sorted(found.items(), key=lambda pair: -(pair[1].clipped or 0.0)))


def statistics(record: Record) -> dict[str, Statistics]:
    """The statistics of every recorded hyperparameter, by key."""
    return {key: _of(record, key) for key in record.keys}


def statistics_of(record: Record, levels: Sequence[str]) -> dict[str, Statistics]:
    """The same of a run with this stack, level by level, without what has no meaning there.

    `clipped` is None where nothing clips, and `flips` where a norm was recorded, which has no sign.
    """
    found = statistics(record)
    for key, s in found.items():
        clipped = s.clipped if is_clipped(key, levels, s.clipped) else None
        found[key] = replace(s, clipped=clipped, flips=None if is_norm(key, levels) else s.flips)
    return found


def finite(values: Column) -> Column:
    """Those that are finite."""
    return values[np.isfinite(values)]


def _of_tensor(columns: dict[str, Column]) -> TensorStatistics:
    norm, trust = (_middle_and_end(columns.get(name)) for name in ("norm", "trust_ratio"))
    return TensorStatistics(*norm, *_clipping(columns.get("clip", np.empty(0))), *trust)


def _of(record: Record, key: str) -> Statistics:
    fresh = record.fresh(key)
    value, steps = record.columns[f"{key}.value"], record.steps[fresh]
    grad, clip = (record.columns[f"{key}.{what}"][fresh] for what in ("grad", "clip"))
    known, norms = finite(value), np.abs(grad)
    median, high = np.quantile(finite(norms), [0.5, 0.95]).tolist() if np.isfinite(norms).any() else (None, None)
    largest = int(np.argmax(np.where(np.isfinite(norms), norms, -1.0))) if median is not None else None
    first, last, low, top = map(float, (known[0], known[-1], known.min(), known.max())) if len(known) else [None] * 4
    averages = finite(record.columns.get(f"{key}.average", np.empty(0)))
    return Statistics(
        first=first,
        last=last,
        min=low,
        max=top,
        grad_median=median,
        grad_95=high,
        grad_max=None if largest is None else float(norms[largest]),
        grad_max_step=None if largest is None else int(steps[largest]),
        average=float(averages[-1]) if len(averages) else None,
        **dict(zip(("clipped", "factor"), _clipping(clip), strict=True)),
        flips=_flips(grad),
        nonfinite=int(np.sum(~np.isfinite(grad))),
    )


def _clipping(factors: Column) -> tuple[float | None, float | None]:
    """The share of steps in which a gradient was clipped, and the mean factor in these."""
    below = factors[(factors < 1) & (factors >= 0)]
    return (len(below) / len(factors) if len(factors) else None, float(below.mean()) if len(below) else None)


def _flips(grad: Column) -> float | None:
    """The share of changes of sign between neighbours that have one."""
    signs = np.sign(grad)
    pairs = signs[1:] * signs[:-1]
    pairs = pairs[np.abs(pairs) == 1]
    return float(np.mean(pairs < 0)) if len(pairs) else None


def _middle_and_end(values: Column | None) -> tuple[float | None, float | None]:
    """The median and the largest of what is finite."""
    known = finite(values) if values is not None else np.empty(0)
    return (float(np.median(known)), float(known.max())) if len(known) else (None, None)
