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

    pull     block by block over the parameters: ∂L/∂θ -> its product with the derivative of U_0 by each coefficient
    climb    scalars only: products -> hypergradients of all levels, then every level's update -> new coefficients
    push     block by block: U_0 with the new coefficients

Scalars are float64. Nothing waits for the device: there is no branch on a tensor's value.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hyperstack.buffers import Block, Bucket
from hyperstack.climb import Climb, pullback
from hyperstack.layout import Tensors, section
from hyperstack.level import Level
from hyperstack.rule import Stack
from hyperstack.tape import SplitTape, Tape


class Tower:
    """A stack at work on a list of tensors: its hyperparameters, their states, and the record of the last step.

    `cells` is one flat tensor with everything of size one, or one a hyperparameter (see `climb`); `buckets` hold what
    is as large as the parameters, and `steps` how many updates each bucket had.
    """

    def __init__(self, stack: Stack, tensors: Sequence[Tensor], nonfinite: str = "skip") -> None:
        self.stack = stack
        self.levels: list[Level] = []
        count, device = len(tensors), tensors[0].device if len(tensors) else torch.device("cpu")
        for rule, resolved in zip(stack, stack.resolve(), strict=True):
            self.levels.append(Level(rule, resolved, count, device))
            count = len(self.levels[-1].learned)
        self.climb = Climb(self.levels, nonfinite == "skip")
        self.cells = self.climb.start()
        self.buckets: list[Bucket] = []
        self.steps = self.cells.new_zeros(0)
        self._one = self.cells.new_ones(())
        self._schedule = (1.0, self._one)
        self._tapes: dict[tuple[Any, ...], Tape | SplitTape] = {}
        self._kinds: list[tuple[bool, torch.device, torch.dtype]] = []

    @property
    def measures(self) -> bool:
        """Whether anything above the primary level wants its hypergradient."""
        return len(self.levels) > 1

    @torch.no_grad()
    def step(self, tensors: Sequence[Tensor], grads: Sequence[Tensor | None], schedule: float | Tensor = 1.0) -> None:
        """Update every level of the tower, and then `tensors` in place, from their gradients.

        A tensor whose gradient is None is left where it is, and so is its state; `schedule` multiplies the
        primary level's rate. Without any gradient nothing happens at all.
        """
        if all(g is None for g in grads):
            return
        self._arrange(tensors, grads)
        gradients = [bucket.gather(bucket.pick(grads)) for bucket in self.buckets]
        inputs = {"cells": self.cells, "steps": self.steps, "schedule": self._schedule_tensor(schedule)}
        inputs["moving"] = torch.stack([self._one if found else self._one * 0 for found in gradients])
        for b, bucket in enumerate(self.buckets):
            inputs[f"products.{b}"] = self._pull(bucket, gradients[b])
        outputs = self._tape(("climb",), partial(self.climb, self.buckets))(inputs)
        self.cells = outputs["cells"]
        self.steps.copy_(outputs["steps"])
        for b, bucket in enumerate(self.buckets):
            if found := gradients[b]:
                bucket.coefficients = outputs[f"coefficients.{b}"]
                self._push(bucket, bucket.pick(tensors) or [], found)

    def _schedule_tensor(self, schedule: float | Tensor) -> Tensor:
        """The schedule factor as a tensor, a new one only where it changed."""
        if isinstance(schedule, Tensor):
            return schedule.detach().to(self.cells).reshape(())
        if schedule != self._schedule[0]:
            self._schedule = (schedule, torch.full_like(self._schedule[1], schedule))
        return self._schedule[1]

    def _tape(self, key: tuple[Any, ...], function: Callable[[Tensors], Tensors]) -> Tape:
        if key not in self._tapes:
            self._tapes[key] = Tape(function)
        tape = self._tapes[key]
        assert isinstance(tape, Tape)
        return tape

    def _arrange(self, tensors: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        """Make every bucket one whose tensors lie on one device in one dtype, and all have a gradient, or none.

        Tensors may have been moved or converted since the last step: their state follows them.
        """
        kinds = [(g is None, t.device, t.dtype) for t, g in zip(tensors, grads, strict=True)]
        if kinds == self._kinds:
            return
        if tensors[0].device != self.cells.device:
            self._move_cells(tensors[0].device)
        arranged: list[Bucket] = []
        steps: list[Tensor] = []
        for bucket, step in zip(self.buckets, self.steps, strict=True):
            parts = _grouped(range(len(bucket.index)), [kinds[i] for i in bucket.index].__getitem__)
            arranged += (
                [bucket] if len(parts) == 1 and bucket.fits(tensors) else [bucket.part(p, tensors) for p in parts]
            )
            steps += [step] * (len(arranged) - len(steps))
        known = {i for bucket in arranged for i in bucket.index}
        fresh = _grouped((i for i, g in enumerate(grads) if g is not None and i not in known), kinds.__getitem__)
        arranged += [Bucket(self.levels[0], index, [tensors[i] for i in index]) for index in fresh]
        steps += [self._one * 0] * len(fresh)
        if arranged != self.buckets:
            self.buckets, self.steps = arranged, torch.stack(steps)
            self._tapes.clear()
            for bucket in arranged:
                bucket.ahead = None
        self._kinds = kinds

    def _move_cells(self, device: torch.device) -> None:
        """Hyperparameters live where the parameters do."""
        old = self.levels
        self.levels = [Level(level.rule, level.resolved, level.count, device) for level in old]
        self.climb = Climb(self.levels, self.climb.skips)
        self.cells, self.steps = (x.to(device, self.levels[0].dtype) for x in (self.cells, self.steps))
        self._one = self.cells.new_ones(())
        self._schedule = (1.0, self._one)
        for bucket in self.buckets:
            bucket.level = self.levels[0]

    # -- the parameters: pull and push -------------------------------------------------------------------------

    def _pull(self, bucket: Bucket, cotangents: list[Tensor]) -> Tensor:
        """The products of cotangents with the derivative of a bucket's last update by each coefficient in `depends`.

        Brings the bucket's state up to date; without cotangents (no gradient in this step) only that. A bucket that
        was not updated in the last step adds nothing.
        """
        total = bucket.nothing
        if not bucket.pending:
            return total
        for i, block in enumerate(bucket.blocks):
            outputs, left = bucket.ahead or self._look_ahead(bucket, block)
            if cotangents and self.levels[0].depends:
                products = self._pull_tape(bucket, block).finish(left, cotangents[i])["products"]
                total = products if total is bucket.nothing else total + products
            bucket.write_state(block, outputs)  # last, because `left` refers to the state before
        bucket.pending, bucket.ahead = False, None
        return total

    def _look_ahead(self, bucket: Bucket, block: Block) -> tuple[Tensors, tuple[Tensor, ...]]:
        """What can be computed of a block's update and its derivative before the cotangent is known."""
        inputs = {**bucket.inputs(block), **bucket.layout.unpack(bucket.coefficients)}
        return self._pull_tape(bucket, block).early(inputs, inputs["grad"])

    def _push(self, bucket: Bucket, tensors: list[Tensor], gathered: list[Tensor]) -> None:
        """Record a bucket's new gradient, and move its tensors by the rule.

        A small bucket does with it what its next pull needs, a large one forgets what it would have to keep.
        """
        bucket.record(tensors, gathered)
        if self.measures and len(bucket.blocks) == 1:
            bucket.ahead = self._look_ahead(bucket, bucket.blocks[0])
            bucket.blocks[0].add(tensors, bucket.ahead[0].pop("delta"))
        else:
            coefficients = bucket.layout.unpack(bucket.coefficients)
            for block in bucket.blocks:
                outputs = self._push_tape(bucket, block)({**bucket.inputs(block), **coefficients})
                block.add(tensors, outputs["delta"])
                if not self.measures:
                    bucket.write_state(block, outputs)
        bucket.pending = self.measures

    def _pull_tape(self, bucket: Bucket, block: Block) -> SplitTape:
        key = ("pull", *self._kind_of(bucket, block))
        if key not in self._tapes:
            self._tapes[key] = SplitTape(partial(self._pull_block, bucket, block), "cotangent")
        tape = self._tapes[key]
        assert isinstance(tape, SplitTape)
        return tape

    def _push_tape(self, bucket: Bucket, block: Block) -> Tape:
        return self._tape(("push", *self._kind_of(bucket, block)), partial(self._push_block, bucket, block))

    def _kind_of(self, bucket: Bucket, block: Block) -> tuple[Any, ...]:
        """Blocks of one length share a tape, unless they hold different tensors with numbers of their own."""
        place = (bucket.index[0], block.range.start) if any(self.levels[0].coefficient_dims.values()) else ()
        return (block.segments.total, bucket.dtype, bucket.device, *place)

    def _pull_block(self, bucket: Bucket, block: Block, inputs: Tensors) -> Tensors:
        leaves = {name: inputs[name].detach().requires_grad_() for name in self.levels[0].depends}
        with torch.enable_grad():
            delta, after = self._update_block(bucket, block, {**inputs, **leaves})
            products = pullback([delta], list(leaves.values()), [inputs["cotangent"]]) if leaves else bucket.nothing
        states = {f"state.{name}": x.detach() for name, x in after.items()}
        return {"delta": delta.detach(), "products": products, **states}

    def _push_block(self, bucket: Bucket, block: Block, inputs: Tensors) -> Tensors:
        delta, after = self._update_block(bucket, block, inputs)
        return {"delta": delta, **({} if self.measures else {f"state.{name}": x for name, x in after.items()})}

    def _update_block(self, bucket: Bucket, block: Block, inputs: Tensors) -> tuple[Tensor, Tensors]:
        coefficients = {name: inputs[name] for name in bucket.layout.shapes}
        mine = {name: c[block.tensors] if c.dim() else c for name, c in coefficients.items()}
        state, params = section(inputs, "state."), inputs.get("params")
        return self.levels[0].update(inputs["grad"], state, mine, params, block.segments)

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
            bucket = Bucket(self.levels[0], list(record["index"]), [tensors[i] for i in record["index"]])
            bucket.restore(record)
            self.buckets.append(bucket)
        self._tapes.clear()
        self._kinds = []


def _grouped(items: Iterable[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    """Items with equal keys together, in the order of their first."""
    groups: dict[Hashable, list[int]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())
