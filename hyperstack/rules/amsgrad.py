"""AMSGrad: Adam that never forgets a large gradient."""

from hyperstack.rules.adam import Adam


class AMSGrad(Adam):
    """n <- max(n, v);  p <- p - lr m/(1-β1^t) / (sqrt(n/(1-β2^t)) + ε), with Adam's m and v.

    As torch.optim.Adam with amsgrad: `Adam(amsgrad)` under its own name. The paper has no bias correction and no ε.
    """

    amsgrad = True
    source = "torch.optim.Adam; Reddi et al. 2018, Algorithm 2"
    upper_ratio = 0.01
