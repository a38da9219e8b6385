"""What a training task is: its data, its network, and how an output is judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Classifier", "Data", "Notify", "Task"]

Notify = Callable[[str], None]

# A stack for networks of any size and losses of any scale: the hypergradient of a rate's logarithm does not grow with
# the number of parameters, and the clip makes up for the loss. Adam / SGD(1e-5) makes the rate negative within a few
# steps where there are millions of parameters.
STEADY = "Adam(log(1e-3)) / SGD(0.01, clip)"


@dataclass(frozen=True, eq=False)
class Data:
    """A whole data set on one device; the first dimension of each tensor counts the examples."""

    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor


class Task(ABC):
    """A data set with a network for it. Where one is looked for by its name: `hyperstack.tasks.get_task`.

    An instance may remember what `load` found out, the number of classes say: `load` is called before the others.
    """

    # The name under which the task is chosen, and its runs are filed.
    name: ClassVar[str]
    # One line for help texts.
    summary: ClassVar[str]
    # The stack of optimizers, where the user names no other.
    stack: ClassVar[str] = "Adam / SGD(1e-5)"
    # Examples in one training step, where the user names no other number.
    batch_size: ClassVar[int] = 256
    # Passes over the training examples, where the user names no other number.
    epochs: ClassVar[int] = 5
    # CPU threads, where the user names no other number; None: as many as PyTorch takes. Where a step takes a
    # millisecond, a second thread gains next to nothing, and on a busy machine waiting for it costs tenfold.
    threads: ClassVar[int | None] = None
    # Examples that go through the network at once where it is tested: as many as fit the memory.
    test_batch_size: ClassVar[int] = 2000

    @abstractmethod
    def load(self, data_dir: Path | None, device: torch.device, notify: Notify | None = None) -> Data:
        """The data, on `device`: from `data_dir` where given, else from the cache, else fetched.

        `notify` gets a line of text when something slow begins.
        Raises `InputError` where the data can't be had or is damaged.
        """

    @abstractmethod
    def model(self) -> nn.Module:
        """A new network on the CPU, its parameters drawn from PyTorch's global generator."""

    def prepare(self, inputs: Tensor, targets: Tensor, draw: torch.Generator, training: bool) -> tuple[Tensor, Tensor]:
        """A batch of the stored data as the network and the loss take it; as it is, unless a task says otherwise.

        For data that are stored compactly (bytes), and for augmentation, which belongs in training only. Whatever is
        random comes from `draw`, a generator on the device of the data: it stands where seed, epoch and batch put it,
        so that a run can resume, and in testing at the same place each time.
        """
        return inputs, targets

    @abstractmethod
    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each example, shape `[batch]`; the mean is what training makes small."""

    @abstractmethod
    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """How wrong the network is on each example, from 0 (right) to 1, floating point, shape `[batch]`."""


class Classifier(Task):
    """A task whose outputs are a score for each class, `[batch, classes]`, and its targets the classes, `[batch]`."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The cross-entropy of each example, in nats: -log softmax(scores) at its class."""
        return functional.cross_entropy(outputs, targets, reduction="none")

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """1.0 where the likeliest class is not the right one, else 0.0."""
        return (outputs.argmax(dim=1) != targets).to(outputs.dtype)
