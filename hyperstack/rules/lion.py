"""Lion."""

import torch

from hyperstack.hyperparameter import NON_NEGATIVE, UNIT, Hyperparameter
from hyperstack.rule import Rule


class Lion(Rule):
    """u <- sign(β1 m + (1-β1) g);  m <- β2 m + (1-β2) g;  p <- p - lr (u + λ p).

    λ is `weight_decay`. State: m alone. β1 only chooses signs, which have no slope, and β2 only what later steps see:
    the one-step hypergradient of both is 0, so they are fixed. lr and λ are learned as elsewhere.
    """

    lr = Hyperparameter(1e-4, NON_NEGATIVE, doc="learning rate: the length of every step")
    beta1 = Hyperparameter(0.9, UNIT, learnable=False, doc="β1: how much of m is in the step; hypergradient 0")
    beta2 = Hyperparameter(0.99, UNIT, learnable=False, doc="β2: decay of m; hypergradient 0")
    weight_decay = Hyperparameter(0.0, NON_NEGATIVE, doc="λ: decoupled weight decay")
    source = "Chen et al. 2023, Algorithm 2"
    upper_ratio = 0.01

    def init(self, like):
        return {"exp_avg": torch.zeros_like(like)}

    def coefficients(self, h, t):
        return {"lr": h.lr, "beta1": h.beta1, "beta2": h.beta2, "decay": h.lr * h.weight_decay}

    def update(self, g, s, c, p):
        delta = -c.lr * torch.sign(torch.lerp(g, s["exp_avg"], c.beta1))
        return (delta - c.decay * p if self.reads_params else delta), {"exp_avg": torch.lerp(g, s["exp_avg"], c.beta2)}
