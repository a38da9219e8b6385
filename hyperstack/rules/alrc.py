"""Adaptive learning rate clipping."""

import torch

from hyperstack.errors import InputError
from hyperstack.hyperparameter import POSITIVE, Hyperparameter
from hyperstack.numerics import huber_curve, huber_slope, huberize, spread_bound
from hyperstack.rule import Option
from hyperstack.rules.adam import Adam
from hyperstack.wrapper import Limited, Wrapper


class ALRC(Wrapper):
    """L <- stop_gradient(L_max/L) L where L > L_max = μ1 + nσ, σ = sqrt(μ2 - μ1²), for the loss L of each example.
    Then μ1 <- γ1 μ1 + (1-γ1) mean(L), μ2 <- γ2 μ2 + (1-γ2) mean(L²), and the base level, Adam if none is given.

    A loss spike can only do what a loss of L_max does, and the direction of each example's gradient stays. Losses of
    several dimensions are averaged over all but the first one first. The paper's initial estimates of μ1 and μ2 are
    taken from the first batch, `overestimate` times its mean loss and the square of that times its mean square. They
    take some 1/(1-γ) steps to decay, in which little is limited: short runs want a γ below 0.999.

    n is learned: its hypergradient is exact at the loss where it was used, which is one step before that of the other
    hyperparameters. It takes a second pass backward at every step: `n=fixed(3)` saves that. The decay rates only change
    later bounds: their one-step hypergradient is 0, so they are options. Losses should be positive; see `shift`.
    """

    n = Hyperparameter(3.0, POSITIVE, "log", doc="how many standard deviations above the mean")
    decay1 = Option(0.999, "γ1: decay of the mean of the losses, μ1")
    decay2 = Option(0.999, "γ2: decay of the mean of their squares, μ2")
    mean0 = Option(0.0, "where μ1 starts; 0: estimated from the first batch")
    square0 = Option(0.0, "where μ2 starts; 0: estimated from the first batch")
    overestimate = Option(3.0, "by how much the estimate of μ1 is too large, and its square that of μ2")
    track_limited = Option(False, "let μ1 and μ2 follow the limited losses, as the authors' code does")
    below = Option(False, "raise losses below μ1 - nσ to that, too")
    summands = Option(False, "limit each entry of the losses, such as pixels, and not the mean of an example")
    shift = Option(0.0, "added to losses that may be negative, to make them positive")
    huber_before = Option(0.0, "h: first take min(L, sqrt(hL)); 0: do not")
    huber_after = Option(0.0, "h: take min(L, sqrt(hL)) of the limited loss; 0: do not")
    source = "Ede and Beanland 2020, Algorithm 1"
    default = Adam

    def refuse(self, values):
        for name in ("decay1", "decay2"):
            if getattr(self, name) >= 1:
                raise InputError(f"{name} is {getattr(self, name):g}", instead="choose one below 1, such as 0.999")
        if bool(self.mean0) != bool(self.square0) or self.mean0**2 > self.square0:
            what = f"mean0 = {self.mean0:g} and square0 = {self.square0:g} are no mean and mean square"
            raise InputError(what, instead="give both, the second larger than the square of the first, or neither")

    def init_losses(self, like):
        start = {"mean": self.mean0, "square": self.square0, "steps": float(self.mean0 > 0), "bound": 0.0, "share": 0.0}
        return {name: torch.full_like(like, value) for name, value in start.items()}

    def limit(self, losses, h, s):
        each = losses.to(s["mean"].dtype)
        if losses.dim() > 1 and not self.summands:
            each = each.flatten(1).mean(1)
        inner, loss = huber_slope(each, self.huber_before), huberize(each, self.huber_before) + self.shift
        mean, square = self.moments(loss, s)
        sigma, bound = spread_bound(mean, square, h.n)
        factor = torch.where(loss > bound, bound / loss, 1.0)
        slope = torch.where(loss > bound, sigma / loss, 0.0)
        if self.below:
            lowest = 2 * mean - bound
            low = (loss < lowest) & (loss > 0)
            factor, slope = torch.where(low, lowest / loss, factor), torch.where(low, -sigma / loss, slope)
        limited = factor * loss
        value = huberize(limited - self.shift, self.huber_after)
        outer = inner * huber_slope(limited - self.shift, self.huber_after)
        curve = inner * huber_curve(limited - self.shift, self.huber_after)
        weight, slope = outer * factor, (outer + curve * limited) * slope
        weight, offset, slope = (_spread(x, losses) for x in (weight, value - weight * each, slope))
        after = self.tracked(limited if self.track_limited else loss, mean, square, s)
        share = (factor != 1).to(bound.dtype).mean()
        return Limited(weight, offset, {"n": slope}), {**after, "bound": bound - self.shift, "share": share}

    def moments(self, loss, s):
        """μ1 and μ2 before these losses; at the first, the estimate."""
        first, ratio = s["steps"] == 0, self.overestimate
        estimates = {"mean": ratio * loss.mean(), "square": ratio**2 * loss.square().mean()}
        return [torch.where(first, estimate, s[name]) for name, estimate in estimates.items()]

    def tracked(self, loss, mean, square, s):
        """μ1 and μ2 after these losses, which count if they are finite."""
        counts = torch.isfinite(loss).all()
        new = {"mean": torch.lerp(loss.mean(), mean, self.decay1)}
        new |= {"square": torch.lerp(loss.square().mean(), square, self.decay2), "steps": s["steps"] + 1}
        return {name: torch.where(counts, x, s[name]) for name, x in new.items()}


def _spread(each, losses):
    """One number an example, as one a loss."""
    return each.to(losses.dtype).view(each.shape + (1,) * (losses.dim() - each.dim())).expand_as(losses)
