"""The losses with which runs end: their mean over the last twentieth of the steps."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperstack.telemetry.summary import number

SHARE = 20


class Final:
    """Sums losses shaped like `like` over the last of `steps` steps, without waiting for the device."""

    def __init__(self, steps: int, like: Tensor) -> None:
        self.first = steps - max(1, steps // SHARE) + 1
        self.count = steps - self.first + 1
        self.total, self.added = torch.zeros_like(like), 0

    def add(self, step: int, losses: Tensor) -> None:
        """Those of a step, counted from 1."""
        if step >= self.first:
            self.total += losses
            self.added += 1

    def mean(self) -> list[float | None]:
        """Of each run; None where it is not finite, or the steps have not come to their end."""
        if self.added < self.count:
            return [None] * self.total.numel()
        return [number(x) for x in (self.total / self.count).view(-1).tolist()]


class FinalLoss:
    """What `Trainer.run` tells the loss of each step to, and which keeps the final loss of the run."""

    def __init__(self, steps: int, like: Tensor) -> None:
        self.final = Final(steps, like)

    def record(self, step: int, loss: Tensor) -> None:
        """Add the loss of a step."""
        self.final.add(step, loss)

    def mean(self) -> float | None:
        """The final loss."""
        return self.final.mean()[0]
