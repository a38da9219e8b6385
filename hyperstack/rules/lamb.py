"""LAMB: Adam's direction, each tensor's step as long as the tensor itself says."""

from typing import ClassVar

import torch

from hyperstack.errors import InputError
from hyperstack.hyperparameter import NON_NEGATIVE, Hyperparameter
from hyperstack.numerics import safe_sqrt
from hyperstack.rule import Option
from hyperstack.rules.adam import Adam


class LAMB(Adam):
    """r = m/(1-β1^t) / (sqrt(v/(1-β2^t)) + ε);  γ = φ(‖w‖)/‖r‖;  w <- w - lr γ (r + λw), with Adam's m and v.

    One trust ratio γ for each tensor w; 1 where φ(‖w‖) or the norm below it is 0. φ leaves the norm as it is, or clamps
    it to [`phi_min`, `phi_max`]. With `decay_in_ratio` γ = φ(‖w‖)/‖r + λw‖, as You et al. have it; Fong et al. keep λw
    out of the norm. They also print 1-β for 1-β^t, which would leave the bias in: here it is corrected.
    """

    eps = Hyperparameter(1e-6, NON_NEGATIVE, learnable=False, doc="ε: keeps the division finite")
    weight_decay = Hyperparameter(0.0, NON_NEGATIVE, doc="λ: weight decay, times γ as well as lr")
    eps_inside = Option(False, "divide by sqrt(v/(1-β2^t) + ε), as Fong et al. print it")
    decay_in_ratio = Option(False, "take the norm of r + λw for γ (You et al. 2020)")
    phi_min = Option(0.0, "lower end of φ")
    phi_max = Option(0.0, "upper end of φ; 0 is none")
    amsgrad, decoupled_weight_decay, v0 = False, False, 0.0
    per_layer: ClassVar[tuple[str, ...]] = ("lr",)
    reads_params = True
    source = "You et al. 2020, Algorithm 2; Fong et al. 2020, Algorithm 1 with c = False"
    upper_ratio = 0.01

    def refuse(self, values):
        if 0 < self.phi_max < self.phi_min:
            raise InputError(f"phi_min {self.phi_min:g} is above phi_max {self.phi_max:g}", instead="swap them")

    def init_layers(self, like):
        return {"trust_ratio": torch.ones_like(like)}

    def coefficients(self, h, t):
        root = (1 - h.beta2**t).sqrt()
        eps = h.eps * (root * root if self.eps_inside else root)  # sqrt(v)/root + ε = (sqrt(v) + ε root)/root
        betas = {"beta1": h.beta1, "beta2": h.beta2, "rest2": 1 - h.beta2}
        return {"lr": h.lr, "decay": h.weight_decay, "eps": eps, "unbias": root / (1 - h.beta1**t), **betas}

    def bounded(self, ratio, s, c):
        """The trust ratio applied, of each tensor, and what else is kept of it."""
        return ratio, {}

    def update(self, g, s, c, p):
        m, v = self.means(g, s, c)
        r = c.unbias * (m / (safe_sqrt(v + c.eps) if self.eps_inside else safe_sqrt(v) + c.eps))
        direction = r if self.off("weight_decay") else r + c.decay * p
        above = c.layers.norm(p).clamp(self.phi_min, self.phi_max or None)
        below = c.layers.norm(direction if self.decay_in_ratio else r)
        known = (above > 0) & (below > 0)
        ratio = torch.where(known, above / torch.where(known, below, 1.0), 1.0)
        ratio, kept = self.bounded(ratio, s, c)
        after = {"exp_avg": m, "exp_avg_sq": v, "trust_ratio": ratio, **kept}
        return c.layers.expand(-c.lr * ratio) * direction, after
