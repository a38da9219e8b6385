"""NAdam: Adam with Nesterov's momentum."""

import math

import numpy as np
import torch
from numpy.polynomial import Chebyshev, Polynomial

from hyperstack.hyperparameter import NON_NEGATIVE, Hyperparameter
from hyperstack.rules.adam import Adam

# log(1 - x/2) = Σ_k WEIGHTS[k-1] x^k on [0, 1], to 1e-15: with 20 terms, where the Taylor series takes 48.
WEIGHTS = Chebyshev.interpolate(lambda x: np.log1p(-x / 2) / x, 19, [0, 1]).convert(kind=Polynomial).coef.tolist()


class NAdam(Adam):
    """p <- p - lr (μ' m/(1 - Πμ') + (1-μ) g/(1 - Π)) / (sqrt(v/(1-β2^t)) + ε), with Adam's m and v.

    μ = β1 (1 - 0.96^(tψ)/2), μ' is the same of t + 1, and Π the product of μ over all steps, ψ being `momentum_decay`.
    Π is taken as if β1 and ψ had always been what they are now, like β1^t in Adam: it is no state, and is part of the
    hypergradient. While they are learned, torch's running product would be of what they were.
    `weight_decay` is as in Adam. As torch.optim.NAdam.
    """

    lr = Hyperparameter(2e-3, NON_NEGATIVE, doc="learning rate")
    momentum_decay = Hyperparameter(4e-3, NON_NEGATIVE, learnable=False, doc="ψ: how fast μ rises from β1/2 to β1")
    amsgrad, v0 = False, 0.0
    source = "torch.optim.NAdam; Dozat 2016, Algorithm 2"

    def rates(self, h, t):
        mu, ahead = (h.beta1 * (1 - (math.log(0.96) * (t + i) * h.momentum_decay).exp() / 2) for i in (0, 1))
        # Of q = 0.96^ψ: log Π(1 - q^i/2) = Σ_k WEIGHTS Σ_i q^(ki). The inner sum is geometric, in tanh so that nothing
        # cancels where q is nearly 1.
        y = math.log(0.96) / 2 * h.momentum_decay.clamp_min(1e-15)
        terms = [[k + 1.0 for k in range(len(WEIGHTS))], WEIGHTS]
        k, weight = torch.tensor(terms, dtype=t.dtype, device=t.device).view(2, -1, *[1] * (t * y).dim())
        end, one = torch.tanh(t * y * k), torch.tanh(y * k)
        product = h.beta1**t * (weight * (end * (1 + one) / ((1 - end) * one))).sum(0).exp()
        rates = {"fresh": h.lr * (1 - mu) / (1 - product), "kept": h.lr * ahead / (1 - product * ahead)}
        return {**rates, "root": (1 - h.beta2**t).rsqrt()}

    def step(self, g, m, root, c):
        return -(c.fresh * g + c.kept * m) / (root * c.root + c.eps)
