"""Record a pure function of tensors once, replay its operations ever after.

Differentiating an update with autograd at every step builds a graph, walks it, and throws it away, which costs more
than the arithmetic. But the operations are the same each time: a `Tape` runs the function once, its backward pass
included, notes every operation that reaches the device, and from then on calls just these. What nothing needs is
left out, what is computed twice is computed once, and a sum of a product becomes a dot product.

The function must be pure: a dict of tensors in, a dict of tensors out, nothing changed in place, no branch on
a tensor's value (reading one raises). Tensors that it closes over are constants.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hyperstack.errors import RunError

aten = torch.ops.aten

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Slot:
    """The place of a value on the tape."""

    number: int


@dataclass
class Node:
    """One operation: its arguments are slots and plain values; `out` is where its result goes."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Slot


class Tape:
    """A pure function from tensors by name to tensors by name, recorded at its first call.

    Later calls must bring tensors of the same shapes, dtypes and devices under the same names.
    """

    def __init__(self, function: Callable[[Tensors], Tensors]) -> None:
        self.function = function
        self._replay: Callable[..., tuple[Tensor, ...]] | None = None

    def __call__(self, inputs: Tensors) -> Tensors:
        """The function's result, without autograd."""
        if self._replay is None:
            return self._record(inputs)
        return dict(zip(self._names, self._replay(*inputs.values()), strict=True))

    def _record(self, inputs: Tensors) -> Tensors:
        # Copies, so that two names for one tensor are told apart.
        given = {name: tensor.detach().clone() for name, tensor in inputs.items()}
        recorder = _Recorder(list(given.values()))
        with recorder:
            outputs = {name: tensor.detach() for name, tensor in self.function(given).items()}
        self._names = list(outputs)
        slots = [recorder.slot(tensor) for tensor in outputs.values()]
        nodes, slots = _shorten(recorder.nodes, slots, recorder.values)
        self._replay = _compile(nodes, len(given), slots, recorder.constants)
        return dict(zip(self._names, self._replay(*inputs.values()), strict=True))


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
            return type(value)(self._argument(item) for item in value)
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
            self.nodes.append(Node(func, noted, named, self._new(result)))
        elif isinstance(result, Tensor):
            self.nodes.append(Node(func, noted, named, self._new(result)))
        else:
            whole = self._new(torch.empty(0))
            self.nodes.append(Node(func, noted, named, whole))
            for i, part in enumerate(result):
                if isinstance(part, Tensor):
                    self.nodes.append(Node(_item, (whole, i), {}, self._new(part)))
        return result

    def _out_of_place(self, func: Any, args: tuple[Any, ...]) -> Any:
        """The functional twin of an operation in place, which autograd uses on tensors that it has just made."""
        name, _, overload = str(func).removeprefix("aten.").partition(".")
        if args[0].number < self.inputs or args[0] in self.constants or not name.endswith("_"):
            raise RunError(f"a rule or transform changes a tensor in place ({func})", instead="return a new tensor")
        return getattr(getattr(aten, name[:-1]), overload)


def _item(values: Any, i: int) -> Any:
    return values[i]


def _shorten(nodes: list[Node], outputs: list[Slot], values: list[Tensor]) -> tuple[list[Node], list[Slot]]:
    """The same results with fewer operations."""
    same: dict[Slot, Slot] = {}
    seen: dict[Any, Slot] = {}
    kept: list[Node] = []
    for node in nodes:
        node.args = _renamed(node.args, same)
        node.kwargs = {k: _renamed(v, same) for k, v in node.kwargs.items()}
        if node.function in (aten.detach.default, aten.alias.default):
            same[node.out] = node.args[0]
            continue
        key = repr((node.function, node.args, sorted(node.kwargs.items())))
        if key in seen:
            same[node.out] = seen[key]
            continue
        seen[key] = node.out
        kept.append(node)
    outputs = [same.get(slot, slot) for slot in outputs]
    _use_dot(kept, values)
    return _without_unused(kept, outputs), outputs


def _renamed(value: Any, same: dict[Slot, Slot]) -> Any:
    if isinstance(value, Slot):
        return same.get(value, value)
    if isinstance(value, (list, tuple)):
        return type(value)(_renamed(item, same) for item in value)
    return value


def _use_dot(nodes: list[Node], values: list[Tensor]) -> None:
    """sum(a * b) of two vectors as one pass over both, without their product in memory."""
    products = {
        node.out: node
        for node in nodes
        if node.function is aten.mul.Tensor
        and all(isinstance(a, Slot) and values[a.number].dim() == 1 for a in node.args)
        and values[node.args[0].number].shape == values[node.args[1].number].shape
        and values[node.args[0].number].dtype == values[node.args[1].number].dtype
    }
    for node in nodes:
        whole = node.function is aten.sum.default or (
            node.function is aten.sum.dim_IntList and node.args[1] == [0] and not values[node.out.number].dim()
        )
        if whole and node.args[0] in products and values[node.out.number].dtype == values[node.args[0].number].dtype:
            node.function, node.args, node.kwargs = aten.dot.default, products[node.args[0]].args, {}


def _without_unused(nodes: list[Node], outputs: list[Slot]) -> list[Node]:
    needed = set(outputs)
    kept = []
    for node in reversed(nodes):
        if node.out in needed:
            kept.append(node)
            needed.update(_slots((node.args, tuple(node.kwargs.values()))))
    return kept[::-1]


def _slots(value: Any) -> list[Slot]:
    if isinstance(value, Slot):
        return [value]
    return [slot for item in value for slot in _slots(item)] if isinstance(value, (list, tuple)) else []


def _compile(
    nodes: list[Node], inputs: int, outputs: list[Slot], constants: dict[Slot, Tensor]
) -> Callable[..., tuple[Tensor, ...]]:
    """One Python function that calls the operations in order: straight-line code runs several times faster than
    a loop that looks up its arguments. Its text is made of slot numbers only.
    """
    scope: dict[str, Any] = {f"v{slot.number}": tensor for slot, tensor in constants.items()}
    last = {slot: i for i, node in enumerate(nodes) for slot in _slots((node.args, tuple(node.kwargs.values())))}
    lines = [f"def replay({', '.join(f'v{i}' for i in range(inputs))}):"]
    for i, node in enumerate(nodes):

        def written(value: Any, place: str) -> str:
            if isinstance(value, Slot):
                return f"v{value.number}"
            if isinstance(value, (list, tuple)) and _slots(value):
                return "[" + ", ".join(written(item, f"{place}_{j}") for j, item in enumerate(value)) + "]"
            scope[place] = value
            return place

        scope[f"f{i}"] = getattr(node.function, "_op", node.function)
        arguments = [written(a, f"c{i}_{j}") for j, a in enumerate(node.args)]
        arguments += [f"{k}={written(v, f'c{i}_{k}')}" for k, v in node.kwargs.items()]
        lines.append(f"    v{node.out.number} = f{i}({', '.join(arguments)})")
        # Free what is not needed any more, so that its memory is taken again while it is still in cache.
        done = [
            s for s, at in last.items() if at == i and s not in outputs and s not in constants and s.number >= inputs
        ]
        if done:
            lines.append("    del " + ", ".join(f"v{slot.number}" for slot in done))
    lines.append(f"    return ({''.join(f'v{slot.number}, ' for slot in outputs)})")
    exec(compile("\n".join(lines), "<tape>", "exec"), scope)
    replay: Callable[..., tuple[Tensor, ...]] = scope["replay"]
    return replay
