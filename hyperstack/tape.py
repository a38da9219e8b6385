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
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hyperstack.errors import RunError
from hyperstack.layout import Tensors
from hyperstack.peephole import shorten, split
from hyperstack.program import Node, Program, Slot, item
from hyperstack.replay import compile_for_host, compile_for_torch

aten = torch.ops.aten


class Tape:
    """A pure function from tensors by name to tensors by name, recorded at its first call.

    Later calls must bring tensors of the same shapes, dtypes and devices under the same names, in the same order.
    """

    def __init__(self, function: Callable[[Tensors], Tensors]) -> None:
        self.function = function
        self._names: list[str] = []
        self._replay: Callable[..., tuple[Tensor, ...]] | None = None

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
        self._early: Callable[..., tuple[Tensor, ...]] | None = None

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


def record(function: Callable[[Tensors], Tensors], inputs: Tensors) -> tuple[Program, list[str]]:
    """Every operation of a function, and the names of its results."""
    # Copies, so that two names for one tensor are told apart.
    given = {name: tensor.detach().clone() for name, tensor in inputs.items()}
    recorder = _Recorder(list(given.values()))
    with recorder:
        outputs = {name: tensor.detach() for name, tensor in function(given).items()}
    slots = [recorder.slot(tensor) for tensor in outputs.values()]
    on_cpu = all(value.device.type == "cpu" for value in recorder.values)
    specs = [value.to("meta") for value in recorder.values]
    arguments = [Slot(i) for i in range(len(given))]
    return Program(recorder.nodes, arguments, slots, recorder.constants, specs, on_cpu), list(outputs)


class _Recorder(TorchDispatchMode):
    """Notes every operation, below autograd."""

    def __init__(self, inputs: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nodes: list[Node] = []
        self.values: list[Tensor] = []  # by slot number; also keeps every tensor alive, so that no id comes twice
        self.slots: dict[int, Slot] = {}
        self.constants: dict[Slot, Tensor] = {}
        self.inputs = len(inputs)
        for tensor in inputs:
            self._new(tensor)

    def _new(self, tensor: Tensor) -> Slot:
        slot = self.slots[id(tensor)] = Slot(len(self.values))
        self.values.append(tensor)
        return slot

    def slot(self, tensor: Tensor) -> Slot:
        """Where a tensor is on the tape; one that no operation made is a constant."""
        if id(tensor) not in self.slots:
            self.constants[self._new(tensor)] = tensor.detach()
        return self.slots[id(tensor)]

    def _argument(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.slot(value)
        if isinstance(value, (list, tuple)):
            return type(value)(self._argument(each) for each in value)
        return value

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default:
            raise RunError(
                "a rule or transform reads a tensor's value",
                why="that waits for the device, and a recorded step would repeat the value of the first step",
                instead="use torch.where instead of if, and tensors instead of float(tensor)",
            )
        noted = tuple(self._argument(a) for a in args)
        named = {k: self._argument(v) for k, v in kwargs.items()}
        result = func(*args, **kwargs)
        if func._schema.is_mutable:
            func = self._out_of_place(func, noted)
        if isinstance(result, Tensor):
            self.nodes.append(Node(func, noted, named, self._new(result)))
        else:
            whole = self._new(torch.empty(0))
            self.nodes.append(Node(func, noted, named, whole))
            for i, part in enumerate(result):
                if isinstance(part, Tensor):
                    self.nodes.append(Node(item, (whole, i), {}, self._new(part)))
        return result

    def _out_of_place(self, func: Any, args: tuple[Any, ...]) -> Any:
        """The functional twin of an operation in place, which autograd uses on tensors that it has just made."""
        name, _, overload = str(func).removeprefix("aten.").partition(".")
        if args[0].number < self.inputs or args[0] in self.constants or not name.endswith("_"):
            raise RunError(f"a rule or transform changes a tensor in place ({func})", instead="return a new tensor")
        return getattr(getattr(aten, name[:-1]), overload)
