"""Copies of a task's network side by side: forward and backward of all of them, recorded once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from hyperstack.derivatives import gradients
from hyperstack.layout import Tensors, section
from hyperstack.sweep.normalization import made_pure
from hyperstack.tape import Tapes
from hyperstack.tasks import Task


class Networks:
    """One network a seed, each as `Task.model` makes it after `torch.manual_seed`.

    `mixes`: whether what is said of a test example depends on those beside it, for want of running statistics.

    `params`, [runs, ...] by name, are what is trained; `shared`: whether all runs have one seed, and so one batch,
    which then has no axis of runs. The network must be the same function at every step: one that draws random numbers,
    changes buffers (but for batch normalization) or reads a tensor's value is a RuntimeError at the first step.
    """

    def __init__(self, task: Task, seeds: Sequence[int], device: torch.device) -> None:
        self.task = task
        self.shared = len(set(seeds)) == 1
        models = {}
        for seed in dict.fromkeys(seeds):
            torch.manual_seed(seed)
            models[seed] = task.model().to(device)
        self.model = models[seeds[0]]
        self.moving = made_pure(self.model)
        self.mixes = any(getattr(module, "running_mean", 0) is None for module in self.model.modules())
        every = [dict(models[seed].named_parameters()) for seed in seeds]
        self.params = {name: torch.stack([own[name].detach() for own in every]) for name in every[0]}
        kept = [dict(models[seed].named_buffers()) for seed in seeds]
        self.buffers = {name: torch.stack([own[name] for own in kept]) for name in kept[0]}
        self.learning = {name: p.requires_grad for name, p in every[0].items()}
        self.tapes = Tapes()

    def losses(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """The mean loss of each run's batch, and the gradient of each parameter by it; None where there is none."""
        given = {**_named("param", self.params), **_named("buffer", self.buffers), "inputs": inputs, "targets": targets}
        found = self.tapes.large((inputs.shape, targets.shape), self._losses)(given)
        for name in self.moving:
            self.buffers[name].copy_(found[f"buffer.{name}"])
        return found["losses"], [found.get(f"grad.{name}") for name in self.params]

    def _losses(self, given: Tensors) -> Tensors:
        values = section(given, "param.")
        params = {n: x.detach().requires_grad_() if self.learning[n] else x for n, x in values.items()}
        with torch.enable_grad():
            of_all = torch.vmap(self._mean_loss, in_dims=(0, 0, *[None if self.shared else 0] * 2))
            each, moved = of_all(params, section(given, "buffer."), given["inputs"], given["targets"])
            found = gradients(each.sum(), list(params.values()))
        grads = {f"grad.{n}": g for n, g in zip(params, found, strict=True) if g is not None}
        return {"losses": each.detach(), **grads, **_named("buffer", moved)}

    @torch.no_grad()
    def errors(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """The mean error of each run on the examples of these batches, 0 to 1, [runs] in float64."""
        self.model.eval()
        of_all = torch.vmap(self._errors, in_dims=(0, 0, None, None))
        found = [of_all(self.params, self.buffers, x, y) for x, y in batches]
        self.model.train()
        return torch.cat(found, 1).cpu().double().mean(1)

    def _mean_loss(self, params: Tensors, buffers: Tensors, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensors]:
        given = {**params, **buffers}
        outputs = functional_call(self.model, given, (inputs,))
        return self.task.losses(outputs, targets).mean(), {name: given[name] for name in self.moving}

    def _errors(self, params: Tensors, buffers: Tensors, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.task.error(functional_call(self.model, {**params, **buffers}, (inputs,)), targets)


def _named(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}.{name}": x for name, x in tensors.items()}
