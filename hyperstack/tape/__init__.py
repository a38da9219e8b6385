"""Record a pure function of tensors once, replay its operations ever after.

Differentiating an update with autograd at every step builds a graph, walks it, and throws it away, which costs more
than the arithmetic. But the operations are the same each time: a `Tape` runs the function once, its backward pass
included, notes every operation that reaches the device, shortens the list (`peephole`), and from then on calls just
what is left: operation by operation (`replay`), on Python floats where it is about a few numbers (`host`), or as
kernels of torch.compile's (`fused`); or for many runs at once (`runs`).

The function must be pure: a dict of tensors in, a dict of tensors out, nothing changed in place, no branch on
a tensor's value (reading one raises). Tensors that it closes over are constants.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hyperstack.layout import Tensors
from hyperstack.tape.fused import compile_for_inductor
from hyperstack.tape.host import compile_for_host
from hyperstack.tape.peephole import shorten, split
from hyperstack.tape.program import Program
from hyperstack.tape.record import record
from hyperstack.tape.replay import Replay, compile_for_torch
from hyperstack.tape.runs import record_runs
from hyperstack.tape.scratch import Scratch

Recording = Callable[[Callable[[Tensors], Tensors], Tensors], tuple[Program, list[str]]]


class Tapes:
    """Recorded functions by key. They share memory for what they compute on the way: see `Scratch`.

    `fused`: whether large ones become kernels of torch.compile's, which takes seconds each. `shared`: given, functions
    are of one run and called with tensors of many, along a first axis that all inputs have but those of these names.
    """

    def __init__(self, fused: bool = False, shared: Collection[str] | None = None) -> None:
        self.fused = fused
        self.recording: Recording = record if shared is None else partial(record_runs, shared)
        self.scratch = Scratch()
        self._kernels: dict[str, Replay] = {}
        self._known: dict[tuple[Any, ...], Any] = {}

    def small(self, key: tuple[Any, ...], function: Callable[[Tensors], Tensors]) -> Tape:
        """A function of a handful of numbers."""
        found: Tape = self._find(key, lambda: Tape(function, self._on_floats, recording=self.recording))
        return found

    def large(
        self,
        key: tuple[Any, ...],
        function: Callable[[Tensors], Tensors],
        writes: Collection[str] = (),
        long: Collection[str] = (),
    ) -> Tape:
        """A function of large tensors; of its results, those called `writes` replace the inputs of these names.

        `long`: inputs that are large. Recording keeps all intermediate results, so that a function is recorded with
        a few of their elements, where that shows that their number does not matter.
        """
        compiler = self._into_kernels if self.fused else self._on_scratch
        found: Tape = self._find(key, lambda: Tape(function, compiler, writes, long, self.recording))
        return found

    def split(self, key: tuple[Any, ...], function: Callable[[Tensors], Tensors], late: str) -> SplitTape:
        """A function one of whose inputs comes later."""
        found: SplitTape = self._find(key, lambda: SplitTape(function, late, self.scratch, self.recording))
        return found

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()

    def _find(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def _on_floats(self, program: Program) -> Replay:
        program = shorten(program)
        return compile_for_host(program) or compile_for_torch(program, self.scratch)

    def _on_scratch(self, program: Program) -> Replay:
        return compile_for_torch(shorten(program), self.scratch)

    def _into_kernels(self, program: Program) -> Replay:
        return compile_for_inductor(program, self._kernels)


class Tape:
    """A pure function from tensors by name to tensors by name, recorded at its first call.

    Later calls must bring tensors of the same shapes, dtypes and devices under the same names, in the same order.
    Results are valid until the next call. Those called `writes` replace the inputs of these names instead of
    being returned.
    """

    def __init__(
        self,
        function: Callable[[Tensors], Tensors],
        compiler: Callable[[Program], Replay],
        writes: Collection[str] = (),
        long: Collection[str] = (),
        recording: Recording = record,
    ) -> None:
        self.function, self.compiler, self.writes, self.long = function, compiler, writes, long
        self.recording = recording
        self._names: list[str] = []
        self._replay: Replay | None = None

    def __call__(self, inputs: Tensors) -> Tensors:
        """The function's result, without autograd."""
        if self._replay is None:
            program, names = self._recorded(inputs)
            found = dict(zip(names, program.outputs, strict=True))
            places = dict(zip(inputs, program.inputs, strict=True))
            self._names = [name for name in names if name not in self.writes]
            program.outputs = [found[name] for name in [*self._names, *self.writes]]
            program.stores = [places[name] for name in self.writes]
            self._replay = self.compiler(program)
        return dict(zip(self._names, self._replay(*inputs.values()), strict=True))

    def _recorded(self, inputs: Tensors) -> tuple[Program, list[str]]:
        if not self.long:
            return self.recording(self.function, inputs)
        few, other = (
            self.recording(self.function, {name: x[:count] if name in self.long else x for name, x in inputs.items()})
            for count in (29, 31)
        )
        return few if repr(few[0].nodes) == repr(other[0].nodes) else self.recording(self.function, inputs)


class SplitTape:
    """A recorded function one of whose inputs, `late`, comes later than the others.

    `early` does what can be done without it, `finish` the rest. What `early` returns is valid until its next call.
    """

    def __init__(
        self, function: Callable[[Tensors], Tensors], late: str, scratch: Scratch, recording: Recording = record
    ) -> None:
        self.function, self.late, self.scratch, self.recording = function, late, scratch, recording
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
        program, names = self.recording(self.function, {**inputs, self.late: torch.zeros_like(like)})
        program = shorten(program)
        named = dict(zip(names, program.outputs, strict=True))
        first, left, second = split(program, program.inputs[-1])
        early = first.outputs[: len(first.outputs) - len(left)]
        self._names = [n for n, s in named.items() if s in early], [n for n, s in named.items() if s not in early]
        self._early, self._finish = (compile_for_torch(part, self.scratch) for part in (first, second))
