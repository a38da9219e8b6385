"""AdamW: Adam with decoupled weight decay."""

from hyperstack.hyperparameter import NON_NEGATIVE, Hyperparameter
from hyperstack.rules.adam import Adam


class AdamW(Adam):
    """p <- p - lr λ p - lr m/(1-β1^t) / (sqrt(v/(1-β2^t)) + ε), with Adam's m and v.

    λ is `weight_decay`. As torch.optim.AdamW: `Adam(decoupled_weight_decay, weight_decay=0.01)` under its own name. In
    the paper lr does not multiply λ; a schedule multiplies both, there as here.
    """

    weight_decay = Hyperparameter(0.01, NON_NEGATIVE, doc="λ: decoupled weight decay")
    decoupled_weight_decay = True
    source = "torch.optim.AdamW; Loshchilov and Hutter 2019, Algorithm 2"
    upper_ratio = 0.01
