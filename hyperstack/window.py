"""Hypergradients measured at the running average of the weights, over a window of steps.

The average follows the weights, with a the share of it that step t keeps (`measuring.Average`):

    θ_t = θ_{t-1} + u_t          u_t = U(g_t, s_{t-1}; h)         s_t = S(g_t, s_{t-1}; h)
    θ̄_t = a θ̄_{t-1} + (1-a) θ_t

Shift a hyperparameter h by the same small amount in all steps, and let a dot be the derivative by that. Forward:

    ṡ_t = ∂S/∂h + ∂S/∂s ṡ_{t-1}      u̇_t = ∂U/∂h + ∂U/∂s ṡ_{t-1}      θ̇_t = θ̇_{t-1} + u̇_t

What the average moved in a window that began at step τ is θ̄_t - θ̄_τ, and the hypergradient measured at its end is

    ĝ = ḡ · d        d = ∂(θ̄_t - θ̄_τ)/∂h        ḡ = ∇L(θ̄_t), of a batch that no update has seen yet

With e = θ̇ - θ̄̇, how far a shift has moved the weights ahead of their average, d needs nothing that grows with the steps:

    d_t = d_{t-1} + (1-a)(e_{t-1} + u̇_t)      e_t = a (e_{t-1} + u̇_t)      d = 0 where a window begins

**What is dropped**: that gradients were taken elsewhere, ∂U/∂g H θ̇ with the Hessian H of the losses; that weight decay
and trust ratios read parameters that are elsewhere, ∂U/∂θ θ̇; and that h itself was learned from them. Where losses
are linear and nothing reads the parameters, d is exact.

For the logarithm of a rate, in proportion to which the updates are, u̇ = u, so that e = θ - θ̄ and d = θ̄_t - θ̄_τ, what
the average did move: no derivative is taken, and two buffers are kept, θ̄ and θ̄_τ. For each other hyperparameter that is
learned there are d, e and ṡ, as large as the parameters and their state, and u̇ is taken at every step.

An update that a bound made shorter counts as one at a rate that is smaller by as much; the bound itself is held.

By the chain of `engine`, the levels above go on from ĝ as they do from a live one: each moves when level 1 does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from hyperstack.buffers import Block, Bucket
from hyperstack.derivatives import columns
from hyperstack.hyperparameter import Resolved
from hyperstack.layout import Tensors, section
from hyperstack.level import Level
from hyperstack.measuring import SMALLEST, Average
from hyperstack.numerics import Segments
from hyperstack.primary import Primary
from hyperstack.rule import Rule


class Before(NamedTuple):
    """Tensors, and e of each bucket's traced hyperparameters, as they were before an update."""

    tensors: list[Tensor]
    ahead: list[Tensors]


