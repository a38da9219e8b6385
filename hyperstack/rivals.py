"""Optimizers of other packages that find a rate by themselves, or need no schedule: what towers are compared with.

Written as a name and the number that its user gives it, they stand where a stack stands in a sweep:

prodigy(λ)         Prodigy(lr=1, d0=λ) of prodigyopt: λ is the first estimate of the distance to the solution
d-adaptation(λ)    DAdaptAdam(lr=1, d0=λ) of dadaptation, likewise
schedule-free(λ)   AdamWScheduleFree(lr=λ) of schedulefree: λ is the rate

All else is the package's default. The packages are those of the extra `rivals`, and loaded when one is made.
Sources: Mishchenko and Defazio, "Prodigy" (2023); Defazio and Mishchenko, "Learning-rate-free learning by
D-Adaptation" (2023); Defazio et al., "The road less scheduled" (2024).
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from hyperstack.dsl import parse
from hyperstack.errors import InputError
from hyperstack.optimizer import HyperOptimizer
from hyperstack.rule import Stack

# By name: the package, the class, and what the number is passed as, with what goes along.
KNOWN: dict[str, tuple[str, str, str, dict[str, float]]] = {
    "prodigy": ("prodigyopt", "Prodigy", "d0", {"lr": 1.0}),
    "d-adaptation": ("dadaptation", "DAdaptAdam", "d0", {"lr": 1.0}),
    "schedule-free": ("schedulefree", "AdamWScheduleFree", "lr", {}),
}
WRITTEN = re.compile(rf"({'|'.join(KNOWN)})\(([^()]*)\)")


@dataclass(frozen=True)
class Rival:
    """One of them with its number, or a free name for it. As a stack it is bound before use, and `str` reads back."""

    name: str
    rate: float | str

    @property
    def free_names(self) -> tuple[str, ...]:
        """The name in the place of the number, if there is one."""
        return (self.rate,) if isinstance(self.rate, str) else ()

    def bind(self, **values: float) -> Rival:
        """The same with the number in the place of its name."""
        return replace(self, rate=values[self.rate]) if isinstance(self.rate, str) else self

    def resolve(self) -> None:
        """An InputError where the number is missing, or none that it can start from."""
        if isinstance(self.rate, str) or not (math.isfinite(self.rate) and self.rate > 0):
            what = f"{self.name} does not start from {self.rate}"
            raise InputError(what, instead="give it a number above 0")

    def __str__(self) -> str:
        return f"{self.name}({self.rate if isinstance(self.rate, str) else repr(self.rate)})"


def read_optimizer(text: str) -> Stack | Rival:
    """The stack that a text means, or the rival; an InputError where it means neither."""
    found = WRITTEN.fullmatch(text.strip())
    if found is None:
        return parse(text)
    name, value = found[1], found[2].strip()
    if value.isidentifier():
        return Rival(name, value)
    try:
        return Rival(name, float(value))
    except ValueError:
        raise InputError(f"{name} takes one number, and not {value[:60]!r}", instead=f"write {name}(1e-6)") from None


def is_there(name: str) -> bool:
    """Whether the package of this rival is installed."""
    return find_spec(KNOWN[name][0]) is not None


def missing(name: str) -> InputError:
    """The error that says what to install."""
    what = f"{name} is in the package {KNOWN[name][0]}, which is not installed"
    return InputError(what, instead='pip install "hyperstack[rivals]"')


class Outside:
    """A rival at work on parameters, with as much of the face of a `HyperOptimizer` as training needs.

    Raises InputError where its package is not installed.
    """

    def __init__(self, params: Iterable[Tensor], rival: Rival) -> None:
        rival.resolve()
        package, kind, number, others = KNOWN[rival.name]
        if not is_there(rival.name):
            raise missing(rival.name)
        self.made: Any = getattr(importlib.import_module(package), kind)(params, **{number: rival.rate}, **others)
        self._training(True)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of the optimizer, each with its `lr`."""
        return self.made.param_groups  # type: ignore[no-any-return]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.made.zero_grad()

    def backward(self, losses: Tensor) -> None:
        """Backpropagate the mean of per-example losses."""
        losses.mean().backward()

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """Update the parameters by the gradients that the closure finds."""
        with torch.enable_grad():
            loss = closure()
        self.made.step()
        return loss

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """While it is entered the parameters are those to be judged: under Schedule-Free the average of the path."""
        self._training(False)
        try:
            yield
        finally:
            self._training(True)

    def hyperparameters(self) -> dict[str, Tensor]:
        """The rate, and the estimate of the distance, `d`, where it has one."""
        group = self.param_groups[0]
        return {name: torch.as_tensor(group[name], dtype=torch.float64) for name in ("lr", "d") if name in group}

    def nonfinite_counts(self) -> dict[str, Tensor]:
        """None: it leaves no step out."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """As torch's."""
        return self.made.state_dict()  # type: ignore[no-any-return]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As torch's."""
        self.made.load_state_dict(state)

    def _training(self, on: bool) -> None:
        """Schedule-Free is told where training begins and ends."""
        if hasattr(self.made, "train"):
            self.made.train() if on else self.made.eval()


def make_optimizer(
    named: Iterable[tuple[str, Tensor]], text: str, *, compile: bool = False
) -> HyperOptimizer | Outside:
    """What trains named parameters, by the text of a stack or of a rival."""
    found = read_optimizer(text)
    if isinstance(found, Rival):
        return Outside([p for _, p in named], found)
    return HyperOptimizer(named, found, compile=compile)
