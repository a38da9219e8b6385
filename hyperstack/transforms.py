"""Gradient transforms: what a level does to a gradient before its rule sees it.

A transform is an immutable value carried by a level. Its two functions are pure:

    init(segments, like)              -> state, a dict of tensors with one entry a tensor of the buffer
    apply(gradient, state, segments)  -> gradient, state, factor

`gradient` is flat and `segments` says which tensors lie in it; `factor`, shape [tensors], is what each
tensor was multiplied by, for the record. Defining a subclass makes it known to the text form under `name`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

import torch

from hyperstack.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from hyperstack.numerics import Segments

State = dict[str, "Tensor"]
TRANSFORMS: dict[str, type[Transform]] = {}


@dataclass(frozen=True)
class Transform(ABC):
    """Base of the gradient transforms; subclasses are frozen dataclasses whose fields are their options."""

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        register(TRANSFORMS, cls.name, cls)

    @abstractmethod
    def init(self, segments: Segments, like: Tensor) -> State:
        """The state before the first gradient, on the device and in the dtype of `like`."""

    @abstractmethod
    def apply(self, gradient: Tensor, state: State, segments: Segments) -> tuple[Tensor, State, Tensor]:
        """The transformed gradient, the next state, and the factor of each tensor."""

    def __str__(self) -> str:
        changed = [(f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default]
        flags = [name for name, value in changed if value is True]
        inside = ", ".join(flags + [f"{name}={value!r}" for name, value in changed if value is not True])
        return f"{self.name}({inside})" if inside else self.name


def register(registry: dict[str, type], name: str, cls: type) -> None:
    """Add `cls` under `name`; a second, different class of that name is an error, not a replacement."""
    known = registry.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise InputError(
            f"the name {name} is taken by {known.__module__}.{known.__qualname__}",
            instead="give the new class another name",
        )
    registry[name] = cls


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

    def apply(self, gradient: Tensor, state: State, segments: Segments) -> tuple[Tensor, State, Tensor]:
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
