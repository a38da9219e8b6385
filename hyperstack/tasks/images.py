"""What tasks on images share: images are held as bytes, and become numbers a batch at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from hyperstack.tasks.base import Classifier, Data

__all__ = ["Bytes", "Channels", "ImageClassifier", "cropped", "cut_off", "flipped", "grey"]

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Channels:
    """The mean and the standard deviation of each channel over a set of images, in grey levels, `[channels, 1, 1]`."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, images: Tensor) -> Channels:
        """Those of `images`, bytes `[examples, channels, height, width]`, on the same device.

        From the exact counts of each grey level, so that no order of summation enters. The deviation of a channel
        that is the same everywhere counts as 1.
        """
        levels = torch.arange(256, dtype=torch.float64)
        counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)])
        shares = counts.cpu().double() / counts[0].sum().cpu()
        mean = shares @ levels
        deviation = (shares * (levels - mean[:, None]) ** 2).sum(1).sqrt()
        deviation = torch.where(deviation > 0, deviation, 1.0)
        return cls(*(x.to(torch.float32)[:, None, None].to(images.device) for x in (mean, deviation)))

    def normalized(self, images: Tensor) -> Tensor:
        """Bytes to float32 of zero mean and unit deviation over the set, channel by channel."""
        return images.to(torch.float32).sub_(self.mean).div_(self.deviation)


class ImageClassifier(Classifier):
    """Labelled images, held as bytes, each channel normalized by its mean and deviation over the training images."""

    channels: Channels

    def _data(self, train: tuple[Bytes, Bytes], test: tuple[Bytes, Bytes], device: torch.device) -> Data:
        """Images `[examples, channels, height, width]` and labels `[examples]`, on `device`; notes their channels."""
        images, labels = (torch.from_numpy(x).to(device) for x in train)
        test_images, test_labels = (torch.from_numpy(x).to(device) for x in test)
        self.channels = Channels.of(images)
        return Data(images, labels.to(torch.int64), test_images, test_labels.to(torch.int64))

    def prepare(self, inputs: Tensor, targets: Tensor, draw: torch.Generator, training: bool) -> tuple[Tensor, Tensor]:
        return self.channels.normalized(inputs), targets


def flipped(images: Tensor, draw: torch.Generator) -> Tensor:
    """Each image as it is or, as likely, with left and right exchanged."""
    turned = torch.rand(len(images), generator=draw, device=images.device) < 0.5
    return torch.where(turned[:, None, None, None], images.flip(3), images)


def cropped(images: Tensor, margin: int, draw: torch.Generator) -> Tensor:
    """Each image moved by up to `margin` pixels down or up and to a side, 0 where it leaves the frame empty."""
    count, channels, height, width = images.shape
    padded = functional.pad(images, (margin,) * 4)
    shifts = torch.randint(2 * margin + 1, (2, count, 1), generator=draw, device=images.device)
    rows = shifts[0] + torch.arange(height, device=images.device)
    columns = shifts[1] + torch.arange(width, device=images.device)
    examples = torch.arange(count, device=images.device)[:, None, None, None]
    every = torch.arange(channels, device=images.device)[:, None, None]
    return padded[examples, every, rows[:, None, :, None], columns[:, None, None, :]]


def grey(images: Bytes) -> Bytes:
    """The luma of colour images `[examples, 3, height, width]`, as `[examples, 1, height, width]` (ITU-R BT.601)."""
    red, green, blue = (images[:, channel].astype(np.uint32) for channel in range(3))
    return ((299 * red + 587 * green + 114 * blue + 500) // 1000).astype(np.uint8)[:, None]


def cut_off(errors: Tensor) -> Tensor:
    """Errors of at least 0 as a share of what is counted as wholly wrong: 1 where they are more, or no number."""
    return torch.nan_to_num(errors, nan=1.0, posinf=1.0).clamp(max=1)
