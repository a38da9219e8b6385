"""The primary level at work on the parameters, bucket by bucket and block by block.

    pull     cotangent ∂L/∂θ -> its product with the derivative of the last update by each coefficient, and the state
             after that update
    push     gradient and new coefficients -> the update, and its record

A pull needs what its push has computed. A bucket of one block keeps that from push to pull (`SplitTape`). A larger one
computes it again, which takes no memory beyond the record. `FusedPrimary` does each in one pass over memory, in kernels
that torch.compile makes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from functools import partial

import torch
from torch import Tensor

from hyperstack.buffers import Block, Bucket, Keeps
from hyperstack.derivatives import columns, pullback
from hyperstack.layout import Tensors, section
from hyperstack.level import Level
from hyperstack.tape import SplitTape, Tape, Tapes


class Primary:
    """Pull and push of one level; `measures`: whether anything above asks for the derivative; `sloped`: whether for its
    size as well; `kept`: what buckets keep beside, see `Bucket`.
    """

    def __init__(
        self,
        level: Level,
        tapes: Tapes,
        measured: bool,
        sloped: bool,
        kept: Keeps | None = None,
    ) -> None:
        self.level, self.tapes, self.sloped, self.kept = level, tapes, sloped, kept
        self.measures = measured and bool(level.depends)

    def bucket(self, index: list[int], tensors: Sequence[Tensor]) -> Bucket:
        """A new bucket of the tensors at `index`."""
        chosen = [tensors[i] for i in index]
        how = {"recorded": self.measures, "fused": self.tapes.fused, "sloped": self.sloped}
        return Bucket(self.level, index, chosen, **how, kept=self.kept)

    def pull(self, bucket: Bucket, grads: Sequence[Tensor] | None) -> Tensor:
        """The products of cotangents with the derivative of a bucket's last update by each coefficient in `depends`.

        Where `sloped`, behind them the products of these derivatives with each other, and the cotangents' with itself.
        Brings the bucket's state up to date; without cotangents (no gradient in this step) only that. A bucket that
        was not updated in the last step adds nothing.
        """
        if not bucket.pending:
            return bucket.nothing
        coefficients = bucket.layout.unpack(bucket.coefficients)
        total = bucket.nothing
        for i, (block, part) in enumerate(zip(bucket.blocks, bucket.parts, strict=True)):
            inputs = {**part, **coefficients}
            cotangent = part["grad"] if grads is None else grads[i].to(bucket.dtype)
            if _looks_ahead(bucket):
                ahead = self._ahead(bucket, block)
                outputs, left = bucket.ahead or ahead.early(inputs, cotangent)
                products = ahead.finish(left, cotangent)["products"]
                for name in bucket.states:  # last, because `left` refers to the state before
                    part[name].copy_(outputs[name])
            else:
                tape = self.tape("pull", bucket, block, self.derivative, bucket.states)
                products = tape({**inputs, "cotangent": cotangent})["products"]
            total = total + products if i else products
        bucket.pending, bucket.ahead = False, None
        return total if grads is not None else bucket.nothing

    def push(self, bucket: Bucket, tensors: list[Tensor], grads: Sequence[Tensor], coefficients: Tensor) -> None:
        """Record a bucket's new gradient, flat for each block and transformed, and move its tensors by the rule."""
        bucket.coefficients.copy_(coefficients)
        numbers = bucket.layout.unpack(bucket.coefficients)
        for block, part, grad in zip(bucket.blocks, bucket.parts, grads, strict=True):
            inputs = {**part, **numbers, **bucket.record(block, part, grad, tensors)}
            if self.measures and _looks_ahead(bucket):
                bucket.ahead = self._ahead(bucket, block).early(inputs, inputs["grad"])
                found = bucket.ahead[0]
            else:
                states = () if self.measures else bucket.states
                found = self.tape("push", bucket, block, self.moved, states)(inputs)
            bucket.measure(block, found)
            block.add(tensors, found["delta"])
        bucket.pending = self.measures

    def _ahead(self, bucket: Bucket, block: Block) -> SplitTape:
        return self.tapes.split(("ahead", bucket.index[0]), partial(self.both, bucket, block), "cotangent")

    def tape(
        self,
        name: Hashable,
        bucket: Bucket,
        block: Block,
        function: Callable[[Bucket, Block, Tensors], Tensors],
        writes: Collection[str],
    ) -> Tape:
        """Blocks of one length share a tape, unless they hold tensors with numbers of their own."""
        if self.level.per_tensor:
            shape: Hashable = (bucket.index[0], block.range.start, block.range.stop)
        else:
            shape = tuple(block.segments.sizes) if self.level.rule.per_layer else block.segments.total
        key = (name, shape, bucket.dtype, bucket.device)
        # Memory taken once has the length of the blocks, and what is of one tensor is spread over its elements.
        anywhere = isinstance(shape, int) and (self.tapes.fused or bucket.device.type != "cpu")
        long = (*bucket.flats, "cotangent", "gradient", "target", "grad", "params") if anywhere else ()
        return self.tapes.large(key, partial(function, bucket, block), writes, long)

    # -- what the tapes record ---------------------------------------------------------------------------------

    def both(self, bucket: Bucket, block: Block, inputs: Tensors) -> Tensors:
        """The update and its derivative."""
        leaves = {name: inputs[name].detach().requires_grad_() for name in self.level.depends}
        with torch.enable_grad():
            delta, after = self.update(bucket, block, {**inputs, **leaves}, section(inputs, "tangent."))
            derivatives = columns(delta, list(leaves.values())) if self.sloped else []
            products = pullback([delta], list(leaves.values()), [inputs["cotangent"]])
        if self.sloped:
            squared = inputs["cotangent"].square().sum()
            products = torch.cat([products, self._gram(bucket, block, derivatives).reshape(-1), squared.reshape(1)])
        return {"delta": delta.detach(), "products": products, **self._layers(after), **_states(after)}

    def _gram(self, bucket: Bucket, block: Block, derivatives: list[Tensor]) -> Tensor:
        """Products of derivatives with each other, [C, C]; [C, C, T] where coefficients are of one tensor."""
        pairs = [[a * b for b in derivatives] for a in derivatives]
        if not self.level.per_tensor:
            return torch.stack([torch.stack([x.sum() for x in row]) for row in pairs])
        sizes, around = block.segments.sizes, (block.tensors.start, len(bucket.index) - block.tensors.stop)
        sums = [torch.stack([torch.stack([p.sum() for p in x.split(sizes)]) for x in row]) for row in pairs]
        return torch.nn.functional.pad(torch.stack(sums), around)

    def derivative(self, bucket: Bucket, block: Block, inputs: Tensors) -> Tensors:
        """The update's derivative, and the state after it."""
        found = self.both(bucket, block, inputs)
        return {name: found[name] for name in ("products", *bucket.states)}

    def moved(self, bucket: Bucket, block: Block, inputs: Tensors) -> Tensors:
        """The update, and the state after it where that is not left to the pull."""
        delta, after = self.update(bucket, block, inputs)
        return {"delta": delta, **self._layers(after), **({} if self.measures else _states(after))}

    def _layers(self, after: Tensors) -> Tensors:
        """What the rule found of each tensor in this update, for the record."""
        return {f"layer.{name}": after[name].detach() for name in self.level.layer_states}

    def update(
        self, bucket: Bucket, block: Block, inputs: Tensors, tangents: Tensors | None = None
    ) -> tuple[Tensor, Tensors]:
        """The rule's update of a block, and the state after it."""
        coefficients = {name: inputs[name] for name in bucket.layout.shapes}
        mine = {name: c[block.tensors] if c.dim() else c for name, c in coefficients.items()}
        state, params = section(inputs, "state."), inputs.get("params")
        return self.level.update(inputs["grad"], state, mine, params, block.segments, tangents)


