"""Note every operation of a function, below autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hyperstack.errors import RunError
from hyperstack.layout import Tensors
from hyperstack.tape.program import Node, Program, Slot, item

aten = torch.ops.aten


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

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: what keeps torch.compile out of a mode loads all of it first, which takes as long as loading torch."""
        return False

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
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise RunError(
                f"what is to be recorded draws random numbers ({func})", why="every replay would repeat the first draw"
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
