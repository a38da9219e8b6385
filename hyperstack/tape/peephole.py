"""The same results with fewer operations, and fewer of them on large tensors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from hyperstack.tape.program import Node, Program, Slot, renamed, row_dots

aten = torch.ops.aten

LONG = 1 << 10
"""Elements from which on the dot product of a row is worth a call of its own."""


def shorten(program: Program) -> Program:
    """All passes, in order."""
    return drop_unused(drop_repeated(turn_products(use_dot(without_dot(program)))))


def without_dot(program: Program) -> Program:
    """The passes that also help a compiler, which fuses products into their sums by itself."""
    return drop_unused(drop_repeated(share_quotients(move_scalars_out(drop_repeated(program)))))


def split(program: Program, late: Slot) -> tuple[Program, list[Slot], Program]:
    """What can be done before the input `late` is known, which slots that leaves behind, and what is done with it.

    The first program takes the other inputs and returns those of its results that do not need `late`, then the
    slots left behind; the second takes these and `late`, and returns the other results.
    """
    depends = {late}
    for node in program.nodes:
        if not depends.isdisjoint(node.reads()):
            depends.add(node.out)
    after = [node for node in program.nodes if node.out in depends]
    made = {node.out for node in after} | set(program.constants)
    left = list(dict.fromkeys(slot for node in after for slot in node.reads() if slot not in made | {late}))
    before = [node for node in program.nodes if node.out not in depends]
    early = [slot for slot in program.outputs if slot not in depends] + left
    given = [slot for slot in program.inputs if slot != late]
    first = replace(program, nodes=before, inputs=given, outputs=early)
    ended = [slot for slot in program.outputs if slot in depends]
    return first, left, replace(program, nodes=after, inputs=[*left, late], outputs=ended)


def with_stores(program: Program) -> Program:
    """The program with its stores as operations, each as early as nothing needs the input's old value any more."""
    count = len(program.outputs) - len(program.stores)
    stores = dict(zip(program.stores, program.outputs[count:], strict=True))
    ready = {node.out: i for i, node in enumerate(program.nodes)}
    for i, node in enumerate(program.nodes):
        ready.update({place: i for place in node.reads() if place in stores})
    after: dict[int, list[Node]] = {}
    # A store that takes another's old value comes before it.
    for place, value in sorted(stores.items(), key=lambda store: store[1] not in stores):
        at = max(ready.get(place, -1), ready.get(value, -1))
        ready[value] = max(at, ready.get(value, -1))
        done = Node(aten.copy_.default, (place, value), {}, program.add(program.spec(place)))
        after.setdefault(at, []).append(done)
    nodes = after.get(-1, []) + [n for i, node in enumerate(program.nodes) for n in (node, *after.get(i, []))]
    return replace(program, nodes=nodes, outputs=program.outputs[:count], stores=[])


def drop_repeated(program: Program) -> Program:
    """What is computed twice is computed once, and what changes nothing not at all."""
    same: dict[Slot, Any] = {}
    seen: dict[str, Slot] = {}
    kept: list[Node] = []
    for node in program.nodes:
        args, kwargs = renamed(node.args, same), {k: renamed(v, same) for k, v in node.kwargs.items()}
        key = repr((node.function, args, sorted(kwargs.items())))
        if node.function in (aten.detach.default, aten.alias.default):
            same[node.out] = args[0]
        elif node.function is aten._to_copy.default and isinstance(args[0], float) and node.out not in program.outputs:
            same[node.out] = args[0]  # vmap's way to multiply by a number
        elif key in seen:
            same[node.out] = seen[key]
        else:
            seen[key] = node.out
            kept.append(Node(node.function, args, kwargs, node.out))
    outputs = [same.get(slot, slot) for slot in program.outputs]
    return replace(program, nodes=kept, outputs=outputs)


