"""Partial-scan completion: images from the twentieth part of their pixels, which lie along a spiral."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from hyperstack.tasks.base import STEADY, Data, Notify, Task
from hyperstack.tasks.cifar10 import load_arrays
from hyperstack.tasks.imagefolder import read_folder
from hyperstack.tasks.images import cut_off, flipped, grey

__all__ = ["SpiralCompletion", "spiral"]


def spiral(side: int, coverage: float) -> Tensor:
    """Which pixels of a square image lie on a scan along an Archimedean spiral, bool `[side, side]`.

    It starts in the middle and ends in the corners; the distance between its turns is the largest for which it meets
    the share `coverage` of all pixels, rounded, and what it meets after so many is left out.
    """
    count = round(coverage * side * side)
    for tenths in range(round(20 / coverage), 0, -1):  # a turn meets up to 1.3 pixels a pixel of its length
        met = _path(side, tenths / 10)
        if len(met) >= count:
            break
    scanned = torch.zeros(side * side, dtype=torch.bool)
    scanned[met[:count]] = True
    return scanned.view(side, side)


def _path(side: int, pitch: float) -> Tensor:
    """The pixels that a spiral meets, by their places in the flattened image, each once, in order."""
    steps = torch.arange(0, side * side / pitch + 4 * side, 0.25, dtype=torch.float64)  # in pixels of length, about
    angle = (4 * torch.pi * steps / pitch).sqrt()  # the length of r = pitch a / 2π up to the angle a is pitch a² / 4π
    radius = pitch * angle / (2 * torch.pi)
    rows, columns = ((side / 2 + radius * f(angle)).floor().long() for f in (torch.sin, torch.cos))
    inside = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
    return torch.tensor(list(dict.fromkeys((rows * side + columns)[inside].tolist())))


class Convolution(nn.Module):
    """A 3x3 convolution without bias whose filters are normalized; then, unless it is the last one, the mean of each
    channel is taken off, and ReLU.

    Filters are `length` times a direction. A length of √2 at first keeps the mean square of what goes through, ReLU
    included. In training a channel's mean is that of the batch, in testing its exponential mean of decay 0.99.
    """

    mean: Tensor

    def __init__(self, inputs: int, outputs: int, stride: int = 1, last: bool = False) -> None:
        super().__init__()
        self.stride, self.last = stride, last
        self.direction = nn.Parameter(0.05 * torch.randn(outputs, inputs, 3, 3))
        self.length = nn.Parameter(torch.full((outputs, 1, 1, 1), 1.0 if last else 2**0.5))
        if not last:
            self.register_buffer("mean", torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Images in, images out."""
        filters = self.length * self.direction / torch.linalg.vector_norm(self.direction, dim=(1, 2, 3), keepdim=True)
        x = functional.conv2d(x, filters, stride=self.stride, padding=1)
        if self.last:
            return x
        mean = self.mean
        if self.training:
            mean = x.mean(dim=(0, 2, 3))
            self.mean.lerp_(mean.detach(), 0.01)
        return functional.relu(x - mean[:, None, None])


class Generator(nn.Module):
    """Scans `[batch, 1, side, side]` to completions, `[batch, side² + (side/2)²]`: the image, and then the image of
    half the size that the auxiliary trainer makes of the inner generator's features, each row by row.

    The inner generator sees the scan at a quarter of its size; the outer one joins its features to the scan itself.
    """

    def __init__(self) -> None:
        super().__init__()
        coarse = Convolution(1, 32, 2), Convolution(32, 64, 2), Convolution(64, 64), Convolution(64, 64)
        self.inner = nn.Sequential(*coarse, nn.Upsample(scale_factor=2), Convolution(64, 32))
        self.auxiliary = nn.Sequential(Convolution(32, 32), Convolution(32, 1, last=True))
        self.up = nn.Upsample(scale_factor=2)
        self.entry = Convolution(1, 16)
        self.outer = nn.Sequential(Convolution(48, 32), Convolution(32, 32), Convolution(32, 1, last=True))

    def forward(self, scan: Tensor) -> Tensor:
        """Both completions."""
        features = self.inner(scan)
        whole = self.outer(torch.cat([self.up(features), self.entry(scan)], 1))
        return torch.cat([whole.flatten(1), self.auxiliary(features).flatten(1)], 1)


