"""Transforms that limit the size of a gradient by what norms were, or by the size of what it moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from hyperstack.choices import option
from hyperstack.hyperparameter import POSITIVE, Interval
from hyperstack.numerics import spread_bound
from hyperstack.transforms.base import PER, Context, State, Transform, norm_factor, norms, ratio

if TYPE_CHECKING:
    from torch import Tensor

    from hyperstack.numerics import Segments

DECAY = Interval(0.0, 1.0, low_open=True, high_open=True)


@dataclass(frozen=True)
class Adaptive(Transform):
    """Limit the norm to n standard deviations above its running mean.

    With μ and s the moving averages of ||g|| and ||g||² as earlier steps left them:

        g' <- g min(1, (μ + n sqrt(max(s - μ², 0))) / ||g||)
        μ  <- β μ + (1-β) ||g||;   s <- β s + (1-β) ||g||²

    The averages start at 3 ||g|| and 9 ||g||² of the first norm that is finite and not 0, an overestimate that decays
    to what is right: until then, hardly anything is clipped. The norm that enters is the unclipped one, so that a
    lasting rise is followed. A norm that is not finite, or whose square is not, does not enter; where the norm itself
    is not finite, the gradient passes as it is. Preserves the direction, of each tensor or, with `per="level"`, of
    the whole gradient.

    Source: Ede and Beanland, "Adaptive learning rate clipping stabilizes learning" (2020), Algorithm 1, which applies
    the rule to losses; here it is applied to norms. It leaves the start to the user, with μ² < s.
    """

    name: ClassVar[str] = "adaptive"
    n: float = option(3.0, POSITIVE, "standard deviations above the mean")
    decay: float = option(0.999, DECAY, "β: decay of the averages")
    per: str = option("tensor", PER, "whose norm is averaged")

    def init(self, segments: Segments, like: Tensor) -> State:
        zeros = torch.zeros(len(segments), dtype=like.dtype, device=like.device)
        return {"mean": zeros, "square": zeros.clone()}

    def apply(self, gradient: Tensor, state: State, context: Context) -> tuple[Tensor, State, Tensor]:
        segments, (mean, square) = context.segments, (state["mean"], state["square"])
        norm = norms(segments, gradient, self.per)
        first, started = 3 * norm, mean > 0
        factor = torch.where(started, norm_factor(spread_bound(mean, square, self.n)[1], norm), 1.0)
        counts = torch.isfinite(first * first) & (started | (norm > 0))
        # The first square is exactly that of the first mean, so that rounding adds no spread.
        new_mean = torch.where(started, self.decay * mean + (1 - self.decay) * norm, first)
        new_square = torch.where(started, self.decay * square + (1 - self.decay) * (norm * norm), first * first)
        after = {"mean": torch.where(counts, new_mean, mean), "square": torch.where(counts, new_square, square)}
        return gradient * segments.expand(factor), after, factor


@dataclass(frozen=True)
class Percentile(Transform):
    """AutoClip: limit the norm to the p-th percentile of the norms so far, this one included.

        g' <- g min(1, percentile_p(||g_1||, ..., ||g_t||) / ||g_t||)

    The percentile is interpolated linearly. Preserves the direction, of the whole gradient or, with `per="tensor"`,
    of each tensor. Two things differ from the paper. It keeps all norms; here they are the last `window` ones, because
    nothing may grow with the steps. And norms that are 0 or not finite do not enter: where gradients are now and then
    0, a low percentile would be 0 as well, and end learning. Where the norm is not finite, the gradient passes as it
    is.

    Source: Seetharaman, Wichern, Pardo and Le Roux, "AutoClip: adaptive gradient clipping for source separation
    networks" (2020), which uses p = 10.
    """

    name: ClassVar[str] = "percentile"
    p: float = option(10.0, Interval(0.0, 100.0, low_open=True), "which percentile")
    window: int = option(128, Interval(1.0), "how many norms are kept")
    per: str = option("level", PER, "whose norms are kept")

    def init(self, segments: Segments, like: Tensor) -> State:
        shape = len(segments), self.window
        return {"norms": torch.full(shape, torch.inf, dtype=like.dtype, device=like.device)}  # infinite: none yet

    def apply(self, gradient: Tensor, state: State, context: Context) -> tuple[Tensor, State, Tensor]:
        segments, known = context.segments, state["norms"]
        norm = norms(segments, gradient, self.per)
        counts = torch.isfinite(norm) & (norm > 0)
        known = torch.where(counts.unsqueeze(1), torch.cat([known[:, 1:], norm.unsqueeze(1)], 1), known)
        place = (self.p / 100 * (torch.isfinite(known).sum(1, keepdim=True, dtype=norm.dtype) - 1)).clamp(min=0)
        ordered, low = known.sort(1).values, place.floor()
        below, above = (ordered.gather(1, i.long()) for i in (low, place.ceil()))
        factor = norm_factor(torch.lerp(below, above, place - low).squeeze(1), norm)
        return gradient * segments.expand(factor), {"norms": known}, factor


@dataclass(frozen=True)
class AGC(Transform):
    """Adaptive gradient clipping: limit the gradient of each unit in proportion to the unit's weights.

        G_i <- G_i min(1, ratio max(||W_i||, eps) / ||G_i||)

    A unit is what belongs to one index of the first dimension, where torch has the outputs of linear and convolutional
    layers (transposed convolutions have them second); tensors of fewer than two dimensions are one unit. Preserves the
    direction of each unit. On a level above the first, the weights are the raw hyperparameters. A unit whose norm is
    not finite passes as it is. The paper leaves out the last linear layer: see `names`.

    Source: Brock, De, Smith and Simonyan, "High-performance large-scale image recognition without normalization"
    (2021), section 4.1.
    """

    name: ClassVar[str] = "agc"
    reads_params: ClassVar[bool] = True
    ratio: float = option(0.01, POSITIVE, "largest norm of a gradient, as a part of the weights' norm")
    eps: float = option(1e-3, POSITIVE, "the least that the weights' norm counts as")

    def init(self, segments: Segments, like: Tensor) -> State:
        return {}

    def apply(self, gradient: Tensor, state: State, context: Context) -> tuple[Tensor, State, Tensor]:
        segments = context.segments
        assert context.params is not None
        pairs = zip(_units(segments, gradient), _units(segments, context.params), strict=True)
        after = torch.cat([self._limited(g, w).reshape(-1) for g, w in pairs])
        return after, state, ratio(segments, after, gradient)

    def _limited(self, g: Tensor, w: Tensor) -> Tensor:
        return g * norm_factor(self.ratio * _unit_norms(w).clamp(min=self.eps), _unit_norms(g))


def _units(segments: Segments, flat: Tensor) -> list[Tensor]:
    """Matrices with a row for each unit: one a tensor, or one for all where each tensor is a number."""
    if segments.all_scalar:
        return [flat.unsqueeze(1)]
    return [x.flatten(1) if x.dim() > 1 else x.reshape(1, -1) for x in segments.tensors(flat)]


def _unit_norms(units: Tensor) -> Tensor:
    return units.abs() if units.shape[1] == 1 else torch.linalg.vector_norm(units, dim=1, keepdim=True)