def drop_unused(program: Program) -> Program:
    """What no result needs is left out."""
    needed = set(program.outputs)
    kept = []
    for node in reversed(program.nodes):
        if node.out in needed:
            kept.append(node)
            needed.update(node.reads())
    return replace(program, nodes=kept[::-1])


def use_dot(program: Program) -> Program:
    """The sum of a product of two vectors, or of the rows of matrices, in one pass, without the product in memory."""
    products = {n.out: n for n in program.nodes if n.function is aten.mul.Tensor and _alike(program, n.args)}
    kept = []
    for node in program.nodes:
        if node.args and isinstance(node.args[0], Slot) and node.args[0] in products:
            dot = aten.dot.default if _sums(program, node) else row_dots if _sums_rows(program, node) else node.function
            if dot is not node.function:
                node = Node(dot, products[node.args[0]].args, {}, node.out)
        kept.append(node)
    return replace(program, nodes=kept)


def turn_products(program: Program) -> Program:
    """Products of matrices in the order in which they are wanted: `(a b)ᵀ` is `bᵀ aᵀ`, which is one copy less."""
    program = _drop_turns(program)
    counts = Counter(slot for node in program.nodes for slot in node.reads())
    counts.update(program.outputs)
    products = {n.out: n for n in program.nodes if n.function is aten.bmm.default and counts[n.out] == 1}
    kept = []
    for node in program.nodes:
        if _turns(program, node) and node.args[0] in products:
            turned = []
            for factor in reversed(products[node.args[0]].args):
                turned.append(program.add(program.spec(factor).transpose(1, 2)))
                kept.append(Node(aten.transpose.int, (factor, 1, 2), {}, turned[-1]))
            node = Node(aten.bmm.default, tuple(turned), {}, node.out)
            program.specs[node.out.number] = program.spec(node.out).contiguous()
        kept.append(node)
    return _drop_turns(replace(program, nodes=kept))


def _drop_turns(program: Program) -> Program:
    """Without changes of shape that are none, and transposes of transposes."""
    same: dict[Slot, Slot] = {}
    turned: dict[Slot, Slot] = {}
    kept = []
    for node in program.nodes:
        args, kwargs = renamed(node.args, same), {k: renamed(v, same) for k, v in node.kwargs.items()}
        node = Node(node.function, args, kwargs, node.out)
        if node.function in _RESHAPES and _unchanged(program, node):
            same[node.out] = args[0]
        elif _turns(program, node) and args[0] in turned:
            same[node.out] = turned[args[0]]
        else:
            if _turns(program, node):
                turned.update({args[0]: node.out, node.out: args[0]})
            kept.append(node)
    return drop_unused(replace(program, nodes=kept, outputs=[same.get(slot, slot) for slot in program.outputs]))


def _turns(program: Program, node: Node) -> bool:
    """Whether a node transposes each of several matrices."""
    turns = node.function is aten.transpose.int and node.args[1:] in ((1, 2), (2, 1), (-1, -2), (-2, -1))
    return turns and program.spec(node.args[0]).dim() == 3


_RESHAPES = (aten.view.default, aten._unsafe_view.default, aten.expand.default)


def _unchanged(program: Program, node: Node) -> bool:
    """Whether a change of shape is none."""
    before, after = program.spec(node.args[0]), program.spec(node.out)
    return before.shape == after.shape and before.stride() == after.stride()


def share_quotients(program: Program) -> Program:
    """`a ((b / c) / c)` is `(a / c) (b / c)`: one division less where both quotients are at hand.

    The derivative of a quotient has this form.
    """
    quotients = {n.out: n.args for n in program.nodes if n.function is aten.div.Tensor and _vectors(program, n.args)}
    kept = []
    for node in program.nodes:
        found = _double_quotient(program, node, quotients) if node.function is aten.mul.Tensor else None
        if found:
            other, (single, divisor) = found
            if (other, divisor) in quotients.values():
                quotient = program.add(program.spec(other))
                kept.append(Node(aten.div.Tensor, (other, divisor), {}, quotient))
                node = Node(aten.mul.Tensor, (quotient, single), {}, node.out)
        kept.append(node)
    return replace(program, nodes=kept)


