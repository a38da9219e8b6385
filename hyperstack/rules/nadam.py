"""NAdam: Adam with Nesterov's momentum."""

import math

import numpy as np
import torch
from numpy.polynomial import Chebyshev, Polynomial

from hyperstack.hyperparameter import NON_NEGATIVE, Hyperparameter
from hyperstack.rules.adam import Adam

# (k, w) with log(1 - x/2) = Σ w x^k on [0, 1], to 1e-15: with 20 terms, where the Taylor series takes 48.
TERMS = [*enumerate(Chebyshev.interpolate(lambda x: np.log1p(-x / 2) / x, 19, [0, 1]).convert(kind=Polynomial).coef, 1)]


class NAdam(Adam):
    """p <- p - lr (μ' m/(1 - Πμ') + (1-μ) g/(1 - Π)) / (sqrt(v/(1-β2^t)) + ε), with Adam's m and v.

    μ = β1 (1 - 0.96^(tψ)/2), μ' is the same of t + 1, and Π the product of μ over all steps, ψ being `momentum_decay`.
    Π is taken as if β1 and ψ had always been what they are now, like β1^t in Adam: it is no state, and is part of the
    hypergradient; torch's is of what they were. `weight_decay` is as in Adam. Else as torch.optim.NAdam.
    """

    lr = Hyperparameter(2e-3, NON_NEGATIVE, doc="learning rate")
    momentum_decay = Hyperparameter(4e-3, NON_NEGATIVE, learnable=False, doc="ψ: how fast μ rises from β1/2 to β1")
    amsgrad, v0, upper_ratio = False, 0.0, 1e-5
    source = "torch.optim.NAdam; Dozat 2016, Algorithm 2"

    def rates(self, h, t):
        mu, ahead = (h.beta1 * (1 - 0.96 ** ((t + i) * h.momentum_decay) / 2) for i in (0, 1))
        # log Π(1 - q^i/2) = Σ_k w_k Σ_i q^(ki), q = 0.96^ψ: geometric, in tanh so that nothing cancels near q = 1.
        y = math.log(0.96) / 2 * h.momentum_decay.clamp_min(1e-15)
        k, w = torch.tensor(TERMS, dtype=t.dtype, device=t.device).view(-1, 2, *[1] * (t * y).dim()).unbind(1)
        end, one = torch.tanh(t * y * k), torch.tanh(y * k)
        product = h.beta1**t * (w * (1 + one) / one * (end / (1 - end))).sum(0).exp()
        root = (1 - h.beta2**t).sqrt()
        rates = {"fresh": -h.lr * root * (1 - mu) / (1 - product), "kept": -h.lr * root * ahead / (1 - product * ahead)}
        return {**rates, "eps": h.eps * root}

    def step(self, g, m, root, c):
        return (c.fresh * g + c.kept * m) / (root + c.eps)
