"""Transforms after which a gradient has another unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from hyperstack.transforms.base import Context, State, Transform

if TYPE_CHECKING:
    from torch import Tensor

    from hyperstack.numerics import Segments


@dataclass(frozen=True)
class Cosine(Transform):
    """For upper levels: the cosine of the angle between the gradient below and what a hyperparameter does.

        ĝ = g · ∂θ/∂h   <-   g · ∂θ/∂h / (||g|| ||∂θ/∂h||)

    It lies in [-1, 1], so that the rate of this level has no unit, whatever the size of the losses, of the network, or
    of the hyperparameter. g is the gradient of what the level below updates, θ the parameters or the raw
    hyperparameters of the level below that, and ∂θ/∂h the derivative of their last update. Where that is 0, or lost in
    rounding, so is the result. It stands first among the transforms of a level: it undoes what is done before it. Ours,
    without a publication.
    """

    name: ClassVar[str] = "cosine"
    reads_slope: ClassVar[bool] = True

    def init(self, segments: Segments, like: Tensor) -> State:
        return {}

    def apply(self, gradient: Tensor, state: State, context: Context) -> tuple[Tensor, State, Tensor]:
        segments = context.segments
        slope = torch.zeros_like(gradient) if context.slope is None else context.slope
        found = torch.where(slope > 0, gradient / slope, 0.0)
        norm = segments.norm(gradient)
        return found, state, torch.where(norm > 0, segments.norm(found) / norm, 1.0)
