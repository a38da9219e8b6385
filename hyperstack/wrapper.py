"""A wrapper is a primary level around another: it limits the losses that the base level's gradients come from.

class ALRC(Wrapper):                          hyperparameters and options of its own, and how it limits
ALRC(Adam(1e-3), n=3) / SGD(1e-5)             the base does what it does alone, on the gradient of the limited loss
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from hyperstack.errors import InputError
from hyperstack.hyperparameter import Resolved, Setting
from hyperstack.rule import RULES, Registry, Rule
from hyperstack.transforms import State

if TYPE_CHECKING:
    from torch import Tensor

WRAPPERS: Registry = {}


class Limited(NamedTuple):
    """What became of losses, each entry in their shape.

    `weights`: what multiplies each loss, and so its gradient; `offsets`: what is added to make that the value of the
    limited loss; `slopes`: by hyperparameter of the wrapper, the derivative of the weights.
    """

    weights: Tensor
    offsets: Tensor
    slopes: dict[str, Tensor]


class Wrapper(Rule):
    """Base of the wrappers. A subclass declares its `Hyperparameter`s and `Option`s, and two pure functions.

    An instance is a level: it has the hyperparameters of its `base` and its own, which act on the losses alone, and the
    base's gradient transforms. Text and Python agree: `ALRC(Adam(1e-3), n=3)`.
    """

    registry: ClassVar[Registry] = WRAPPERS
    default: ClassVar[type[Rule]]

    base: Rule
    own: tuple[str, ...]

    def __init__(self, base: Rule | type[Rule] | None = None, **arguments: Any) -> None:
        base = type(self).default if base is None else base
        base = base() if isinstance(base, type) and issubclass(base, Rule) else base
        name = type(self).__name__
        if not isinstance(base, Rule) or isinstance(base, Wrapper):
            what = f"{name} wraps a rule, not {base if isinstance(base, Wrapper) else repr(base)}"
            raise InputError(what, instead=f"write, for example: {name}(Adam(1e-3))")
        super().__init__(**arguments)
        if spread := [key for key, setting in self.settings.items() if setting.per_tensor]:
            raise InputError(f"{name}'s {spread[0]} is one number", why="it acts on losses, which have no tensors")
        put = object.__setattr__
        put(self, "base", base)
        put(self, "own", tuple(self.hyperparameters))
        put(self, "hyperparameters", MappingProxyType({**base.hyperparameters, **self.hyperparameters}))
        put(self, "settings", MappingProxyType({**base.settings, **self.settings}))
        put(self, "clip", base.clip)
        put(self, "per_layer", base.per_layer)
        put(self, "upper_ratio", base.upper_ratio)

    @classmethod
    def check(cls, name: str, value: Any) -> Any:
        """As `Rule.check`; what is the base's has its place there."""
        if name == "base":
            return value
        inner = {"clip", "at", *(k for rule in RULES.values() for k in (*rule.hyperparameters, *rule.options))}
        if name in inner and name not in (*cls.hyperparameters, *cls.options):
            raise InputError(
                f"{name} belongs to the level in {cls.__name__}", instead=f"write {cls.__name__}(Adam({name}=...))"
            )
        return super().check(name, value)

    @abstractmethod
    def init_losses(self, like: Tensor) -> State:
        """The state before the first losses, 0-dim, in the dtype and on the device of `like`."""

    @abstractmethod
    def limit(self, losses: Tensor, h: SimpleNamespace, state: State) -> tuple[Limited, State]:
        """Limit losses of any shape, and the next state. No branch on a value; nothing to differentiate through."""

    def check_place(self, k: int) -> None:
        """Only the primary level sees losses."""
        if k:
            what = f"{type(self).__name__} stands on level {k}, which no loss reaches"
            raise InputError(what, instead="let it be the primary level, the first")
        self.base.check_place(k)

    def resolve(self, lr: float | None = None) -> dict[str, Resolved]:
        """As `Rule.resolve`; all groups have one loss, and share what acts on it."""
        own = self.__dict__.get("own", ())
        return {k: replace(r, shared=r.shared or k in own) for k, r in super().resolve(lr).items()}

    @property
    def reads_params(self) -> bool:
        """As the base."""
        return self.base.reads_params

    def init(self, like: Tensor) -> State:
        """As the base."""
        return self.base.init(like)

    def init_layers(self, like: Tensor) -> State:
        """As the base."""
        return self.base.init_layers(like)

    def coefficients(self, h: SimpleNamespace, t: Tensor) -> dict[str, Tensor]:
        """As the base."""
        return self.base.coefficients(h, t)

    def update(self, g: Tensor, s: State, c: SimpleNamespace, p: Tensor | None) -> tuple[Tensor, State]:
        """As the base."""
        return self.base.update(g, s, c, p)

    def having(self, settings: Mapping[str, Setting]) -> Rule:
        """This level, and the one in it, with other settings."""
        mine = {k: s for k, s in settings.items() if k in self.own}
        base = self.base.having({k: s for k, s in settings.items() if k not in self.own})
        return type(self)(base, **mine, **self.chosen)

    def _parts(self) -> list[str]:
        mine = [f"{k}={s}" for k, s in self.settings.items() if k in self.own]
        flags = [k for k, v in self.chosen.items() if v is True]
        return [str(self.base), *flags, *mine, *(f"{k}={v!r}" for k, v in self.chosen.items() if v is not True)]

    def _identity(self) -> tuple[object, ...]:
        return *super()._identity(), self.base

    def __reduce__(self) -> tuple[Any, ...]:
        mine = {k: s for k, s in self.settings.items() if k in self.own}
        return _rebuild, (type(self), self.base, {**mine, **self.chosen})


def _rebuild(cls: type[Wrapper], base: Rule, arguments: dict[str, Any]) -> Wrapper:
    return cls(base, **arguments)
