"""What a record says of each hyperparameter, in a few numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperstack.telemetry.jsonl import Record


@dataclass(frozen=True)
class Statistics:
    """One hyperparameter over the recorded steps; None where nothing finite was recorded.

    `first`, `last`, `min`, `max`: of the value, in natural units. `grad_median`, `grad_95`, `grad_max`: quantiles of
    the absolute raw hypergradient before clipping. `clipped`: the share of steps in which clipping made it smaller.
    `nonfinite`: in how many recorded steps it was not finite.
    """

    first: float | None
    last: float | None
    min: float | None
    max: float | None
    grad_median: float | None
    grad_95: float | None
    grad_max: float | None
    clipped: float | None
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


def tensor_statistics(record: Record) -> dict[str, TensorStatistics]:
    """The statistics of every parameter of which something was recorded, those first that were clipped most often."""
    found = {name: _of_tensor(columns) for name, columns in record.tensors.items()}
    return dict(sorted(found.items(), key=lambda pair: -(pair[1].clipped or 0.0)))


def _of_tensor(columns: dict[str, NDArray[np.float64]]) -> TensorStatistics:
    norm, trust = (_middle_and_end(columns.get(name)) for name in ("norm", "trust_ratio"))
    clip = columns.get("clip")
    below = clip[clip < 1] if clip is not None else np.empty(0)
    return TensorStatistics(
        *norm,
        float(len(below) / len(clip)) if clip is not None and len(clip) else None,
        float(below.mean()) if len(below) else None,
        *trust,
    )


def _middle_and_end(values: NDArray[np.float64] | None) -> tuple[float | None, float | None]:
    """The median and the largest of what is finite."""
    known = values[np.isfinite(values)] if values is not None else np.empty(0)
    return (float(np.median(known)), float(known.max())) if len(known) else (None, None)


def statistics(record: Record) -> dict[str, Statistics]:
    """The statistics of every recorded hyperparameter, by key."""
    return {key: _of(record, key) for key in record.keys}


def _of(record: Record, key: str) -> Statistics:
    value, grad, clip = (record.columns[f"{key}.{what}"] for what in ("value", "grad", "clip"))
    known = value[np.isfinite(value)]
    norms = np.abs(grad[np.isfinite(grad)])
    median, high, largest = np.quantile(norms, [0.5, 0.95, 1.0]).tolist() if len(norms) else [None] * 3
    first, last, low, top = map(float, (known[0], known[-1], known.min(), known.max())) if len(known) else [None] * 4
    return Statistics(
        first=first,
        last=last,
        min=low,
        max=top,
        grad_median=median,
        grad_95=high,
        grad_max=largest,
        clipped=float(np.mean(clip < 1)) if len(clip) else None,
        nonfinite=int(np.sum(~np.isfinite(grad))),
    )
