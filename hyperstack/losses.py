"""What `HyperOptimizer.loss` has limited since the last step, and the tangents of the gradients that came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hyperstack.derivatives import gradients
from hyperstack.errors import RunError
from hyperstack.wrapper import Limited

Tangents = dict[str, list[Tensor | None]]


@dataclass
class Call:
    """Losses that were limited together. `done`: whether they have been backpropagated.

    `tangents`: of their gradients; or of a single loss, whose tangent is a multiple of its gradient, the `multiples`,
    and `sloped`, the loss times the slopes of its weight.
    """

    done: bool = False
    tangents: Tangents = field(default_factory=dict)
    multiples: dict[str, Tensor] = field(default_factory=dict)
    sloped: dict[str, Tensor] = field(default_factory=dict)

    def backpropagated(self, _: Tensor) -> None:
        """The hook on what the losses were reduced to: called as the backward pass begins there."""
        self.done = True

    def settle(self, params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        """Make tangents of the multiples: from the gradients, if these losses alone are in them, else on the graph."""
        if self.done:
            self.tangents |= {n: [None if g is None else g * x for g in grads] for n, x in self.multiples.items()}
        else:
            self.tangents |= {name: gradients(slope, params) for name, slope in self.sloped.items()}
        self.multiples, self.sloped = {}, {}


class Losses:
    """Gathers what a step under a wrapper needs beside the gradients: how these depend on what limited the losses.

    The gradient is the sum of each loss's, weighted; its tangent is the same sum with the slopes of the weights. For
    a single loss that is a multiple of the gradient itself, else it takes a pass backward of its own.
    """

    def __init__(self) -> None:
        self._calls: list[Call] = []

    def hear(self, losses: Tensor, found: Limited, weight: float, names: Sequence[str], params: list[Tensor]) -> Call:
        """Losses, and how they were limited; `names`: what is being learned of it."""
        for call in self._calls:
            call.settle(params, [p.grad for p in params])
        sloped = {name: (found.slopes[name] * losses).mean() * weight for name in names}
        if losses.numel() == 1 and not self._calls:
            once = found.weights.reshape(())
            multiples = {n: torch.where(once != 0, found.slopes[n].reshape(()) / once, 0.0) for n in names}
            call = Call(multiples=multiples, sloped=sloped)
        else:
            call = Call(tangents={name: gradients(slope, params) for name, slope in sloped.items()})
        self._calls.append(call)
        return call

    def zeroed(self) -> None:
        """Forget what is in gradients that are no more; losses still to be backpropagated are remembered."""
        self._calls = [call for call in self._calls if not call.done]

    def taken(self, params: list[list[Tensor]], grads: list[list[Tensor | None]]) -> list[Tangents]:
        """The tangents of the gradients of each group, which are then forgotten; a RunError where there are none."""
        every = [g for group in grads for g in group]
        done = [call for call in self._calls if call.done]
        if not done and any(g is not None for g in every):
            raise RunError(
                "this step's losses never reached the optimizer",
                why="the primary level limits them, as in ALRC(Adam)",
                instead="call opt.backward(losses), or opt.loss(losses).backward(), with one loss for each example",
            )
        total: Tangents = {}
        for call in done:
            call.settle([p for group in params for p in group], every)
            for name, new in call.tangents.items():
                total[name] = [_sum(a, b) for a, b in zip(total.get(name, [None] * len(new)), new, strict=True)]
        self._calls = []
        rest = {name: iter(found) for name, found in total.items()}
        return [{name: [next(found) for _ in group] for name, found in rest.items()} for group in grads]


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b
