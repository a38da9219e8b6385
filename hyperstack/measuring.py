"""Where a level above the primary one measures hypergradients: at the live weights, or at their running average."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hyperstack.choices import Choice, option
from hyperstack.errors import InputError
from hyperstack.hyperparameter import NON_NEGATIVE, UNIT, Interval, Resolved

RISING = 100
"""So many steps pass until a bound on updates is all that it will be."""
SMALLEST = 0.005
"""Weights that are smaller count as these for a bound, root mean square; layers of 13,000 inputs begin with such."""


@dataclass(frozen=True)
class Live(Choice):
    """At the weights as they are one step later: published, free, the default."""

    name: ClassVar[str] = "live"


@dataclass(frozen=True)
class Average(Choice):
    """At the running average of the weights, every so many steps.

        θ̄ <- a θ̄ + (1 - a) θ        a = min(decay, t / (t + warmup)) at step t
        K = min(every, max(first, t / warmup))        steps, rounded down, in the window that begins after step t

    Where a window ends, the gradient ḡ of the next step's loss is taken at θ̄ as well. The hypergradient of h is ḡ · d,
    where d is the derivative by h of what the steps of the window moved θ̄: see `window` for what it is made of, and
    what is dropped. The levels above move at these steps only. For a level that receives a `cosine`, it counts

        c √(K / 10)        c = ḡ · d / (‖ḡ‖ ‖d‖), or, if that is more, ḡ · d / (deviations ‖ḡ ∘ d‖), from -1 to 1

    so that the noise of all measurements adds up to as much over any number of steps, whether windows are short or
    long. ‖ḡ ∘ d‖, of the products element by element, is what ḡ · d would come to by chance, were these independent.
    By chance, a cosine of n elements is about 1 / √n: in a large network all of them are small, and would hardly count.

    Windows grow as the span does that θ̄ looks back over; with `every` = 1 / (1 - decay) they become as long as that.
    Where noise makes θ̄ wander, it wanders far in no shorter window, and that it should rather rest is not seen. With
    `first=1`, the default, there is one after the first step already, and a rate that starts far too low is soon where
    it belongs; `first=every` makes all alike.

    One-step hypergradients are short-sighted: at the noise floor the last step always looks too long. θ̄ looks back over
    1 / (1 - decay) steps and is below that floor. Ours, without a publication.

    `bound` helps a rate that starts too high, or grows faster than hypergradients can tell: step t changes the weights
    of a param group, as one vector, by no more than bound · min(1, t / 100) of their norm, or of 0.005 √n, where n
    weights have a smaller one, as those have that start at 0. Where it would, update and rate are made smaller, which
    takes a rate that is learned as log. 0 is off. It rises, for nothing is known of a rate at first: one that is far
    too high begins as if it were too low, and ruins nothing. Later it catches a rate that has outgrown those at which
    steps are stable, as where the gradients vanish: a cosine has no size, and goes on raising it.
    """

    name: ClassVar[str] = "average"

    decay: float = option(domain=UNIT, doc="how much of the average is kept at each step, once it is warm")
    every: int = option(100, Interval(1.0), "steps between two measurements, once warm")
    warmup: int = option(10, NON_NEGATIVE, "step t looks back over 1 + t / warmup steps, or fewer; 0: warm at once")
    first: int = option(1, Interval(1.0), "steps before the first measurement; windows grow as t / warmup")
    bound: float = option(
        0.0, NON_NEGATIVE, "the largest relative update from step 100 on, before it in proportion; 0: any"
    )
    deviations: float = option(300.0, NON_NEGATIVE, "so many standard deviations count as 1; 0: cosines alone count")

    def kept(self, t: int) -> float:
        """How much of the average step t keeps, 1 being the first."""
        return min(self.decay, t / (t + self.warmup))

    def slope(self, received: Tensor, most: Tensor, apart: Tensor, steps: int) -> Tensor:
        """By what ḡ · d, `received`, is divided to be what it counts over K `steps`.

        That is `most`, ‖ḡ‖ ‖d‖, or less, over √(K / 10); `apart`: ‖ḡ ∘ d‖.
        """
        if self.deviations:
            less = torch.maximum(self.deviations * apart, received.abs())
            most = torch.where(apart > 0, torch.minimum(most, less), most)
        return most / math.sqrt(steps / 10)

    def largest(self, t: int) -> float:
        """The largest relative update at step t, 1 being the first; 0: any."""
        return self.bound * min(1.0, t / RISING)

    def length(self, t: int) -> int:
        """How many steps the window has that begins after step t, 0 being the start."""
        return min(self.every, max(self.first, t // self.warmup)) if self.warmup else self.every

    def refuse(self, rule: str, resolved: Mapping[str, Resolved], on_losses: Collection[str]) -> None:
        """Raise an InputError where the hyperparameters of a primary level cannot be measured here.

        `rule`: its name; `on_losses`: those of its hyperparameters that act on single losses.
        """
        learned = {name: r for name, r in resolved.items() if r.learned}
        if acting := [name for name in learned if name in on_losses]:
            what = f"{acting[0]} acts on single losses, which are measured at the live weights"
            raise InputError(what, instead=f"write {acting[0]}=fixed(...), or at=live")
        if common := [name for name, r in learned.items() if r.shared]:
            what = f"{common[0]} is shared between param groups, which measure apart at averages"
            raise InputError(what, instead="leave shared(...) out, or write at=live")
        if self.bound and ("lr" not in learned or learned["lr"].bijection.name != "log"):
            what = f"bound={self.bound:g} needs a rate that it can make smaller"
            raise InputError(what, instead=f"learn it as log, {rule}(log(1e-3)), or leave bound out")


MEASURED: dict[str, type[Choice]] = {cls.name: cls for cls in (Live, Average)}
