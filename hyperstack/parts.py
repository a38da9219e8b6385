"""The primary level at work on the parameters of many runs, part by part: what `Primary` is to one run.

A part is a block of the parameters, for as many runs as stay in cache together. The functions are those of `Primary`,
recorded for one run and replayed on the tensors of all: see `tape.runs`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from hyperstack.buffers import BLOCK, Block, Blocks, Bucket, cut
from hyperstack.layout import Tensors
from hyperstack.primary import FusedPrimary, Primary
from hyperstack.tape import SplitTape, Tapes

Function = Callable[[Bucket, Block, Tensors], Tensors]


@dataclass
class Part:
    """Some of the runs at one block, number `place`, of the parameters.

    `flats`: their state and the record of their last update, as in a `Bucket`; `early`: what could be done of the next
    pull at the last push.
    """

    place: int
    block: Block
    rows: slice
    flats: Tensors
    early: tuple[Tensors, tuple[Tensor, ...]] | None = None

    @property
    def key(self) -> tuple[int, int]:
        """Equal for parts that do the same operations."""
        return self.place, self.rows.stop - self.rows.start


class Parts:
    """The parts of a bucket, made of one run's, for `runs` of them."""

    fused = False

    def __init__(self, primary: Primary, bucket: Bucket, runs: int) -> None:
        self.primary, self.bucket, self.runs = primary, bucket, runs
        self.tapes = Tapes(self.fused, shared=())
        # A large tensor has blocks of its own, so that its gradients need not be moved together with others'.
        how = Blocks(BLOCK // 8, BLOCK // 8, sys.maxsize if self.fused else BLOCK)
        bucket.blocks = cut(bucket.segments, not bucket.level.rule.per_layer, how)
        bucket.parts = [bucket.part_of(block) for block in bucket.blocks]
        self.parts = [part for b in range(len(bucket.blocks)) for part in self._cut(b)]
        # What the next pull can be spared is kept where a run is small, as in `Primary`; else it is computed again.
        self.looks_ahead = primary.measures and bucket.segments.total <= BLOCK and bucket.device.type == "cpu"
        self.coefficients = bucket.coefficients.repeat(runs, 1)
        self.pending = False

    def _cut(self, b: int) -> list[Part]:
        block, flats = self.bucket.blocks[b], self.bucket.parts[b]
        # A kernel needs nothing but its inputs in cache, and each call of it costs time.
        pieces = 1 if self.fused else -(-self.runs // max(1, BLOCK // max(1, block.segments.total)))
        ends = [self.runs * j // pieces for j in range(pieces + 1)]
        rows = [slice(*each) for each in pairwise(ends)]
        return [Part(b, block, each, repeated(flats, each.stop - each.start)) for each in rows]

    def gathered(self, tensors: Sequence[Tensor | None]) -> list[Tensor]:
        """The elements of each block's tensors, [runs, elements]: views, where it is of a single one."""
        mine = self._flat(tensors)
        found = []
        for block in self.bucket.blocks:
            chosen = mine[block.tensors]
            flat = torch.cat(chosen, 1) if block.piece is None else chosen[0][:, block.piece]
            found.append(flat.to(self.bucket.dtype))
        return found

    def pull(self, cotangents: Sequence[Tensor]) -> Tensor:
        """The products of all runs, [runs, ...]; the state of each part becomes that after its last update."""
        total = self.bucket.nothing.repeat(self.runs, 1)
        for part in self.parts if self.pending else ():
            cotangent = cotangents[part.place][part.rows]
            if part.early is not None:
                found, left = part.early
                total[part.rows] += self._ahead(part).finish(left, cotangent)["products"]
                for name in self.bucket.states:
                    part.flats[name].copy_(found[name])
            else:
                function = self._of(self.primary.derivative, part.block)
                known = {"coefficients": self.coefficients[part.rows], "cotangent": cotangent}
                tape = self.tapes.large(("pull", part.key), function, self.bucket.states)
                total[part.rows] += tape({**part.flats, **known})["products"]
        return total

    def push(self, tensors: Sequence[Tensor], grads: Sequence[Tensor], coefficients: Tensor) -> None:
        """Record each part's gradient, and move its tensors by the rule."""
        reads = self.bucket.level.rule.reads_params
        params = self.gathered(tensors) if reads else []
        mine = self._flat(tensors)
        for part in self.parts:
            given = {"grad": grads[part.place][part.rows]}
            if reads:
                given["params"] = params[part.place][part.rows]
            for name in self.bucket.records:
                part.flats[name].copy_(given[name])
            inputs = {**given, **part.flats, "coefficients": coefficients[part.rows]}
            if self.looks_ahead:
                part.early = self._ahead(part).early(inputs, inputs["grad"])
                delta = part.early[0]["delta"]
            else:
                states = () if self.primary.measures else self.bucket.states
                tape = self.tapes.large(("push", part.key), self._of(self.primary.moved, part.block), states)
                delta = tape(inputs)["delta"]
            self._add(part, mine, delta)
        self.coefficients.copy_(coefficients)
        self.pending = self.primary.measures

    def _ahead(self, part: Part) -> SplitTape:
        """Of a part alone: what a tape finds is valid until its next call."""
        return self.tapes.split((part.place, part.rows.start), self._of(self.primary.both, part.block), "cotangent")

    def _of(self, function: Function, block: Block) -> Callable[[Tensors], Tensors]:
        """A function of the primary level on one block, with the coefficients as one tensor."""

        def whole(inputs: Tensors) -> Tensors:
            return function(self.bucket, block, {**inputs, **self.bucket.layout.unpack(inputs["coefficients"])})

        return whole

    def _flat(self, tensors: Sequence[Tensor | None]) -> list[Tensor]:
        return [x.reshape(self.runs, -1) for x in self.bucket.pick(tensors) or []]

    def _add(self, part: Part, mine: Sequence[Tensor], delta: Tensor) -> None:
        chosen = [x[part.rows] for x in mine[part.block.tensors]]
        if part.block.piece is not None:
            chosen[0][:, part.block.piece].add_(delta)
        else:
            torch._foreach_add_(chosen, list(delta.split(part.block.segments.sizes, 1)))


class FusedParts(Parts):
    """The same with a kernel a part for pull and one for push, as in `FusedPrimary`."""

    fused = True
    primary: FusedPrimary

    def pull(self, cotangents: Sequence[Tensor]) -> Tensor:
        """As `Parts.pull`, but that the state is left to the push."""
        total = self.bucket.nothing.repeat(self.runs, 1)
        for part in self.parts if self.pending else ():
            tape = self.tapes.large(("pull", part.key), self._of(self.primary.products, part.block))
            known = {"coefficients": self.coefficients[part.rows], "cotangent": cotangents[part.place][part.rows]}
            total[part.rows] += tape({**part.flats, **known})["products"]
        return total

    def push(self, tensors: Sequence[Tensor], grads: Sequence[Tensor], coefficients: Tensor) -> None:
        """As `Parts.push`."""
        targets, mine, measures = self.gathered(tensors), self._flat(tensors), self.primary.measures
        states = self.bucket.states if self.pending or not measures else []
        for part in self.parts:
            alone = part.block.piece is not None and mine[part.block.tensors.start].dtype == self.bucket.dtype
            key = ("push", self.pending, part.key)
            writes = [*["target"] * alone, *self.bucket.records, *states]
            known = {"coefficients": coefficients[part.rows], "gradient": grads[part.place][part.rows]}
            if self.pending:
                known["before"] = self.coefficients[part.rows]
            before = targets[part.place][part.rows]
            found = self.tapes.large(key, self._of(self.primary.pushed, part.block), writes)(
                {**part.flats, **known, "target": before}
            )
            if not alone:
                self._add(part, mine, found["delta"] if "delta" in found else found["target"] - before)
        self.coefficients.copy_(coefficients)
        self.pending = measures


def repeated(tensors: Tensors, runs: int) -> Tensors:
    """Tensors once for each run."""
    return {name: x.expand(runs, *x.shape).clone() for name, x in tensors.items()}
