"""The living tower: hypergradients of every level, in reverse mode, one update at a time.

Level 0 updates the parameters θ, level k the raw hyperparameters h[k-1] of level k-1. One step goes down:

    h[k-1] <- U_k( h[k-1], clip_k(ĝ[k-1]), s_k ; h[k] )        k = n .. 1
    θ      <- U_0( θ,      clip_0(∂L/∂θ),  s_0 ; h[0] )

where U_k is the update of level k's rule and s_k its state. Everything that enters U_k is cut from earlier
steps except the new h[k], so θ depends on h[0], h[0] on h[1], and so on: a chain. The gradient of the next
loss with respect to all of them is therefore one product a level, going up, and each product needs only that
level's own last update:

    ĝ[0] = (∂U_0/∂h[0])ᵀ ∂L/∂θ        ĝ[k] = (∂U_k/∂h[k])ᵀ ĝ[k-1]

No second backward pass through the network, and no graph that outlives a step. What U_k was a function of (the
clipped gradient, the state before, h[k], and what it moved, where the rule reads that) is kept as plain tensors,
the record, from which the product is computed at the next step. That also yields the state *after* the update,
which replaces the state before: so a tower keeps one copy of each state, and a saved tower resumes with the very
hypergradient that the uninterrupted one would have had. At the first step nothing was updated yet, and every
hypergradient is 0.

A step has three parts, each a pure function that a `Tape` records:

    pull     over the parameters: ∂L/∂θ -> its product with the derivative of U_0 by each coefficient
    climb    scalars only: products -> hypergradients of all levels, then every level's update -> new coefficients
    push     over the parameters: U_0 with the new coefficients

Scalars are float64. Nothing waits for the device: there is no branch on a tensor's value.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperstack.buffers import BLOCK, Bucket
from hyperstack.climb import Climb
from hyperstack.derivatives import pullback
from hyperstack.errors import InputError, RunError
from hyperstack.gradients import Tangents, transformed
from hyperstack.layout import Layout, Tensors, section
from hyperstack.level import Level
from hyperstack.primary import FusedPrimary, Primary
from hyperstack.rule import Rule, Stack
from hyperstack.tape import Tapes
from hyperstack.wrapper import Limited


class Begun(NamedTuple):
    """A step of which the first half is done: what the climb takes, what is to be moved, and by which gradients."""

    inputs: Tensors
    tensors: Sequence[Tensor]
    gradients: list[list[Tensor] | None]
    tangents: Tangents


class Tower:
    """A stack at work on a list of tensors: its hyperparameters, their states, and the record of the last step.

    `cells` is one flat tensor with everything of size one, or one a hyperparameter (see `climb`); `buckets` hold what
    is as large as the parameters, and `steps` how many updates each bucket had. `found` is what the last step
    found of each tensor, one flat tensor laid out by `findings` (see `Level.findings`). `fused`: see `Tapes`.
    """

    def __init__(
        self,
        stack: Stack,
        tensors: Sequence[Tensor],
        nonfinite: str = "skip",
        fused: bool = False,
        names: Sequence[str] | None = None,
    ) -> None:
        self.stack = stack
        self.levels: list[Level] = []
        device = tensors[0].device if len(tensors) else torch.device("cpu")
        updated = list(names) if names is not None else [str(i) for i in range(len(tensors))]
        for k, (rule, resolved) in enumerate(zip(stack, stack.resolve(), strict=True)):
            _refuse_lost(rule, updated, k, named=k > 0 or names is not None)
            self.levels.append(Level(rule, resolved, updated, device))
            updated = self.levels[-1].learned
        self.climb = self._climb(nonfinite == "skip")
        self.cells = self.climb.start()
        self.buckets: list[Bucket] = []
        self.steps = self.cells.new_zeros(0)
        self.findings = Layout({name: (len(tensors),) for name in self.levels[0].findings})
        self.found = self.cells.new_zeros(self.findings.total)
        self._numbers: dict[float, Tensor] = {}
        self.tapes = Tapes(fused)
        self.primary = self._primary()
        self._kinds: list[tuple[Hashable, ...]] = []

    def _climb(self, skips: bool) -> Climb:
        return Climb(self.levels, skips)

    def _primary(self) -> Primary:
        kind = FusedPrimary if self.tapes.fused else Primary
        sloped = self.climb.sloped[0]
        return kind(self.levels[0], self.tapes, measured=len(self.levels) > 1, sloped=sloped)

    @torch.no_grad()
    def step(
        self,
        tensors: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        schedule: float | Tensor = 1.0,
        tangents: Tangents | None = None,
    ) -> None:
        """Update every level of the tower, and then `tensors` in place, from their gradients.

        A tensor whose gradient is None is left where it is, and so is its state; `schedule` multiplies the
        primary level's rate. Without any gradient nothing happens at all. `tangents`: see `limit`.
        """
        if any(g is not None for g in grads):
            self.finish(self.begin(tensors, grads, schedule, tangents))

    @torch.no_grad()
    def begin(
        self,
        tensors: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        schedule: float | Tensor,
        tangents: Tangents | None,
    ) -> Begun:
        """The first half of a step: what the gradients say of the last one."""
        self.arrange(tensors, grads)
        found = [bucket.pick(grads) for bucket in self.buckets]
        gradients = [None if g is None else bucket.gather(g) for bucket, g in zip(self.buckets, found, strict=True)]
        inputs = {"cells": self.cells, "steps": self.steps, "schedule": self.number(schedule)}
        moving = [self.number(0.0 if g is None else 1.0) for g in found]
        inputs["moving"] = torch.stack(moving) if moving else self.steps
        for b, bucket in enumerate(self.buckets):
            inputs[f"products.{b}"] = self.primary.pull(bucket, gradients[b])
        return Begun(inputs, tensors, gradients, tangents or {})

    def received(self, begun: Begun) -> Tensors:
        """The hypergradients of the primary level, by name."""
        return self.tapes.small(("received",), partial(self.climb.received, self.buckets))(begun.inputs)

    @torch.no_grad()
    def finish(self, begun: Begun, shared: Tensors | None = None) -> None:
        """The second half: every level moves. `shared`: what `Climb` takes of what other towers have in common."""
        outputs = self.climbed({**begun.inputs, **(shared or {})})
        # In place, as everything that outlives a step: a captured graph finds it where it was.
        self.cells.copy_(outputs["cells"])
        self.steps.copy_(outputs["steps"])
        ready = transformed(self.buckets, begun.gradients, begun.tensors, begun.tangents)
        for b, bucket in enumerate(self.buckets):
            if (flats := ready[b]) is not None:
                self.push(b, bucket.pick(begun.tensors) or [], flats, outputs)
                for name, place in self.findings.unpack(self.found).items():
                    place.index_copy_(0, bucket.place.to(place.device), bucket.findings[name].to(place))

    def climbed(self, inputs: Tensors) -> Tensors:
        """What the climb makes of these."""
        return self.tapes.small(("climb",), partial(self.climb, self.buckets))(inputs)

    def push(self, b: int, tensors: list[Tensor], grads: Sequence[Tensor], outputs: Tensors) -> None:
        """Move bucket `b` by what the climb put out."""
        self.primary.push(self.buckets[b], tensors, grads, outputs[f"coefficients.{b}"])

    @torch.no_grad()
    def limit(self, losses: Tensor, heard: bool) -> Limited:
        """What the primary level's wrapper makes of losses; where they are `heard`, it takes note of them.

        The slopes are by what the level above learns, the raw hyperparameters. The gradients of the losses weighted
        with them are the tangents that `step` wants.
        """
        level = self.levels[0]
        assert level.limits is not None
        cells = self.climb.layout.unpack(self.cells)
        with torch.enable_grad():
            raw = cells["0.raw"].detach().requires_grad_()
            values = level.values(raw)
            own = {name: getattr(values, name) for name in level.limits.own}
            learned = [own[name] for name in level.tangents]
            scales = pullback(learned, [raw], [torch.ones_like(x) for x in learned]) if learned else raw
        now = SimpleNamespace(**{name: x.detach() for name, x in own.items()})
        found, after = level.limits.limit(losses.detach(), now, section(cells, "0.loss."))
        if heard:
            for name, x in after.items():
                cells[f"0.loss.{name}"].copy_(x)
        parts = level.layout.unpack(scales)
        slopes = {name: found.slopes[name] * parts[name].to(losses.dtype) for name in self.tangents}
        return Limited(found.weights, found.offsets, slopes)

    @property
    def shared(self) -> list[str]:
        """The hyperparameters of the primary level that towers have in common, where anything moves them."""
        return self.levels[0].shared if self.primary.measures else []

    def raw(self) -> Tensors:
        """The raw hyperparameters of the primary level, by name: views."""
        return self.levels[0].layout.unpack(self.climb.layout.unpack(self.cells)["0.raw"])

    @property
    def tangents(self) -> list[str]:
        """The hyperparameters for which `step` wants tangents: those that act on the losses, and are being learned."""
        return self.levels[0].tangents if self.primary.measures else []

    def number(self, value: float | Tensor) -> Tensor:
        """A number as a 0-dim tensor, made once for each value."""
        if isinstance(value, Tensor):
            return value.detach().to(self.cells).reshape(())
        if value not in self._numbers:
            if len(self._numbers) > 8:  # a schedule has a new one at every step
                self._numbers.clear()
            self._numbers[value] = torch.full((), value, dtype=self.cells.dtype, device=self.cells.device)
        return self._numbers[value]

    def arrange(self, tensors: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        """Make every bucket one whose tensors lie on one device in one dtype, and all have a gradient, or none.

        Tensors may have been moved or converted since the last step: their state follows them.
        """
        kinds = self.admit(tensors, grads)
        if kinds == self._kinds:
            return
        if tensors[0].device != self.cells.device:
            self._move_cells(tensors[0].device)
        arranged: list[Bucket] = []
        steps: list[Tensor] = []
        for bucket, step in zip(self.buckets, self.steps, strict=True):
            parts = _grouped(range(len(bucket.index)), [kinds[i][:-1] for i in bucket.index].__getitem__)
            arranged += (
                [bucket] if len(parts) == 1 and bucket.fits(tensors) else [bucket.part(p, tensors) for p in parts]
            )
            steps += [step] * (len(arranged) - len(steps))
        known = {i for bucket in arranged for i in bucket.index}
        # Small tensors first, so that they lie together.
        order = sorted(range(len(tensors)), key=lambda i: tensors[i].numel() >= BLOCK // 8)
        wanted = (i for i in order if grads[i] is not None and i not in known)
        fresh = _grouped(wanted, lambda i: kinds[i][:-1])
        arranged += [self.primary.bucket(index, tensors) for index in fresh]
        steps += [self.number(0.0)] * len(fresh)
        if arranged != self.buckets:
            self.buckets, self.steps = arranged, torch.stack(steps)
            self.tapes.clear()
            for bucket in arranged:
                bucket.ahead = None
        self._kinds = kinds

    def admit(self, tensors: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[tuple[Hashable, ...]]:
        """What kinds of tensors these are, or a RunError where a step cannot take them; changes nothing."""
        kinds = [_kind(t, g) for t, g in zip(tensors, grads, strict=True)]
        if kinds != self._kinds and any(g is not None for g in grads):
            self._refuse_reshaped(tensors)
            for i, t in enumerate(tensors):
                if not t.is_floating_point():
                    raise RunError(
                        f"parameter {i} is {str(t.dtype).removeprefix('torch.')} now",
                        why="HyperOptimizer trains floating-point parameters, not complex ones",
                        instead="keep it as its torch.view_as_real",
                    )
        return kinds

    def _refuse_reshaped(self, tensors: Sequence[Tensor]) -> None:
        for bucket in self.buckets:
            for i, shape in zip(bucket.index, bucket.segments.shapes, strict=True):
                if tensors[i].shape != shape:
                    raise RunError(
                        f"parameter {i} had the shape {list(shape)} and has {list(tensors[i].shape)} now",
                        why="its state and the record of its last update are of the old shape",
                        instead="make a new optimizer for the changed model",
                    )

    def _move_cells(self, device: torch.device) -> None:
        """Hyperparameters live where the parameters do."""
        old = self.levels
        self.levels = [Level(level.rule, level.resolved, level.names, device) for level in old]
        self.climb = self._climb(self.climb.skips)
        moved = (x.to(device, self.levels[0].dtype) for x in (self.cells, self.steps, self.found))
        self.cells, self.steps, self.found = moved
        self._numbers.clear()
        self.primary = self._primary()
        for bucket in self.buckets:
            bucket.level = self.levels[0]

    # -- what people see ---------------------------------------------------------------------------------------

    def hyperparameters(self) -> Tensors:
        """Every hyperparameter in use, in natural units, by "LEVEL.NAME": copies."""
        return self._read("raw", lambda level, raw: vars(level.values(raw)))

    def hypergradients(self) -> Tensors:
        """What each raw tensor received at the last step, before clipping; 0 where it is fixed."""
        return self._read("hypergradient", lambda level, flat: level.layout.unpack(flat))

    def clip_factors(self) -> Tensors:
        """The factor that the level above applied to each hypergradient at the last step."""
        return self._read("factor", lambda level, each: dict(zip(level.learned, each, strict=True)), 1.0)

    def cosines(self) -> Tensors:
        """Of each learned hyperparameter of the primary level, what the last probe found, where there are probes."""
        return {}

    def nonfinite_counts(self) -> Tensors:
        """How many steps each hyperparameter was left out of."""
        return self._read("nonfinite", lambda level, each: dict(zip(level.learned, each, strict=True)))

    def _read(self, cell: str, read: Callable[[Level, Tensor], Tensors], missing: float = 0.0) -> Tensors:
        """One reading of every hyperparameter in use (not fixed at 0), by key."""
        cells, found = self.climb.layout.unpack(self.cells), {}
        for k, level in enumerate(self.levels):
            readings = read(level, cells[f"{k}.{cell}"])
            for name in level.resolved:
                if not level.rule.off(name):
                    known = name in readings
                    found[f"{k}.{name}"] = (
                        readings[name].clone() if known else torch.full_like(level.fixed[name], missing)
                    )
        return found

    def export(self) -> dict[str, Any]:
        """The whole tower as tensors and plain values; the large tensors are the live ones."""
        buckets = [bucket.export() for bucket in self.buckets]
        return {"stack": str(self.stack), "cells": self.cells, "steps": self.steps, "buckets": buckets}

    @torch.no_grad()
    def restore(self, saved: dict[str, Any], tensors: Sequence[Tensor]) -> None:
        """Take over what `export` returned, for the same stack and tensors of the same shapes: a copy."""
        self.cells.copy_(saved["cells"])
        self.steps = saved["steps"].to(self.cells, copy=True)
        self.buckets = []
        for record in saved["buckets"]:
            bucket = self.primary.bucket(list(record["index"]), tensors)
            bucket.restore(record)
            self.buckets.append(bucket)
        self.tapes.clear()
        self._kinds = []


def _refuse_lost(rule: Rule, names: Sequence[str], k: int, named: bool) -> None:
    """An InputError where a pattern of names matches nothing."""
    for transform in rule.clip:
        if not any(fnmatch.fnmatchcase(name, transform.names) for name in names) and transform.names != "*":
            shown = ", ".join(names[:8]) + ", ..." * (len(names) > 8)
            raise InputError(
                f"names={transform.names!r} of level {k}'s {transform.name} matches nothing",
                why=f"the names are {shown}" if named else "the parameters came without names",
                instead="write a pattern that does" if named else "pass model.named_parameters()",
            )


def _kind(tensor: Tensor, grad: Tensor | None) -> tuple[Hashable, ...]:
    """What tensors of one bucket have in common; and then the shape, which they need not."""
    return (grad is None, tensor.device, tensor.dtype, tensor.is_contiguous(), tensor.shape)


def _grouped(items: Iterable[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    """Items with equal keys together, in the order of their first."""
    groups: dict[Hashable, list[int]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())
