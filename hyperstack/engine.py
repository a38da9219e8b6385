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
clipped gradient, the state before, h[k], and what it moved, where the rule reads that) is kept as plain tensors
in the level's buckets, and `_pull` computes the product from them. On the way it finds the state *after* the
update, which replaces the state before: so a tower keeps one copy of each state, and a saved tower resumes with
the very hypergradient that the uninterrupted one would have had. At the first step nothing was updated yet, and
every hypergradient is 0.

Scalar algebra runs in float64, once a step; work on the size of the parameters sees finished coefficients.
Nothing here waits for the device: there is no branch on a tensor's value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from hyperstack.buffers import Block, Bucket, scalar_dtype
from hyperstack.hyperparameter import Resolved
from hyperstack.rule import Rule, Stack


class Level:
    """One level of a tower: its rule, the raw tensors of its hyperparameters, and the buckets that it updates.

    `raw` holds the learned hyperparameters one after another, `hypergradient` the gradient that each received
    at the last step, before clipping; `factor` (by which it was clipped) and `nonfinite` (how many steps left
    it out) hold one number a hyperparameter. `count` is the number of tensors that the level updates.
    """

    def __init__(self, rule: Rule, resolved: dict[str, Resolved], count: int, device: torch.device) -> None:
        self.rule, self.resolved = rule, resolved
        dtype = scalar_dtype(device)
        self.learned = [name for name, r in resolved.items() if r.learned]
        self.shapes: list[tuple[int, ...]] = [(count,) if resolved[n].per_tensor else () for n in self.learned]
        self.sizes = [torch.Size(shape).numel() for shape in self.shapes]
        starts = [resolved[n].bijection.to_raw(resolved[n].value) for n in self.learned]
        spread = [start for start, size in zip(starts, self.sizes, strict=True) for _ in range(size)]
        self.raw = torch.tensor(spread, dtype=dtype, device=device)
        self.fixed = {
            name: torch.tensor(r.value, dtype=dtype, device=device) for name, r in resolved.items() if not r.learned
        }
        self.hypergradient = torch.zeros_like(self.raw)
        self.factor = torch.ones(len(self.learned), dtype=dtype, device=device)
        self.nonfinite = torch.zeros_like(self.factor)
        self.buckets: list[Bucket] = []

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """A flat tensor over the learned hyperparameters as one tensor a name."""
        parts = flat.split(self.sizes)
        return {n: p.view(s) for n, p, s in zip(self.learned, parts, self.shapes, strict=True)}

    def values(self, raw: Tensor, schedule: float | Tensor = 1.0) -> SimpleNamespace:
        """Every hyperparameter in natural units, the rate times the schedule factor."""
        learned = {name: self.resolved[name].bijection.to_value(part) for name, part in self.split(raw).items()}
        values = {name: learned[name] if name in learned else self.fixed[name] for name in self.resolved}
        if isinstance(schedule, Tensor) or schedule != 1.0:
            values["lr"] = values["lr"] * schedule
        return SimpleNamespace(**values)

    def coefficients(self, values: SimpleNamespace, bucket: Bucket) -> dict[str, Tensor]:
        """The coefficients of a bucket's step, in the dtype of its buffers: 0-dim, or one a tensor of the bucket."""
        if any(v.dim() for v in vars(values).values()):
            chosen = torch.as_tensor(bucket.index, device=self.raw.device)
            values = SimpleNamespace(**{k: v[chosen] if v.dim() else v for k, v in vars(values).items()})
        found = self.rule.coefficients(values, bucket.step)
        return {name: c.to(bucket.grad.device, bucket.grad.dtype) for name, c in found.items()}

    def update(self, bucket: Bucket, block: Block, coefficients: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The rule on one block of a bucket: what to add, and the state after."""
        here = block.range
        c = {n: block.segments.expand(x[block.tensors]) if x.dim() else x for n, x in coefficients.items()}
        state = {name: flat[here] for name, flat in bucket.state.items()}
        params = None if bucket.params is None else bucket.params[here]
        delta, after = self.rule.update(bucket.grad[here], state, SimpleNamespace(**c), params)
        if bucket.applied is not None:
            moved = block.segments.expand(bucket.applied)
            delta = torch.where(moved, delta, 0.0)
            after = {name: torch.where(moved, new, state[name]) for name, new in after.items()}
        return delta, after


class Tower:
    """A stack at work on a list of tensors: its hyperparameters, their states, and the record of the last step."""

    def __init__(self, stack: Stack, tensors: Sequence[Tensor], nonfinite: str = "skip") -> None:
        self.stack, self.nonfinite = stack, nonfinite
        self.schedule: float | Tensor = 1.0
        self.levels: list[Level] = []
        count = len(tensors)
        for rule, resolved in zip(stack, stack.resolve(), strict=True):
            level = Level(rule, resolved, count, tensors[0].device)
            if self.levels:
                below = self.levels[-1]
                skips = nonfinite == "skip"
                level.buckets = [Bucket.of_hyperparameters(rule, below.raw, below.shapes, skips)]
            self.levels.append(level)
            count = len(level.learned)

    @property
    def measures(self) -> bool:
        """Whether anything above the primary level wants its hypergradient."""
        return len(self.levels) > 1

    @torch.no_grad()
    def step(self, tensors: Sequence[Tensor], grads: Sequence[Tensor | None], schedule: float | Tensor = 1.0) -> None:
        """Update `tensors` in place, and before them every level of the tower, from their gradients.

        A tensor whose gradient is None is left where it is, and so is its state; `schedule` multiplies the
        primary level's rate. Without any gradient nothing happens at all.
        """
        if all(g is None for g in grads):
            return
        self._arrange(tensors, grads)
        if self.measures:
            cotangents: Sequence[Tensor | None] = grads
            for level in self.levels:
                level.hypergradient = self._pull(level, cotangents)
                cotangents = [level.hypergradient]
        self.schedule = schedule
        for upper, below in zip(reversed(self.levels[1:]), reversed(self.levels[:-1]), strict=True):
            self._push(upper, upper.buckets[0], [below.raw], [below.hypergradient], below)
        for bucket in self.levels[0].buckets:
            if grads[bucket.index[0]] is not None:
                chosen = [grads[i] for i in bucket.index]
                self._push(self.levels[0], bucket, [tensors[i] for i in bucket.index], chosen)  # type: ignore[arg-type]

    def _arrange(self, tensors: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        """Make every bucket one whose tensors all have a gradient, or all have none."""
        primary = self.levels[0]
        known: set[int] = set()
        for bucket in list(primary.buckets):
            known.update(bucket.index)
            with_grad = [i for i, t in enumerate(bucket.index) if grads[t] is not None]
            if with_grad and len(with_grad) < len(bucket.index):
                without = [i for i, t in enumerate(bucket.index) if grads[t] is None]
                at = primary.buckets.index(bucket)
                parts = [bucket.part(keep, primary.rule, tensors) for keep in (with_grad, without)]
                primary.buckets[at : at + 1] = parts
        fresh: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for i, (tensor, grad) in enumerate(zip(tensors, grads, strict=True)):
            if grad is not None and i not in known:
                fresh.setdefault((tensor.device, tensor.dtype), []).append(i)
        for index in fresh.values():
            primary.buckets.append(Bucket.of_parameters(primary.rule, index, [tensors[i] for i in index]))

    def _pull(self, level: Level, cotangents: Sequence[Tensor | None]) -> Tensor:
        """The hypergradient of a level: its last update's Jacobian, transposed, times the cotangents of what it moved.

        Brings the state of the level's buckets from before that update to after it. A bucket without a cotangent
        (its parameters have no gradient in this step) adds nothing.
        """
        outputs: list[Tensor] = []
        products: list[Tensor] = []
        with torch.enable_grad():
            raw = level.raw.detach().requires_grad_()
            values = level.values(raw, self.schedule if level is self.levels[0] else 1.0)
            for bucket in level.buckets:
                if bucket.pending:
                    coefficients = level.coefficients(values, bucket)
                    outputs += [c for c in coefficients.values() if c.requires_grad]
                    moved = bucket.index if level is self.levels[0] else [0]
                    products += self._through(level, bucket, coefficients, [cotangents[i] for i in moved])
                    bucket.pending = False
            if not outputs:
                return torch.zeros_like(level.raw)
            return torch.autograd.grad(outputs, raw, products)[0]

    def _through(
        self, level: Level, bucket: Bucket, coefficients: dict[str, Tensor], cotangents: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """Block by block: the product for each coefficient that depends on the raw tensors, and the state after."""
        leaves = {n: c.detach().requires_grad_(c.requires_grad) for n, c in coefficients.items()}
        wanted = [leaf for leaf in leaves.values() if leaf.requires_grad]
        products = [torch.zeros_like(leaf) for leaf in wanted]
        measured = bool(wanted) and cotangents[0] is not None
        for block in bucket.blocks:
            with torch.set_grad_enabled(measured):
                delta, after = level.update(bucket, block, leaves)
            if measured and delta.requires_grad:
                cotangent = block.gather(cotangents, delta.dtype)  # type: ignore[arg-type]
                found = torch.autograd.grad(delta, wanted, cotangent, materialize_grads=True)
                products = [p + f for p, f in zip(products, found, strict=True)]
            for name, flat in bucket.state.items():
                flat[block.range].copy_(after[name].detach())
        return products

    def _push(
        self,
        level: Level,
        bucket: Bucket,
        tensors: Sequence[Tensor],
        gradients: Sequence[Tensor],
        below: Level | None = None,
    ) -> None:
        """One update of a bucket: transform its new gradient, record it, and move its tensors."""
        for block in bucket.blocks:
            bucket.grad[block.range].copy_(block.gather(gradients, bucket.grad.dtype))
        if below is not None:
            self._guard(bucket, below)
        self._transform(level, bucket, below)
        bucket.step += 1 if bucket.applied is None else bucket.applied
        values = level.values(level.raw, self.schedule if below is None else 1.0)
        coefficients = level.coefficients(values, bucket)
        for block in bucket.blocks:
            if bucket.params is not None:
                bucket.params[block.range].copy_(block.gather(tensors, bucket.grad.dtype))
            delta, after = level.update(bucket, block, coefficients)
            block.add(tensors, delta)
            if not self.measures:
                for name, flat in bucket.state.items():
                    flat[block.range].copy_(after[name])
        bucket.pending = self.measures

    def _guard(self, bucket: Bucket, below: Level) -> None:
        """Leave out of this step every hyperparameter whose hypergradient is not finite, and count it."""
        finite = torch.isfinite(bucket.segments.norm(bucket.grad))
        below.nonfinite += ~finite
        if bucket.applied is not None:
            bucket.applied.copy_(finite)
            bucket.grad.copy_(torch.where(bucket.segments.expand(finite), bucket.grad, 0.0))

    def _transform(self, level: Level, bucket: Bucket, below: Level | None) -> None:
        """The level's gradient transforms, in order, on the gradient in the bucket's record."""
        total = None
        for transform, state in zip(level.rule.clip, bucket.transforms, strict=True):
            gradient, after, factor = transform.apply(bucket.grad, state, bucket.segments)
            bucket.grad.copy_(gradient)
            total = factor if total is None else total * factor
            for name, tensor in state.items():
                new = after[name]
                tensor.copy_(new if bucket.applied is None else torch.where(bucket.applied, new, tensor))
        if below is not None and total is not None:
            below.factor = total

    def hyperparameters(self) -> dict[str, Tensor]:
        """Every hyperparameter in use, in natural units, by "LEVEL.NAME": copies."""
        return self._read(lambda level: vars(level.values(level.raw)))

    def hypergradients(self) -> dict[str, Tensor]:
        """What each raw tensor received at the last step, before clipping; 0 where it is fixed."""
        return self._read(lambda level: level.split(level.hypergradient))

    def clip_factors(self) -> dict[str, Tensor]:
        """The factor that the level above applied to each hypergradient at the last step."""
        return self._read(lambda level: dict(zip(level.learned, level.factor, strict=True)), 1.0)

    def nonfinite_counts(self) -> dict[str, Tensor]:
        """How many steps each hyperparameter was left out of."""
        return self._read(lambda level: dict(zip(level.learned, level.nonfinite, strict=True)))

    def _read(self, read: Callable[[Level], dict[str, Tensor]], missing: float = 0.0) -> dict[str, Tensor]:
        """One reading of every hyperparameter in use (not fixed at 0), by key."""
        found = {}
        for k, level in enumerate(self.levels):
            readings = read(level)
            for name in level.resolved:
                if level.rule.off(name):
                    continue
                if name in readings:
                    found[f"{k}.{name}"] = readings[name].clone()
                else:
                    found[f"{k}.{name}"] = torch.full_like(level.fixed[name], missing)
        return found

    def export(self) -> dict[str, Any]:
        """The whole tower as tensors and plain values; the tensors are the live ones."""
        levels = [
            {
                "raw": level.raw,
                "hypergradient": level.hypergradient,
                "factor": level.factor,
                "nonfinite": level.nonfinite,
                "buckets": [bucket.export() for bucket in level.buckets],
            }
            for level in self.levels
        ]
        return {"stack": str(self.stack), "nonfinite": self.nonfinite, "schedule": self.schedule, "levels": levels}

    @torch.no_grad()
    def restore(self, saved: dict[str, Any], tensors: Sequence[Tensor]) -> None:
        """Take over what `export` returned, for the same stack and tensors of the same shapes: a copy."""
        self.schedule = saved["schedule"]
        for level, theirs in zip(self.levels, saved["levels"], strict=True):
            for name in ("raw", "hypergradient", "factor", "nonfinite"):
                setattr(level, name, theirs[name].to(level.raw.device, level.raw.dtype).clone())
        primary, theirs = self.levels[0], saved["levels"][0]
        primary.buckets = [
            Bucket.of_parameters(primary.rule, list(b["index"]), [tensors[i] for i in b["index"]])
            for b in theirs["buckets"]
        ]
        for level, theirs in zip(self.levels, saved["levels"], strict=True):
            for bucket, record in zip(level.buckets, theirs["buckets"], strict=True):
                bucket.restore(record)
