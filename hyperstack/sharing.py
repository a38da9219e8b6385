"""Towers step together: those that have hyperparameters in common, `shared(...)`, find these together.

Each of these receives the sum of the hypergradients that the towers find for it. The first tower that has it moves it,
by its upper levels; the others take it over.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hyperstack.engine import Begun, Tower
from hyperstack.gradients import Tangents
from hyperstack.layout import Tensors

Arguments = tuple[Sequence[Tensor], Sequence[Tensor | None], float | Tensor, Tangents | None]


def step_together(towers: Sequence[Tower], arguments: Sequence[Arguments]) -> None:
    """A step of each tower; `arguments` are those of its `step`."""
    if len(towers) == 1 or not any(tower.shared for tower in towers):
        for tower, given in zip(towers, arguments, strict=True):
            tower.step(*given)
    elif any(g is not None for _, grads, *_ in arguments for g in grads):
        _share(towers, [tower.begin(*given) for tower, given in zip(towers, arguments, strict=True)])


def _share(towers: Sequence[Tower], begun: Sequence[Begun]) -> None:
    """The second half of a step, in which one tower after another moves what the next ones take over."""
    totals = _totals(towers, begun)
    moved: Tensors = {}
    for tower, work in zip(towers, begun, strict=True):
        level, raw = tower.levels[0], tower.raw()
        busy = any(g is not None for g in work.gradients)
        common = {name: raw[name] for name in tower.shared}
        taken = {name: moved[name].to(x) for name, x in common.items() if name in moved}
        own = [float(name not in taken and (busy or name in common)) for name in level.learned]
        found = {
            "own": torch.stack([tower.number(x) for x in own]) if own else tower.cells[:0],
            "shared": level.layout.pack({**raw, **{name: totals[name].to(x) for name, x in common.items()}}),
            "imposed": level.layout.pack({**raw, **taken}),
        }
        if busy or tower.shared:
            tower.finish(work, found)
        moved = {**{name: x.clone() for name, x in tower.raw().items() if name in tower.shared}, **moved}


def _totals(towers: Sequence[Tower], begun: Sequence[Begun]) -> Tensors:
    """The sum of the hypergradients of each shared hyperparameter."""
    totals: Tensors = {}
    for tower, work in zip(towers, begun, strict=True):
        if tower.shared:
            found = tower.received(work)
            for name in tower.shared:
                totals[name] = totals[name] + found[name].to(totals[name]) if name in totals else found[name].clone()
    return totals