def _double_quotient(
    program: Program, node: Node, quotients: dict[Slot, tuple[Any, ...]]
) -> tuple[Slot, tuple[Any, ...]] | None:
    """a and (b / c, c) of a node that is a ((b / c) / c)."""
    if not _vectors(program, node.args):
        return None
    for a, b in (node.args, node.args[::-1]):
        single, divisor = quotients.get(b, (None, None))
        if single in quotients and quotients[single][1] == divisor:
            return a, (single, divisor)
    return None


def _vectors(program: Program, args: tuple[Any, ...]) -> bool:
    """Whether the arguments are vectors of one length and floating dtype."""
    return _alike(program, args) and program.spec(args[0]).dim() == 1


def _alike(program: Program, args: tuple[Any, ...]) -> bool:
    """Whether the arguments are tensors of one shape and floating dtype."""
    if not all(isinstance(a, Slot) for a in args):
        return False
    specs = [program.spec(a) for a in args]
    alike = all(s.shape == specs[0].shape and s.dtype == specs[0].dtype for s in specs)
    return alike and specs[0].is_floating_point()


def _sums(program: Program, node: Node) -> bool:
    """Whether a node sums a whole vector to one number of the same dtype."""
    if node.function not in (aten.sum.default, aten.sum.dim_IntList):
        return False
    source, result = program.spec(node.args[0]), program.spec(node.out)
    return source.dim() == 1 and result.dim() == 0 and result.dtype == source.dtype


def _sums_rows(program: Program, node: Node) -> bool:
    """Whether a node sums the rows of a matrix of few long ones, each to one number of the same dtype."""
    if node.function is not aten.sum.dim_IntList or node.kwargs:
        return False
    source, result = program.spec(node.args[0]), program.spec(node.out)
    rows = source.dim() == 2 and list(node.args[1]) in ([1], [-1]) and result.dim() == 1
    return rows and source.shape[1] >= LONG and result.dtype == source.dtype


def move_scalars_out(program: Program) -> Program:
    """Multiplications of a vector by a number wait until the vector has become a number itself, or has to be known.

    Each vector is thought of as (numbers) x (another vector): signs and coefficients then meet the sums, where they
    cost one operation on a number instead of one on the whole block.
    """
    mover = _Mover(program)
    for node in program.nodes:
        mover.take(node)
    return mover.finish()


