"""Record a pure function of tensors once, replay its operations ever after.

Differentiating an update with autograd at every step builds a graph, walks it, and throws it away, which costs more
than the arithmetic. But the operations are the same each time: a `Tape` runs the function once, its backward pass
included, notes every operation that reaches the device, shortens the list (`peephole`), and from then on calls just
what is left (`replay`).

The function must be pure: a dict of tensors in, a dict of tensors out, nothing changed in place, no branch on
a tensor's value (reading one raises). Tensors that it closes over are constants.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hyperstack.layout import Tensors
from hyperstack.tape.host import compile_for_host
from hyperstack.tape.peephole import shorten, split
from hyperstack.tape.record import record
from hyperstack.tape.replay import Replay, compile_for_torch


class Tape:
    """A pure function from tensors by name to tensors by name, recorded at its first call.

    Later calls must bring tensors of the same shapes, dtypes and devices under the same names, in the same order.
    """

    def __init__(self, function: Callable[[Tensors], Tensors]) -> None:
        self.function = function
        self._names: list[str] = []
        self._replay: Replay | None = None

    def __call__(self, inputs: Tensors) -> Tensors:
        """The function's result, without autograd."""
        if self._replay is None:
            program, self._names = record(self.function, inputs)
            program = shorten(program)
            self._replay = compile_for_host(program) or compile_for_torch(program)
        return dict(zip(self._names, self._replay(*inputs.values()), strict=True))


class SplitTape:
    """A recorded function one of whose inputs, `late`, comes later than the others.

    `early` does what can be done without it, `finish` the rest.
    """

    def __init__(self, function: Callable[[Tensors], Tensors], late: str) -> None:
        self.function, self.late = function, late
        self._early: Replay | None = None

    def early(self, inputs: Tensors, like: Tensor) -> tuple[Tensors, tuple[Tensor, ...]]:
        """The results that do not need the late input, which will be like `like`; and what `finish` needs."""
        if self._early is None:
            self._compile(inputs, like)
            assert self._early is not None
        found = self._early(*inputs.values())
        count = len(self._names[0])
        return dict(zip(self._names[0], found[:count], strict=True)), found[count:]

    def finish(self, left: tuple[Tensor, ...], late: Tensor) -> Tensors:
        """The other results."""
        return dict(zip(self._names[1], self._finish(*left, late), strict=True))

    def _compile(self, inputs: Tensors, like: Tensor) -> None:
        program, names = record(self.function, {**inputs, self.late: torch.zeros_like(like)})
        program = shorten(program)
        named = dict(zip(names, program.outputs, strict=True))
        first, left, second = split(program, program.inputs[-1])
        early = first.outputs[: len(first.outputs) - len(left)]
        self._names = [n for n, s in named.items() if s in early], [n for n, s in named.items() if s not in early]
        self._early, self._finish = compile_for_torch(first), compile_for_torch(second)