class Window:
    """What a primary level's buckets keep for measuring at averages: `Average` says where.

    `rate`: the name of the rate whose displacement is its own derivative, if it is learned; `traced`: the names of the
    hyperparameters whose derivative is carried along. In a bucket's flats, "average" is θ̄ and "anchor" θ̄_τ; of each
    traced NAME, "moved.NAME" is d, "ahead.NAME" e and "carried.NAME.STATE" ṡ.
    """

    def __init__(self, level: Level, place: Average) -> None:
        self.level, self.place = level, place
        as_log = "lr" in level.learned and level.resolved["lr"].bijection.name == "log"
        self.rate = "lr" if as_log and _proportional(level.rule, level.resolved) else None
        self.traced = [name for name in level.learned if name != self.rate]

    # -- what a bucket keeps -------------------------------------------------------------------------------------

    def flats(self, weights: Tensor, states: Tensors) -> tuple[Tensors, set[str]]:
        """What a bucket of these flat `weights`, whose rule has these `states`, keeps from the first step on."""
        start = weights.clone()
        kept = {"average": start, **({"anchor": start.clone()} if self.level.learned else {})}
        for name in self.traced:
            kept |= {f"moved.{name}": torch.zeros_like(start), f"ahead.{name}": torch.zeros_like(start)}
            kept |= {f"carried.{name}.{state}": torch.zeros_like(x) for state, x in states.items()}
        return kept, {f"carried.{name}.{state}" for name in self.traced for state in self.level.layer_states}

    # -- a step ----------------------------------------------------------------------------------------------------

    def trace(
        self, primary: Primary, bucket: Bucket, tensors: list[Tensor], grads: Sequence[Tensor], numbers: Tensors
    ) -> None:
        """Carry derivatives through the update that a push is about to make: e_{t-1} + u̇_t, and ṡ_t.

        `numbers`: "coefficients", those of the update; "slopes", [traced, coefficients], their derivatives.
        """
        writes = [name for name in bucket.flats if name.split(".")[0] in ("ahead", "carried")]
        for block, part, grad in zip(bucket.blocks, bucket.parts, grads, strict=True):
            inputs = {**part, **numbers, "gradient": grad}
            if self.level.rule.reads_params:
                inputs["target"] = block.gather(tensors)
            function = partial(self._traced, primary)
            primary.tape(("trace", grad.dtype), bucket, block, function, writes)(inputs)

    def _traced(self, primary: Primary, bucket: Bucket, block: Block, inputs: Tensors) -> Tensors:
        shifts = {name: torch.zeros_like(inputs["slopes"][0, 0], requires_grad=True) for name in self.traced}
        coefficients = bucket.layout.unpack(inputs["coefficients"])
        shifted = {"grad": inputs["gradient"].to(bucket.dtype)}
        if "target" in inputs:
            shifted["params"] = inputs["target"].to(bucket.dtype)
        shifted |= {name: inputs[name] for name in bucket.states}
        with torch.enable_grad():
            for i, (name, shift) in enumerate(shifts.items()):
                slopes = bucket.layout.unpack(inputs["slopes"][i])
                coefficients = {n: c + shift * slopes[n] for n, c in coefficients.items()}
                for state, carried in section(inputs, f"carried.{name}.").items():
                    shifted[f"state.{state}"] = shifted[f"state.{state}"] + shift * carried
            delta, after = primary.update(bucket, block, {**shifted, **coefficients})
            leaves = list(shifts.values())
            changes = dict(zip(shifts, columns(delta, leaves), strict=True))
            carried_on = {state: columns(x, leaves) for state, x in after.items()}
        found: Tensors = {}
        for i, name in enumerate(shifts):
            found[f"ahead.{name}"] = inputs[f"ahead.{name}"] + changes[name]
            found |= {f"carried.{name}.{state}": each[i] for state, each in carried_on.items()}
        return found

    def follow(self, bucket: Bucket, tensors: list[Tensor], kept: float) -> None:
        """Let the average follow the weights of a step, and d and e their derivatives."""
        for block, part in zip(bucket.blocks, bucket.parts, strict=True):
            part["average"].lerp_(block.gather(tensors).to(bucket.dtype), 1 - kept)
            for name in self.traced:
                part[f"moved.{name}"].add_(part[f"ahead.{name}"], alpha=1 - kept)
                part[f"ahead.{name}"].mul_(kept)

    def begin(self, bucket: Bucket) -> None:
        """A window begins."""
        for name, flat in bucket.flats.items():
            if name == "anchor":
                flat.copy_(bucket.flats["average"])
            elif name.startswith("moved."):
                flat.zero_()

    # -- measuring ---------------------------------------------------------------------------------------------------

    def measure(self, buckets: Sequence[Bucket], grads: Sequence[Tensor | None], like: Tensor, steps: int) -> Tensors:
        """The hypergradients by the gradients at the averages, as flat raw tensors in the dtype of `like`.

        "received", ĝ; "displacement", ‖d‖; "cosine", ĝ / (‖ḡ‖ ‖d‖); and "slope", by which ĝ is divided to be what it
        counts over that many `steps`: see `Average`. Where d is lost in rounding, cosine and slope are 0.
        """
        count, eps = self.level.count, max(torch.finfo(bucket.dtype).eps for bucket in buckets)
        products, apart, squares = ({n: like.new_zeros(count) for n in self.level.learned} for _ in range(3))
        moved, total = like.new_zeros(count), like.new_zeros(())
        for bucket in buckets:
            if (mine := bucket.pick(grads)) is None:
                continue
            place = bucket.place.to(like.device)
            for block, part, grad in zip(bucket.blocks, bucket.parts, bucket.gather(mine), strict=True):
                flat = grad.to(bucket.dtype)
                total = total + flat.square().sum().to(like)
                if not self.level.learned:
                    continue
                move = part["average"] - part["anchor"]
                found = [(moved, move.square())]
                for name in self.level.learned:
                    d = move if name == self.rate else part[f"moved.{name}"]
                    product = flat * d
                    found += [(products[name], product), (apart[name], product.square()), (squares[name], d.square())]
                for sums, x in found:
                    sums.index_add_(0, place[block.tensors], _sums(block.segments, x).to(like))
        received, displacement = self._packed(products, like), self._packed(squares, like).sqrt()
        # What is left of parts that cancel each other, as the betas' at Adam's first step, is rounding: no direction.
        lost = displacement < 100 * eps * self._packed(dict.fromkeys(self.level.learned, moved), like).sqrt()
        most = torch.where(lost, 0.0, displacement) * total.sqrt()
        cosine = torch.where(most > 0, received / most, 0.0)
        slope = self.place.slope(received, most, self._packed(apart, like).sqrt(), steps)
        return {"received": received, "displacement": displacement, "cosine": cosine, "slope": slope}

    def _packed(self, each: Tensors, like: Tensor) -> Tensor:
        """Numbers of each tensor as the flat raw tensor has them: their sum, where there is one number for all."""
        layout = self.level.layout
        found = {name: x if layout.shapes[name] else x.sum() for name, x in each.items()}
        return layout.pack(found) if found else like.new_zeros(0)

    # -- the bound -----------------------------------------------------------------------------------------------------

    def remember(self, buckets: Sequence[Bucket], tensors: Sequence[Tensor]) -> Before:
        """What an update that may be too large will change."""
        ahead = [{name: bucket.flats[f"ahead.{name}"].clone() for name in self.traced} for bucket in buckets]
        kept = [torch.empty_like(t) for t in tensors]
        torch._foreach_copy_(kept, list(tensors))
        return Before(kept, ahead)

    def restrain(
        self, before: Before, buckets: Sequence[Bucket], tensors: Sequence[Tensor], raw: Tensor, largest: float
    ) -> None:
        """Shorten an update that changed the weights by more than that share, and make the rate smaller by as much."""
        change = _norm(torch._foreach_sub(list(tensors), before.tensors), raw)
        least = SMALLEST * math.sqrt(sum(t.numel() for t in tensors))
        relative = change / _norm(before.tensors, raw).clamp(min=least)
        share = torch.where(torch.isfinite(relative), (largest / relative).clamp(max=1), 1.0)
        for t, b in zip(tensors, before.tensors, strict=True):
            torch.lerp(b, t, share.to(t), out=t)
        for bucket, ahead in zip(buckets, before.ahead, strict=True):
            for name, old in ahead.items():
                flat = bucket.flats[f"ahead.{name}"]
                torch.lerp(old, flat, share.to(flat), out=flat)
        self.level.layout.unpack(raw)["lr"].add_(share.log())


