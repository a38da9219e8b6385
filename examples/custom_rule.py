"""A rule of your own, from outside the package: define it, and the text form, the towers and `rules` know it."""

import torch

import hyperstack as hs


class SignMomentum(hs.Rule):
    """m <- β m + (1-β) g;  p <- p - lr m / (|m| + ε): steps of nearly equal length in every coordinate."""

    lr = hs.Hyperparameter(1e-3, hs.NON_NEGATIVE, doc="learning rate")
    beta = hs.Hyperparameter(0.9, hs.UNIT, "logit", doc="β: decay of the mean of the gradient")
    eps = hs.Hyperparameter(1e-3, hs.NON_NEGATIVE, learnable=False, doc="ε: below it, steps shrink with m")

    def init(self, like):
        return {"mean": torch.zeros_like(like)}

    def coefficients(self, h, t):
        return {"lr": h.lr, "beta": h.beta, "eps": h.eps}

    def update(self, g, s, c, p):
        m = torch.lerp(g, s["mean"], c.beta)
        return -c.lr * m / (m.abs() + c.eps), {"mean": m}


def main() -> float:
    """Fit a line with a tower over the new rule; returns the final loss."""
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    y = x @ torch.arange(8.0)
    model = torch.nn.Linear(8, 1)
    opt = hs.HyperOptimizer(model.parameters(), "SignMomentum(0.01) / SGD(1e-6, clip)")
    for _ in range(1000):
        opt.zero_grad()
        loss = (model(x).squeeze(1) - y).square().mean()
        loss.backward()
        opt.step()
    print(f"loss {loss.item():.2g}, learned: { {k: round(v.item(), 5) for k, v in opt.hyperparameters().items()} }")
    return loss.item()


if __name__ == "__main__":
    assert main() < 0.01, "the tower should fit the line"
