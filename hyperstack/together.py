"""Towers of one shape at work side by side: every tensor has a first axis, along which the runs lie.

Stacks have one shape if they differ in numbers alone: then each step does the same operations for all of them, and
what one tower records stands for all (see `tape.runs`). Each moves as it would alone. What one run comes to never
reaches another: a tower that has left the numbers goes on among the others, and does not disturb them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from hyperstack.engine import Tower
from hyperstack.errors import InputError, RunError
from hyperstack.layout import Tensors, section
from hyperstack.parts import FusedParts, Parts, repeated
from hyperstack.primary import FusedPrimary
from hyperstack.rule import Stack
from hyperstack.tape import Tapes
from hyperstack.transforms import Context
from hyperstack.wrapper import Wrapper


def shape(stack: Stack) -> Hashable:
    """What stacks have in common that can be trained together: everything but the numbers at which they start.

    A hyperparameter that is fixed at 0 is of another shape than one that is not: it takes neither state nor time.
    """
    return tuple(
        (
            type(rule),
            tuple(rule.chosen.items()),
            rule.clip,
            rule.at,
            rule.base if isinstance(rule, Wrapper) else None,
            tuple((n, r.bijection.name, r.learned, r.per_tensor, r.steps, rule.off(n)) for n, r in resolved.items()),
        )
        for rule, resolved in zip(stack, stack.resolve(), strict=True)
    )


def goes_alone(stack: Stack) -> str:
    """Why a stack is not trained together with others: "" where it is."""
    if isinstance(stack[0], Wrapper):
        return f"{type(stack[0]).__name__} limits the losses of its own run"
    if len(stack) > 1 and stack[1].at is not None:
        return f"at={stack[1].at} takes gradients at the averages of its own run"
    return ""


class Together:
    """As many towers as stacks, on tensors of shape [runs, ...]: what `Tower` is to one.

    stacks: of one `shape`, none that `goes_alone`; tensors, names, nonfinite, fused: as for `Tower`, with the axis of
    runs. All tensors that ever have a gradient have one at each step, and they are of one device and dtype: else a
    RunError. Each run is the one that its `Tower` would be, but for rounding.
    """

    def __init__(
        self,
        stacks: Sequence[Stack],
        tensors: Sequence[Tensor],
        nonfinite: str = "skip",
        names: Sequence[str] | None = None,
        fused: bool = False,
    ) -> None:
        if len({shape(stack) for stack in stacks}) != 1:
            raise InputError("stacks of several shapes", instead="train together what differs in numbers alone")
        if why := goes_alone(stacks[0]):
            what = "this stack is not trained together with others"
            raise InputError(what, why=why, instead="train one run after another")
        self.runs = len(stacks)
        self.towers = [Tower(s, [t[r] for t in tensors], nonfinite, fused, names) for r, s in enumerate(stacks)]
        self.first = self.towers[0]
        self.cells = torch.stack([tower.cells for tower in self.towers])
        self.fixed = {f"fixed.{key}": torch.stack([_fixed(t)[key] for t in self.towers]) for key in _fixed(self.first)}
        self.tapes = Tapes(shared=("schedule", "moving"))
        self._missing: list[bool] | None = None

    @torch.no_grad()
    def step(self, tensors: Sequence[Tensor], grads: Sequence[Tensor | None], schedule: float = 1.0) -> None:
        """Update every level of every tower, and then `tensors` in place, from their gradients [runs, ...]."""
        if all(g is None for g in grads):
            return
        if self._missing is None:
            self._begin(tensors, grads)
        if [g is None for g in grads] != self._missing:
            raise RunError("towers side by side need gradients of the same tensors at every step")
        flats = self.parts.gathered(grads)
        inputs = {"cells": self.cells, "steps": self.steps, "products.0": self.parts.pull(flats), **self.fixed}
        inputs["schedule"], inputs["moving"] = self.first.number(schedule), self.moving
        outputs = self.tapes.small(("climb",), self._climb)(inputs)
        self.cells.copy_(outputs["cells"])
        self.steps.copy_(outputs["steps"])
        ready = self._transformed(flats, tensors) if self.transforms else flats
        self.parts.push(tensors, ready, outputs["coefficients.0"])

    def tower(self, run: int) -> Tower:
        """The tower of one run, with its present hyperparameters, to be read only."""
        self.towers[run].cells.copy_(self.cells[run])
        return self.towers[run]

    def _begin(self, tensors: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        self.first.arrange([t[0] for t in tensors], [None if g is None else g[0] for g in grads])
        if len(self.first.buckets) != 1 or not all(t.is_contiguous() for t in tensors):
            raise RunError("towers side by side take parameters of one device and dtype, one after another in memory")
        self.bucket, primary = self.first.buckets[0], self.first.primary
        kind = FusedParts if isinstance(primary, FusedPrimary) else Parts
        self.parts = kind(primary, self.bucket, self.runs)
        self.steps, self.moving = self.cells.new_zeros(self.runs, 1), self.cells.new_ones(1)
        self.transforms: list[Tensors] = [repeated(state, self.runs) for state in self.bucket.transforms]
        self._missing = [g is None for g in grads]

    def _climb(self, inputs: Tensors) -> Tensors:
        """The climb of one run, with what is fixed in it as tensors."""
        return self.first.climb.holding(section(inputs, "fixed."))([self.bucket], inputs)

    def _transformed(self, flats: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
        """The gradients as the primary level's transforms, which need them all at once, make them."""
        clip = self.bucket.level.rule.clip
        inputs = {"gradient": torch.cat(list(flats), 1)}
        if any(transform.reads_params for transform in clip):
            inputs["params"] = torch.cat(self.parts.gathered(tensors), 1)
        for i, state in enumerate(self.transforms):
            inputs.update({f"{i}.{name}": x for name, x in state.items()})
        outputs = self.tapes.large(("transform",), self._through)(inputs)
        for i, state in enumerate(self.transforms):
            for name, x in state.items():
                x.copy_(outputs[f"{i}.{name}"])
        return [outputs["gradient"][:, block.range] for block in self.bucket.blocks]

    def _through(self, inputs: Tensors) -> Tensors:
        """The transforms of one run, one after another."""
        gradient, context = inputs["gradient"], Context(self.bucket.segments, inputs.get("params"))
        outputs: Tensors = {}
        for i, transform in enumerate(self.bucket.level.rule.clip):
            gradient, after, _ = transform(gradient, section(inputs, f"{i}."), context)
            outputs.update({f"{i}.{name}": x for name, x in after.items()})
        return {"gradient": gradient, **outputs}


def _fixed(tower: Tower) -> Tensors:
    return {f"{k}.{name}": x for k, level in enumerate(tower.levels) for name, x in level.fixed.items()}
