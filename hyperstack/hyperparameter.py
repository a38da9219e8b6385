"""A hyperparameter: its default, its domain, and the bijection between what is learned and what is meant.

A level above never sees the value itself but the *raw* tensor, any real number, that a bijection maps
into the domain: a hypergradient is the gradient with respect to the raw tensor.

    lin     value = raw                      raw = value                    any value
    log     value = exp(raw)                 raw = log(value)               value > 0
    square  value = raw^2                    raw = sqrt(value)              value > 0
    logit   value = (tanh(raw) + 1) / 2      raw = atanh(2 value - 1)       0 < value < 1
"""

from __future__ import annotations

import keyword
import math
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from hyperstack.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """The values that make sense: `low` to `high`, each end inside (closed) or outside (open)."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        left = "(" if self.low_open or math.isinf(self.low) else "["
        right = ")" if self.high_open or math.isinf(self.high) else "]"
        return f"{left}{self.low:g}, {self.high:g}{right}"


NON_NEGATIVE = Interval(0.0)
POSITIVE = Interval(0.0, low_open=True)
UNIT = Interval(0.0, 1.0, high_open=True)


@dataclass(frozen=True)
class Bijection:
    """A smooth one-to-one map from the raw real line (or half of it) to the values it can express."""

    name: str
    to_value: Callable[[Tensor], Tensor]
    to_raw: Callable[[float], float]
    image: Interval


BIJECTIONS = {
    b.name: b
    for b in (
        Bijection("lin", lambda raw: raw, lambda value: value, Interval()),
        Bijection("log", torch.exp, math.log, POSITIVE),
        Bijection("square", torch.square, math.sqrt, POSITIVE),
        Bijection(
            "logit",
            lambda raw: torch.sigmoid(2 * raw),  # the same, without cancellation near 0
            lambda value: (math.log(value) - math.log1p(-value)) / 2,
            Interval(0.0, 1.0, low_open=True, high_open=True),
        ),
    )
}


@dataclass(frozen=True)
class Free:
    """A free name such as `α`, to be bound to a number before the stack is used."""

    name: str

    def __post_init__(self) -> None:
        name = unicodedata.normalize("NFKC", self.name)  # as Python reads identifiers: the micro sign is a mu
        if not name.isidentifier() or keyword.iskeyword(name):
            raise InputError(f"{name!r} is no name", instead="use letters, digits and _, such as α")
        if name in WORDS or name.lower() in ("inf", "nan", "infinity"):
            raise InputError(f"{name} is no number", instead="write a number, or a free name such as α")
        object.__setattr__(self, "name", name)


@dataclass(frozen=True)
class Setting:
    """What a user asks of one hyperparameter; None means: as the hyperparameter declares.

    `value` a number or a free name; `bijection` one of BIJECTIONS; `learned` False for `fixed(...)`,
    True for `learned(...)`; `per_tensor` one number for each tensor of the level below; `steps` for how many steps
    it is learned before it stays, None for all; `shared` whether param groups have it in common.
    """

    value: float | Free
    bijection: str | None = None
    learned: bool | None = None
    per_tensor: bool = False
    steps: int | None = None
    shared: bool = False

    def __str__(self) -> str:
        text = self.value.name if isinstance(self.value, Free) else repr(self.value)
        if self.bijection:
            text = f"{self.bijection}({text})"
        if self.per_tensor:
            text = f"per_tensor({text})"
        if self.shared:
            text = f"shared({text})"
        if self.steps is not None:
            return f"fixed_after({text}, {self.steps})"
        if self.learned is not None:
            text = f"{'learned' if self.learned else 'fixed'}({text})"
        return text


Value = float | Free | Setting


def as_setting(value: Value) -> Setting:
    """A plain number or free name as a `Setting`; anything else is an InputError."""
    if isinstance(value, Setting):
        return value
    if isinstance(value, Free):
        return Setting(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{value!r} is not a number", instead="give a number such as 1e-3, or a free name")
    try:
        return Setting(float(value))
    except OverflowError:
        raise InputError("this whole number is too large", instead="write it as a float") from None


def free(name: str) -> Setting:
    """A hyperparameter left open under `name`: bound later by `stack.bind(name=...)`."""
    return Setting(Free(name))


def fixed(value: Value) -> Setting:
    """Keep this hyperparameter at its value: the level above neither sees nor changes it."""
    return _wish("fixed", value, learned=False)


def learned(value: Value) -> Setting:
    """Let the level above learn this hyperparameter, also where it is fixed unless asked for."""
    return _wish("learned", value, learned=True)


def per_tensor(value: Value) -> Setting:
    """One hyperparameter for each tensor of the level below, all starting at `value`."""
    return _wish("per_tensor", value, per_tensor=True)


def shared(value: Value) -> Setting:
    """One hyperparameter for all param groups whose primary levels share it, which starts at the first one's `value`.

    It receives the sum of their hypergradients, and is moved by the upper levels of the first of these groups.
    """
    return _wish("shared", value, shared=True)


def lin(value: Value) -> Setting:
    """Learn the value itself."""
    return _wish("lin", value, bijection="lin")


def log(value: Value) -> Setting:
    """Learn the logarithm: steps are relative, the value stays positive."""
    return _wish("log", value, bijection="log")


def square(value: Value) -> Setting:
    """Learn the square root: the value stays non-negative."""
    return _wish("square", value, bijection="square")


def logit(value: Value) -> Setting:
    """Learn x with value = (tanh(x) + 1) / 2: the value stays between 0 and 1."""
    return _wish("logit", value, bijection="logit")


def fixed_after(value: Value, steps: int) -> Setting:
    """Learn this hyperparameter for so many steps, and then keep it."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"fixed_after takes a number of steps, not {steps!r}", instead="write fixed_after(1e-3, 1000)")
    return _wish("fixed_after", value, learned=True, steps=steps)


