"""What a gradient transform is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch

from hyperstack.choices import Choice
from hyperstack.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from hyperstack.numerics import Segments

State = dict[str, "Tensor"]
TRANSFORMS: dict[str, type[Transform]] = {}
PER = ("tensor", "level")


@dataclass(frozen=True)
class Context:
    """What a transform may look at beside the gradient.

    `segments`: which tensors lie in the flat gradient, one after another; `params`: what the gradient is of, flat,
    where the transform `reads_params`; `slope`: by how much each entry could change what lies below, where it
    `reads_slope`: ||g|| ||∂θ/∂h||, where the entry of the gradient is g · ∂θ/∂h.
    """

    segments: Segments
    params: Tensor | None = None
    slope: Tensor | None = None

    def part(self, chosen: tuple[int, ...]) -> Context:
        """The same of some of the tensors."""
        take = self.segments.take
        params, slope = (None if x is None else take(x, chosen) for x in (self.params, self.slope))
        return Context(self.segments.part(chosen), params, slope)


@dataclass(frozen=True)
class Transform(Choice, ABC):
    """Base of the gradient transforms: see `Choice`. Defining one makes it known to the text form under `name`.

    `names` restricts it to tensors whose names match a pattern such as "*.weight" or "lr"; the others pass as they are.
    """

    reads_params: ClassVar[bool] = False
    reads_slope: ClassVar[bool] = False

    names: str = field(default="*", kw_only=True, metadata={"doc": "which tensors, by a pattern of their names"})

    def __init_subclass__(cls) -> None:
        register(TRANSFORMS, cls.name, cls)

    def __post_init__(self) -> None:
        if not isinstance(self.names, str) or not self.names.strip():
            what = "empty" if isinstance(self.names, str) else f"{self.names!r}, which is no text"
            raise InputError(f"{self.name}: names is {what}", instead='write a pattern such as names="*.weight"')
        super().__post_init__()

    @abstractmethod
    def init(self, segments: Segments, like: Tensor) -> State:
        """The state before the first gradient, on the device and in the dtype of `like`: entry i is of tensor i."""

    @abstractmethod
    def apply(self, gradient: Tensor, state: State, context: Context) -> tuple[Tensor, State, Tensor]:
        """The transformed gradient, the next state, and the factor of each tensor. Pure.

        The factor, shape [tensors], is what each was multiplied by, or what its norm was, for the record.
        """

    def __call__(self, gradient: Tensor, state: State, context: Context) -> tuple[Tensor, State, Tensor]:
        """`apply` to the tensors whose names match."""
        segments = context.segments
        chosen = segments.matching(self.names)
        if len(chosen) == len(segments):
            return self.apply(gradient, state, context)
        factor = torch.ones(len(segments), dtype=gradient.dtype, device=gradient.device)
        if not chosen:
            return gradient, state, factor
        index = segments.index(chosen)
        mine = {name: x.index_select(0, index) for name, x in state.items()}
        found, after, factors = self.apply(segments.take(gradient, chosen), mine, context.part(chosen))
        parts = list(gradient.split(segments.sizes))
        for i, part in zip(chosen, found.split([segments.sizes[i] for i in chosen]), strict=True):
            parts[i] = part
        state = {name: x.index_copy(0, index, after[name]) for name, x in state.items()}
        return torch.cat(parts), state, factor.index_copy(0, index, factors)


def register(registry: dict[str, type], name: str, cls: type) -> None:
    """Add `cls` under `name`; a second, different class of that name is an error, not a replacement."""
    known = registry.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise InputError(
            f"the name {name} is taken by {known.__module__}.{known.__qualname__}",
            instead="give the new class another name",
        )
    registry[name] = cls


def norms(segments: Segments, flat: Tensor, per: str) -> Tensor:
    """One norm a tensor; `per="level"`, that of all the tensors together, once for each of them."""
    each = segments.norm(flat)
    # Not vector_norm, which would keep the scalars of a tower from running as Python floats.
    return each if per == "tensor" else (each * each).sum().sqrt().expand(len(segments))


def ratio(segments: Segments, after: Tensor, before: Tensor) -> Tensor:
    """The factor of what is no multiplication: the norm of each tensor now over that before; 1 where there is none."""
    quotient = segments.norm(after) / segments.norm(before)
    return torch.where(torch.isfinite(quotient), quotient, 1.0)


def norm_factor(wanted: Tensor | float, norm: Tensor) -> Tensor:
    """What brings `norm` down to `wanted`, where it is larger; 1 where it is 0 or not finite."""
    return torch.where(torch.isfinite(norm) & (norm > wanted), wanted / norm, 1.0)
