"""A program on a handful of numbers in the memory of this process, as Python floats.

Calling torch for an addition costs a microsecond or two, and the scalars of a tower take some hundred operations a
step. Here each element becomes a Python float of its own, and operations that only move elements about vanish.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from hyperstack.tape.program import Node, Program, Slot, item
from hyperstack.tape.replay import Replay, as_function

aten = torch.ops.aten

WORTH_IT = 12
"""Up to so many elements an operation, on average, statements on floats are faster than calls of torch."""


def _quotient(a: float, b: float) -> float:
    if b:
        return a / b
    return math.nan if a == 0 or a != a else math.copysign(math.inf, a) * math.copysign(1.0, b)


def _power(a: float, b: float) -> float:
    try:
        return math.pow(a, b)
    except OverflowError:
        return -math.inf if a < 0 and b % 2 == 1 else math.inf
    except ValueError:
        return (math.copysign(math.inf, a) if b % 2 == 1 else math.inf) if a == 0 else math.nan


def _guarded(function: Callable[[float], float], outside: float) -> Callable[[float], float]:
    def guarded(x: float) -> float:
        try:
            return function(x)
        except OverflowError:
            return math.inf
        except ValueError:
            return -math.inf if x == 0 else outside

    return guarded


def _smaller(a: float, b: float) -> float:
    return a if a < b or a != a else b


def _larger(a: float, b: float) -> float:
    return a if a > b or a != a else b


_NAMES = {
    "quotient": _quotient,
    "power": _power,
    "smaller": _smaller,
    "larger": _larger,
    "exp": _guarded(math.exp, math.nan),
    "log": _guarded(math.log, math.nan),
    "sqrt": _guarded(math.sqrt, math.nan),
    "tanh": math.tanh,
    "sign": lambda x: float(x > 0) - float(x < 0),
    "nan": math.nan,
    "inf": math.inf,
}

_TEMPLATES = {
    aten.add.Tensor: "{0} + {1}",
    aten.add.Scalar: "{0} + {1}",
    aten.sub.Tensor: "{0} - {1}",
    aten.sub.Scalar: "{0} - {1}",
    aten.rsub.Scalar: "{1} - {0}",
    aten.mul.Tensor: "{0} * {1}",
    aten.mul.Scalar: "{0} * {1}",
    aten.div.Tensor: "quotient({0}, {1})",
    aten.div.Scalar: "quotient({0}, {1})",
    aten.reciprocal.default: "quotient(1.0, {0})",
    aten.neg.default: "-{0}",
    aten.abs.default: "abs({0})",
    aten.sgn.default: "sign({0})",
    aten.sign.default: "sign({0})",
    aten.pow.Tensor_Scalar: "power({0}, {1})",
    aten.pow.Tensor_Tensor: "power({0}, {1})",
    aten.pow.Scalar: "power({0}, {1})",
    aten.exp.default: "exp({0})",
    aten.log.default: "log({0})",
    aten.sqrt.default: "sqrt({0})",
    aten.rsqrt.default: "quotient(1.0, sqrt({0}))",
    aten.tanh.default: "tanh({0})",
    aten.tanh_backward.default: "{0} * (1.0 - {1} * {1})",
    aten.sigmoid.default: "quotient(1.0, 1.0 + exp(-{0}))",
    aten.sigmoid_backward.default: "{0} * (1.0 - {1}) * {1}",
    aten.lerp.Tensor: "({0} + {2} * ({1} - {0}) if abs({2}) < 0.5 else {1} - ({1} - {0}) * (1.0 - {2}))",
    aten.addcmul.default: "{0} + {1} * {2}",
    aten.minimum.default: "smaller({0}, {1})",
    aten.maximum.default: "larger({0}, {1})",
    aten.clamp.default: "larger({0}, {1})",
    aten.clamp_min.default: "larger({0}, {1})",
    aten.masked_fill.Scalar: "({2} if {1} else {0})",
    aten.where.self: "({1} if {0} else {2})",
    aten.eq.Scalar: "{0} == {1}",
    aten.eq.Tensor: "{0} == {1}",
    aten.ne.Scalar: "{0} != {1}",
    aten.ne.Tensor: "{0} != {1}",
    aten.gt.Scalar: "{0} > {1}",
    aten.gt.Tensor: "{0} > {1}",
    aten.ge.Scalar: "{0} >= {1}",
    aten.ge.Tensor: "{0} >= {1}",
    aten.lt.Scalar: "{0} < {1}",
    aten.lt.Tensor: "{0} < {1}",
    aten.le.Scalar: "{0} <= {1}",
    aten.le.Tensor: "{0} <= {1}",
    aten.bitwise_not.default: "not {0}",
    aten.logical_not.default: "not {0}",
    aten.bitwise_and.Tensor: "{0} and {1}",
    aten.logical_and.default: "{0} and {1}",
    aten.bitwise_or.Tensor: "{0} or {1}",
    aten._to_copy.default: "{0}",
}

_FILLS = {
    aten.empty_like.default: 0.0,
    aten.new_empty.default: 0.0,
    aten.empty.memory_format: 0.0,
    aten.zeros_like.default: 0.0,
    aten.new_zeros.default: 0.0,
    aten.zeros.default: 0.0,
    aten.ones_like.default: 1.0,
    aten.new_ones.default: 1.0,
    aten.ones.default: 1.0,
    aten.full_like.default: None,
    aten.full.default: None,
    aten.scalar_tensor.default: None,
    aten.fill.Scalar: None,
    aten.new_full.default: None,
}

_MOVES = {
    aten.clone.default,
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.expand.default,
    aten.squeeze.dim,
    aten.unsqueeze.default,
    aten.split_with_sizes.default,
    aten.split.Tensor,
    aten.select.int,
    aten.slice.Tensor,
    aten.unbind.int,
    aten.cat.default,
    aten.stack.default,
    aten.index.Tensor,
    aten.index_select.default,
    aten.lift_fresh.default,
    item,
}


class _Unsupported(Exception):
    """The program needs an operation that is not in the tables."""


def compile_for_host(program: Program) -> Replay | None:
    """The program on Python floats, or None where it is large, elsewhere, or uses an operation not known here.

    Numbers are double precision throughout, as the program's own must be; a narrower result is rounded at the end.
    """
    tensors = [program.spec(n.out) for n in program.nodes]
    if any(t.device.type != "cpu" for t in program.constants.values()) or not program.on_cpu:
        return None
    if sum(t.numel() for t in tensors) > WORTH_IT * len(tensors):
        return None
    try:
        return _HostCompiler(program).compile()
    except _Unsupported:
        return None


class _HostCompiler:
    """Writes a program element by element.

    `places[slot]` is a tensor of the slot's shape whose entries number the element's text in `texts`: operations that
    only move elements about are carried out on these, once, and cost nothing at replay.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.texts: list[str] = []
        self.places: dict[Slot, Any] = {}
        self.lines: list[str] = []

    def compile(self) -> Replay:
        """The whole program as a function."""
        arguments = [f"x{slot.number}" for slot in self.program.inputs]
        for slot, argument in zip(self.program.inputs, arguments, strict=True):
            spec = self.program.spec(slot)
            names = [f"v{slot.number}_{j}" for j in range(spec.numel())]
            self._name(slot, names)
            if names:
                unpacked = f"({', '.join(names)},) = {argument}.tolist()" if spec.dim() == 1 else None
                self.lines.append(unpacked or f"({', '.join(names)},) = {argument}.reshape(-1).tolist()")
        for slot, tensor in self.program.constants.items():
            self._name(slot, [_literal(x) for x in tensor.reshape(-1).tolist()])
        for node in self.program.nodes:
            self._write(node)
        scope: dict[str, Any] = {**_NAMES, "tensor": torch.tensor}
        results = []
        for i, slot in enumerate(self.program.outputs):
            spec = self.program.spec(slot)
            scope[f"dtype{i}"], scope[f"shape{i}"] = spec.dtype, spec.shape
            texts = ", ".join(self.texts[p] for p in self.places[slot].reshape(-1).tolist())
            made = f"tensor([{texts}], dtype=dtype{i})"
            results.append(made if spec.dim() == 1 else f"{made}.view(shape{i})")
        return as_function(arguments, self.lines, results, scope)

    def _name(self, slot: Slot, texts: list[str]) -> None:
        start = len(self.texts)
        self.texts += texts
        self.places[slot] = torch.arange(start, start + len(texts)).view(self.program.spec(slot).shape)

    def _place(self, value: Any) -> Any:
        """An argument with places for slots."""
        if isinstance(value, Slot):
            constant = self.program.constants.get(value)
            return constant if constant is not None and not constant.is_floating_point() else self.places[value]
        return type(value)(map(self._place, value)) if isinstance(value, (list, tuple)) else value

    def _write(self, node: Node) -> None:
        spec = self.program.spec(node.out)
        if node.function in _MOVES:
            self.places[node.out] = node.function(
                *self._place(node.args), **{k: self._place(v) for k, v in node.kwargs.items()}
            )
        elif node.function in _FILLS:
            value = _FILLS[node.function]
            filled = node.args[-1] if value is None else value
            if isinstance(filled, Slot):
                raise _Unsupported
            self._name(node.out, [_literal(filled)] * spec.numel())
        elif node.function in (aten.dot.default, aten.sum.default, aten.sum.dim_IntList):
            self._sum(node)
        elif node.function in _TEMPLATES:
            self._elementwise(node)
        else:
            raise _Unsupported

    def _sum(self, node: Node) -> None:
        """A sum over some dimensions or all, or of the product of two vectors."""
        places = [self.places[a] for a in node.args if isinstance(a, Slot)]
        over = node.args[1] if node.function is aten.sum.dim_IntList else ()
        over = [d % places[0].dim() for d in over] or list(range(places[0].dim()))
        shape = self.program.spec(node.out).numel(), math.prod(places[0].shape[d] for d in over)
        last = list(range(-len(over), 0))
        rows = zip(*(p.movedim(over, last).reshape(shape).tolist() for p in places), strict=True)
        products = ([" * ".join(self.texts[p] for p in term) for term in zip(*row, strict=True)] for row in rows)
        self._assign(node, [" + ".join(terms) or "0.0" for terms in products])

    def _elementwise(self, node: Node) -> None:
        narrow = self.program.spec(node.out).dtype not in (torch.float64, torch.bool)
        if node.function is not aten._to_copy.default and (narrow or node.kwargs):
            raise _Unsupported  # a narrower dtype would round, and keywords (alpha=, rounding_mode=) change the meaning
        arguments = [a for a in node.args if a is not None] if node.function is aten.clamp.default else node.args
        if node.function is aten.clamp.default and node.args[1] is None:
            raise _Unsupported
        shape = self.program.spec(node.out).shape
        columns = []
        for a in arguments:
            if isinstance(a, Slot):
                columns.append([self.texts[p] for p in self.places[a].expand(shape).reshape(-1).tolist()])
            else:
                columns.append([_literal(a)] * shape.numel())
        template = _TEMPLATES[node.function]
        if node.function is aten.clamp.default and len(columns) == 3:
            template = f"smaller({template}, {{2}})"
        self._assign(node, [template.format(*row) for row in zip(*columns, strict=True)])

    def _assign(self, node: Node, expressions: list[str]) -> None:
        names = [f"v{node.out.number}_{j}" for j in range(len(expressions))]
        self.lines += [f"{name} = {text}" for name, text in zip(names, expressions, strict=True)]
        self._name(node.out, names)


def _literal(value: Any) -> str:
    """A number as source text that can stand anywhere in an expression."""
    if isinstance(value, bool):
        return repr(value)
    if not isinstance(value, (int, float)):
        raise _Unsupported
    return f"({float(value)!r})"
