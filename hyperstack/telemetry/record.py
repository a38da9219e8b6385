"""A record in memory: a column of numbers for everything that was recorded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]


@dataclass(frozen=True)
class Record:
    """A record in memory: `columns` by name, one float64 array a column, NaN and infinity as they were."""

    columns: dict[str, Column]

    @property
    def keys(self) -> list[str]:
        """The hyperparameters that were recorded, such as "0.lr", in the order of the stack."""
        return [name.removesuffix(".value") for name in self.columns if name.endswith(".value")]

    @property
    def tensors(self) -> dict[str, dict[str, Column]]:
        """What was recorded of each parameter of the network, such as its "norm", by its name."""
        found: dict[str, dict[str, Column]] = {}
        for column, values in self.columns.items():
            prefix, at, rest = column.partition("@")
            if at:
                name, _, what = rest.rpartition(".")
                found.setdefault(prefix + name, {})[what] = values
        return found

    @property
    def steps(self) -> Column:
        """The number of each recorded step."""
        return self.columns["step"]

    @property
    def probed(self) -> list[str]:
        """The hyperparameters whose hypergradients were measured at averages with a cosine and a displacement."""
        return [key for key in self.keys if f"{key}.cosine" in self.columns]

    def fresh(self, key: str) -> NDArray[np.bool_]:
        """In which rows the hypergradient of `key` is a new one: all; measured at averages, the first of each probe."""
        count = self.probes(key)
        return np.diff(count, prepend=0.0) > 0 if len(count) else np.ones(len(self), bool)

    def probes(self, key: str) -> Column:
        """How many probes there were for `key` at each row; empty where it is not measured at averages."""
        prefix = parts(key)[0]
        return self.columns.get(f"{prefix}.probe" if prefix else "probe", np.empty(0))

    def between(self, first: float | None = None, last: float | None = None) -> Record:
        """The rows of steps `first` to `last`, both included; None: from the start, to the end."""
        steps = self.steps
        low = 0 if first is None else int(np.searchsorted(steps, first, "left"))
        high = len(steps) if last is None else int(np.searchsorted(steps, last, "right"))
        return Record({name: column[low:high] for name, column in self.columns.items()})

    def __len__(self) -> int:
        return len(self.columns["step"])


def parts(key: str) -> tuple[str, int, str]:
    """The parts of a hyperparameter's key, such as "0.lr" or "group1.0.lr": prefix, level and name."""
    prefix, level, name = ("." + key).rsplit(".", 2)
    return prefix[1:], int(level), name