def _norm(tensors: Sequence[Tensor], like: Tensor) -> Tensor:
    """The norm of all of them as one vector."""
    found: Tensor = torch.stack([norm.to(like) for norm in torch._foreach_norm(list(tensors))]).norm()
    return found


def _sums(segments: Segments, flat: Tensor) -> Tensor:
    """The sum of each tensor's elements."""
    return torch.stack([part.sum() for part in flat.split(segments.sizes)])


def _proportional(rule: Rule, resolved: dict[str, Resolved]) -> bool:
    """Whether the rule's updates are in proportion to its rate, and its state does not know of it.

    Asked of the rule itself, on a few numbers.
    """
    level, segments = Level(rule, resolved, ["0", "1"], torch.device("cpu")), Segments([(2,), (3,)])
    numbers = torch.linspace(0.3, 1.7, segments.total, dtype=torch.float64)
    state = {**rule.init(numbers), **rule.init_layers(numbers[:2])}
    state = {name: x + numbers[: len(x)] for name, x in state.items()}
    found = []
    for rate in (1e-3, 2e-3):
        values = {name: torch.tensor(r.value, dtype=torch.float64) for name, r in resolved.items()}
        values["lr"] = torch.full_like(numbers[0], rate)
        coefficients = rule.coefficients(SimpleNamespace(**values), torch.full_like(numbers[0], 3.0))
        found.append(level.update(numbers, state, coefficients, numbers, segments))
    (once, before), (twice, after) = found
    alike = all(torch.equal(before[name], after[name]) for name in after)
    return alike and torch.allclose(2 * once, twice, rtol=1e-9, atol=0.0)
