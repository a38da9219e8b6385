"""Memory for the intermediate results of a program, taken once.

A vector of half a megabyte that is allocated anew comes from the kernel page by page, which costs more than to compute
it. So each large result gets a register, a piece of memory that is used again as soon as nothing needs its content.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hyperstack.tape.program import Node, Program, Slot, item, row_dots

LARGE = 1 << 13
"""Elements from which on a result gets a register."""


class Scratch:
    """Registers that programs share, each as long as the longest use of it."""

    def __init__(self) -> None:
        self._registers: dict[tuple[torch.dtype, int], Tensor] = {}

    def view(self, dtype: torch.dtype, number: int, shape: torch.Size) -> Tensor:
        """The first elements of a register, in a shape."""
        length = shape.numel()
        known = self._registers.get((dtype, number))
        if known is None or len(known) < length:
            known = self._registers[dtype, number] = torch.empty(length, dtype=dtype)
        return known[:length].view(shape)


def assign(program: Program, scratch: Scratch) -> dict[Slot, Tensor]:
    """Where each large tensor of a program is to be written; results of the program get memory of their own."""
    if not program.on_cpu:
        return {}
    whole = _wholes(program)
    last = {whole.get(slot, slot): i for i, node in enumerate(program.nodes) for slot in node.reads()}
    kept = {whole.get(slot, slot) for slot in program.outputs}
    fresh = (node for node in program.nodes if node.out not in whole and node.function is not row_dots)
    opaque = (node for node in fresh if out_variant(node.function) is None)
    shared = {whole.get(slot, slot) for node in opaque for slot in node.reads()}
    free: dict[tuple[torch.dtype, int], list[int]] = defaultdict(list)
    counts: dict[torch.dtype, int] = defaultdict(int)
    numbers: dict[Slot, int] = {}
    places: dict[Slot, Tensor] = {}
    for i, node in enumerate(program.nodes):
        spec = program.spec(node.out)
        if _fits(program, node) and node.out not in shared:
            if node.out in kept:
                places[node.out] = torch.empty(spec.shape, dtype=spec.dtype)
            else:
                available = free[spec.dtype, spec.numel()]
                if not available:
                    available.append(counts[spec.dtype])
                    counts[spec.dtype] += 1
                numbers[node.out] = available.pop()
                places[node.out] = scratch.view(spec.dtype, numbers[node.out], spec.shape)
        for slot in {whole.get(s, s) for s in node.reads()}:
            if slot in numbers and last[slot] == i:
                free[program.spec(slot).dtype, program.spec(slot).numel()].append(numbers[slot])
    return places


def _fits(program: Program, node: Node) -> bool:
    spec = program.spec(node.out)
    return spec.numel() >= LARGE and spec.is_contiguous() and out_variant(node.function) is not None


def _wholes(program: Program) -> dict[Slot, Slot]:
    """Of each slot that holds a view, the slot of which."""
    whole: dict[Slot, Slot] = {}
    for node in program.nodes:
        if getattr(node.function, "is_view", False) or node.function is torch.ops.aten._unsafe_view.default:
            whole[node.out] = whole.get(node.args[0], node.args[0])
        elif node.function is item and node.args[0] in whole:
            whole[node.out] = whole[node.args[0]]
    return whole


@cache
def out_variant(function: Any) -> Any:
    """The variant of an operation that writes into a given tensor, or None."""
    packet = getattr(function, "overloadpacket", None)
    for name in packet.overloads() if packet else ():
        variant = getattr(packet, name)
        arguments = variant._schema.arguments
        given = [(a.name, str(a.type)) for a in arguments if not a.is_out]
        if len(arguments) - len(given) == 1 and given == [(a.name, str(a.type)) for a in function._schema.arguments]:
            return variant
    return None


@cache
def out_name(function: Any) -> str:
    """What the variant of an operation that has one calls the given tensor."""
    return next(str(a.name) for a in out_variant(function)._schema.arguments if a.is_out)
