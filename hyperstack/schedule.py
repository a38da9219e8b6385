"""Schedules: by what the learning rate of the primary level is multiplied at each step of a run.

written               factor of step t of T (t = 0, 1, ..., T - 1)
constant              1
cosine                (1 + cos(π t / T)) / 2: 1 at first, nearly 0 at the end; torch's CosineAnnealingLR with T_max = T
drop(STEPS, FACTOR)   1 for t < STEPS, then FACTOR
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from hyperstack.errors import InputError

CONSTANT = "constant"
HINT = "choose constant, cosine or drop(STEPS, FACTOR), such as drop(1000, 0.1): a tenth after 1000 steps"
DROP = re.compile(r"drop\(\s*([0-9]+)\s*,\s*([0-9.]+(?:e[-+]?[0-9]+)?)\s*,?\s*\)", re.IGNORECASE | re.ASCII)
LONGEST = 10**15  # more steps than anybody takes, and exact as a float


@dataclass(frozen=True)
class Schedule:
    """One of the above; `str` of it is text that `parse` reads back. `steps`, `value`: of a drop."""

    kind: str = CONSTANT
    steps: int = 0
    value: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """The schedule that a text means; an InputError where it means none."""
        written = text.strip()
        if written in (CONSTANT, "cosine"):
            return cls(written)
        found = DROP.fullmatch(written)
        if found is None:
            raise InputError(f"{_short(written)!r} is no schedule", instead=HINT)
        try:
            steps, value = int(found[1][:20]), float(found[2])
        except ValueError:
            raise InputError(f"{_short(found[2])!r} is no number", why=f"  {_short(written)}", instead=HINT) from None
        if not 1 <= steps <= LONGEST or not math.isfinite(value):
            why = "STEPS is a whole number from 1, FACTOR a number from 0"
            raise InputError(f"{_short(written)!r} is out of range", why=why, instead=HINT)
        return cls("drop", steps, value)

    def __str__(self) -> str:
        return f"drop({self.steps}, {self.value!r})" if self.kind == "drop" else self.kind

    def factor(self, step: int, total: int) -> float:
        """By what the rate of step number `step`, from 0, of `total` planned ones is multiplied."""
        if self.kind == "cosine":
            return (1.0 + math.cos(math.pi * step / total)) / 2
        return self.value if self.kind == "drop" and step >= self.steps else 1.0

    @property
    def knows_the_end(self) -> bool:
        """Whether a step's factor depends on how many are planned."""
        return self.kind == "cosine"

    def scaled(self, share: float) -> Schedule:
        """The same course for a run of that share of the steps: a drop comes in proportion."""
        return replace(self, steps=max(1, round(self.steps * share))) if self.kind == "drop" else self


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
