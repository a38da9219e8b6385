"""A rule is one optimizer's mathematics; an instance of it is a level; levels divided by `/` are a stack.

class SGD(Rule):                              the rule: hyperparameters, options, pure functions
SGD(0.1, momentum=fixed(0.9), clip=True)      a level: an immutable value, without tensors
Adam / SGD(1e-5)                              a stack: Adam updates the network, SGD updates Adam
"""

from __future__ import annotations

import difflib
import sys
import unicodedata
from abc import ABC, ABCMeta, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from hyperstack.errors import InputError
from hyperstack.hyperparameter import Free, Hyperparameter, Resolved, Setting, Value, as_setting
from hyperstack.measuring import Average, Live
from hyperstack.transforms import Cumulative, State, Transform, register

if TYPE_CHECKING:
    from torch import Tensor

RULES: dict[str, type[Rule]] = {}
Registry = dict[str, type["Rule"]]


@dataclass(frozen=True)
class Option:
    """A static choice of a rule, a flag or a number: never learned, part of the rule's identity.

    Read on a level, it is the value that was chosen there.
    """

    default: bool | float
    doc: str = ""

    def __set_name__(self, owner: type, name: str) -> None:
        object.__setattr__(self, "name", name)

    def __get__(self, level: Rule | None, owner: type) -> Any:
        return self if level is None else level.chosen.get(self.name, self.default)  # type: ignore[attr-defined]

    def check(self, name: str, value: object) -> bool | float:
        """The value as the option's own type, or an InputError."""
        if isinstance(self.default, bool):
            if isinstance(value, bool):
                return value
            raise InputError(f"{name} is a flag, not {value!r}", instead=f"write {name}=True or leave it out")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= sys.float_info.max:
            hint = f"the default is {self.default:g}"
            raise InputError(f"{name} takes a number from 0 up, not {value!r}", instead=hint)
        return float(value)


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that `name` probably meant, as the end of an error message."""
    known = list(known)
    lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    return f"did you mean {lower[close[0]]}?" if close else "choose one of " + ", ".join(known)


def unfinished(name: str) -> list[str]:
    """What a rule of that name lacks, which was declared and not registered for it."""
    waiting = Rule.__subclasses__()
    for rule in waiting:
        if rule.__name__ == name and rule.__abstractmethods__:
            return sorted(rule.__abstractmethods__)
        waiting += rule.__subclasses__()
    return []


class RuleType(ABCMeta):
    """Registers finished rules, and lets `/` work on the class: `Adam / SGD(1e-5)` needs no parentheses behind Adam."""

    def __init__(cls, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not cls.__abstractmethods__:
            register(cls.registry, cls.__name__, cls)  # type: ignore[attr-defined]

    def __truediv__(cls, other: object) -> Stack:
        return Stack.of(cls) / other


class Rule(ABC, metaclass=RuleType):
    """Base of the rules. A subclass declares `Hyperparameter`s and `Option`s as class attributes, `lr` first,
    and three pure functions; defining it registers it under its class name.

    An instance is a level. Positional argument: `lr`. Keywords: hyperparameters (a number, or a number in
    `fixed`, `learned`, `per_tensor`, `lin`, `log`, `square`, `logit`, or a `free` name), options, and `clip`:
    True for cumulative-average clipping of the gradient that this level receives, or a list of transforms. `at`: where
    the level above the primary one measures hypergradients, `live` or `average(0.99)`.
    Instances are immutable, comparable and hashable, and print as the text form. `upper_ratio` is how a level above
    starts where its rate is not given: at so many times this rule's rate. Measured; cautious for a new rule.

    A rule that looks at tensors as a whole, as by their norms, names in `per_layer` the coefficients that it uses once
    a tensor. Its `update` finds those unspread, 0-dim or of shape [tensors], and the tensors themselves as `c.layers`.
    """

    registry: ClassVar[Registry] = RULES
    hyperparameters: ClassVar[Mapping[str, Hyperparameter]] = {}
    options: ClassVar[Mapping[str, Option]] = {}
    source: ClassVar[str] = ""
    per_layer: ClassVar[tuple[str, ...]] = ()
    upper_ratio: ClassVar[float] = 1e-5

    settings: Mapping[str, Setting]
    chosen: Mapping[str, bool | float]
    clip: tuple[Transform, ...]
    at: Average | None

    def __init_subclass__(cls) -> None:
        declared = {**cls.hyperparameters, **cls.options, **vars(cls)}  # a plain value settles an inherited one
        cls.hyperparameters = {k: v for k, v in declared.items() if isinstance(v, Hyperparameter)}
        cls.options = {k: v for k, v in declared.items() if isinstance(v, Option)}

    def __init__(self, *values: Value, **arguments: Any) -> None:
        if len(values) > 1:
            raise InputError(
                f"{type(self).__name__} takes one positional argument, lr, not {len(values)}",
                instead="name the others: " + ", ".join(f"{name}=..." for name in list(self.hyperparameters)[1:4]),
            )
        if values and "lr" in arguments:
            raise InputError("lr is given twice", instead="give it once, by position or by name")
        if values:
            arguments = {"lr": values[0], **arguments}
        checked = {name: self.check(name, value) for name, value in arguments.items()}
        settings = {k: checked[k] for k in self.hyperparameters if k in checked}
        chosen = {k: checked[k] for k, o in self.options.items() if k in checked and checked[k] != o.default}
        object.__setattr__(self, "settings", MappingProxyType(settings))
        object.__setattr__(self, "chosen", MappingProxyType(chosen))
        object.__setattr__(self, "clip", checked.get("clip", ()))
        object.__setattr__(self, "at", checked.get("at"))
        if not self.free_names:
            self.refuse({name: r.value for name, r in self.resolve().items()})

    def check_place(self, k: int) -> None:
        """Raise an InputError where this cannot be level `k` of a stack."""
        if k and any(setting.shared for setting in self.settings.values()):
            what = "shared has no meaning above the primary level"
            raise InputError(
                what, why="groups share what moves their parameters", instead="share it on the primary level"
            )
        if self.at is not None and k != 1:
            what = f"at={self.at} has no meaning on level {k}"
            why = "higher levels move when level 1 does" if k else "the primary level measures nothing"
            raise InputError(what, why=why, instead="write it on level 1, the one above the primary level")
        for transform in self.clip:
            if k == 0 and transform.reads_slope:
                what = f"{transform.name} has no meaning on the primary level"
                raise InputError(what, why="it measures hypergradients", instead="give it to a level above")

    def refuse(self, values: Mapping[str, float]) -> None:
        """Raise an InputError where hyperparameters do not fit together; each alone has been checked."""

    @classmethod
    def check(cls, name: str, value: Any) -> Any:
        """One argument in its canonical form, or an InputError that says what is wrong with it."""
        if name == "clip":
            return _as_transforms(value)
        if name == "at":
            return _as_place(value)
        if name in cls.options:
            return cls.options[name].check(name, value)
        if name not in cls.hyperparameters:
            known = [*cls.hyperparameters, *cls.options, "clip", "at"]
            raise InputError(f"{cls.__name__} has no {name!r}", instead=nearest(name, known))
        setting = as_setting(value)
        if isinstance(setting.value, Free):
            if setting.value.name in ("clip", "at", *cls.options, *RULES):
                what = f"{cls.__name__}'s {name}: {setting.value.name} is no number"
                raise InputError(what, instead="write a number, or a free name such as α")
        else:
            try:
                cls.hyperparameters[name].resolve(setting)
            except InputError as error:
                what = f"{cls.__name__}'s {name}: {error.what}"
                raise InputError(what, why=error.why, instead=error.instead) from None
        return setting

    @abstractmethod
    def init(self, like: Tensor) -> State:
        """The state before the first update, each entry elementwise: the shape, device and dtype of `like`."""

    def init_layers(self, like: Tensor) -> State:
        """State of one number a tensor, in the shape, device and dtype of `like`, where `per_layer` names anything.

        It is part of what `update` takes and returns, and is recorded.
        """
        return {}

    @abstractmethod
    def coefficients(self, h: SimpleNamespace, t: Tensor) -> dict[str, Tensor]:
        """The scalar algebra of step t (1 at the first): hyperparameter values -> what `update` needs.

        `h.NAME` and `t` are 0-dim, or hold one number a tensor; the engine spreads those over the elements.
        """

    @abstractmethod
    def update(self, g: Tensor, s: State, c: SimpleNamespace, p: Tensor | None) -> tuple[Tensor, State]:
        """What to add to the parameters, and the next state: elementwise, in place of nothing.

        `g` is the transformed gradient, `c.NAME` a coefficient, `p` the parameters where `reads_params`.
        """

    @property
    def reads_params(self) -> bool:
        """Whether `update` reads the parameters themselves (weight decay)."""
        return "weight_decay" in self.hyperparameters and not self.off("weight_decay")

    def off(self, name: str) -> bool:
        """Whether a hyperparameter is fixed at 0, so that its part of the rule needs neither state nor time."""
        setting = self.settings.get(name, Setting(self.hyperparameters[name].default))
        return setting.value == 0 and not setting.learned

    def resolve(self, lr: float | None = None) -> dict[str, Resolved]:
        """Every hyperparameter with nothing left open; `lr` is the default rate that the stack asks for."""
        defaults = {} if lr is None else {"lr": Setting(lr)}
        return {k: h.resolve(self.settings.get(k, defaults.get(k))) for k, h in self.hyperparameters.items()}

    @property
    def free_names(self) -> tuple[str, ...]:
        """The names that are still to be bound, each once."""
        names = (s.value.name for s in self.settings.values() if isinstance(s.value, Free))
        return tuple(dict.fromkeys(names))

    def bind(self, values: Mapping[str, float]) -> Rule:
        """This level with its free names replaced by numbers where `values` has them."""

        def bound(s: Setting) -> Setting:
            if not isinstance(s.value, Free) or s.value.name not in values:
                return s
            number = as_setting(values[s.value.name])
            if number != Setting(number.value) or isinstance(number.value, Free):
                raise InputError(f"{s.value.name} is bound to a plain number, not to {number}")
            return replace(s, value=number.value)

        return self.having({k: bound(s) for k, s in self.settings.items()})

    def having(self, settings: Mapping[str, Setting]) -> Rule:
        """This level with other settings."""
        return type(self)(**settings, **self.chosen, clip=self.clip, at=self.at)

    def __str__(self) -> str:
        parts = self._parts()
        return type(self).__name__ + (f"({', '.join(parts)})" if parts else "")

    def _parts(self) -> list[str]:
        """The arguments as the text form has them."""
        plain = self.clip == (Cumulative(),)
        parts = [str(s) for k, s in self.settings.items() if k == "lr"]
        parts += [k for k, v in self.chosen.items() if v is True] + ["clip"] * plain
        parts += [f"{k}={s}" for k, s in self.settings.items() if k != "lr"]
        parts += [f"{k}={v!r}" for k, v in self.chosen.items() if v is not True]
        if self.clip and not plain:
            parts.append(f"clip=[{', '.join(map(str, self.clip))}]")
        return parts + [f"at={self.at}"] * (self.at is not None)

    __repr__ = __str__

    def _identity(self) -> tuple[object, ...]:
        return type(self).__name__, tuple(self.settings.items()), tuple(self.chosen.items()), self.clip, self.at

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rule) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a level is immutable: make another one instead of setting {name}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), {**self.settings, **self.chosen, "clip": self.clip, "at": self.at})

    def __truediv__(self, other: object) -> Stack:
        return Stack.of(self) / other


def _rebuild(cls: type[Rule], arguments: dict[str, Any]) -> Rule:
    return cls(**arguments)


def _as_transforms(value: object) -> tuple[Transform, ...]:
    if value is True:
        return (Cumulative(),)
    if value is False or value is None:
        return ()
    items = value if isinstance(value, (list, tuple)) else (value,)
    made = []
    for item in items:
        try:
            made.append(item() if isinstance(item, type) and issubclass(item, Transform) else item)
        except TypeError:
            raise InputError(f"{item.name} needs its arguments", instead=f"write {item.name}(...)") from None
        if not isinstance(made[-1], Transform):
            raise InputError(f"{item!r} is no gradient transform", instead="write clip=True, or a list of transforms")
    return tuple(made)


def _as_place(value: object) -> Average | None:
    value = value() if value is Live else value
    if value is None or isinstance(value, Live):
        return None
    if isinstance(value, Average):
        return value
    raise InputError(f"{value!r} is no place to measure at", instead="write at=live or at=average(0.99, every=100)")


class Stack:
    """An immutable tuple of levels, the primary one first; prints as the text form, compares and hashes.

    An upper level whose rate is not given starts at a small multiple of the rate of the level below it, see `ratio`:
    `Adam / SGD` is `Adam(0.001) / SGD(1e-05)`.
    """

    HIGHER_RATIO = 1e-6
    MAX_HEIGHT = 64

    levels: tuple[Rule, ...]

    def __init__(self, levels: Iterable[Rule]) -> None:
        object.__setattr__(self, "levels", tuple(levels))
        for level in self.levels:
            if not isinstance(level, Rule):
                raise InputError(f"{level!r} is no level of a stack", instead="divide rules, as in Adam / SGD(1e-5)")
        for k, level in enumerate(self.levels):
            level.check_place(k)
        if not self.levels:
            raise InputError("a stack needs at least one level", instead="write, for example: Adam / SGD(1e-5)")
        if len(self.levels) > self.MAX_HEIGHT:
            raise InputError(f"a stack of {len(self.levels)} levels", instead=f"use at most {self.MAX_HEIGHT}")

    @classmethod
    def of(cls, value: object) -> Stack:
        """A stack from a stack, a level, or a rule class with all its defaults."""
        return value if isinstance(value, Stack) else cls(_levels(value))

    def resolve(self) -> list[dict[str, Resolved]]:
        """For each level, every hyperparameter with nothing left open.

        Unbound names are an InputError, and so is what cannot be measured where the stack measures.
        """
        if self.free_names:
            names = ", ".join(self.free_names)
            hint = "bind: " + ", ".join(f"{name}=NUMBER" for name in self.free_names)
            raise InputError(f"this stack leaves {names} open", why=f"  {self}", instead=hint)
        resolved: list[dict[str, Resolved]] = []
        for level in self.levels:
            k = len(resolved)
            default = float(f"{resolved[-1]['lr'].value * self.ratio(k):.12g}") if k else None
            resolved.append(level.resolve(default))
        if len(self.levels) > 1 and (place := self.levels[1].at) is not None:
            first = self.levels[0]
            place.refuse(type(getattr(first, "base", first)).__name__, resolved[0], getattr(first, "own", ()))
        return resolved

    def ratio(self, k: int) -> float:
        """The default rate of level k > 0, as a multiple of the rate of the level below.

        Level 1 starts at what suits the primary rule, its `upper_ratio`. Higher levels start at HIGHER_RATIO: what
        they change is small beside the hypergradients that they receive.
        """
        return self.levels[0].upper_ratio if k == 1 else self.HIGHER_RATIO

    @property
    def free_names(self) -> tuple[str, ...]:
        """The names that are still to be bound, each once, from left to right."""
        return tuple(dict.fromkeys(name for level in self.levels for name in level.free_names))

    def bind(self, /, **values: float) -> Stack:
        """This stack with free names replaced by numbers; a name that it does not have is an InputError."""
        values = {unicodedata.normalize("NFKC", name): value for name, value in values.items()}
        for name in values:
            if name not in self.free_names:
                hint = nearest(name, self.free_names) if self.free_names else "it has no free names"
                raise InputError(f"this stack has no free name {name}", why=f"  {self}", instead=hint)
        return Stack(level.bind(values) for level in self.levels)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a stack is immutable: make another one instead of setting {name}")

    def __truediv__(self, other: object) -> Stack:
        return Stack(self.levels + _levels(other))

    def __len__(self) -> int:
        return len(self.levels)

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.levels)

    def __getitem__(self, index: int) -> Rule:
        return self.levels[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stack) and self.levels == other.levels

    def __hash__(self) -> int:
        return hash(self.levels)

    def __str__(self) -> str:
        return " / ".join(map(str, self.levels))

    __repr__ = __str__


def _levels(value: object) -> tuple[Rule, ...]:
    """The levels of a stack, or one level: a rule with arguments or a class with all its defaults."""
    if isinstance(value, Stack):
        return value.levels
    if isinstance(value, type) and issubclass(value, Rule):
        return (value(),)
    if isinstance(value, Rule):
        return (value,)
    raise InputError(f"{value!r} is no level of a stack", instead="divide rules, as in Adam / SGD(1e-5)")
