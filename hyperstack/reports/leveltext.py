"""What the text of a level says, read without the rules: nothing of torch is needed, and no rule has to be known."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from hyperstack.telemetry.record import parts

UNITLESS = ("cosine", "normalize")  # transforms whose factor tells of a change of unit, and of no clipping


def rule_name(text: str) -> str:
    """The name of the rule: "Adam" of "Adam(0.01, clip)"."""
    return text.partition("(")[0].strip()


def clips(text: str) -> bool:
    """Whether this level transforms the gradients that it receives, as with `clip`, and keeps their unit."""
    return any(name == "clip" for name, _ in _arguments(text)) and not rescales(text)


def rescales(text: str) -> bool:
    """Whether this level takes the unit from the gradients that it receives, as with `clip=[cosine]`."""
    given = [value for name, value in _arguments(text) if name == "clip"]
    return any(isinstance(n, ast.Name) and n.id in UNITLESS for value in given for n in ast.walk(value))


def is_clipped(key: str, levels: Sequence[str], clipped: float | None) -> bool:
    """Whether the level above may clip the hypergradients of a key; `clipped`: in what share of the steps it was."""
    above = parts(key)[1] + 1
    texts = levels[above : above + 1]
    return any(map(clips, texts)) or (bool(clipped) and not any(map(rescales, texts)))


def per_tensor(text: str) -> set[str]:
    """The hyperparameters of this level that have one number a tensor."""
    return {name for name, value in _arguments(text) if "per_tensor" in _called(value)}


def start(text: str, name: str) -> float | None:
    """The number at which this level's hyperparameter starts, where the text gives one."""
    given = [value for known, value in _arguments(text) if known == name]
    numbers = (n.value for value in given for n in ast.walk(value) if isinstance(n, ast.Constant))
    return next((float(x) for x in numbers if isinstance(x, (int, float))), None)


def is_norm(key: str, levels: Sequence[str]) -> bool:
    """Whether what is recorded as the hypergradient of a key is a norm, as it is where there is one number a tensor."""
    _, level, name = parts(key)
    return any(name in per_tensor(text) for text in levels[level : level + 1])


def _arguments(text: str) -> Iterator[tuple[str, ast.expr]]:
    """Names and values: the first number without a name is the learning rate, a bare `clip` is the flag."""
    try:
        node = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    while isinstance(node, ast.Call):
        yield from ((k.arg, k.value) for k in node.keywords if k.arg)
        base: ast.expr | None = None
        for value in node.args:
            called = value.func if isinstance(value, ast.Call) else value
            if isinstance(called, ast.Name) and called.id[:1].isupper():
                base = value  # what a wrapper stands around
            elif isinstance(value, ast.Name):
                yield value.id, value
            else:
                yield "lr", value
        if base is None:
            return
        node = base


def _called(node: ast.expr) -> set[str]:
    return {n.func.id for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
