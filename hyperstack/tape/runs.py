"""A function of one run, recorded for many at once: every tensor gets a first axis along which the runs lie.

What a function recorded as no longer has autograd in it, so that it can be vmapped where the function itself cannot;
and what vmap makes of it is recorded again, so that a replay costs nothing of either.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from hyperstack.layout import Tensors
from hyperstack.tape.peephole import without_dot
from hyperstack.tape.program import Program, Slot, renamed
from hyperstack.tape.record import record


def record_runs(
    shared: Collection[str], function: Callable[[Tensors], Tensors], inputs: Tensors
) -> tuple[Program, list[str]]:
    """Every operation of a function of one run on the tensors of all, and the names of its results.

    The inputs called `shared` are the same for all runs, and have no axis of runs; every result has one.
    """
    one, names = record(function, {name: x if name in shared else x[0] for name, x in inputs.items()})
    one = without_dot(one)
    axes = tuple(None if name in shared else 0 for name in inputs)

    def together(given: Tensors) -> Tensors:
        found = torch.vmap(lambda *values: interpret(one, values), in_dims=axes)(*given.values())
        return dict(zip(names, found, strict=True))

    return record(together, inputs)


def interpret(program: Program, values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The results of a program, operation by operation."""
    known: dict[Slot, Any] = {**program.constants, **dict(zip(program.inputs, values, strict=True))}
    for node in program.nodes:
        args, kwargs = renamed(node.args, known), {k: renamed(v, known) for k, v in node.kwargs.items()}
        known[node.out] = node.function(*args, **kwargs)
    return tuple(known[slot] for slot in program.outputs)
