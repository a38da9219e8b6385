"""Derivatives of functions that were run on leaves: by autograd, and in one place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def pullback(outputs: list[Tensor], inputs: list[Tensor], cotangents: list[Tensor]) -> Tensor:
    """The product of cotangents with the derivative of `outputs` by `inputs`, flat; 0 where nothing depends on it."""
    pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
    if not pairs:
        return torch.cat([torch.zeros_like(x).reshape(-1) for x in inputs])
    found = torch.autograd.grad([o for o, _ in pairs], inputs, [c for _, c in pairs], materialize_grads=True)
    return torch.cat([x.reshape(-1) for x in found])


def columns(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """The derivative of `output` by each of `inputs`, shaped like `output`: how it changes when all of one input does.

    Backwards twice: the product of a cotangent with the derivative is linear in the cotangent, by which it is
    differentiated again.
    """
    if not output.requires_grad:
        return [torch.zeros_like(output) for _ in inputs]
    cotangent = torch.zeros_like(output).requires_grad_()
    products = torch.autograd.grad(output, inputs, cotangent, create_graph=True, materialize_grads=True)
    return [
        torch.autograd.grad(p.sum(), cotangent, retain_graph=True)[0] if p.requires_grad else torch.zeros_like(output)
        for p in products
    ]


def pushforward(function: Callable[[Tensor], Tensor], at: Tensor, tangent: Tensor) -> Tensor:
    """The derivative of `function` at a point, times a tangent there."""
    with torch.enable_grad():
        point = at.detach().requires_grad_()
        moved = point.detach() + tangent * (step := torch.zeros_like(tangent[..., :1].sum()).requires_grad_())
        return columns(function(moved), [step])[0]


def gradients(loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradient of a loss whose graph is still needed; None where it does not depend on an input."""
    wanted = [x for x in inputs if x.requires_grad]
    found = iter(torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True))
    return [next(found) if x.requires_grad else None for x in inputs]
