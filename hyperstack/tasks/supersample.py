"""Supersampling: CIFAR-10 photographs at twice their width and height, and a residual network that makes them."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from hyperstack.tasks.base import STEADY, Data, Notify, Task
from hyperstack.tasks.cifar10 import load_arrays
from hyperstack.tasks.images import cut_off, flipped

__all__ = ["Supersample", "SupersampleQuartic"]


class Skip(nn.Module):
    """Adds to its input what two 3x3 convolutions with ReLU make of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Images in, images out."""
        return x + functional.relu(self.second(functional.relu(self.first(x))))


class Supersample(Task):
    """2x supersampling as in section III of Ede and Beanland, "Adaptive learning rate clipping stabilizes learning",
    on CIFAR-10; the loss of an image is its mean squared error.

    Data: images are flipped left to right or not, their contrast changed (each channel scaled about its mean by 0.2
    to 1.8), moved and scaled to zero mean and unit variance over the image, which also undoes any change of
    brightness, and scaled down to 16x16 bilinearly. Tested on images that are only standardized and scaled down.

    Network: bilinearly up to 32x32; 5x5 convolution to 64 channels, 3x3 to 128, three residual blocks of two 3x3
    convolutions, 3x3 to 64, 5x5 to 3; ReLU after each but the last. Xavier-uniform weights, biases 0. The paper gives
    widths, the range of the contrast and the corners of the scaling (which coincide) in its published code only, which
    has also a factor of 25 before the loss, without effect on Adam, and limits losses that pass 50 times it.

    The paper takes 100,000 steps with batches of 1, 4, 16 or 64: 2 to 128 epochs.
    """

    name: ClassVar[str] = "supersample"
    summary: ClassVar[str] = "2x supersampling of CIFAR-10, squared error"
    stack: ClassVar[str] = STEADY
    batch_size: ClassVar[int] = 16
    epochs: ClassVar[int] = 2
    test_batch_size: ClassVar[int] = 250
    power: ClassVar[int] = 2

    def load(self, data_dir: Path | None, device: torch.device, notify: Notify | None = None) -> Data:
        """Inputs: bytes [examples, 3, 32, 32]; an image is its own target."""
        train, _, test, _ = load_arrays(data_dir, notify)
        images, test_images = (torch.from_numpy(x).to(device) for x in (train, test))
        return Data(images, images, test_images, test_images)

    def prepare(self, inputs: Tensor, targets: Tensor, draw: torch.Generator, training: bool) -> tuple[Tensor, Tensor]:
        """Inputs: float32 [batch, 3, 16, 16]; targets: [batch, 3, 32, 32], of zero mean and unit variance."""
        images = targets.to(torch.float32)
        if training:
            images = flipped(images, draw)
            factors = 0.2 + 1.6 * torch.rand(len(images), 1, 1, 1, generator=draw, device=images.device)
            middle = images.mean(dim=(2, 3), keepdim=True)
            images = torch.lerp(middle, images, factors)
        images = _standardized(images)
        small = functional.interpolate(images, (16, 16), mode="bilinear", align_corners=True)
        return small, images

    def model(self) -> nn.Module:
        up = nn.Upsample((32, 32), mode="bilinear", align_corners=True)
        wide = nn.Conv2d(3, 64, 5, padding=2), nn.ReLU(), nn.Conv2d(64, 128, 3, padding=1), nn.ReLU()
        blocks = (Skip(128) for _ in range(3))
        network = nn.Sequential(
            up, *wide, *blocks, nn.Conv2d(128, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 3, 5, padding=2)
        )
        for module in network.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        return network

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over each image's pixels and channels of (output - target)^power."""
        return (outputs - targets).pow(self.power).mean(dim=(1, 2, 3))

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean squared error of each image, whose variance is 1, cut off at 1: the share that is not explained."""
        return cut_off((outputs - targets).square().mean(dim=(1, 2, 3)))


class SupersampleQuartic(Supersample):
    """`Supersample`, but the loss of an image is its mean quartic error, which is less stable."""

    name: ClassVar[str] = "supersample-quartic"
    summary: ClassVar[str] = "2x supersampling of CIFAR-10, quartic error"
    power: ClassVar[int] = 4


def _standardized(images: Tensor) -> Tensor:
    """Each image moved and scaled to zero mean and unit variance over its pixels and channels.

    Deviations are taken as at least 1/sqrt(numbers in the image), so that an image of one colour is no division by 0.
    """
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    least = images[0].numel() ** -0.5
    return (images - mean) / images.std(dim=(1, 2, 3), correction=0, keepdim=True).clamp(min=least)
