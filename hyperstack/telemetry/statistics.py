"""What a record says of each hyperparameter, in a few numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

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
