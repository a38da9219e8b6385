"""A look at a model with other weights, after which everything is as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook


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
