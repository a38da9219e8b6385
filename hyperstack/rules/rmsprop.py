"""RMSProp, plain, centered, and with momentum."""

import torch

from hyperstack.hyperparameter import NON_NEGATIVE, UNIT, Hyperparameter
from hyperstack.numerics import safe_sqrt
from hyperstack.rule import Option, Rule


class RMSProp(Rule):
    """v <- α v + (1-α) g²;  p <- p - lr g / (sqrt(v) + ε).

    `centered` subtracts the square of the mean gradient from v; `momentum` μ steps along b <- μ b + g / (...);
    `weight_decay` λ adds λp to g. As torch.optim.RMSprop. The published hyperoptimizer calls α γ, puts ε = 1e-8 inside
    the root and learns the root of lr: `RMSProp(square(0.01), eps_inside)`.
    """

    lr = Hyperparameter(1e-2, NON_NEGATIVE, doc="learning rate")
    alpha = Hyperparameter(0.99, UNIT, "logit", doc="α: decay of the mean of the squared gradient")
    eps = Hyperparameter(1e-8, NON_NEGATIVE, learnable=False, doc="ε: keeps the division finite")
    momentum = Hyperparameter(0.0, UNIT, doc="μ: how much of the last direction is kept")
    weight_decay = Hyperparameter(0.0, NON_NEGATIVE, doc="λ: L2 penalty, added to the gradient")
    centered = Option(False, "divide by the deviation of the gradient, not by its root mean square")
    eps_inside = Option(False, "divide by sqrt(v + ε)")
    source = "torch.optim.RMSprop; Tieleman and Hinton 2012, lecture 6.5; Graves 2013 (centered)"
    upper_ratio = 1e-4

    def init(self, like):
        names = ["square_avg"] + ["grad_avg"] * self.centered + ["momentum_buffer"] * (not self.off("momentum"))
        return {name: torch.zeros_like(like) for name in names}

    def coefficients(self, h, t):
        names = ("lr", "alpha", "eps", "momentum", "weight_decay")
        return {**{k: getattr(h, k) for k in names}, "rest": 1 - h.alpha}

    def update(self, g, s, c, p):
        if self.reads_params:
            g = g + c.weight_decay * p
        v = spread = torch.addcmul(c.alpha * s["square_avg"], g, c.rest * g)
        after = {"square_avg": v}
        if self.centered:
            mean = after["grad_avg"] = torch.lerp(g, s["grad_avg"], c.alpha)
            spread = v - mean * mean
        d = g / (safe_sqrt(spread + c.eps) if self.eps_inside else safe_sqrt(spread) + c.eps)
        if not self.off("momentum"):
            d = after["momentum_buffer"] = c.momentum * s["momentum_buffer"] + d
        return -c.lr * d, after
