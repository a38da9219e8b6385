"""Closures called with averaged weights in place, after which everything is as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from hyperstack.admission import gradients
from hyperstack.averaging import AveragingTower
from hyperstack.engine import Tower
from hyperstack.errors import RunError

CLOSURE = (
    "write opt.step(closure), where closure() calls opt.zero_grad(), computes the loss, calls loss.backward() and "
    "returns the loss"
)
OUTSIDE = ("modified by an inplace operation", "backward through the graph a second time")
"""What torch says of a loss that was computed before its weights were exchanged."""
Towers = Sequence[tuple[Tower, list[Tensor]]]
"""Those of an optimizer, each with its parameters."""


class Probing:
    """What an optimizer does at the averages of its towers: closures are called there, and they are put in place.

    `under_way`: whether a closure is being called there; `live`: parameters with their own values, while they have the
    averages.
    """

    def __init__(self, live: list[tuple[Tensor, Tensor]] | None = None) -> None:
        self.under_way, self.live = False, live

    def refuse(self, towers: Towers, closure: Callable[[], Any] | None) -> None:
        """A RunError for a step that cannot be made."""
        averaging = bool(_averaging(towers))
        if closure is None and averaging:
            raise RunError(
                "this stack measures hypergradients at averaged weights, and needs a closure",
                why="it has to compute a gradient there",
                instead=CLOSURE,
            )
        if averaging and torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            what = "a step of a stack that measures at averaged weights cannot be captured in a CUDA graph"
            raise RunError(what, why="steps differ: some begin with a measurement", instead="capture the closure alone")
        if self.live is not None:
            what = "the averaged weights are in place, by opt.eval() or opt.averaged()"
            raise RunError(what, why="a step is made from the live ones", instead="call opt.train() before a step")

    def call(self, towers: Towers, closure: Callable[[], Any]) -> Any:
        """What the closure returns, called at the live weights, and before that at the averages where that is due."""
        before = _written(towers) if self._probe(towers, closure) else []
        with torch.enable_grad(), _explained(bool(_averaging(towers))):
            loss = closure()
        after = _written(towers) if before else []
        pairs = zip(before, after, strict=False)
        if before and len(after) == len(before) and all(g is h and v == w for (g, v), (h, w) in pairs):
            what = "the closure computes no gradients: those of this step are from outside of it"
            raise RunError(what, instead=CLOSURE)
        return loss

    def _probe(self, towers: Towers, closure: Callable[[], Any]) -> bool:
        """Where a measurement is due, have the closure find the gradients at the averages; whether it found none."""
        if not any(tower.due for tower, _ in _averaging(towers)):
            return False
        own = [(p, p.grad) for _, params in towers for p in params]
        self.under_way = True
        try:
            with exchanged(_averages(towers)), unspoiled_buffers(), torch.enable_grad(), _explained(True):
                for p, _ in own:
                    p.grad = None
                closure()
            found = [gradients(params) for _, params in towers]
            for (tower, params), grads in zip(towers, found, strict=True):
                if isinstance(tower, AveragingTower) and tower.due and any(grad is not None for grad in grads):
                    tower.measure(params, grads)
            return all(p.grad is None for p, _ in own)
        finally:
            self.under_way = False
            for p, grad in own:
                p.grad = grad

    def begin(self, towers: Towers) -> None:
        """Put the averages in place, where there are any."""
        if self.live is None and _averaging(towers):
            averages = _averages(towers)
            self.live = copies(p for p, _ in averages)
            write(averages)

    def end(self) -> None:
        """Put the live weights back, bit for bit."""
        write(self.live or [])
        self.live = None

    def abandon(self, towers: Towers) -> None:
        """The same, but for parameters that have been written to meanwhile: they have what a state goes with."""
        averages = {id(p): average for p, average in _averages(towers)}
        self.live = [(p, own) for p, own in self.live or [] if torch.equal(p, averages[id(p)].to(p))]
        self.end()


def _averaging(towers: Towers) -> list[tuple[AveragingTower, list[Tensor]]]:
    """Those that measure at averages."""
    return [(tower, params) for tower, params in towers if isinstance(tower, AveragingTower)]


def _averages(towers: Towers) -> list[tuple[Tensor, Tensor]]:
    """Parameters, and their averages."""
    return [(params[i], average) for tower, params in _averaging(towers) for i, average in tower.averages()]


def _written(towers: Towers) -> list[tuple[Tensor, int]]:
    """The gradients that there are, and how often each was written to."""
    return [(p.grad, p.grad._version) for _, params in towers for p in params if p.grad is not None]


@contextmanager
def _explained(called_twice: bool) -> Iterator[None]:
    """Says of a closure that is called twice what torch can't know: that its loss must be computed in it."""
    try:
        yield
    except RuntimeError as error:
        if not called_twice or not any(said in str(error) for said in OUTSIDE):
            raise
        what = "the closure cannot compute its loss again: it was computed outside of it"
        raise RunError(what, instead=CLOSURE) from error


@contextmanager
def exchanged(pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Give each first tensor the values of the second; it comes back to its own bit for bit, whatever happens."""
    pairs = list(pairs)
    own = copies(tensor for tensor, _ in pairs)
    try:
        write(pairs)
        yield
    finally:
        write(own)


def copies(tensors: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Each tensor with a copy of its values."""
    return [(tensor, tensor.detach().clone()) for tensor in tensors]


@torch.no_grad()
def write(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Give each first tensor the values of the second."""
    for tensor, values in pairs:
        tensor.copy_(values)


@contextmanager
def unspoiled_buffers() -> Iterator[None]:
    """Afterwards the buffers of every module that is called meanwhile are as before: BatchNorm's running statistics,
    say, which a look at other weights would spoil.

    A module's buffers, and those of the modules in it, are copied when it is first called: so those of a compiled or a
    distributed module are, too, whose inner calls cannot be seen. Not seen are modules called by their `forward`, or
    within a function that torch.compile made.
    """
    kept: dict[nn.Module, dict[str, Tensor | None]] = {}
    values: dict[Tensor, Tensor] = {}

    def keep(module: nn.Module, _: object) -> None:
        if module not in kept:
            fresh = [inner for inner in module.modules() if inner not in kept]
            kept.update({inner: dict(inner._buffers) for inner in fresh})
            values.update(copies(x for inner in fresh for x in inner._buffers.values() if x is not None))

    hook = register_module_forward_pre_hook(keep)
    try:
        yield
    finally:
        hook.remove()
        write(values.items())
        for module, buffers in kept.items():
            module._buffers.update(buffers)  # some modules put a new tensor in the place of the old one
