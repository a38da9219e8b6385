"""A recorded function: a list of operations on numbered slots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slot:
    """The place of a value."""

    number: int


@dataclass
class Node:
    """One operation: its arguments are slots and plain values, or lists of these; `out` is where its result goes."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Slot

    def reads(self) -> Iterator[Slot]:
        """The slots among the arguments."""
        yield from _slots(self.args)
        yield from _slots(tuple(self.kwargs.values()))


@dataclass
class Program:
    """Operations in order. `inputs` are the slots of the arguments, `outputs` of the results, `constants` tensors
    that the function closed over; `specs` holds a meta tensor for each slot, for its shape and dtype;
    `on_cpu`: whether all of it happens in the memory of this process. The last results are not returned but
    written to the inputs in `stores`, at the end.
    """

    nodes: list[Node]
    inputs: list[Slot]
    outputs: list[Slot]
    constants: dict[Slot, Tensor]
    specs: list[Tensor]
    on_cpu: bool = False
    stores: list[Slot] = field(default_factory=list)

    def spec(self, slot: Slot) -> Tensor:
        """Shape and dtype of a slot."""
        return self.specs[slot.number]

    def add(self, spec: Tensor) -> Slot:
        """A new slot."""
        self.specs.append(spec)
        return Slot(len(self.specs) - 1)


def item(values: Any, i: int) -> Any:
    """The i-th result of an operation that has several."""
    return values[i]


def row_dots(a: Any, b: Any) -> Any:
    """The dot products of the rows of two matrices, without their product in memory."""
    return torch.stack([torch.dot(x, y) for x, y in zip(a.unbind(), b.unbind(), strict=True)])


def renamed(value: Any, names: Mapping[Slot, Any]) -> Any:
    """An argument with some of its slots replaced."""
    if isinstance(value, Slot):
        return names.get(value, value)
    if isinstance(value, (list, tuple)):
        return type(value)(renamed(each, names) for each in value)
    return value


def _slots(value: Any) -> Iterator[Slot]:
    if isinstance(value, Slot):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _slots(each)
