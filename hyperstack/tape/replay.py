"""A program as one Python function that calls torch's operations: straight-line code, several times faster than
a loop that looks up arguments. Its text consists of slot numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hyperstack.tape.program import Program, Slot

Replay = Callable[..., tuple[Tensor, ...]]


def compile_for_torch(program: Program) -> Replay:
    """The program as calls of torch's operations."""
    scope: dict[str, Any] = {f"v{slot.number}": tensor for slot, tensor in program.constants.items()}
    last = {slot: i for i, node in enumerate(program.nodes) for slot in node.reads()}
    kept = {*program.inputs, *program.outputs, *program.constants}
    lines = []
    for i, node in enumerate(program.nodes):

        def written(value: Any, place: str) -> str:
            if isinstance(value, Slot):
                return f"v{value.number}"
            if isinstance(value, (list, tuple)) and any(isinstance(each, Slot) for each in value):
                return "[" + ", ".join(written(each, f"{place}_{j}") for j, each in enumerate(value)) + "]"
            scope[place] = value
            return place

        scope[f"f{i}"] = getattr(node.function, "_op", node.function)
        arguments = [written(a, f"c{i}_{j}") for j, a in enumerate(node.args)]
        arguments += [f"{k}={written(v, f'c{i}_{k}')}" for k, v in node.kwargs.items()]
        lines.append(f"v{node.out.number} = f{i}({', '.join(arguments)})")
        # Free what is not needed any more, so that its memory is taken again while it is still in cache.
        done = [slot for slot, at in last.items() if at == i and slot not in kept]
        lines += [f"del {', '.join(f'v{slot.number}' for slot in done)}"] * bool(done)
    results = [f"v{slot.number}" for slot in program.outputs]
    return as_function([f"v{slot.number}" for slot in program.inputs], lines, results, scope)


def as_function(arguments: list[str], lines: list[str], results: list[str], scope: dict[str, Any]) -> Replay:
    """The function with these arguments that runs `lines` and returns the tuple of `results`."""
    body = "".join(f"    {line}\n" for line in lines)
    text = f"def replay({', '.join(arguments)}):\n{body}    return ({''.join(r + ', ' for r in results)})\n"
    exec(compile(text, "<replay>", "exec"), scope)
    replay: Replay = scope["replay"]
    return replay
