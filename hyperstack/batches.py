"""Batches of a task's data: which examples, in which order, and as the network takes them; functions of the seed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from hyperstack.tasks import Data, Task


class Batches:
    """The batches of a task. Whatever is random depends on seed, epoch and batch alone, so that a run can resume."""

    def __init__(self, task: Task, data: Data) -> None:
        self.task, self.data = task, data
        self.draw = torch.Generator(data.train_inputs.device)

    def order(self, seed: int, epoch: int) -> Tensor:
        """The training examples in the order in which an epoch takes them."""
        generator = torch.Generator().manual_seed(_mixed(seed, epoch))
        order = torch.randperm(len(self.data.train_inputs), generator=generator)
        return order.to(self.data.train_inputs.device)

    def training(self, chosen: Tensor, seed: int, epoch: int, batch: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of these examples, which are batch number `batch`, from 0, of an epoch."""
        # From 1 up: to the mixing of seeds a last 0 is the same as none, which is what the order of examples has.
        self.draw.manual_seed(_mixed(seed, epoch, batch + 1))
        inputs, targets = self.data.train_inputs[chosen], self.data.train_targets[chosen]
        return self.task.prepare(inputs, targets, self.draw, training=True)

    def testing(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets of the test examples, the same at each time, as many at once as the task allows."""
        self.draw.manual_seed(0)
        size = self.task.test_batch_size
        for x, y in zip(self.data.test_inputs.split(size), self.data.test_targets.split(size), strict=True):
            yield self.task.prepare(x, y, self.draw, training=False)


def _mixed(*numbers: int) -> int:
    """A seed that depends on each of the numbers, and on their order."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1
