"""A rule of your own, from outside the package: once defined, the text form and every level of a tower know it."""

from types import SimpleNamespace as Names

import torch
from torch import Tensor

import hyperstack as hs


class SoftSign(hs.Rule):
    """m <- β m + (1-β) g;  p <- p - lr m / (|m| + ε): steps of nearly equal length in every coordinate."""

    lr = hs.Hyperparameter(1e-3, hs.NON_NEGATIVE, doc="learning rate")
    beta = hs.Hyperparameter(0.9, hs.UNIT, "logit", doc="β: decay of the mean of the gradient")
    eps = hs.Hyperparameter(1e-3, hs.NON_NEGATIVE, learnable=False, doc="ε: below it, steps shrink with m")

    def init(self, like: Tensor) -> dict[str, Tensor]:
        """The state before the first step."""
        return {"mean": torch.zeros_like(like)}

    def coefficients(self, h: Names, t: Tensor) -> dict[str, Tensor]:
        """What the update needs of the hyperparameters."""
        return vars(h)

    def update(self, g: Tensor, s: dict[str, Tensor], c: Names, p: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """What to add to the parameters, and the next state."""
        m = torch.lerp(g, s["mean"], c.beta)
        return -c.lr * m / (m.abs() + c.eps), {"mean": m}


w = torch.nn.Parameter(torch.zeros(8))
opt = hs.HyperOptimizer([w], "SoftSign(0.01) / SGD(1e-4, clip)")
for _ in range(300):  # at the rate of 0.01 it would take 700 to come from 0 to 7
    opt.zero_grad()
    (w - torch.arange(8.0)).square().mean().backward()
    opt.step()
print(f"found {w.detach().round(decimals=2).tolist()} at a rate of {opt.hyperparameters()['0.lr'].item():.3f}")
assert torch.allclose(w, torch.arange(8.0), atol=0.01), "the tower should find the eight numbers"
