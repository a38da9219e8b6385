"""What a gradient transform is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, ClassVar

import torch

from hyperstack.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from hyperstack.numerics import Segments

State = dict[str, "Tensor"]
TRANSFORMS: dict[str, type[Transform]] = {}


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
class Transform(ABC):
    """Base of the gradient transforms. Subclasses are frozen dataclasses whose fields are their options: numbers,
    flags or texts; defining one makes it known to the text form under `name`.

    `names` restricts it to tensors whose names match a pattern such as "*.weight" or "lr"; the others pass as they are.
    """

    name: ClassVar[str]
    reads_params: ClassVar[bool] = False
    reads_slope: ClassVar[bool] = False

    names: str = field(default="*", kw_only=True)

    def __init_subclass__(cls) -> None:
        register(TRANSFORMS, cls.name, cls)

    def __post_init__(self) -> None:
        if not self.names.strip():
            raise InputError(f"{self.name}: names is empty", instead='write a pattern such as names="*.weight"')

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

    def __str__(self) -> str:
        given = [(f.default, f.name, getattr(self, f.name)) for f in fields(self) if f.name != "names"]
        parts = [repr(value) for default, _, value in given if default is MISSING][:1]
        given = [g for g in given if g[0] is not MISSING] if parts else given
        parts += [name for default, name, value in given if value is True and default is not True]
        parts += [f"{n}={v!r}" for default, n, v in given if v != default and not (v is True and default is not True)]
        parts += [f"names={self.names!r}"] * (self.names != "*")
        return f"{self.name}({', '.join(parts)})" if parts else self.name


def register(registry: dict[str, type], name: str, cls: type) -> None:
    """Add `cls` under `name`; a second, different class of that name is an error, not a replacement."""
    known = registry.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise InputError(
            f"the name {name} is taken by {known.__module__}.{known.__qualname__}",
            instead="give the new class another name",
        )
    registry[name] = cls


def norm_factor(wanted: Tensor, norm: Tensor) -> Tensor:
    """What brings `norm` down to `wanted`, where it is larger; 1 where it is 0 or not finite."""
    return torch.where(torch.isfinite(norm) & (norm > wanted), wanted / norm, 1.0)