MODIFIERS = {f.__name__: f for f in (fixed, learned, per_tensor, shared, lin, log, square, logit)}

WORDS = {*MODIFIERS, fixed_after.__name__}
"""Every word that stands around a value."""


def _wish(name: str, value: Value, **change: str | bool | int) -> Setting:
    setting = as_setting(value)
    made = replace(setting, **change)  # type: ignore[arg-type]
    twice = any(getattr(setting, field) != getattr(Setting(setting.value), field) for field in change)
    if twice or (made.shared and made.per_tensor):
        raise InputError(
            f"{name}({setting}) asks twice for the same thing",
            instead="name at most one bijection, one of fixed, learned and fixed_after, one of per_tensor and shared",
        )
    return made


@dataclass(frozen=True)
class Hyperparameter:
    """The declaration of one hyperparameter, written as a class attribute of a rule.

    `learnable=False` declares that it is fixed unless asked for, because its one-step hypergradient is
    always 0 or because nobody tunes it. So is, without a declaration, one that starts at the edge of
    what its bijection can express or of its domain (momentum 0, weight decay 0).
    """

    default: float
    domain: Interval
    bijection: str = "lin"
    learnable: bool = True
    doc: str = ""

    def resolve(self, setting: Setting | None) -> Resolved:
        """The setting with every None filled in, or an InputError that says why it cannot be."""
        setting = setting or Setting(self.default)
        value = setting.value
        if isinstance(value, Free):
            raise InputError(f"{value.name} is not bound", instead=f"bind it: {value.name}=NUMBER")
        if value not in self.domain:
            raise InputError(f"{value!r} is outside {self.domain}", instead=f"the default is {self.default:g}")
        bijection = BIJECTIONS[setting.bijection or self.bijection]
        expressible = value in bijection.image
        at_edge = value in (self.domain.low, self.domain.high) or not expressible
        learned = setting.learned if setting.learned is not None else self.learnable and not at_edge
        if not expressible and (learned or setting.bijection):
            raise InputError(
                f"{bijection.name} cannot express {value!r}",
                why=f"its values lie in {bijection.image}",
                instead="start inside it, choose another of " + ", ".join(BIJECTIONS) + ", or use fixed(...)",
            )
        return Resolved(value, bijection, learned, setting.per_tensor, setting.steps, setting.shared)


@dataclass(frozen=True)
class Resolved:
    """A hyperparameter's value, bijection, whether it is learned, one a tensor, for how long: nothing left open."""

    value: float
    bijection: Bijection
    learned: bool
    per_tensor: bool
    steps: int | None
    shared: bool
