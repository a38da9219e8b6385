"""AdaBound, with AMSBound as an option."""

import torch

from hyperstack.hyperparameter import NON_NEGATIVE, POSITIVE, Hyperparameter
from hyperstack.rule import Option
from hyperstack.rules.adam import Adam


class AdaBound(Adam):
    """p <- p - clamp(lr sqrt(1-β2^t)/(1-β1^t) / (sqrt(v) + ε), r - r/(γt + 1), r + r/(γt)) m, with Adam's m and v.

    From Adam at the start to SGD with momentum at the rate r in the end. r is `final_ratio` times lr: the authors' code
    is given r itself (0.1, at lr = 1e-3) and has a schedule of lr scale it too, which comes to the same. As there, the
    bias is corrected and no step is divided by sqrt(t), unlike the paper's. `amsbound` divides by the largest v so far;
    `weight_decay` is as in Adam. A bound's one-step hypergradient is 0 until it cuts a step: r and γ are fixed.
    """

    final_ratio = Hyperparameter(100.0, NON_NEGATIVE, learnable=False, doc="r/lr: SGD's rate in the end")
    gamma = Hyperparameter(1e-3, POSITIVE, learnable=False, doc="γ: how fast the bounds close")
    amsbound = Option(False, "divide by the largest v so far")
    amsgrad = property(lambda level: level.amsbound)
    v0 = 0.0
    source = "Luo et al. 2019, Algorithm 2, and its authors' code"
    upper_ratio = 0.01

    def rates(self, h, t):
        r = h.final_ratio * h.lr
        bounds = {"low": r - r / (h.gamma * t + 1), "high": r + r / (h.gamma * t)}
        return {"rate": h.lr * (1 - h.beta2**t).sqrt() / (1 - h.beta1**t), **bounds}

    def step(self, g, m, root, c):
        return -torch.minimum(torch.maximum(c.rate / (root + c.eps), c.low), c.high) * m
