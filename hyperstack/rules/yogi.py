"""Yogi."""

import torch

from hyperstack.hyperparameter import NON_NEGATIVE, UNIT, Hyperparameter
from hyperstack.numerics import safe_sqrt
from hyperstack.rule import Option, Rule


class Yogi(Rule):
    """m <- β1 m + (1-β1) g;  v <- v - (1-β2) sign(v - g²) g²;  p <- p - lr m / (sqrt(v) + ε).

    v moves by at most (1-β2) g² a step, where Adam's may fall by (1-β2) v. `weight_decay` λ adds λp to g. There is no
    bias correction in the paper; most implementations have Adam's, `bias_correction`, and start v at 1e-6, not at 0.
    """

    lr = Hyperparameter(1e-2, NON_NEGATIVE, doc="learning rate")
    beta1 = Hyperparameter(0.9, UNIT, "logit", doc="β1: decay of the mean of the gradient")
    beta2 = Hyperparameter(0.999, UNIT, "logit", doc="β2: 1 - β2 is how fast v follows the square")
    eps = Hyperparameter(1e-3, NON_NEGATIVE, learnable=False, doc="ε: bounds the step where v is small")
    weight_decay = Hyperparameter(0.0, NON_NEGATIVE, doc="λ: L2 penalty, added to the gradient")
    bias_correction = Option(False, "divide m by 1-β1^t and v by 1-β2^t, as Adam does")
    v0 = Option(1e-6, "where v starts")
    source = "Zaheer et al. 2018, Algorithm 2"
    upper_ratio = 1e-4

    def init(self, like):
        return {"exp_avg": torch.zeros_like(like), "exp_avg_sq": torch.full_like(like, self.v0)}

    def coefficients(self, h, t):
        c = {"fresh": 1 - h.beta2, **{k: getattr(h, k) for k in ("lr", "beta1", "eps", "weight_decay")}}
        return {**c, "root": (1 - h.beta2**t).rsqrt(), "lr": h.lr / (1 - h.beta1**t)} if self.bias_correction else c

    def update(self, g, s, c, p):
        if self.reads_params:
            g = g + c.weight_decay * p
        m, square = torch.lerp(g, s["exp_avg"], c.beta1), g * g
        v = s["exp_avg_sq"] - c.fresh * (torch.sign(s["exp_avg_sq"] - square) * square)
        root = safe_sqrt(v) * c.root if self.bias_correction else safe_sqrt(v)
        return -c.lr * (m / (root + c.eps)), {"exp_avg": m, "exp_avg_sq": v}
