"""Functions that stay differentiable at the edge of their domain, and sums over the tensors of a buffer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def safe_sqrt(x: Tensor) -> Tensor:
    """`sqrt(x)` for x >= 0 with a finite derivative at 0.

    Computed as `sqrt(x + tiny)`, tiny being the smallest normal number of x's dtype, which rounds away
    for x above 1e-30 in float32 and 1e-291 in float64; at 0 it yields `sqrt(tiny)` (1e-19 and 1e-154), and
    the derivative there is large but finite, so that a cotangent of 0 gives 0 where `sqrt` gives NaN.
    """
    return torch.sqrt(x + torch.finfo(x.dtype).tiny)


class Segments:
    """The tensors that lie one after another in a flat buffer.

    `sizes` holds their element counts, `shapes` their shapes. A rule or a transform asks it for one
    number a tensor (`norm`) and spreads one number a tensor over the elements (`expand`).
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], device: torch.device | str = "cpu") -> None:
        self.shapes = tuple(tuple(shape) for shape in shapes)
        self.sizes = [torch.Size(shape).numel() for shape in self.shapes]
        self.total = sum(self.sizes)
        self.device = torch.device(device)
        self._repeats = torch.tensor(self.sizes, dtype=torch.int64, device=device)

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
