"""A program as kernels of torch.compile's: everything elementwise, and the sums over it, in one pass over memory."""

from __future__ import annotations

from typing import Any

import torch

from hyperstack.tape.peephole import without_dot
from hyperstack.tape.program import Program
from hyperstack.tape.replay import Replay, Text

OPTIONS: dict[str, Any] = {
    # Rather compute an intermediate result again than store it: memory is what limits these kernels.
    "realize_reads_threshold": 1 << 20,
    "realize_acc_reads_threshold": 1 << 20,
    "realize_opcount_threshold": 1 << 20,
}


def compile_for_inductor(program: Program, known: dict[str, Replay]) -> Replay:
    """The program compiled, for vectors of any length; `known` holds those that were compiled before, by their text."""
    program = without_dot(program)
    key = repr((program.nodes, program.inputs, program.outputs, program.stores))
    if program.constants or key not in known:
        text = Text(program)
        for node in program.nodes:
            text.call(node, node.function)
        known[key] = torch.compile(text.compiled(), dynamic=True, fullgraph=True, options=OPTIONS)
    return known[key]
