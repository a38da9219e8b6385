"""Transforms that limit the size of a gradient by a number that is given, or by the average of its own norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from hyperstack.choices import option
from hyperstack.hyperparameter import POSITIVE
from hyperstack.transforms.base import PER, Context, State, Transform, norm_factor, norms, ratio

if TYPE_CHECKING:
    from torch import Tensor

    from hyperstack.numerics import Segments


@dataclass(frozen=True)
class Value(Transform):
    """Limit every number of the gradient to [-c, c]: g' <- min(max(g, -c), c).

    Preserves the sign of every number, and not the direction. An infinite number becomes c or -c, one that is not
    a number stays.

    Source: Mikolov, "Statistical language models based on neural networks" (2012); `torch.nn.utils.clip_grad_value_`.
    """

    name: ClassVar[str] = "value"
    c: float = option(domain=POSITIVE, doc="the largest absolute value")

    def init(self, segments: Segments, like: Tensor) -> State:
        return {}

    def apply(self, gradient: Tensor, state: State, context: Context) -> tuple[Tensor, State, Tensor]:
        after = gradient.clamp(-self.c, self.c)
        return after, state, ratio(context.segments, after, gradient)


@dataclass(frozen=True)
class Norm(Transform):
    """Scale the gradient down to a norm of at most c: g' <- g min(1, c / ||g||).

    The norm is that of all the level's tensors together, or `per="tensor"`, with `names` for a bound a layer.
    Preserves the direction: of the whole gradient, or of each tensor. Where the norm is not finite, the gradient
    passes as it is. `torch.nn.utils.clip_grad_norm_` divides by ||g|| + 1e-6 instead, and so ends a little below c.

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks" (2013), Algorithm 1.
    """

    name: ClassVar[str] = "norm"
    c: float = option(domain=POSITIVE, doc="the largest norm")
    per: str = option("level", PER, "whose norm is limited")

    def init(self, segments: Segments, like: Tensor) -> State:
        return {}

    def apply(self, gradient: Tensor, state: State, context: Context) -> tuple[Tensor, State, Tensor]:
        segments = context.segments
        factor = norm_factor(self.c, norms(segments, gradient, self.per))
        return gradient * segments.expand(factor), state, factor


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
    the average nor counts as a step, and the gradient passes as it is. `per="level"` goes by the norm of all the
    level's tensors together. Preserves the direction, of each tensor or of the whole gradient.

    Source: "Gradient clipping for automatic hyperparameter tuning" (Huang et al.), the algorithm of section 3.
    """

    name: ClassVar[str] = "cumulative"
    skip_zeros: bool = option(False, doc="count from the first gradient that is not 0")
    per: str = option("tensor", PER, "whose norm is averaged")

    def init(self, segments: Segments, like: Tensor) -> State:
        zeros = torch.zeros(len(segments), dtype=like.dtype, device=like.device)
        return {"steps": zeros, "average": zeros.clone()}

    def apply(self, gradient: Tensor, state: State, context: Context) -> tuple[Tensor, State, Tensor]:
        segments = context.segments
        norm, before = norms(segments, gradient, self.per), state["steps"]
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
