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

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hyperstack.buffers import Block, Bucket
from hyperstack.level import Level, Tensors
from hyperstack.rule import Stack
from hyperstack.tape import Tape


class Tower:
    """A stack at work on a list of tensors: its hyperparameters, their states, and the record of the last step.

    `cells` holds everything of size one, or one a hyperparameter, by name: for each level k

        k.raw, k.hypergradient, k.factor, k.nonfinite    the hyperparameters, the gradient that each received at the
                                                         last step before clipping, the factor by which it was
                                                         clipped, and how many steps left it out
        k.grad, k.step, k.applied, k.params,             (k > 0) the record of level k's last update, which moved
        k.state.NAME, k.clip.I.NAME                      level k-1's raw tensor; `applied`: which parts it moved

    and `schedule`, the factor that multiplied the primary rate. `buckets` hold what is as large as the parameters.
    """

    def __init__(self, stack: Stack, tensors: Sequence[Tensor], nonfinite: str = "skip") -> None:
        self.stack, self.nonfinite = stack, nonfinite
        self.buckets: list[Bucket] = []
        self.levels: list[Level] = []
        self.cells: Tensors = {}
        self._tapes: dict[Any, Tape] = {}
        count, device = len(tensors), tensors[0].device
        for rule, resolved in zip(stack, stack.resolve(), strict=True):
            self.levels.append(Level(rule, resolved, count, device))
            count = len(self.levels[-1].learned)
        for k in range(len(self.levels)):
            self.cells.update(self._new_cells(k))
        self.cells["schedule"] = torch.ones((), dtype=self.levels[0].dtype, device=device)
        self._schedule: float = 1.0  # what `cells` holds as a tensor

    def _new_cells(self, k: int) -> Tensors:
        level = self.levels[k]
        raw = level.start()
        each = torch.ones(len(level.learned), dtype=raw.dtype, device=raw.device)
        cells = {
            "raw": raw,
            "hypergradient": torch.zeros_like(raw),
            "factor": each,
            "nonfinite": torch.zeros_like(each),
        }
        if k:
            below = self.levels[k - 1]
            like = torch.zeros_like(below.start())
            count = torch.zeros(len(below.learned), dtype=raw.dtype, device=raw.device)
            cells.update(grad=like, step=count, applied=torch.zeros_like(count, dtype=torch.bool))
            if level.rule.reads_params:
                cells["params"] = like.clone()
            cells.update({f"state.{name}": x for name, x in level.rule.init(like).items()})
            for i, transform in enumerate(level.rule.clip):
                cells.update({f"clip.{i}.{name}": x for name, x in transform.init(below.segments, like).items()})
        return {f"{k}.{name}": cell for name, cell in cells.items()}

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
        inputs = {**self.cells, "next schedule": self._schedule_cell(schedule)}
        measured, moving = [], []
        for b, bucket in enumerate(self.buckets):
            inputs[f"bucket.{b}.step"] = bucket.step
            gradients = bucket.pick(grads)
            if bucket.pending:
                products = self._pull(bucket, gradients)
                inputs.update({f"bucket.{b}.product.{name}": x for name, x in products.items()})
                measured += [b] if products else []
            moving += [b] if gradients else []
        climb = self._tape(("climb", *measured, "moving", *moving), partial(self._climb, measured, moving))
        outputs = climb(inputs)
        self.cells = {name: outputs[name] for name in self.cells}
        for b in moving:
            bucket = self.buckets[b]
            bucket.step.copy_(outputs[f"bucket.{b}.step"])
            bucket.coefficients = section(outputs, f"bucket.{b}.coefficient.")
            self._push(bucket, bucket.pick(tensors) or [], bucket.pick(grads) or [])

    def _schedule_cell(self, schedule: float | Tensor) -> Tensor:
        """The schedule factor as a tensor, a new one only where it changed."""
        cell = self.cells["schedule"]
        if isinstance(schedule, Tensor):
            return schedule.to(cell).reshape(())
        if schedule != self._schedule:
            self._schedule, cell = schedule, torch.full_like(cell, schedule)
        return cell

    def _tape(self, key: tuple[Any, ...], function: Callable[[Tensors], Tensors]) -> Tape:
        if key not in self._tapes:
            self._tapes[key] = Tape(function)
        return self._tapes[key]

    def _arrange(self, tensors: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        """Make every bucket one whose tensors all have a gradient, or all have none."""
        rule, scalar = self.levels[0].rule, self.levels[0].dtype
        arranged: list[Bucket] = []
        for bucket in self.buckets:
            places = range(len(bucket.index))
            groups = [[i for i in places if (grads[bucket.index[i]] is None) is absent] for absent in (False, True)]
            arranged += [bucket.part(keep, tensors) for keep in groups] if all(groups) else [bucket]
        known = {i for bucket in arranged for i in bucket.index}
        fresh: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for i, (tensor, grad) in enumerate(zip(tensors, grads, strict=True)):
            if grad is not None and i not in known:
                fresh.setdefault((tensor.device, tensor.dtype), []).append(i)
        arranged += [Bucket(rule, index, [tensors[i] for i in index], scalar) for index in fresh.values()]
        if arranged != self.buckets:
            self.buckets = arranged
            self._tapes.clear()

    # -- the parameters: pull and push -------------------------------------------------------------------------

    def _pull(self, bucket: Bucket, cotangents: list[Tensor] | None) -> Tensors:
        """The products of cotangents with the derivative of a bucket's last update by each coefficient.

        Brings the bucket's state up to date; without cotangents (no gradient in this step) only that.
        """
        total: Tensors = {}
        for block in bucket.blocks:
            inputs = self._block_inputs(bucket, block)
            if cotangents:
                inputs["cotangent"] = block.gather(cotangents, bucket.dtype)
            outputs = self._block_tape(bucket, block, "pull" if cotangents else "advance", self._pull_block)(inputs)
            bucket.write_state(block, outputs)
            products = section(outputs, "product.")
            total = {name: total[name] + x for name, x in products.items()} if total else products
        bucket.pending = False
        return total

    def _pull_block(self, block: Block, inputs: Tensors) -> Tensors:
        level = self.levels[0]
        leaves = {name: inputs[f"coefficient.{name}"].detach().requires_grad_() for name in level.depends}
        with torch.enable_grad():
            delta, after = self._update_block(block, inputs, leaves)
            outputs = {f"state.{name}": x.detach() for name, x in after.items()}
            if "cotangent" in inputs and delta.requires_grad:
                wanted = list(leaves.values())
                found = torch.autograd.grad(delta, wanted, inputs["cotangent"], materialize_grads=True)
                outputs.update({f"product.{name}": x for name, x in zip(leaves, found, strict=True)})
        return outputs

    def _push(self, bucket: Bucket, tensors: list[Tensor], gradients: list[Tensor]) -> None:
        """Record a bucket's new gradient, transformed, and move its tensors by the rule."""
        for block in bucket.blocks:
            bucket.flats["grad"][block.range].copy_(block.gather(gradients, bucket.dtype))
            if "params" in bucket.flats:
                bucket.flats["params"][block.range].copy_(block.gather(tensors, bucket.dtype))
        bucket.transform()
        for block in bucket.blocks:
            inputs = self._block_inputs(bucket, block)
            outputs = self._block_tape(bucket, block, "push", self._push_block)(inputs)
            block.add(tensors, outputs["delta"])
            if not self.measures:
                bucket.write_state(block, outputs)
        bucket.pending = self.measures

    def _push_block(self, block: Block, inputs: Tensors) -> Tensors:
        delta, after = self._update_block(block, inputs, {})
        return {"delta": delta, **({} if self.measures else {f"state.{name}": x for name, x in after.items()})}

    def _update_block(self, block: Block, inputs: Tensors, leaves: Tensors) -> tuple[Tensor, Tensors]:
        coefficients = {**section(inputs, "coefficient."), **leaves}
        state, params = section(inputs, "state."), inputs.get("params")
        return self.levels[0].update(inputs["grad"], state, coefficients, params, block.segments)

    def _block_inputs(self, bucket: Bucket, block: Block) -> Tensors:
        inputs = {name: flat[block.range] for name, flat in bucket.flats.items()}
        for name, c in bucket.coefficients.items():
            inputs[f"coefficient.{name}"] = c[block.tensors] if c.dim() else c
        return inputs

    def _block_tape(
        self, bucket: Bucket, block: Block, what: str, function: Callable[[Block, Tensors], Tensors]
    ) -> Tape:
        """Blocks of one length share a tape, unless they hold different tensors with numbers of their own."""
        spread = any(c.dim() for c in bucket.coefficients.values())
        kind = (self.buckets.index(bucket), block.range.start) if spread else (bucket.dtype, block.segments.total)
        return self._tape((what, *kind, bucket.flats["grad"].device), partial(function, block))

    # -- the scalars: climb ------------------------------------------------------------------------------------

    def _climb(self, measured: list[int], moving: list[int], x: Tensors) -> Tensors:
        """Every hypergradient, level by level upward, then every update downward: new cells and coefficients."""
        out = {name: x[name] for name in self.cells}
        if self.measures:
            self._measure_primary(measured, x, out)
        for k in range(1, len(self.levels)):
            self._measure(k, x, out)
        for k in reversed(range(1, len(self.levels))):
            self._move(k, x, out)
        out["schedule"] = x["next schedule"]
        level = self.levels[0]
        values = level.values(out["0.raw"], out["schedule"])
        for b in moving:
            step = out[f"bucket.{b}.step"] = x[f"bucket.{b}.step"] + 1
            for name, c in level.coefficients(values, step, self.buckets[b].index).items():
                like = self.buckets[b].flats["grad"]
                out[f"bucket.{b}.coefficient.{name}"] = c.to(like.device, like.dtype)
        return out

    def _measure_primary(self, measured: list[int], x: Tensors, out: Tensors) -> None:
        """ĝ[0] from the products of the buckets."""
        level = self.levels[0]
        outputs, products = [], []
        with torch.enable_grad():
            raw = x["0.raw"].detach().requires_grad_()
            values = level.values(raw, x["schedule"])
            for b in measured:
                found = level.coefficients(values, x[f"bucket.{b}.step"], self.buckets[b].index)
                outputs += [found[name] for name in level.depends]
                products += [x[f"bucket.{b}.product.{name}"].to(found[name]) for name in level.depends]
            out["0.hypergradient"] = _gradient(outputs, raw, products)

    def _measure(self, k: int, x: Tensors, out: Tensors) -> None:
        """ĝ[k] from ĝ[k-1] through level k's last update, whose state after it is found on the way."""
        segments = self.levels[k - 1].segments
        moved = segments.expand(x[f"{k}.applied"])
        with torch.enable_grad():
            raw = x[f"{k}.raw"].detach().requires_grad_()
            delta, after = self._update(k, raw, x)
            cotangent = torch.where(moved, out[f"{k - 1}.hypergradient"], 0.0)
            out[f"{k}.hypergradient"] = _gradient([delta], raw, [cotangent])
        for name, new in after.items():
            out[f"{k}.state.{name}"] = torch.where(moved, new.detach(), x[f"{k}.state.{name}"])

    def _move(self, k: int, x: Tensors, out: Tensors) -> None:
        """Level k's update of level k-1's raw tensor by its hypergradient, guarded and transformed."""
        below = self.levels[k - 1]
        grad, segments = out[f"{k - 1}.hypergradient"], below.segments
        finite = torch.isfinite(segments.norm(grad))
        out[f"{k - 1}.nonfinite"] = x[f"{k - 1}.nonfinite"] + ~finite
        applied = finite if self.nonfinite == "skip" else torch.ones_like(finite)
        moved = segments.expand(applied)
        grad = torch.where(moved, grad, 0.0)
        for i, transform in enumerate(self.levels[k].rule.clip):
            before = section(x, f"{k}.clip.{i}.")
            grad, after, factor = transform.apply(grad, before, segments)
            out[f"{k - 1}.factor"] = out[f"{k - 1}.factor"] * factor if i else factor
            for name, new in after.items():
                out[f"{k}.clip.{i}.{name}"] = torch.where(applied, new, before[name])
        out[f"{k}.grad"], out[f"{k}.applied"] = grad, applied
        out[f"{k}.step"] = x[f"{k}.step"] + applied
        if self.levels[k].rule.reads_params:
            out[f"{k}.params"] = x[f"{k - 1}.raw"]
        delta, _ = self._update(k, out[f"{k}.raw"], out)
        out[f"{k - 1}.raw"] = x[f"{k - 1}.raw"] + torch.where(moved, delta, 0.0)

    def _update(self, k: int, raw: Tensor, record: Tensors) -> tuple[Tensor, Tensors]:
        """Level k's rule on its record: what to add to level k-1's raw tensor, and the state after."""
        level = self.levels[k]
        # A part that was never moved has step 0, where coefficients may be infinite; what comes of it is masked.
        coefficients = level.coefficients(level.values(raw), record[f"{k}.step"].clamp(min=1))
        state, params = section(record, f"{k}.state."), record.get(f"{k}.params")
        return level.update(record[f"{k}.grad"], state, coefficients, params, self.levels[k - 1].segments)

    # -- what people see ---------------------------------------------------------------------------------------

    def hyperparameters(self) -> Tensors:
        """Every hyperparameter in use, in natural units, by "LEVEL.NAME": copies."""
        return self._read(lambda k, level: vars(level.values(self.cells[f"{k}.raw"])))

    def hypergradients(self) -> Tensors:
        """What each raw tensor received at the last step, before clipping; 0 where it is fixed."""
        return self._read(lambda k, level: level.split(self.cells[f"{k}.hypergradient"]))

    def clip_factors(self) -> Tensors:
        """The factor that the level above applied to each hypergradient at the last step."""
        return self._read(lambda k, level: dict(zip(level.learned, self.cells[f"{k}.factor"], strict=True)), 1.0)

    def nonfinite_counts(self) -> Tensors:
        """How many steps each hyperparameter was left out of."""
        return self._read(lambda k, level: dict(zip(level.learned, self.cells[f"{k}.nonfinite"], strict=True)))

    def _read(self, read: Callable[[int, Level], Tensors], missing: float = 0.0) -> Tensors:
        """One reading of every hyperparameter in use (not fixed at 0), by key."""
        found = {}
        for k, level in enumerate(self.levels):
            readings = read(k, level)
            for name in level.resolved:
                if name in readings and not level.rule.off(name):
                    found[f"{k}.{name}"] = readings[name].clone()
                elif not level.rule.off(name):
                    found[f"{k}.{name}"] = torch.full_like(level.fixed[name], missing)
        return found

    def export(self) -> dict[str, Any]:
        """The whole tower as tensors and plain values; the tensors are the live ones."""
        buckets = [bucket.export() for bucket in self.buckets]
        return {"stack": str(self.stack), "cells": dict(self.cells), "buckets": buckets}

    @torch.no_grad()
    def restore(self, saved: dict[str, Any], tensors: Sequence[Tensor]) -> None:
        """Take over what `export` returned, for the same stack and tensors of the same shapes: a copy."""
        self.cells = {name: saved["cells"][name].to(cell.device, copy=True) for name, cell in self.cells.items()}
        self._schedule = float("nan")  # unknown without asking the device
        self.buckets = []
        for record in saved["buckets"]:
            chosen = [tensors[i] for i in record["index"]]
            bucket = Bucket(self.levels[0].rule, list(record["index"]), chosen, self.levels[0].dtype)
            bucket.restore(record)
            self.buckets.append(bucket)
        self._tapes.clear()


def _gradient(outputs: list[Tensor], raw: Tensor, cotangents: list[Tensor]) -> Tensor:
    """The product of cotangents with the derivative of `outputs` by `raw`; 0 where nothing depends on it."""
    pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
    if not pairs:
        return torch.zeros_like(raw)
    return torch.autograd.grad([o for o, _ in pairs], raw, [c for _, c in pairs])[0]


def section(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors whose name begins with `prefix`, by the rest of their name."""
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
