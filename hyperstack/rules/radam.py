"""RAdam: Adam that waits until v rests on enough gradients."""

import torch

from hyperstack.hyperparameter import Hyperparameter, Interval
from hyperstack.rules.adam import Adam


class RAdam(Adam):
    """p <- p - lr m/(1-β1^t) (1 if ρ <= 5, else R sqrt(1-β2^t) / (sqrt(v) + ε)), with Adam's m and v.

    ρ∞ = 2/(1-β2) - 1;  ρ = ρ∞ - 2t β2^t/(1-β2^t);  R² = (ρ-4)(ρ-2)ρ∞ / ((ρ∞-4)(ρ∞-2)ρ). Before the switch, the first
    5 steps at the default β2, β2 has no part in the step and its hypergradient is 0; at β2 <= 2/3 there is no switch.
    `weight_decay` is as in Adam. As torch.optim.RAdam; the paper switches at ρ > 4 and has no ε.
    """

    beta2 = Hyperparameter(0.999, Interval(2 / 3, 1.0, True, True), "logit", doc="β2: decay of the mean of its square")
    amsgrad, v0 = False, 0.0
    source = "torch.optim.RAdam; Liu et al. 2020, Algorithm 2"
    upper_ratio = 0.01

    def rates(self, h, t):
        step, correction, longest = h.lr / (1 - h.beta1**t), 1 - h.beta2**t, 2 / (1 - h.beta2) - 1
        length = longest - 2 * t * h.beta2**t / correction
        on = length > 5
        # Before the switch the branch not taken is computed at lengths where its derivative is finite.
        x, y = torch.where(on, length, 6.0), torch.where(on, longest, 6.0)
        adapted = step * (correction * ((x - 4) * (x - 2) * y / ((y - 4) * (y - 2) * x))).sqrt()
        return {"plain": torch.where(on, 0.0, step), "adapted": torch.where(on, adapted, 0.0)}

    def step(self, g, m, root, c):
        return -(c.plain * m + c.adapted * (m / (root + c.eps)))
