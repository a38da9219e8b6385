"""Names for the parts of a flat tensor."""

from __future__ import annotations

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


class Layout:
    """Tensors of given shapes, one after another in one flat tensor: small things are fastest moved together."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.shapes = dict(shapes)
        self.sizes = [torch.Size(shape).numel() for shape in shapes.values()]
        self.total = sum(self.sizes)

    def unpack(self, flat: Tensor) -> Tensors:
        """Each part under its name, a view."""
        parts = flat.split(self.sizes)
        return {name: part.view(shape) for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)}

    def pack(self, parts: Tensors) -> Tensor:
        """The flat tensor of these parts; parts that have no place in it are left out."""
        return torch.cat([parts[name].reshape(-1) for name in self.shapes])


def section(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors whose name begins with `prefix`, by the rest of their name."""
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
