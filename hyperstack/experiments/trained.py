"""What a part of any experiment says of its runs: how they are trained, and with how many seeds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from hyperstack.experiments.fields import Fields


@dataclass(frozen=True)
class Wanted:
    """What a sweep of a part asks for that is its own. `seeds`: from which to which of the part's.

    best_of: the folder of an earlier sweep; of the values in this one's grid, the one with the least mean test error
    there is taken.
    """

    stacks: list[str]
    grid: dict[str, list[float]]
    schedule: str
    seeds: tuple[int, int | None] = (0, None)
    best_of: str | None = None


@dataclass(frozen=True, kw_only=True)
class Trained(ABC):
    """What is trained alike. own_data: whether the data are the user's own, from --data-dir."""

    name: str
    task: str
    epochs: int
    batch_size: int
    seeds: int
    own_data: bool = False

    @property
    @abstractmethod
    def sweeps(self) -> dict[str, Wanted]:
        """What each sweep asks for, by folder."""


def trained(f: Fields) -> dict[str, Any]:
    """What the fields of a part say of that, by name."""
    texts = {name: f.text(name) for name in ("name", "task")}
    counts = {name: f.whole(name, 1) for name in ("epochs", "batch_size", "seeds")}
    return {**texts, **counts, "own_data": f.flag("own_data")}
