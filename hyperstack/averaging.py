"""The tower whose level 1 measures hypergradients at the running average of the weights: see `window`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hyperstack.climb import Climb
from hyperstack.engine import Begun, Tower
from hyperstack.layout import Tensors
from hyperstack.primary import FusedPrimary, Primary
from hyperstack.rule import Stack
from hyperstack.window import Window


class AveragingTower(Tower):
    """A tower whose level 1 measures at averages.

    `count`: the steps done; `began`: after how many of them the window in hand did; `measured`: what was found for the
    next step.
    """

    window: Window
    count = began = 0
    measured: Tensors | None = None

    def _climb(self, skips: bool) -> Climb:
        place = self.stack[1].at
        assert place is not None
        self.window = Window(self.levels[0], place)
        return Climb(self.levels, skips, self.window.traced)

    def _primary(self) -> Primary:
        kind = FusedPrimary if self.tapes.fused else Primary
        return kind(self.levels[0], self.tapes, measured=False, sloped=False, kept=self.window.flats)

    @property
    def due(self) -> bool:
        """Whether the next step begins with a measurement."""
        return self.count - self.began >= self.window.place.length(self.began)

    @torch.no_grad()
    def measure(self, tensors: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        """Take note of the gradients at the averages, for the step that comes."""
        self.arrange(tensors, grads)
        found = self.window.measure(self.buckets, grads, self.cells, self.count - self.began)
        self.measured = {**found, "done": self.cells.new_full((), self.count)}

    def finish(self, begun: Begun, shared: Tensors | None = None) -> None:
        """As of every tower; and then the averages follow."""
        largest = self.window.place.largest(self.count + 1)
        if self.measured is not None:
            self.began = self.count
            for bucket in self.buckets:
                self.window.begin(bucket)
        before = self.window.remember(self.buckets, begun.tensors) if largest else None
        super().finish(begun, shared)
        if before is not None:
            raw = self.climb.layout.unpack(self.cells)["0.raw"]
            self.window.restrain(before, self.buckets, begun.tensors, raw, largest)
        self.count += 1
        kept = self.window.place.kept(self.count)
        for bucket in self.buckets:
            self.window.follow(bucket, bucket.pick(begun.tensors) or [], kept)
        self.measured = None

    def climbed(self, inputs: Tensors) -> Tensors:
        """Between measurements nothing is learned."""
        if self.measured is None:
            return self.tapes.small(("rest",), partial(self.climb.rest, self.buckets))(inputs)
        return super().climbed({**inputs, **self.measured})

    def push(self, b: int, tensors: list[Tensor], grads: Sequence[Tensor], outputs: Tensors) -> None:
        """As of every tower; before it, derivatives are carried on."""
        if self.window.traced:
            numbers = {"coefficients": outputs[f"coefficients.{b}"], "slopes": outputs[f"slopes.{b}"]}
            self.window.trace(self.primary, self.buckets[b], tensors, grads, numbers)
        super().push(b, tensors, grads, outputs)

    def cosines(self) -> Tensors:
        """ĝ / (‖ḡ‖ ‖d‖) of each learned hyperparameter of the primary level, as the last probe found it."""
        return self.levels[0].layout.unpack(self.climb.layout.unpack(self.cells)["0.cosine"])

    def averages(self) -> Iterator[tuple[int, Tensor]]:
        """The place of each tensor that was ever moved, and its average: views."""
        for bucket in self.buckets:
            yield from zip(bucket.index, bucket.segments.tensors(bucket.flats["average"]), strict=True)

    def export(self) -> dict[str, Any]:
        """As of every tower."""
        return {**super().export(), "count": self.count, "began": self.began}

    def restore(self, saved: dict[str, Any], tensors: Sequence[Tensor]) -> None:
        """As of every tower."""
        super().restore(saved, tensors)
        self.count, self.began, self.measured = int(saved["count"]), int(saved["began"]), None


def make_tower(stack: Stack, *arguments: Any, **more: Any) -> Tower:
    """The tower of a stack, as it measures: see `Tower`."""
    averaging = len(stack) > 1 and stack[1].at is not None
    return (AveragingTower if averaging else Tower)(stack, *arguments, **more)
