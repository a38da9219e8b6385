"""Adam, with AMSGrad and AdamW's decoupled weight decay as options."""

import torch

from hyperstack.hyperparameter import NON_NEGATIVE, UNIT, Hyperparameter
from hyperstack.numerics import safe_sqrt
from hyperstack.rule import Option, Rule


class Adam(Rule):
    """m <- β1 m + (1-β1) g;  v <- β2 v + (1-β2) g²;  p <- p - lr m/(1-β1^t) / (sqrt(v/(1-β2^t)) + ε).

    `weight_decay` λ adds λp to g, or with `decoupled_weight_decay` subtracts lr λ p (AdamW); `amsgrad` divides by
    the largest v so far. As torch.optim.Adam. The published hyperoptimizer starts v at 1e-8: `v0=1e-8`.
    """

    lr = Hyperparameter(1e-3, NON_NEGATIVE, doc="learning rate")
    beta1 = Hyperparameter(0.9, UNIT, "logit", doc="β1: decay of the mean of the gradient")
    beta2 = Hyperparameter(0.999, UNIT, "logit", doc="β2: decay of the mean of its square")
    eps = Hyperparameter(1e-8, NON_NEGATIVE, learnable=False, doc="ε: keeps the division finite")
    weight_decay = Hyperparameter(0.0, NON_NEGATIVE, doc="λ: weight decay")
    amsgrad = Option(False, "divide by the largest v so far (Reddi et al. 2018)")
    decoupled_weight_decay = Option(False, "AdamW's decay (Loshchilov and Hutter 2019)")
    v0 = Option(0.0, "where v starts")
    source = "torch.optim.Adam; Kingma and Ba 2015, Algorithm 1"
    upper_ratio = 0.01

    def init(self, like):
        state = {"exp_avg": torch.zeros_like(like), "exp_avg_sq": torch.full_like(like, self.v0)}
        return {**state, "max_exp_avg_sq": torch.zeros_like(like)} if self.amsgrad else state

    def coefficients(self, h, t):
        decay = h.lr * h.weight_decay if self.decoupled_weight_decay else h.weight_decay
        betas = {"beta1": h.beta1, "beta2": h.beta2, "rest2": 1 - h.beta2}
        return {"eps": h.eps, "decay": decay, **betas, **self.rates(h, t)}

    def rates(self, h, t):
        """The coefficients of `step`, in which Adam's kin differ from it."""
        root = (1 - h.beta2**t).sqrt()  # sqrt(v)/root + ε = (sqrt(v) + ε root)/root: one operation less
        return {"step": -h.lr * root / (1 - h.beta1**t), "eps": h.eps * root}

    def step(self, g, m, root, c):
        """What to add to the parameters but for decoupled decay, given m and the root of v."""
        return c.step * (m / (root + c.eps))

    def means(self, g, s, c):
        """m and v after this gradient."""
        return torch.lerp(g, s["exp_avg"], c.beta1), torch.addcmul(c.beta2 * s["exp_avg_sq"], g, c.rest2 * g)

    def update(self, g, s, c, p):
        if self.reads_params and not self.decoupled_weight_decay:
            g = g + c.decay * p
        m, v = self.means(g, s, c)
        largest = v
        after = {"exp_avg": m, "exp_avg_sq": v}
        if self.amsgrad:
            largest = after["max_exp_avg_sq"] = torch.maximum(s["max_exp_avg_sq"], v)
        delta = self.step(g, m, safe_sqrt(largest), c)
        return (delta - c.decay * p if self.reads_params and self.decoupled_weight_decay else delta), after
