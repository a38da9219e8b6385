"""MNIST with other networks than the published one."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from hyperstack.tasks.mnist import MNIST

__all__ = ["MNISTConv", "MNISTReLU"]


class MNISTReLU(MNIST):
    """MNIST read by a 784-128-10 network with ReLU between its layers, then log-softmax."""

    name: ClassVar[str] = "mnist-relu"
    summary: ClassVar[str] = "MNIST digits, a 784-128-10 network with ReLU"

    def model(self) -> nn.Module:
        hidden, output = nn.Linear(784, 128), nn.Linear(128, 10)
        return nn.Sequential(hidden, nn.ReLU(), output, nn.LogSoftmax(dim=1))


class MNISTConv(MNIST):
    """MNIST read by two 3x3 convolutions of stride 2 to 16 and 32 channels with ReLU, one layer to 10, log-softmax."""

    name: ClassVar[str] = "mnist-conv"
    summary: ClassVar[str] = "MNIST digits, a small convolutional network"
    threads: ClassVar[int | None] = None

    def model(self) -> nn.Module:
        first, second = nn.Conv2d(1, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 2, 1)
        images = nn.Unflatten(1, (1, 28, 28))
        convolutions = images, first, nn.ReLU(), second, nn.ReLU(), nn.Flatten()
        return nn.Sequential(*convolutions, nn.Linear(32 * 7 * 7, 10), nn.LogSoftmax(dim=1))
