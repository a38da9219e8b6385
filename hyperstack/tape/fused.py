"""A program as kernels of torch.compile's: everything elementwise, and the sums over it, in one pass over memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hyperstack.errors import RunError
from hyperstack.tape.peephole import with_stores, without_dot
from hyperstack.tape.program import Node, Program, Slot
from hyperstack.tape.replay import Replay, Text

OPTIONS: dict[str, Any] = {
    # Rather compute an intermediate result again than store it: memory is what limits these kernels.
    "realize_reads_threshold": 1 << 20,
    "realize_acc_reads_threshold": 1 << 20,
    "realize_opcount_threshold": 1 << 20,
}


def compile_for_inductor(program: Program, known: dict[str, Replay]) -> Replay:
    """The program compiled, for vectors of any length; `known` holds those that were compiled before, by their text."""
    program = with_stores(_without_copies(without_dot(program)))
    key = repr((program.nodes, program.inputs, program.outputs))
    if program.constants or key not in known:
        text = Text(program)
        for node in program.nodes:
            text.call(node, node.function)
        known[key] = _explained(torch.compile(text.compiled(), dynamic=True, fullgraph=True, options=OPTIONS))
    return known[key]


def _explained(kernel: Replay) -> Replay:
    """A kernel that says what to do where it cannot be made, which shows at its first call."""

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        try:
            return kernel(*tensors)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            raise RunError(
                "torch.compile could not make a kernel",
                why=str(error).removeprefix("backend='inductor' raised:\n").splitlines()[0],
                instead="see that it finds a C++ compiler, such as g++, or leave compile off",
            ) from error

    return call


def _without_copies(program: Program) -> Program:
    """The program with every input that it stores as it is computed, as the larger of it and itself.

    torch.compile copies an input into another only after it has overwritten it: pytorch issue 198131.
    """
    program = replace(program, nodes=list(program.nodes))
    count = len(program.outputs) - len(program.stores)

    def computed(slot: Slot) -> Slot:
        out = program.add(program.spec(slot))
        program.nodes.append(Node(torch.ops.aten.maximum.default, (slot, slot), {}, out))
        return out

    stored = [computed(s) if s in program.inputs else s for s in program.outputs[count:]]
    return replace(program, outputs=program.outputs[:count] + stored)