class SpiralCompletion(Task):
    """Completion of partial scans as in section IV of Ede and Beanland, "Adaptive learning rate clipping stabilizes
    learning", in small: on grey CIFAR-10 images, or on those of --data-dir at 64x64 pixels if it is laid out for
    `imagefolder`, in place of micrographs of 512x512.

    Data: images are turned and mirrored in one of the 8 ways, blurred, and scanned along a spiral that meets 1/20 of
    the pixels; noise is added to the scan, and the network completes the blurred image. Tested without turning, with
    the same noise each time. Grey levels go from -1 to 1; 0 stands where nothing was scanned.

    Network: an inner and an outer generator and an auxiliary trainer of the inner one, all 3x3 convolutions with
    normalized filters, without biases, directions drawn with deviation 0.05, ReLU and mean-only batch normalization
    of decay 0.99 after each but the last: see `Generator`. The loss is 200 times the mean squared error of the whole
    image, and as much for the half-size one.

    The paper leaves open the blur (here 1 2 1 / 4 along rows and columns), the noise (Gaussian, deviation 0.1) and the
    widths of its network. Ours differs from what it says in three things: filters have a first length in place of an
    initialization pass; the auxiliary trainer has no rate of its own; mean-only normalization is not frozen halfway.
    The paper takes batches of 1, and 500,000 steps.
    """

    name: ClassVar[str] = "spiral-completion"
    summary: ClassVar[str] = "images from spiral scans of 1/20 of the pixels"
    stack: ClassVar[str] = STEADY
    batch_size: ClassVar[int] = 16
    epochs: ClassVar[int] = 5
    coverage: ClassVar[float] = 1 / 20
    noise: ClassVar[float] = 0.1
    # Pixels in a row, and rows, of images from --data-dir; a multiple of 4.
    size: ClassVar[int] = 64

    scanned: Tensor

    def load(self, data_dir: Path | None, device: torch.device, notify: Notify | None = None) -> Data:
        """Inputs: bytes [examples, 1, side, side]; an image is its own target."""
        if data_dir is not None and (Path(data_dir).expanduser() / "train").is_dir():
            _, (train, _), (test, _) = read_folder(data_dir, self.size, notify)
        else:
            train, _, test, _ = load_arrays(data_dir, notify)
        images, test_images = (torch.from_numpy(grey(x)).to(device) for x in (train, test))
        self.scanned = spiral(images.shape[-1], self.coverage).to(device)
        return Data(images, images, test_images, test_images)

    def prepare(self, inputs: Tensor, targets: Tensor, draw: torch.Generator, training: bool) -> tuple[Tensor, Tensor]:
        """Inputs: the scan; targets: the blurred image; both float32 [batch, 1, side, side]."""
        images = targets.to(torch.float32) / 127.5 - 1
        if training:
            images = flipped(images, draw)
            images = flipped(images.mT, draw).mT
            turned = torch.rand(len(images), 1, 1, 1, generator=draw, device=images.device) < 0.5
            images = torch.where(turned, images.mT, images)
        images = _blurred(images)
        noise = torch.randn(images.shape, generator=draw, device=images.device)
        return torch.where(self.scanned, images + self.noise * noise, 0.0), images

    def model(self) -> nn.Module:
        return Generator()

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """200 times the sum of the mean squared errors of the image and of the half-size one."""
        small = functional.avg_pool2d(targets, 2).flatten(1)
        whole = targets.flatten(1)
        pixels = whole.shape[1]
        main, auxiliary = outputs[:, :pixels] - whole, outputs[:, pixels:] - small
        return 200 * (main.square().mean(1) + auxiliary.square().mean(1))

    def error(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean squared error of each whole image, in grey levels from 0 to 1, cut off at 1."""
        whole = targets.flatten(1)
        return cut_off(((outputs[:, : whole.shape[1]] - whole) / 2).square().mean(1))


def _blurred(images: Tensor) -> Tensor:
    """Images `[batch, 1, height, width]` under the filter 1 2 1 / 4 along rows and columns, mirrored at the edges."""
    images = functional.pad(images, (1, 1, 1, 1), mode="reflect")
    images = (images[..., :-2] + 2 * images[..., 1:-1] + images[..., 2:]) / 4
    return (images[..., :-2, :] + 2 * images[..., 1:-1, :] + images[..., 2:, :]) / 4
