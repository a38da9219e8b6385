"""Transforms that keep one aspect of a gradient and drop another: its direction, or what differs within a unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from hyperstack.choices import option
from hyperstack.transforms.base import PER, Context, State, Transform, norms, ratio

if TYPE_CHECKING:
    from torch import Tensor

    from hyperstack.numerics import Segments


@dataclass(frozen=True)
class Centralize(Transform):
    """Gradient centralization: subtract from each unit's gradient its mean: G_i <- G_i - mean(G_i).

    A unit is what belongs to one index of the first dimension, the output in torch's layers. Tensors of fewer than two
    dimensions pass, and so do units of one number, of which nothing would be left; the paper's code makes those 0.
    Preserves differences within a unit, and not the direction. Where the mean is not finite, the unit passes as it is.
    On the levels above the first, whose tensors have fewer dimensions, it changes nothing.

    Source: Yong, Huang, Hua and Zhang, "Gradient centralization: a new optimization technique for deep neural networks"
    (2020), equation 1.
    """

    name: ClassVar[str] = "centralize"

    def init(self, segments: Segments, like: Tensor) -> State:
        return {}

    def apply(self, gradient: Tensor, state: State, context: Context) -> tuple[Tensor, State, Tensor]:
        segments = context.segments
        if segments.all_scalar:
            return gradient, state, torch.ones_like(gradient)
        after = torch.cat([_centred(x).reshape(-1) for x in segments.tensors(gradient)])
        return after, state, ratio(segments, after, gradient)


def _centred(x: Tensor) -> Tensor:
    if x.dim() < 2 or x.shape[1:].numel() < 2:
        return x
    mean = x.mean(tuple(range(1, x.dim())), keepdim=True)
    return x - torch.where(torch.isfinite(mean), mean, 0.0)


@dataclass(frozen=True)
class Normalize(Transform):
    """Make the gradient's norm 1: g' <- g / ||g||, and 0 stays 0.

    Each tensor's, or with `per="level"` that of all the level's tensors together. Preserves the direction and drops
    the size: steps no longer shrink near a minimum, so that only the rate can end them. Where the norm is not finite,
    the gradient passes as it is.

    Source: Hazan, Levy and Shalev-Shwartz, "Beyond convexity: stochastic quasi-convex optimization" (2015),
    Algorithm 1.
    """

    name: ClassVar[str] = "normalize"
    per: str = option("tensor", PER, "whose norm becomes 1")

    def init(self, segments: Segments, like: Tensor) -> State:
        return {}

    def apply(self, gradient: Tensor, state: State, context: Context) -> tuple[Tensor, State, Tensor]:
        segments = context.segments
        norm = norms(segments, gradient, self.per)
        norm = torch.where(torch.isfinite(norm) & (norm > 0), norm, 1.0)
        return gradient / segments.expand(norm), state, 1 / norm


@dataclass(frozen=True)
class Cosine(Transform):
    """For upper levels: the cosine of the angle between the gradient below and what a hyperparameter does.

        ĝ = g · ∂θ/∂h   <-   g · ∂θ/∂h / (||g|| ||∂θ/∂h||)

    It lies in [-1, 1], so that the rate of this level has no unit, whatever the size of the losses, of the network, or
    of the hyperparameter. g is the gradient of what the level below updates, θ the parameters or the raw
    hyperparameters of the level below that, and ∂θ/∂h the derivative of their last update. Where that is 0, or lost in
    rounding, so is the result. Measured at averages, a small one may count for more: see `Average`. It stands first
    among the transforms of a level: it undoes what is done before it. Ours, without a publication.
    """

    name: ClassVar[str] = "cosine"
    reads_slope: ClassVar[bool] = True

    def init(self, segments: Segments, like: Tensor) -> State:
        return {}

    def apply(self, gradient: Tensor, state: State, context: Context) -> tuple[Tensor, State, Tensor]:
        slope = torch.zeros_like(gradient) if context.slope is None else context.slope
        found = torch.where(slope > 0, gradient / slope, 0.0)
        return found, state, ratio(context.segments, found, gradient)
