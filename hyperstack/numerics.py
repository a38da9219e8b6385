"""Functions that stay differentiable at the edge of their domain, and sums over the tensors of a buffer."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor


def safe_sqrt(x: Tensor) -> Tensor:
    """`sqrt(x)` for x >= 0 with a finite derivative at 0.

    Computed as `sqrt(x + tiny)`, tiny being the smallest normal number of x's dtype, which rounds away
    for x above 1e-30 in float32 and 1e-291 in float64; at 0 it yields `sqrt(tiny)` (1e-19 and 1e-154), and
    the derivative there is large but finite, so that a cotangent of 0 gives 0 where `sqrt` gives NaN.
    """
    return torch.sqrt(x + torch.finfo(x.dtype).tiny)


def spread_bound(mean: Tensor, square: Tensor, n: Tensor | float) -> tuple[Tensor, Tensor]:
    """The standard deviation of what has this mean and mean square, and `n` of them above the mean."""
    sigma = (square - mean.square()).clamp(min=0).sqrt()
    return sigma, mean + n * sigma


def huberize(losses: Tensor, h: float = 1.0) -> Tensor:
    """min(L, sqrt(h L)) of each loss: from `h` on, losses grow as their square root. h = 0 leaves them.

    Source: Ede and Beanland 2020, section I. It composes with any stack: `opt.backward(hs.huberize(losses))`.
    """
    return torch.where(losses > h, (h * losses.clamp(min=h)).sqrt(), losses) if h else losses


def huber_slope(losses: Tensor, h: float) -> Tensor:
    """The derivative of `huberize`."""
    return torch.where(losses > h, (h / losses.clamp(min=h)).sqrt() / 2, 1.0) if h else torch.ones_like(losses)


def huber_curve(losses: Tensor, h: float) -> Tensor:
    """The derivative of `huber_slope`."""
    return torch.where(losses > h, -huber_slope(losses, h) / (2 * losses), 0.0) if h else torch.zeros_like(losses)


class Segments:
    """The tensors that lie one after another in a flat buffer.

    `sizes` holds their element counts, `shapes` their shapes, `names` what patterns go by. A rule or a transform asks
    it for one number a tensor (`norm`) and spreads one number a tensor over the elements (`expand`).
    """

    def __init__(
        self, shapes: Sequence[tuple[int, ...]], device: torch.device | str = "cpu", names: Sequence[str] | None = None
    ) -> None:
        self.shapes = tuple(tuple(shape) for shape in shapes)
        self.sizes = [torch.Size(shape).numel() for shape in self.shapes]
        self.names = tuple(names) if names is not None else tuple(map(str, range(len(self.shapes))))
        self.total = sum(self.sizes)
        self.device = torch.device(device)
        self._repeats = torch.tensor(self.sizes, dtype=torch.int64, device=device)
        self._parts: dict[tuple[int, ...], tuple[Segments, Tensor]] = {}
        self._matching: dict[str, tuple[int, ...]] = {}
        self._joined: tuple[list[Segments], Segments] = ([], self)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def all_scalar(self) -> bool:
        """Whether every tensor has one element, so that the flat buffer holds one number a tensor."""
        return all(size == 1 for size in self.sizes)

    def norm(self, flat: Tensor) -> Tensor:
        """Euclidean norm of each tensor: shape [total] -> [tensors]."""
        if self.all_scalar:
            return flat.abs()
        return torch.stack([torch.linalg.vector_norm(part) for part in flat.split(self.sizes)])

    def expand(self, per_tensor: Tensor) -> Tensor:
        """One number a tensor, repeated over its elements: shape [tensors] -> [total]."""
        if self.all_scalar:
            return per_tensor
        return torch.repeat_interleave(per_tensor, self._repeats, output_size=self.total)

    def tensors(self, flat: Tensor) -> list[Tensor]:
        """Each tensor in its own shape: views of the flat buffer."""
        return [part.view(shape) for part, shape in zip(flat.split(self.sizes), self.shapes, strict=True)]

    def matching(self, pattern: str) -> tuple[int, ...]:
        """Which tensors have a name that matches `pattern`, in which * stands for anything."""
        if pattern not in self._matching:
            found = (i for i, name in enumerate(self.names) if fnmatchcase(name, pattern))
            self._matching[pattern] = tuple(found)
        return self._matching[pattern]

    def take(self, flat: Tensor, chosen: tuple[int, ...]) -> Tensor:
        """The elements of some of the tensors, flat."""
        parts = flat.split(self.sizes)
        return torch.cat([parts[i] for i in chosen])

    def joined(self, others: Sequence[Segments]) -> Segments:
        """These tensors, and those of others after them; the last answer is kept."""
        if self._joined[0] != list(others):
            shapes = [shape for s in (self, *others) for shape in s.shapes]
            names = [name for s in (self, *others) for name in s.names]
            self._joined = list(others), Segments(shapes, self.device, names)
        return self._joined[1]

    def part(self, chosen: tuple[int, ...]) -> Segments:
        """Some of the tensors alone."""
        return self._part(chosen)[0]

    def index(self, chosen: tuple[int, ...]) -> Tensor:
        """Places of tensors, as a tensor."""
        return self._part(chosen)[1]

    def _part(self, chosen: tuple[int, ...]) -> tuple[Segments, Tensor]:
        if chosen not in self._parts:
            index = torch.tensor(chosen, dtype=torch.int64, device=self.device)
            part = Segments([self.shapes[i] for i in chosen], self.device, [self.names[i] for i in chosen])
            self._parts[chosen] = part, index
        return self._parts[chosen]
