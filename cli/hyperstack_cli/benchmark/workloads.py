"""Training steps to measure, on data made up on the spot: speed does not depend on what is learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hyperstack.tasks.resnet import resnet18


@dataclass(frozen=True)
class Workload:
    """A model, and a function that computes its loss on a fixed batch."""

    name: str
    about: str
    model: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]


class Block(nn.Module):
    """A transformer block: attention and a four times wider MLP, each behind a layer norm and a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Shape [batch, sequence, width] in and out."""
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        mlp: Tensor = self.narrow(functional.gelu(self.wide(self.norm2(x))))
        return x + mlp


class GPT(nn.Module):
    """A small language model: 6 blocks of width 256, 4.8 million parameters in 78 tensors."""

    def __init__(self, vocabulary: int = 65, length: int = 128, width: int = 256, depth: int = 6) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, 8) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        """Token numbers [batch, sequence] to scores [batch, vocabulary, sequence]."""
        x = self.tokens(x) + self.places.weight[: x.shape[1]]
        scores: Tensor = self.head(self.norm(self.blocks(x)))
        return scores.transpose(1, 2)


class Plain(nn.Module):
    """Parameters and next to nothing else: what is left of a step is the optimizer."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count))

    def forward(self, x: Tensor) -> Tensor:
        """The inner product of the weight with x."""
        return self.weight @ x


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 128), nn.Tanh(), nn.Linear(128, 10), nn.Tanh(), nn.LogSoftmax(1))


def _labels(count: int, *shape: int) -> Tensor:
    return torch.randint(count, shape)


WORKLOADS = {
    w.name: w
    for w in (
        Workload(
            "mnist",
            "MLP 784-128-10, batch 256",
            _mlp,
            lambda: (torch.rand(256, 784), _labels(10, 256)),
            functional.nll_loss,
        ),
        Workload(
            "gpt",
            "6-layer GPT, batch 8 x 128",
            GPT,
            lambda: (_labels(65, 8, 128), _labels(65, 8, 128)),
            functional.cross_entropy,
        ),
        Workload(
            "resnet",
            "ResNet-18, batch 32",
            resnet18,
            lambda: (torch.rand(32, 3, 32, 32), _labels(10, 32)),
            functional.cross_entropy,
        ),
    )
}


def plain(count: int) -> Workload:
    """A trivial loss over `count` parameters."""
    return Workload(
        f"{count:.0e}".replace("e+0", "e"),
        f"{count:,} parameters, trivial loss",
        lambda: Plain(count),
        lambda: (torch.randn(count), torch.zeros(())),
        lambda output, target: output + target,
    )
