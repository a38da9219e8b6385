"""What `HyperOptimizer.loss` heard since the last step: whether it was called, and the tangents of the gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hyperstack.derivatives import gradients
from hyperstack.errors import RunError
from hyperstack.wrapper import Limited

Tangents = dict[str, list[Tensor | None]]


class Losses:
    """Gathers what a step under a wrapper needs beside the gradients: how these depend on what limited the losses.

    The gradient is the sum of each loss's, weighted; its tangent is the same sum with the slopes of the weights. For
    a single loss that is a multiple of the gradient itself, else it takes a pass backward of its own.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Nothing was heard."""
        self._heard = False
        self._multiples: dict[str, Tensor] = {}
        self._alone: dict[str, Tensor] = {}
        self._before: list[tuple[int, int]] = []
        self._tangents: Tangents = {}

    def hear(self, losses: Tensor, found: Limited, weight: float, names: Sequence[str], params: list[Tensor]) -> None:
        """Losses that will be backpropagated, and how they were limited; `names`: what is being learned of it."""
        sloped = {name: (found.slopes[name] * losses).mean() * weight for name in names}
        if losses.numel() == 1 and not self._heard:
            once = found.weights.reshape(())
            self._multiples = {n: torch.where(once != 0, found.slopes[n].reshape(()) / once, 0.0) for n in names}
            self._alone, self._before = sloped, _versions(params)
        else:
            # Two losses may be added up before either is backpropagated: then no gradient is there to be multiplied.
            if self._alone and _versions(params) == self._before:
                sloped = {name: sloped[name] + self._alone[name] for name in names}
            else:
                self._add(self._multiplied([p.grad for p in params]))
            self._multiples, self._alone = {}, {}
            for name, slope in sloped.items():
                self._add({name: gradients(slope, params)})
        self._heard = True

    def taken(self, grads: list[list[Tensor | None]]) -> list[Tangents]:
        """The tangents of the gradients of each group, which are then forgotten; a RunError where nothing was heard."""
        every = [g for group in grads for g in group]
        if not self._heard and any(g is not None for g in every):
            raise RunError(
                "this step's losses never reached the optimizer",
                why="the primary level limits them, as in ALRC(Adam)",
                instead="after opt.zero_grad() call opt.backward(losses), with one loss for each example, or "
                "opt.loss(losses).backward()",
            )
        self._add(self._multiplied(every))
        rest = {name: iter(found) for name, found in self._tangents.items()}
        self.forget()
        return [{name: [next(found) for _ in group] for name, found in rest.items()} for group in grads]

    def _multiplied(self, grads: Sequence[Tensor | None]) -> Tangents:
        return {name: [None if g is None else g * x for g in grads] for name, x in self._multiples.items()}

    def _add(self, tangents: Tangents) -> None:
        for name, new in tangents.items():
            old = self._tangents.get(name, [None] * len(new))
            self._tangents[name] = [
                x if o is None else o if x is None else o + x for o, x in zip(old, new, strict=True)
            ]


def _versions(params: list[Tensor]) -> list[tuple[int, int]]:
    """What changes when a gradient does."""
    return [(0, 0) if p.grad is None else (id(p.grad), p.grad._version) for p in params]
