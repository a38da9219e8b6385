"""A program as one Python function that calls torch's operations: straight-line code, several times faster than
a loop that looks up arguments. Its text consists of slot numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hyperstack.tape.peephole import with_stores
from hyperstack.tape.program import Node, Program, Slot
from hyperstack.tape.scratch import Scratch, assign, out_name, out_variant

Replay = Callable[..., tuple[Tensor, ...]]


def compile_for_torch(program: Program, scratch: Scratch) -> Replay:
    """The program as calls of torch's operations. Large results are overwritten by the next call."""
    program = with_stores(program)
    places = assign(program, scratch)
    text = Text(program)
    last = {slot: i for i, node in enumerate(program.nodes) for slot in node.reads()}
    kept = {*program.inputs, *program.outputs, *program.constants, *places}
    for i, node in enumerate(program.nodes):
        function = out_variant(node.function) if node.out in places else node.function
        # The bare function of an operation's overload does without the overload's Python.
        text.call(node, getattr(function, "_op", function), places.get(node.out))
        # Free what is not needed any more, so that its memory is taken again while it is still in cache.
        done = [slot for slot, at in last.items() if at == i and slot not in kept]
        text.lines += [f"del {', '.join(f'v{slot.number}' for slot in done)}"] * bool(done)
    return text.compiled()


class Text:
    """The function being written: its lines, and what their names mean."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.lines: list[str] = []
        self.scope: dict[str, Any] = {f"v{slot.number}": tensor for slot, tensor in program.constants.items()}

    def call(self, node: Node, function: Any, place: Tensor | None = None) -> None:
        """Add an operation, whose result goes to `place` if given."""
        i = len(self.lines)
        self.scope[f"f{i}"] = function
        arguments = [self._written(a, f"c{i}_{j}") for j, a in enumerate(node.args)]
        arguments += [f"{k}={self._written(v, f'c{i}_{k}')}" for k, v in node.kwargs.items()]
        if place is None:
            self.lines.append(f"v{node.out.number} = f{i}({', '.join(arguments)})")
        else:
            self.scope[f"v{node.out.number}"] = place
            self.lines.append(f"f{i}({', '.join(arguments)}, {out_name(node.function)}=v{node.out.number})")

    def _written(self, value: Any, place: str) -> str:
        if isinstance(value, Slot):
            return f"v{value.number}"
        if isinstance(value, (list, tuple)) and any(isinstance(each, Slot) for each in value):
            return "[" + ", ".join(self._written(each, f"{place}_{j}") for j, each in enumerate(value)) + "]"
        self.scope[place] = value
        return place

    def compiled(self) -> Replay:
        """The function."""
        arguments, returned = (
            [f"v{slot.number}" for slot in slots] for slots in (self.program.inputs, self.program.outputs)
        )
        return as_function(arguments, self.lines, returned, self.scope)


def as_function(arguments: list[str], lines: list[str], results: list[str], scope: dict[str, Any]) -> Replay:
    """The function with these arguments that runs `lines` and returns the tuple of `results`."""
    body = "".join(f"    {line}\n" for line in lines)
    text = f"def replay({', '.join(arguments)}):\n{body}    return ({''.join(r + ', ' for r in results)})\n"
    exec(compile(text, "<replay>", "exec"), scope)
    replay: Replay = scope["replay"]
    return replay
