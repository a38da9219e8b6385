"""Batch normalization as a pure function: its running statistics are results, and not changed in place.

So a step can be recorded, and runs trained side by side, each with statistics of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def made_pure(model: nn.Module) -> list[str]:
    """Let the batch normalizations of a model assign new statistics; the names of these buffers.

    To be called by `torch.func.functional_call`, which puts what is assigned into the tensors that it was given.
    """
    found = []
    for name, module in model.named_modules():
        if type(module).forward is _BatchNorm.forward:
            module.forward = normalized.__get__(module)
            found += [f"{name}.{buffer}".lstrip(".") for buffer, _ in module.named_buffers(recurse=False)]
    return found


def normalized(self: Any, x: Tensor) -> Tensor:
    """What `nn.BatchNorm1d.forward` and those of other dimensions come to: (x - mean) / sqrt(variance + eps).

    x: [batch, channels, ...]; mean and variance are of each channel, over all else, or in evaluation the running ones.
    """
    self._check_input_dim(x)
    over, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
    if self.training or self.running_mean is None:
        mean, variance = x.mean(over), x.var(over, correction=0)
        count = x.numel() // x.shape[1]
        if count == 1:
            raise RuntimeError("batch normalization of a single value")
        if self.training and self.running_mean is not None:
            self.num_batches_tracked = self.num_batches_tracked + 1
            share = 1.0 / self.num_batches_tracked.to(x.dtype) if self.momentum is None else self.momentum
            unbiased = variance.detach() * (count / (count - 1))
            self.running_mean = self.running_mean * (1 - share) + mean.detach() * share
            self.running_var = self.running_var * (1 - share) + unbiased * share
    else:
        mean, variance = self.running_mean, self.running_var
    y = (x - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
    return y if self.weight is None else y * self.weight.view(shape) + self.bias.view(shape)
