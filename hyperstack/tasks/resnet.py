"""ResNet-18 in its form for small images."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["resnet18"]

# The channels and the stride of each of the eight blocks.
BLOCKS = ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1))


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = stride == 1 and inputs == outputs
        self.short: nn.Module = nn.Identity()
        if not same:
            self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Images in, images out."""
        return functional.relu(self.path(x) + self.short(x))


def resnet18(classes: int = 10) -> nn.Module:
    """He et al. 2015 for images of 32x32 pixels or somewhat more: a 3x3 convolution of stride 1 comes first, and no
    maximum is pooled. Images `[batch, 3, height, width]` in, scores `[batch, classes]` out; 11,173,962 parameters
    for 10 classes, first drawn as PyTorch draws them.
    """
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    inputs = 64
    for outputs, stride in BLOCKS:
        layers.append(Residual(inputs, outputs, stride))
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))
