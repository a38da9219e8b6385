"""Cells of one shape trained together: as many runs, each as it would be alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from hyperstack.batches import Batches
from hyperstack.dsl import parse
from hyperstack.errors import RunError
from hyperstack.level import scalar_dtype
from hyperstack.schedule import Schedule
from hyperstack.sweep.final import Final
from hyperstack.sweep.networks import Networks
from hyperstack.sweep.planning import TESTED
from hyperstack.tasks import Data, Task
from hyperstack.telemetry.summary import number, plain, versions
from hyperstack.together import Together
from hyperstack.training import Epoch, Plan

Result = dict[str, Any]


class CannotTogether(RunError):
    """This network, or this stack, is trained in one run after another."""


class Block:
    """Runs side by side. Their plans differ in seed and stack alone, and their stacks in numbers alone.

    A run that has diverged goes on among the others, and does not disturb them; its result is that of the epoch in
    which it did. Raises `CannotTogether` at the first step where the network cannot be recorded.
    """

    def __init__(self, plans: Sequence[Plan], task: Task, data: Data) -> None:
        self.plans, self.data, self.source = plans, data, Batches(task, data)
        device = data.train_inputs.device
        seeds = [plan.seed for plan in plans]
        self.networks = Networks(task, seeds, device)
        self.params = list(self.networks.params.values())
        stacks = [parse(plan.stack) for plan in plans]
        names = list(self.networks.params)
        self.together = Together(stacks, self.params, names=names, fused=plans[0].compile)
        self.total = torch.zeros(len(plans), dtype=scalar_dtype(device), device=device)
        self.planned, self.schedule = self.batches * plans[0].epochs, Schedule.parse(plans[0].schedule)
        self.final = Final(self.planned, self.total)
        self.histories: list[list[Epoch]] = [[] for _ in plans]
        self.epoch = self.steps = 0

    @property
    def batches(self) -> int:
        """Batches an epoch; the last one holds what is left over."""
        return math.ceil(len(self.data.train_inputs) / self.plans[0].batch_size)

    def run(self, stop: Callable[[], bool] = lambda: False) -> Iterator[tuple[int, Result]]:
        """Train, and give the place and result of each run as it ends; nothing more after a step when `stop()`."""
        started, running = time.perf_counter(), set(range(len(self.plans)))
        while running and self.epoch < self.plans[0].epochs:
            for inputs, targets in self._batches():
                if stop():
                    return
                self._step(inputs, targets)
            ended = self._end_epoch(running)
            seconds = time.perf_counter() - started
            for r in sorted(ended):
                yield r, self._result(r, seconds)
            running -= ended

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets of each step: [batch, ...], or [runs, batch, ...] where seeds differ."""
        seeds, size = [plan.seed for plan in self.plans], self.plans[0].batch_size
        orders = {seed: self.source.order(seed, self.epoch).split(size) for seed in dict.fromkeys(seeds)}
        for batch in range(len(orders[seeds[0]])):
            found = {s: self.source.training(order[batch], s, self.epoch, batch) for s, order in orders.items()}
            if self.networks.shared:
                yield found[seeds[0]]
            else:
                yield torch.stack([found[s][0] for s in seeds]), torch.stack([found[s][1] for s in seeds])

    def _testing(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The test examples, no more at once than there is room for: with all runs, a batch is large enough."""
        size = self.source.task.test_batch_size if self.networks.mixes else max(TESTED, self.plans[0].batch_size)
        for inputs, targets in self.source.testing():
            yield from zip(inputs.split(size), targets.split(size), strict=True)

    def _step(self, inputs: Tensor, targets: Tensor) -> None:
        try:
            losses, grads = self.networks.losses(inputs, targets)
            self.together.step(self.params, grads, self.schedule.factor(self.steps, self.planned))
        except RuntimeError as error:
            if self.steps:
                raise
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise CannotTogether("these runs cannot be trained together", why=why) from error
        self.total += losses
        self.steps += 1
        self.final.add(self.steps, losses)

    def _end_epoch(self, running: set[int]) -> set[int]:
        """Note what the epoch came to; which of the running runs have ended."""
        self.epoch += 1
        errors = self.networks.errors(self._testing()).tolist()
        losses = (self.total / self.batches).tolist()
        self.total.zero_()
        finite = torch.stack([torch.isfinite(p.flatten(1)).all(1) for p in self.params]).all(0).tolist()
        for r in running:
            self.histories[r].append(Epoch(self.epoch, losses[r], errors[r]))
        diverged = {r for r in running if not (finite[r] and math.isfinite(losses[r]))}
        return set(running) if self.epoch == self.plans[0].epochs else diverged

    def _result(self, r: int, seconds: float) -> Result:
        """As `Trainer.summary`; `seconds` are those of all runs, of which there were `together`."""
        last, tower = self.histories[r][-1], self.together.tower(r)
        diverged = not math.isfinite(last.train_loss) or not all(bool(torch.isfinite(p[r]).all()) for p in self.params)
        return {
            **self.plans[r].as_dict(),
            "epochs": self.epoch,
            "epochs_planned": self.plans[r].epochs,
            "steps": self.steps,
            "seconds": round(seconds, 3),
            "together": len(self.plans),
            "train_loss": number(last.train_loss),
            "final_loss": self.final.mean()[r],
            "test_error": last.test_error,
            "diverged": diverged,
            "finished": True,
            "hyperparameters": {k: plain(v) for k, v in tower.hyperparameters().items()},
            "nonfinite": {k: int(v) for k, v in tower.nonfinite_counts().items() if int(v)},
            "history": [{**asdict(e), "train_loss": number(e.train_loss)} for e in self.histories[r]],
            "versions": versions(),
        }
