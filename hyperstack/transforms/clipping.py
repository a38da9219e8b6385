"""Transforms that limit the size of a gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from hyperstack.transforms.base import Context, State, Transform

if TYPE_CHECKING:
    from torch import Tensor

    from hyperstack.numerics import Segments


@dataclass(frozen=True)
class Cumulative(Transform):
    """Clip each tensor's gradient to the cumulative average of its norm; there is no threshold to set.

    With n = ||g_t|| and θ' the average as it was left by step t-1:

        θ  <- n if t = 1, else ((t-1) θ' + n) / t
        g' <- g min(1, θ/n)                          (n = 0: g' = g)
        θ' <- n if t = 1, else ((t-1) θ' + ||g'||) / t

    t counts optimizer steps from the very first, whose hypergradient is 0, as in the authors' code. It
    matters: from a zero start the average of a steady gradient stays at half its norm, so that the
    clip halves it for ever, and the published benefit of clipping comes from there.
    `skip_zeros=True` counts from the first non-zero gradient instead. A non-finite norm neither enters
    the average nor counts as a step.

    Source: "Gradient clipping for automatic hyperparameter tuning" (Huang et al.), the algorithm of section 3.
    """

    name: ClassVar[str] = "cumulative"
    skip_zeros: bool = False

    def init(self, segments: Segments, like: Tensor) -> State:
        zeros = torch.zeros(len(segments), dtype=like.dtype, device=like.device)
        return {"steps": zeros, "average": zeros.clone()}

    def apply(self, gradient: Tensor, state: State, context: Context) -> tuple[Tensor, State, Tensor]:
        segments = context.segments
        norm, before = segments.norm(gradient), state["steps"]
        counts = torch.isfinite(norm)
        if self.skip_zeros:
            counts = counts & ((before > 0) | (norm > 0))
        total, steps = before * state["average"], before + 1
        clipped = torch.minimum(norm, (total + norm) / steps)
        factor = torch.where(counts & (norm > 0), clipped / norm, 1.0)
        after = {
            "steps": torch.where(counts, steps, before),
            "average": torch.where(counts, (total + clipped) / steps, state["average"]),
        }
        return gradient * segments.expand(factor), after, factor