class FusedPrimary(Primary):
    """The same with a kernel a block for pull, which only reads, and one for push, which writes everything.

    So the state stays the one before the last update until the next push, which brings it up to date on its way.
    Coefficients travel as one tensor: each argument of a kernel costs time.
    """

    def pull(self, bucket: Bucket, grads: Sequence[Tensor] | None) -> Tensor:
        """As `Primary.pull`, but that the state is left to the push."""
        if not bucket.pending:
            return bucket.nothing
        known = {"coefficients": bucket.coefficients}
        if grads is None:
            for block, part in zip(bucket.blocks, bucket.parts, strict=True):
                self.tape("settle", bucket, block, self._settled, bucket.states)({**part, **known})
            bucket.pending = False
            return bucket.nothing
        found = []
        for block, part, grad in zip(bucket.blocks, bucket.parts, grads, strict=True):
            tape = self.tape(("pull", grad.dtype), bucket, block, self.products, ())
            found.append(tape({**part, **known, "cotangent": grad})["products"])
        return torch.stack(found).sum(0) if len(found) > 1 else found[0]

    def push(self, bucket: Bucket, tensors: list[Tensor], grads: Sequence[Tensor], coefficients: Tensor) -> None:
        """As `Primary.push`."""
        known, writes = {"coefficients": coefficients}, list(bucket.records)
        if bucket.pending:
            known["before"] = bucket.coefficients
        if bucket.pending or not self.measures:
            writes += bucket.states
        for block, part, grad in zip(bucket.blocks, bucket.parts, grads, strict=True):
            target = block.gather(tensors)
            inputs = {**part, **known, "gradient": grad, "target": target}
            # Tensors gathered together may share storage: each adds what it moves, instead of writing where it is.
            together = block.piece is None
            key = ("push", bucket.pending, together, grad.dtype, target.dtype)
            found = self.tape(key, bucket, block, self.pushed, writes if together else ["target", *writes])(inputs)
            bucket.measure(block, found)
            if together:
                block.add(tensors, found["delta"])
            else:
                block.scatter(tensors, target)
        bucket.coefficients.copy_(coefficients)
        bucket.pending = self.measures

    def products(self, bucket: Bucket, block: Block, inputs: Tensors) -> Tensors:
        """What the pull is for."""
        numbers = bucket.layout.unpack(inputs["coefficients"])
        found = self.both(bucket, block, {**inputs, **numbers, "cotangent": inputs["cotangent"].to(bucket.dtype)})
        return {"products": found["products"]}

    def _settled(self, bucket: Bucket, block: Block, inputs: Tensors) -> Tensors:
        numbers = bucket.layout.unpack(inputs["coefficients"])
        return _states(self.update(bucket, block, {**inputs, **numbers})[1])

    def pushed(self, bucket: Bucket, block: Block, inputs: Tensors) -> Tensors:
        """The update, the record of it, and the state before it."""
        before, numbers = inputs.get("before"), bucket.layout.unpack(inputs["coefficients"])
        state = {} if before is None else self._settled(bucket, block, {**inputs, "coefficients": before})
        record = {"grad": inputs["gradient"].to(bucket.dtype), "params": inputs["target"].to(bucket.dtype)}
        delta, after = self.update(bucket, block, {**inputs, **numbers, **state, **record})
        kept = {name: record[name] for name in bucket.records}
        moved = {"delta": delta} if block.piece is None else {"target": inputs["target"] + delta}
        return {**moved, **self._layers(after), **kept, **(state if self.measures else _states(after))}


def _looks_ahead(bucket: Bucket) -> bool:
    """Whether keeping what the next pull needs is cheap: on a GPU, launches and memory are what costs."""
    return len(bucket.blocks) == 1 and bucket.device.type == "cpu"


def _states(after: Tensors) -> Tensors:
    return {f"state.{name}": x.detach() for name, x in after.items()}
