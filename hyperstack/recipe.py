"""`auto(Adam)`: a stack that takes no number from its user."""

from __future__ import annotations

import inspect
from dataclasses import replace

from hyperstack.errors import InputError
from hyperstack.hyperparameter import Setting, Value
from hyperstack.measuring import Average
from hyperstack.rule import Rule, Stack
from hyperstack.rules import SGD, Adam
from hyperstack.transforms import Cosine


def auto(
    base: Rule | type[Rule] = Adam,
    *,
    rate: Value = 1.0,
    decay: float = 0.99,
    every: int = Average.every,
    warmup: int = Average.warmup,
    first: int = Average.first,
    bound: float = 0.1,
    deviations: float = Average.deviations,
) -> Stack:
    """A primary level whose learning rate is found while it trains, from whatever start: no number is to be chosen.

        log lr <- log lr - rate · √(K / 10) · ḡ·d / (‖ḡ‖ ‖d‖)        after every window of K steps

    ḡ is the gradient at the running average of the weights, d what the average has moved since the last time. Windows
    are of one step at first, then a tenth of the steps done, at last of `every` steps: as long as the average looks
    back. In large networks, where all cosines are small, they count for more: see `average`. The first update changes
    the weights by no more than a thousandth of their norm, the next by two, and so on, up to a tenth from the hundredth
    on. The result is read at the average: `opt.averaged()`. It is short for

        Adam(log(0.001), beta1=fixed(0.9), beta2=fixed(0.999)) / SGD(1.0, clip=[cosine], at=average(0.99, bound=0.1))

    and prints as that. base: any rule, or a level with settings of its own, such as `SGD(0.1, momentum=0.9)`, at whose
    rate learning starts; its other hyperparameters are fixed, but where it says `learned(...)`. rate: of level 1, a
    number without unit; decay, every, warmup, first, bound, deviations: as of `average`.

    Raises InputError for a rate that is not to be learned as log. Ours, without a publication.
    """
    level = base() if isinstance(base, type) and issubclass(base, Rule) and not inspect.isabstract(base) else base
    if not isinstance(level, Rule):
        raise InputError(f"auto takes a rule, not {base!r}", instead="write, for example: auto(Adam), auto(SGD(0.1))")
    settings = {name: _fixed(level, name) for name in level.hyperparameters}
    lr = level.settings.get("lr", Setting(level.hyperparameters["lr"].default))
    if lr.learned is False or lr.bijection not in (None, "log"):
        raise InputError(f"auto learns the logarithm of a rate, and lr is {lr}", instead="give it a plain number")
    if lr.value == 0:
        what = "auto learns the logarithm of a rate, and this one starts at 0"
        raise InputError(what, instead=f"start above it, as in auto({type(level).__name__}(1e-6))")
    start = getattr(rate, "value", rate)
    if isinstance(start, (int, float)) and start not in SGD.hyperparameters["lr"].domain:
        raise InputError(f"auto's rate is {start:g}", instead="give a number from 0 up; 1 is the default")
    settings["lr"] = replace(lr, bijection="log")
    place = Average(decay, every, warmup, first, bound, deviations)
    return level.having({k: s for k, s in settings.items() if s}) / SGD(rate, clip=[Cosine()], at=place)


def _fixed(level: Rule, name: str) -> Setting | None:
    """A hyperparameter's setting where it is not learned: None if that is what happens without one."""
    given, declared = level.settings.get(name), level.hyperparameters[name]
    if given is not None and (given.learned or given.steps):
        return given
    if given is None and not declared.resolve(None).learned:
        return None
    return replace(given or Setting(declared.default), learned=False)
