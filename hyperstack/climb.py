"""The scalars of a tower: from the products of the parameters' pull to the coefficients of their push.

Everything of size one, or one a hyperparameter, lies in one flat tensor, the cells, whose parts have names:

    k.raw, k.hypergradient, k.factor, k.nonfinite    of each level k: its hyperparameters, the gradient that each
                                                     received at the last step before clipping, the factor by
                                                     which it was clipped, and how many steps left it out
    k.grad, k.step, k.applied, k.params,             for k > 0: the record of level k's last update, which moved
    k.state.NAME, k.clip.I.NAME                      level k-1's raw tensor; `applied`: 1 for parts that it moved
    0.cosine, 0.displacement, 0.probes               measured at averages: ĝ / (‖ḡ‖ ‖d‖), and ‖d‖ (see `window`), at
                                                     the last probe, and how many there were
    0.loss.NAME                                      what a wrapper knows of the losses; it changes before the step
    schedule                                         the factor that multiplied the primary rate
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from hyperstack.buffers import Bucket
from hyperstack.derivatives import columns, pullback
from hyperstack.layout import Layout, Tensors, section
from hyperstack.level import Level
from hyperstack.transforms import Context


class Climb:
    """One step of all scalars of a tower, a pure function; `layout` names the parts of its cells.

    `skips`: whether a hyperparameter whose hypergradient is not finite is left out of the step, with its states;
    `sloped`: of each level, whether the level above asks how large its hypergradients could be; `traced`: where level 1
    measures at averages, whose derivatives are carried along for that, else None.
    """

    def __init__(self, levels: Sequence[Level], skips: bool, traced: Sequence[str] | None = None) -> None:
        self.levels, self.skips, self.averaged, self.traced = levels, skips, traced is not None, list(traced or ())
        asking = [any(transform.reads_slope for transform in level.rule.clip) for level in levels[1:]]
        self.sloped = [ask and bool(level.depends) for level, ask in zip(levels, [*asking, False], strict=True)]
        cells = self._start()
        self.layout = Layout({name: tuple(cell.shape) for name, cell in cells.items()})

    def start(self) -> Tensor:
        """The cells before the first step."""
        return self.layout.pack(self._start())

    def holding(self, fixed: Tensors) -> Climb:
        """The same with other tensors for what is fixed, by "LEVEL.NAME"."""
        other = copy.copy(self)
        other.levels = [level.holding(section(fixed, f"{k}.")) for k, level in enumerate(self.levels)]
        return other

    def _start(self) -> Tensors:
        cells = {name: cell for k in range(len(self.levels)) for name, cell in self._new_cells(k).items()}
        return {**cells, "schedule": self.levels[0].start().new_ones(())}

    def _new_cells(self, k: int) -> Tensors:
        level = self.levels[k]
        raw = level.start()
        each = raw.new_ones(len(level.learned))
        cells = {"raw": raw, "hypergradient": raw * 0, "factor": each, "nonfinite": each * 0}
        if level.limits is not None:
            cells.update({f"loss.{name}": x for name, x in level.limits.init_losses(raw.new_zeros(())).items()})
        if k == 0 and self.averaged:
            cells.update(cosine=raw * 0, displacement=raw * 0, probes=raw.new_zeros(()))
        if k:
            below = self.levels[k - 1]
            like = below.start() * 0
            cells.update(grad=like, step=like.new_zeros(len(below.learned)), applied=like.new_zeros(len(below.learned)))
            if level.rule.reads_params:
                cells["params"] = like
            states = {**level.rule.init(like), **level.rule.init_layers(cells["step"])}
            cells.update({f"state.{name}": x for name, x in states.items()})
            for i, transform in enumerate(level.rule.clip):
                cells.update({f"clip.{i}.{name}": x for name, x in transform.init(below.segments, like).items()})
        return {f"{k}.{name}": cell for name, cell in cells.items()}

    def __call__(self, buckets: Sequence[Bucket], inputs: Tensors) -> Tensors:
        """Every hypergradient, level by level upward, then every update downward.

        `inputs`: "cells"; "schedule", the factor of this step; "steps", how many updates each bucket had; "moving", 1
        for buckets that have one now; and "products.B", what bucket B's pull found. Returns new "cells" and "steps",
        and the "coefficients.B" of bucket B's update. Where towers share hyperparameters, as in `sharing`:
        "shared", the sums of their hypergradients; "own", 1 for what this tower moves; "imposed", what others become.
        Measured at averages: what `Window.measure` finds, and "done", how many steps of training there were.
        """
        x, level = self.layout.unpack(inputs["cells"]), self.levels[0]
        out = dict(x)  # and "k.slope", which is not kept
        if self.averaged:
            out["0.hypergradient"] = inputs["received"]
            out.update({f"0.{name}": inputs[name] for name in ("slope", "displacement", "cosine")})
            out["0.probes"] = x["0.probes"] + 1
        elif len(self.levels) > 1:
            self._measure_primary(buckets, inputs, x, out)
            if "shared" in inputs:
                mine = level.layout.unpack(out["0.hypergradient"])
                given = level.layout.unpack(inputs["shared"])
                out["0.hypergradient"] = level.layout.pack({**mine, **{name: given[name] for name in level.shared}})
        for k in range(1, len(self.levels)):
            self._measure(k, x, out)
        for k in reversed(range(1, len(self.levels))):
            done = inputs.get("done", x[f"{k}.step"])
            self._move(k, x, out, done, inputs.get("own") if k == 1 else None)
        if "imposed" in inputs:
            out["0.raw"] = torch.where(level.segments.expand(inputs["own"]) != 0, out["0.raw"], inputs["imposed"])
        return self._outputs(buckets, inputs, out)

    def rest(self, buckets: Sequence[Bucket], inputs: Tensors) -> Tensors:
        """A step within a window: nothing moves, and what `__call__` returns is that of the next update."""
        return self._outputs(buckets, inputs, self.layout.unpack(inputs["cells"]))

    def _outputs(self, buckets: Sequence[Bucket], inputs: Tensors, out: Tensors) -> Tensors:
        """New cells and steps, the coefficients of each bucket's update, and "slopes.B": their traced derivatives."""
        level, out = self.levels[0], {**out, "schedule": inputs["schedule"]}
        outputs = {"cells": self.layout.pack(out), "steps": inputs["steps"] + inputs["moving"]}
        with torch.enable_grad():
            shifts = [out["schedule"].detach() * 0 for _ in self.traced]
            shifts = [shift.requires_grad_() for shift in shifts]
            raw = out["0.raw"]
            if shifts:
                parts = level.layout.unpack(raw)
                parts |= {name: parts[name] + shift for name, shift in zip(self.traced, shifts, strict=True)}
                raw = level.layout.pack(parts)
            values = level.values(raw, out["schedule"])
            for b, step in enumerate(outputs["steps"].clamp(min=1).unbind()):
                bucket = buckets[b]
                coefficients = bucket.layout.pack(level.coefficients(values, step, bucket.index))
                outputs[f"coefficients.{b}"] = coefficients.detach().to(bucket.device, bucket.dtype)
                if shifts:
                    slopes = torch.stack(columns(coefficients, shifts))
                    outputs[f"slopes.{b}"] = slopes.to(bucket.device, bucket.dtype)
        return outputs

    def received(self, buckets: Sequence[Bucket], inputs: Tensors) -> Tensors:
        """The hypergradients of the primary level alone, by name."""
        x = self.layout.unpack(inputs["cells"])
        out = dict(x)
        self._measure_primary(buckets, inputs, x, out)
        return self.levels[0].layout.unpack(out["0.hypergradient"])

    def _measure_primary(self, buckets: Sequence[Bucket], inputs: Tensors, x: Tensors, out: Tensors) -> None:
        """ĝ[0] from the products of the buckets."""
        level = self.levels[0]
        outputs, products = [], []
        with torch.enable_grad():
            leaves, raw = _leaves(x["0.raw"], apart=self.sloped[0])
            values = level.values(raw, x["schedule"])
            for b, step in enumerate(inputs["steps"].clamp(min=1).unbind()):
                found = level.coefficients(values, step, buckets[b].index)
                flat = [found[name].reshape(-1) for name in level.depends]
                outputs.append(torch.cat([inputs["steps"][:0], *flat]))
                products.append(inputs[f"products.{b}"].to(raw.device, raw.dtype))
            if self.sloped[0]:
                behind = [p[len(o) :] for o, p in zip(outputs, products, strict=True)]
                eps = max(torch.finfo(bucket.dtype).eps for bucket in buckets)
                out["0.slope"] = self._slope(leaves, outputs, behind, eps)
            products = [p[: len(o)] for o, p in zip(outputs, products, strict=True)]
            out["0.hypergradient"] = pullback(outputs, leaves, products)

    def _slope(self, leaves: list[Tensor], outputs: list[Tensor], products: list[Tensor], eps: float) -> Tensor:
        """‖∂L/∂θ‖ ‖∂θ/∂h‖ of each number in 0.raw, from the products of derivatives by coefficients with each other."""
        dims = [self.levels[0].coefficient_dims[name] for name in self.levels[0].depends]
        total = torch.zeros_like(leaves[0])
        squares = parts = total.expand(len(leaves))
        for output, product in zip(outputs, products, strict=True):
            tensors = (len(product) - 1) // len(dims) ** 2
            gram = product[:-1].view(len(dims), len(dims), tensors)
            sizes = [tensors if dim else 1 for dim in dims]
            changes = [torch.stack([c.expand(tensors) for c in x.split(sizes)]) for x in columns(output, leaves)]
            squares = squares + torch.stack([torch.einsum("at,abt,bt->", x, gram, x) for x in changes])
            lengths = gram.diagonal().t().clamp(min=0).sqrt()
            parts = parts + torch.stack([(x.abs() * lengths).sum(0).square().sum() for x in changes])
            total = total + product[-1]
        # What is left of parts that cancel each other, as the betas' at Adam's first step, is rounding: no direction.
        lost = squares < 100 * eps * parts
        return torch.where(lost, 0.0, squares).sqrt() * total.sqrt()

    def _measure(self, k: int, x: Tensors, out: Tensors) -> None:
        """ĝ[k] from ĝ[k-1] through level k's last update, whose state after it is found on the way."""
        segments = self.levels[k - 1].segments
        moved = segments.expand(x[f"{k}.applied"]) != 0
        with torch.enable_grad():
            leaves, raw = _leaves(x[f"{k}.raw"], apart=self.sloped[k])
            delta, after = self._update(k, raw, x)
            cotangent = torch.where(moved, out[f"{k - 1}.hypergradient"], 0.0)
            if self.sloped[k]:
                sizes = torch.stack([torch.where(moved, c, 0.0).norm() for c in columns(delta, leaves)])
                lost = sizes < 1e4 * torch.finfo(sizes.dtype).eps * torch.where(moved, delta, 0.0).detach().norm()
                out[f"{k}.slope"] = torch.where(lost, 0.0, sizes) * cotangent.norm()
            out[f"{k}.hypergradient"] = pullback([delta], leaves, [cotangent])
        for name, new in after.items():
            mask = moved if name not in self.levels[k].layer_states else x[f"{k}.applied"] != 0
            out[f"{k}.state.{name}"] = torch.where(mask, new.detach(), x[f"{k}.state.{name}"])

    def _move(self, k: int, x: Tensors, out: Tensors, done: Tensor, own: Tensor | None) -> None:
        """Level k's update of level k-1's raw tensor by its hypergradient, guarded and transformed.

        `done`: how many steps there were; `own`: 1 for what this tower moves.
        """
        below = self.levels[k - 1]
        grad, segments = out[f"{k - 1}.hypergradient"], below.segments
        finite = torch.isfinite(segments.norm(grad))
        out[f"{k - 1}.nonfinite"] = torch.where(finite, x[f"{k - 1}.nonfinite"], x[f"{k - 1}.nonfinite"] + 1)
        applied = finite if self.skips else torch.ones_like(finite)
        if own is not None:
            applied = applied & (own != 0)
        if below.ends is not None:
            applied = applied & (done < below.ends)
        moved = segments.expand(applied)
        grad = torch.where(moved, grad, 0.0)
        context = Context(segments, x[f"{k - 1}.raw"], out.get(f"{k - 1}.slope"))
        for i, transform in enumerate(self.levels[k].rule.clip):
            before = section(x, f"{k}.clip.{i}.")
            grad, after, factor = transform(grad, before, context)
            out[f"{k - 1}.factor"] = out[f"{k - 1}.factor"] * factor if i else factor
            for name, new in after.items():
                mask = applied.view(-1, *[1] * (new.dim() - 1))
                out[f"{k}.clip.{i}.{name}"] = torch.where(mask, new, before[name])
        out[f"{k}.grad"], out[f"{k}.applied"] = grad, applied.to(grad.dtype)
        out[f"{k}.step"] = x[f"{k}.step"] + out[f"{k}.applied"]
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


def _leaves(raw: Tensor, apart: bool) -> tuple[list[Tensor], Tensor]:
    """A flat tensor to be differentiated by: as it is, or `apart` as numbers; and made of these again."""
    if not apart:
        whole = raw.detach().requires_grad_()
        return [whole], whole
    leaves = [x.requires_grad_() for x in raw.detach().clone().unbind()]
    return leaves, torch.stack(leaves)
