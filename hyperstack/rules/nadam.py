"""NAdam: Adam with Nesterov's momentum."""

import math

import torch

from hyperstack.hyperparameter import NON_NEGATIVE, Hyperparameter
from hyperstack.rules.adam import Adam

POWERS = [float(k) for k in range(1, 49)]


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
        # Of q = 0.96^ψ: log Π(1 - q^i/2) = -Σ_k 2^-k/k Σ_i q^(ki). The inner sum is geometric, in tanh so that nothing
        # cancels where q is nearly 1; the terms beyond k = 48 are lost in rounding.
        k, weight = (torch.tensor(x, dtype=t.dtype, device=t.device) for x in (POWERS, [0.5**k / k for k in POWERS]))
        y = math.log(0.96) / 2 * h.momentum_decay.clamp_min(1e-15)
        end, one = torch.tanh((t * y).unsqueeze(-1) * k), torch.tanh(y.unsqueeze(-1) * k)
        product = h.beta1**t * (-(weight * (end * (1 + one) / ((1 - end) * one))).sum(-1)).exp()
        rates = {"fresh": h.lr * (1 - mu) / (1 - product), "kept": h.lr * ahead / (1 - product * ahead)}
        return {**rates, "root": (1 - h.beta2**t).rsqrt()}

    def step(self, g, m, root, c):
        return -(c.fresh * g + c.kept * m) / (root * c.root + c.eps)
