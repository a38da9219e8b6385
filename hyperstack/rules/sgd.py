"""Stochastic gradient descent, with momentum and weight decay."""

import torch

from hyperstack.hyperparameter import NON_NEGATIVE, UNIT, Hyperparameter, Interval
from hyperstack.rule import Option, Rule


class SGD(Rule):
    """g <- g + λ p;  b <- g at t = 1, else μ b + (1 - τ) g;  p <- p - lr b, or p - lr (g + μ b) with `nesterov`.

    μ is `momentum`, τ `dampening`, λ `weight_decay`. As torch.optim.SGD. State: the buffer b, where there is momentum.
    """

    lr = Hyperparameter(1e-3, NON_NEGATIVE, doc="learning rate")
    momentum = Hyperparameter(0.0, UNIT, doc="μ: how much of the last direction is kept")
    dampening = Hyperparameter(0.0, Interval(0.0, 1.0), doc="τ: how much of the new gradient is left out of b")
    weight_decay = Hyperparameter(0.0, NON_NEGATIVE, doc="λ: L2 penalty, added to the gradient")
    nesterov = Option(False, "step along g + μ b, the gradient at the point looked ahead to")
    source = "torch.optim.SGD; Sutskever et al. 2013"
    upper_ratio = 0.01

    def init(self, like):
        return {} if self.off("momentum") else {"momentum_buffer": torch.zeros_like(like)}

    def coefficients(self, h, t):
        fresh = torch.where(t > 1, 1 - h.dampening, 1.0)
        return {"lr": h.lr, "momentum": h.momentum, "fresh": fresh, "weight_decay": h.weight_decay}

    def update(self, g, s, c, p):
        if self.reads_params:
            g = g + c.weight_decay * p
        if self.off("momentum"):
            return -c.lr * g, {}
        b = c.momentum * s["momentum_buffer"] + c.fresh * g
        return -c.lr * (g + c.momentum * b if self.nesterov else b), {"momentum_buffer": b}
