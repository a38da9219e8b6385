"""The rows of a run on a terminal: what its hyperparameters, its probes and the gradients of its parameters did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from rich.text import Text

from hyperstack.reports.grid import Field, cropped, grid, taken, wrapped
from hyperstack.reports.run import Run
from hyperstack.reports.series import bars, binned, sparkline
from hyperstack.reports.statistics import ProbeStatistics, Statistics, TensorStatistics
from hyperstack.reports.text import natural, number, percent
from hyperstack.telemetry.record import Record, parts

MOST = 8  # parameters of the network that are shown
DECADES = 2  # powers of ten between the least and the largest value, from which on its scale is logarithmic
SPARE = 2  # the rank from which on columns are given up to have values and hypergradients in one row


def key_rows(
    run: Run, record: Record, found: dict[str, Statistics], width: int, log: bool, ascii_only: bool
) -> list[Text]:
    """Values and hypergradients side by side, or one below the other, where that keeps more of them."""
    if not found:
        return wrapped("nothing here is learned", width)
    keys = list(found)

    def sparks(what: str, logarithm: bool) -> Callable[[int], list[str]]:
        def draw(room: int) -> list[str]:
            columns = [record.columns[f"{key}.{what}"] for key in keys]
            if what == "grad":
                columns = [np.abs(column) for column in columns]
            return [sparkline(column, room, logarithm or far[i], ascii_only) for i, column in enumerate(columns)]

        far = [what == "value" and log and _spans(found[key]) for key in keys]
        return draw

    some = [found[key] for key in keys]
    values = _values(some, sparks("value", False))
    grads = _gradients(some, sparks("grad", log), any(s.clipped is not None for s in some))
    name = Field("", keys, right=False, style="bold")
    together = [name, *values, *grads]
    scale = "log" if log else "linear"
    note = f"hypergradient: its absolute value before clipping ({scale} scale)"
    height = len(run.levels)
    if any(parts(key)[1] == height - 1 for key in keys):
        note += f"; nothing learns from those of level {height - 1}, the top"
    note += "; flips: how often its sign changed, 50 % for noise"
    turns = "probes" if any(len(record.probes(key)) for key in keys) else "steps"
    if any(f.title == "clipped" for f in grads):
        note += f"; clipped: in so many of the {turns}, to such a share on average"
    if far := [key for key in keys if log and _spans(found[key])]:
        note += f"; value of {', '.join(far)}: log scale, too"
    if turns == "probes":
        note += "; figures of hypergradients are of the probes"
    if taken([f for f in together if f.rank <= SPARE], width) <= width:
        lines = grid(together, width)
    else:
        label = max(13 if width >= 60 else 0, name.width)
        named = [Field(t, [key.ljust(label) for key in keys], right=False, style="bold") for t in _titles(width)]
        lines = [*grid([named[0], *(_untitled(f) for f in values)], width), Text()]
        lines += grid([named[1], *(_untitled(f) for f in grads)], width)
    return lines + (wrapped(note, width, style="dim") if width >= 60 else [])


def _spans(s: Statistics) -> bool:
    """Whether a value goes through so many powers of ten that a linear scale hides the small ones."""
    return s.min is not None and s.max is not None and s.min > 0 and s.max > 10**DECADES * s.min


def probe_rows(record: Record, found: dict[str, ProbeStatistics], width: int, ascii_only: bool) -> list[Text]:
    """Cosines, on the scale from -1 to 1, and displacements."""
    columns = {key: record.fresh(key) for key in found}

    def cosines(room: int) -> list[str]:
        series = [record.columns[f"{key}.cosine"][fresh] for key, fresh in columns.items()]
        return [bars(binned(column, room), -1.0, 1.0, ascii_only) for column in series]

    def displacements(room: int) -> list[str]:
        series = [record.columns[f"{key}.displacement"][fresh] for key, fresh in columns.items()]
        return [sparkline(column, room, True, ascii_only) for column in series]

    some = list(found.values())
    label = max(13 if width >= 60 else 0, *map(len, found))
    fields = [
        Field("probes" if width >= 40 else "", [key.ljust(label) for key in found], right=False, style="bold"),
        Field("cosine", draw=cosines, right=False, style="cyan", rank=2),
        Field("median", [number(s.cosine_median, 3) for s in some], rank=1),
        Field("last", [number(s.cosine_last, 3) for s in some]),
        Field("displacement", draw=displacements, right=False, style="magenta", rank=3, least=12),
        Field("median", [number(s.displacement_median, 3) for s in some], rank=2),
        Field("last", [number(s.displacement_last, 3) for s in some], rank=1),
    ]
    note = (
        "cosine: from -1, where the value is too low, to 1, where it is too high; displacement: how far the average "
        "moved, or would move with the value (log scale)"
    )
    return grid(fields, width) + (wrapped(note, width, style="dim") if width >= 60 else [])


def _titles(width: int) -> tuple[str, str]:
    return ("value", "hypergradient") if width >= 40 else ("", "grad")


def _untitled(f: Field) -> Field:
    return replace(f, title="", least=8) if f.draw else f


def _values(found: Sequence[Statistics], draw: Callable[[int], list[str]]) -> list[Field]:
    return [
        Field("value", draw=draw, right=False, style="cyan", rank=2),
        Field("first", [natural(s.first) for s in found], rank=1),
        Field("last", [natural(s.last) for s in found], style="bold"),
        Field("min", [natural(s.min) for s in found], rank=4),
        Field("max", [natural(s.max) for s in found], rank=4),
    ]


def _gradients(found: Sequence[Statistics], draw: Callable[[int], list[str]], clipped: bool) -> list[Field]:
    fields = [
        Field("hypergradient", draw=draw, right=False, style="magenta", rank=2, least=13),
        Field("median", [number(s.grad_median, 3) for s in found]),
        Field("95 %", [number(s.grad_95, 3) for s in found], rank=2),
        Field("max", [number(s.grad_max, 3) for s in found], rank=1),
        Field("at step", ["-" if s.grad_max_step is None else f"{s.grad_max_step:,}" for s in found], rank=4),
        Field("average", [number(s.average, 3) for s in found], rank=3),
        Field("clipped", [percent(s.clipped, 0) for s in found], rank=1 if clipped else 2),
        Field("to", [percent(s.factor, 0) for s in found], rank=2),
        Field("flips", [percent(s.flips, 0) for s in found], rank=2),
        Field("nan/inf", [f"{s.nonfinite:,}" for s in found], rank=1),
    ]
    no = {"average"} if all(s.average is None for s in found) else set()
    no |= set() if clipped else {"clipped", "to"}
    no |= set() if any(s.nonfinite for s in found) else {"nan/inf"}
    return [f for f in fields if f.title not in no]


def tensor_rows(tensors: dict[str, TensorStatistics], width: int) -> list[Text]:
    """The parameters of the network that were clipped most, by name."""
    first = list(tensors.items())[:MOST]
    found = [s for _, s in first]
    names = [Text(name) for name, _ in first]
    for name in names:
        cropped(name, max(8, min(32, width // 2)))
    fields = [
        Field("gradient of", [name.plain for name in names], right=False, style="bold"),
        Field("median norm", [number(s.norm_median, 3) for s in found], rank=2),
        Field("max norm", [number(s.norm_max, 3) for s in found], rank=3),
        Field("clipped", [percent(s.clipped, 0) for s in found]),
        Field("to", [percent(s.factor, 0) for s in found], rank=1),
        Field("median trust", [number(s.trust_median, 3) for s in found], rank=1),
        Field("max trust", [number(s.trust_max, 3) for s in found], rank=3),
    ]
    lines = grid([fields[0], *(f for f in fields[1:] if not f.empty)], width)
    if len(first) < len(tensors):
        lines += wrapped(f"and {len(tensors) - len(first)} more parameters: see them with --json", width)
    return lines
