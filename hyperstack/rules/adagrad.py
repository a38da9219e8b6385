"""AdaGrad."""

import torch

from hyperstack.hyperparameter import NON_NEGATIVE, Hyperparameter
from hyperstack.numerics import safe_sqrt
from hyperstack.rule import Option, Rule


class AdaGrad(Rule):
    """G <- G + g²;  p <- p - lr/(1 + (t-1) η) g / (sqrt(G) + ε).

    η is `lr_decay`; `weight_decay` λ adds λp to g. As torch.optim.Adagrad. The published hyperoptimizer starts G at
    0.1 and puts ε inside the root: `AdaGrad(eps_inside, initial=0.1)`.
    """

    lr = Hyperparameter(1e-2, NON_NEGATIVE, doc="learning rate")
    lr_decay = Hyperparameter(0.0, NON_NEGATIVE, doc="η: decay of the learning rate")
    eps = Hyperparameter(1e-10, NON_NEGATIVE, learnable=False, doc="ε: keeps the division finite")
    weight_decay = Hyperparameter(0.0, NON_NEGATIVE, doc="λ: L2 penalty, added to the gradient")
    initial = Option(0.0, "where the sum of squares starts")
    eps_inside = Option(False, "divide by sqrt(G + ε)")
    source = "torch.optim.Adagrad; Duchi et al. 2011"
    upper_ratio = 1e-5

    def init(self, like):
        return {"sum": torch.full_like(like, self.initial)}

    def coefficients(self, h, t):
        return {"lr": h.lr / (1 + (t - 1) * h.lr_decay), "eps": h.eps, "weight_decay": h.weight_decay}

    def update(self, g, s, c, p):
        if self.reads_params:
            g = g + c.weight_decay * p
        total = s["sum"] + g * g
        root = safe_sqrt(total + c.eps) if self.eps_inside else safe_sqrt(total) + c.eps
        return -c.lr * (g / root), {"sum": total}
