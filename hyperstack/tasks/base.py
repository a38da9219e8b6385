"""What a training task is: its data, its network, and how an output is judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

__all__ = ["Data", "Task"]


@dataclass(frozen=True, eq=False)
class Data:
    """A whole data set on one device; the first dimension of each tensor counts the examples."""

    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor


class Task(ABC):
    """A data set with a network for it. A subclass is made known by its place in `hyperstack.tasks.TASKS`."""

    # The name under which the task is chosen.
    name: ClassVar[str]
    # One line for help texts.
    summary: ClassVar[str]
    # Examples in one training step, where the user names no other number.
    batch_size: ClassVar[int] = 256
    # Passes over the training examples, where the user names no other number.
    epochs: ClassVar[int] = 5
    # CPU threads, where the user names no other number; None: as many as PyTorch takes. Where a step takes a
    # millisecond, a second thread gains next to nothing, and on a busy machine waiting for it costs tenfold.
    threads: ClassVar[int | None] = None

    @abstractmethod
    def load(self, data_dir: Path | None, device: torch.device, notify: Callable[[str], None] | None = None) -> Data:
        """The data, on `device`: from `data_dir` where given, else from the cache, else fetched.

        `notify` gets a line of text when something slow begins.
        Raises `InputError` where the data can't be had or is damaged.
        """

    @abstractmethod
    def model(self) -> nn.Module:
        """A new network on the CPU, its parameters drawn from PyTorch's global generator."""

    @abstractmethod
    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each example, shape `[batch]`; the mean is what training makes small."""

    @abstractmethod
    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """How wrong the network is on each example, from 0 (right) to 1, floating point, shape `[batch]`."""