class _Mover:
    """`factors[slot]` is (base, numbers) where the slot is that multiple of its base; `known[slot]` its slot once
    it had to be computed after all.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.kept: list[Node] = []
        self.factors: dict[Slot, tuple[Slot, list[Any]]] = {}
        self.known: dict[Slot, Slot] = {}

    def finish(self) -> Program:
        """The improved program."""
        for slot in self.program.outputs:
            self._materialize(slot)
        outputs = [self.known.get(slot, slot) for slot in self.program.outputs]
        return replace(self.program, nodes=self.kept, outputs=outputs)

    def take(self, node: Node) -> None:
        """One node, in order: remembered as a multiple, or kept."""
        rule: Callable[[Node], bool] | None = {
            aten.neg.default: self._neg,
            aten.mul.Tensor: self._mul,
            aten.mul.Scalar: self._mul,
            aten.div.Tensor: self._div,
            aten.sum.default: self._sum,
            aten.sum.dim_IntList: self._sum,
        }.get(node.function)
        if rule is not None and rule(node):
            return
        for slot in node.reads():
            self._materialize(slot)
        kwargs = {k: renamed(v, self.known) for k, v in node.kwargs.items()}
        self.kept.append(Node(node.function, renamed(node.args, self.known), kwargs, node.out))

    def _neg(self, node: Node) -> bool:
        return self._scaled(node, node.args[0], [-1.0])

    def _mul(self, node: Node) -> bool:
        a, b = node.args
        if isinstance(b, Slot) and _vectors(self.program, (a, b)):
            (base_a, factors_a), (base_b, factors_b) = self._parts(a), self._parts(b)
            return self._combined(node, (base_a, base_b), factors_a + factors_b)
        if self._is_number(b):
            return self._scaled(node, a, [b])
        return self._is_number(a) and self._scaled(node, b, [a])

    def _div(self, node: Node) -> bool:
        a, b = node.args
        if not isinstance(b, Slot) or not _vectors(self.program, (a, b)):
            return False
        (base_a, factors_a), (base_b, factors_b) = self._parts(a), self._parts(b)
        return self._combined(node, (base_a, base_b), factors_a + [self._inverse(f) for f in factors_b])

    def _inverse(self, factor: Any) -> Any:
        if not isinstance(factor, Slot):
            return 1 / factor if factor else math.inf
        return self._keep(aten.reciprocal.default, self.known.get(factor, factor))

    def _sum(self, node: Node) -> bool:
        if not _sums(self.program, node) or not self._parts(node.args[0])[1]:
            return False
        base, factors = self._parts(node.args[0])
        summed = self.program.add(self.program.spec(node.out))
        self.kept.append(Node(node.function, (base, *node.args[1:]), node.kwargs, summed))
        self.known[node.out] = self._multiplied(summed, factors)
        return True

    def _multiplied(self, slot: Slot, factors: list[Any]) -> Slot:
        """A slot times some numbers."""
        for factor in (f for f in factors if isinstance(f, Slot)):
            slot = self._keep(aten.mul.Tensor, slot, renamed(factor, self.known))
        constant = math.prod(f for f in factors if not isinstance(f, Slot))
        if constant == -1:
            return self._keep(aten.neg.default, slot)
        return slot if constant == 1 else self._keep(aten.mul.Tensor, slot, constant)

    def _keep(self, function: Any, like: Slot, *others: Any) -> Slot:
        out = self.program.add(self.program.spec(like))
        self.kept.append(Node(function, (like, *others), {}, out))
        return out

    def _is_number(self, value: Any) -> bool:
        return isinstance(value, (int, float)) or (isinstance(value, Slot) and self.program.spec(value).dim() == 0)

    def _parts(self, slot: Slot) -> tuple[Slot, list[Any]]:
        return self.factors.get(slot, (slot, []))

    def _scaled(self, node: Node, vector: Slot, factors: list[Any]) -> bool:
        """Remember a node as a multiple of a vector, if it is one."""
        alike = self.program.spec(node.out)
        if alike.dim() != 1 or not alike.is_floating_point() or self.program.spec(vector).dtype != alike.dtype:
            return False
        base, before = self._parts(vector)
        self.factors[node.out] = (base, before + factors)
        return True

    def _combined(self, node: Node, bases: tuple[Slot, Slot], factors: list[Any]) -> bool:
        """A product or quotient of two vectors, without their factors."""
        if not factors:
            self.kept.append(Node(node.function, renamed(bases, self.known), {}, node.out))
        else:
            plain = self.program.add(self.program.spec(node.out))
            self.kept.append(Node(node.function, renamed(bases, self.known), {}, plain))
            self.factors[node.out] = (plain, factors)
        return True

    def _materialize(self, slot: Slot) -> None:
        """Compute a multiple of a vector after all."""
        if slot in self.factors and slot not in self.known:
            base, factors = self.factors[slot]
            # Numbers first, so that the vector is multiplied once.
            slots = [f for f in factors if isinstance(f, Slot)]
            plain = [f for f in factors if not isinstance(f, Slot)]
            number = self._multiplied(slots[0], [*slots[1:], *plain]) if slots else math.prod(plain)
            self.known[slot] = self._keep(aten.mul.Tensor, base, number)
