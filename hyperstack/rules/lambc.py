"""LAMBC: LAMB with its trust ratios clipped."""

import torch

from hyperstack.errors import InputError
from hyperstack.hyperparameter import NON_NEGATIVE, UNIT, Hyperparameter
from hyperstack.numerics import safe_sqrt
from hyperstack.rule import Option
from hyperstack.rules.lamb import LAMB


class LAMBC(LAMB):
    """γ <- min(max(γ, μ), τ), and else as LAMB.  μ is `trust_min`, τ is `trust_max`.

    Two ways for the bounds to adapt, which combine. `deviations` n: τ is times a + nσ, where a and σ² are the running
    mean and variance of the tensor's own unclipped γ, as they were before this step. As in ALRC they start too large,
    with the moments 3γ and 9γ². `bound_gamma` c: as AdaBound's do, the bounds close on τ, the lower no lower than μ.
    """

    trust_min = Hyperparameter(0.0, NON_NEGATIVE, doc="μ: least trust ratio")
    trust_max = Hyperparameter(1.0, NON_NEGATIVE, doc="τ: largest trust ratio, 1 being the published best")
    trust_decay = Hyperparameter(0.999, UNIT, learnable=False, doc="decay of the means of γ; hypergradient 0")
    deviations = Option(0.0, "n: τ so many deviations above a tensor's mean trust ratio; 0 is off")
    bound_gamma = Option(0.0, "c: bounds τ(1 - 1/(ct + 1)) and τ(1 + 1/(ct)) (Luo et al. 2019); 0 is off")
    per_layer = ("lr", "trust_min", "trust_max", "trust_decay", "low", "high", "first")
    source = "Fong et al. 2020, Algorithm 1 with c = True, and section 5"
    upper_ratio = 0.01

    def refuse(self, values):
        super().refuse(values)
        if values["trust_min"] > values["trust_max"]:
            raise InputError("LAMBC's trust_min is above its trust_max", instead="swap them")

    def init_layers(self, like):
        means = ("trust_mean", "trust_variance") if self.deviations else ()
        return {**super().init_layers(like), **{name: torch.zeros_like(like) for name in means}}

    def coefficients(self, h, t):
        c = {**super().coefficients(h, t), "trust_min": h.trust_min, "trust_max": h.trust_max}
        if self.deviations:
            c.update(trust_decay=h.trust_decay, first=(t == 1).to(t.dtype))
        if self.bound_gamma:
            c.update(low=1 - 1 / (self.bound_gamma * t + 1), high=1 + 1 / (self.bound_gamma * t))
        return c

    def bounded(self, ratio, s, c):
        low, high, kept = c.trust_min, c.trust_max, {}
        if self.deviations:
            mean, variance = torch.where(c.first > 0, 3 * ratio, s["trust_mean"]), s["trust_variance"]
            high = high * (mean + self.deviations * safe_sqrt(variance))
            kept["trust_mean"] = torch.lerp(ratio, mean, c.trust_decay)
            kept["trust_variance"] = c.trust_decay * (variance + (1 - c.trust_decay) * (ratio - mean) ** 2)
        if self.bound_gamma:
            low, high = torch.maximum(low, c.low * high), c.high * high
        return torch.minimum(torch.maximum(ratio, low), high), kept
