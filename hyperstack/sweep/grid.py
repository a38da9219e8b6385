"""Which runs a sweep consists of: stacks with free names, values for these, and seeds."""

from __future__ import annotations

import ast
import math
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from hyperstack.errors import InputError
from hyperstack.rivals import Rival, read_optimizer
from hyperstack.rule import Stack, nearest

HINT = "write, for example: α=1e-5,1e-4,1e-3 or α=log(1e-6,1e-1,11) or α=lin(0,1,5)"
LONGEST = 1_000_000
"""The most values that one name may take."""
_read = lru_cache(maxsize=64)(read_optimizer)


@dataclass(frozen=True)
class Cell:
    """One run: `template`, the stack (or the rival) as it was given, `values` of its free names, and a seed."""

    template: str
    values: tuple[tuple[str, float], ...]
    seed: int

    @property
    def stack(self) -> Stack | Rival:
        """The stack with its names bound."""
        return _read(self.template).bind(**dict(self.values))


def axis(text: str) -> tuple[str, list[float]]:
    """A name and its values: `NAME=V,V,...`, where V is a number, `log(A,B,N)` or `lin(A,B,N)`.

    `log` and `lin` are N numbers from A to B, both included, in equal ratios or at equal distances; those of `log`
    are rounded to six digits, so that `log(1e-6,1e-1,6)` holds 1e-05.
    Raises InputError where the text is none of these, has no values, or has one of them twice.
    """
    name, equals, listed = text.partition("=")
    name = unicodedata.normalize("NFKC", name.strip())
    if not equals or not name.isidentifier():
        raise InputError(f"{text!r} is not NAME=VALUES", instead=HINT)
    values = list(_values(name, listed))
    if not values:
        raise InputError(f"the grid of {name} is empty", instead=HINT)
    if len(set(values)) < len(values):
        twice = Counter(values).most_common(1)[0][0]
        raise InputError(f"the grid of {name} has {twice!r} twice", instead="give each value once")
    return name, values


def axes(texts: Sequence[str]) -> dict[str, list[float]]:
    """The values of each name; an InputError where a name has two grids."""
    found: dict[str, list[float]] = {}
    for text in texts:
        name, values = axis(text)
        if name in found:
            raise InputError(f"{name} has two grids", instead="give all its values in one")
        found[name] = values
    return found


def size(templates: Sequence[str], grid: Mapping[str, Sequence[float]], seeds: int) -> int:
    """How many cells there will be, or an InputError where names and stacks do not fit together."""
    stacks = [read_optimizer(template) for template in templates]
    known = list(dict.fromkeys(name for stack in stacks for name in stack.free_names))
    for name in grid:
        if name not in known:
            hint = nearest(name, known) if known else "the stack has no free names: write SGD(α), and --grid α=..."
            raise InputError(f"no stack has a free name {name}", instead=hint)
    for template, stack in zip(templates, stacks, strict=True):
        if missing := [name for name in stack.free_names if name not in grid]:
            hint = "give " + " and ".join(f"--grid {name}=..." for name in missing)
            raise InputError(f"the stack leaves {', '.join(missing)} open", why=f"  {template}", instead=hint)
    return seeds * sum(math.prod(len(grid[name]) for name in stack.free_names) for stack in stacks)


def cells(templates: Sequence[str], grid: Mapping[str, Sequence[float]], seeds: Sequence[int]) -> list[Cell]:
    """Every run, seeds innermost; an InputError where a value does not fit its place, before anything is trained."""
    size(templates, grid, len(seeds))
    found: dict[tuple[str, int], Cell] = {}
    for template in templates:
        names = read_optimizer(template).free_names
        for values in product(*(grid[name] for name in names)):
            bound = Cell(template, tuple(zip(names, values, strict=True)), seed=0)
            try:
                stack = bound.stack
                stack.resolve()
            except InputError as error:
                put = ", ".join(f"{name} = {value:g}" for name, value in bound.values)
                if not put:
                    raise
                why = "\n".join(filter(None, (error.what, error.why)))
                raise InputError(f"{put} does not fit into {template}", why=why, instead=error.instead) from None
            text = str(stack)  # a hundredth of what a stack takes
            for seed in seeds:
                found.setdefault((text, seed), Cell(template, bound.values, seed))
    return list(found.values())


def _values(name: str, listed: str) -> Iterator[float]:
    if not listed.strip():
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what looks odd in Python: it is either right or a mistake here
            parsed = ast.parse(f"[{listed}]".strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        parsed = None
    if not isinstance(parsed, ast.List):
        raise InputError(f"cannot read the values of {name}: {_short(listed)}", instead=HINT)
    for node in parsed.elts:
        if isinstance(node, ast.Call):
            yield from _series(name, node)
        else:
            yield _number(name, node)


def _series(name: str, node: ast.Call) -> list[float]:
    """The numbers of `log(A,B,N)` or `lin(A,B,N)`."""
    kind = node.func.id if isinstance(node.func, ast.Name) else ""
    if kind not in ("log", "lin") or len(node.args) != 3 or node.keywords:
        raise InputError(f"cannot read {_short(ast.unparse(node))} of {name}", instead=HINT)
    first, last, count = (_number(name, each) for each in node.args)
    if count != int(count) or not 1 <= count <= LONGEST:
        what = f"{kind}(A,B,N) of {name} takes a whole number N from 1 to {LONGEST}, not {count!r}"
        raise InputError(what, instead=HINT)
    if kind == "log" and not (first > 0 and last > 0):
        raise InputError(f"log({first!r},{last!r},...) of {name} needs numbers above 0", instead="or use lin(A,B,N)")
    parts = [i / (count - 1) if count > 1 else 0.0 for i in range(int(count))]
    if kind == "lin":
        return [first + (last - first) * part for part in parts]
    low, high = math.log10(first), math.log10(last)
    inner = [float(f"{10 ** (low + (high - low) * part):.6g}") for part in parts]
    return [first, *inner[1:-1], last][: len(parts)]


def _number(name: str, node: ast.expr) -> float:
    sign = -1.0 if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) else 1.0
    value = node.operand if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)) else node
    if not isinstance(value, ast.Constant) or isinstance(value.value, bool):
        raise InputError(f"{_short(ast.unparse(node))} of {name} is not a number", instead=HINT)
    try:
        found = float(value.value) if isinstance(value.value, (int, float)) else math.nan
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise InputError(f"{_short(ast.unparse(node))} of {name} is not a number", instead=HINT)
    return sign * found


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
