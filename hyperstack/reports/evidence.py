"""What a reading of a run goes by: its record, with what is worked out of it once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hyperstack.reports.leveltext import start
from hyperstack.reports.statistics import Statistics, finite, statistics
from hyperstack.reports.text import number
from hyperstack.telemetry.record import Column, Record, parts

BLOCKS = 20  # parts of a run whose mean losses are compared: short enough to see a rise, long enough to average
SMALLEST = 10  # steps in such a part: fewer do not tell a standard error
RISEN = 5.0  # the same for losses, of which the lowest of many means is looked for
SHARES = ("beta1", "beta2", "momentum", "alpha", "dampening")  # what has 0 and 1 as its edges


@dataclass(frozen=True)
class Rise:
    """A loss that rose: its mean before, in the lowest part, which ended with `step`, and in the last one."""

    step: int
    before: float
    after: float


@dataclass(frozen=True)
class Remark:
    """A sentence about `key`, which may be "loss", or several keys with commas; `severity` from 1 to 3.

    3: the run failed, or learning made it worse. 2: something is wrong. 1: something could be better.
    """

    severity: int
    key: str
    sentence: str

    @property
    def text(self) -> str:
        """The sentence behind what it is about."""
        return f"{self.key}: {self.sentence}"

    def concerns(self, keys: Sequence[str]) -> bool:
        """Whether it is about one of these keys, or about the loss."""
        return self.key == "loss" or bool({*self.key.split(", ")} & {*keys})

    def as_dict(self) -> dict[str, int | str]:
        """Plain values, ready for JSON."""
        return {"severity": self.severity, "key": self.key, "sentence": self.sentence}


class Evidence:
    """What the rules look at: a record, with what is worked out of it once."""

    def __init__(
        self,
        record: Record,
        diverged: bool | None = None,
        levels: Sequence[str] = (),
        found: dict[str, Statistics] | None = None,
    ) -> None:
        """Of a stack with these `levels`, where that is known: the rate of the highest may be fixed, without a key."""
        self.record = record
        self.statistics = statistics(record) if found is None else found
        top: dict[str, int] = {}
        for key in record.keys:
            prefix, level, _ = parts(key)
            top[prefix] = max(top.get(prefix, len(levels) - 1), level)
        self.levels, self.probed = levels, record.probed
        self.learned = [key for key in record.keys if parts(key)[1] < top[parts(key)[0]]]
        self.diverged = _ended_without_numbers(record) if diverged is None else diverged
        self.rise = None if self.diverged else loss_rise(record)

    def column(self, key: str, what: str) -> Column:
        """The column `what` of a hyperparameter: "value", "grad", "clip"; or "cosine" where it has that."""
        return self.record.columns[f"{key}.{what}"]

    def start(self, key: str) -> float:
        """Where it started: as the stack says, else as the first recorded step left it."""
        _, level, name = parts(key)
        given = [start(text, name) for text in self.levels[level : level + 1]]
        return given[0] if given and given[0] is not None else float(self.column(key, "value")[0])

    def count(self, key: str) -> int:
        """How many of its hypergradients were recorded."""
        return int(self.record.fresh(key).sum())

    def turns(self, key: str) -> str:
        """What its hypergradients come with."""
        return "probes" if len(self.record.probes(key)) else "steps"

    def rate_above(self, key: str) -> str:
        """The key of the learning rate that moves `key`, with the value that it had last where that is known."""
        above = key_above(key)
        found = self.statistics.get(above)
        return above if found is None or found.last is None else f"{above} = {number(found.last)}"

    def cure(self, key: str) -> str:
        """A tenth of the rate above, as a number where that is known; of a cosine's, which has no unit, 0.3 of it."""
        found = self.statistics.get(key_above(key))
        share, name = (0.3, "0.3 of it") if key in self.probed else (0.1, "a tenth")
        return f"try {name}" if found is None or not found.last else f"try {name}, {number(share * found.last)}"


def key_above(key: str) -> str:
    """The key of the learning rate of the level that learns `key`: "1.lr" for "0.beta1"."""
    prefix, level, _ = parts(key)
    return f"{prefix}.{level + 1}.lr" if prefix else f"{level + 1}.lr"


def loss_rise(record: Record) -> Rise | None:
    """Whether the loss ended higher than it was, by more than the standard errors of the means explain.

    Where it explodes they explain anything: there every loss of the last part is above all of the lowest.
    """
    loss, steps = record.columns["loss"], record.steps
    known = np.isfinite(loss)
    loss, steps = loss[known], steps[known]
    size = len(loss) // BLOCKS
    if size < SMALLEST:
        return None
    start = len(loss) - size * BLOCKS
    blocks = loss[start:].reshape(BLOCKS, size)
    means, errors = blocks.mean(axis=1), blocks.std(axis=1, ddof=1) / np.sqrt(size)
    errors = np.maximum(errors, np.median(errors))  # one that is small by chance is not taken at its word
    lowest = int(np.argmin(means))
    apart = blocks[-1].min() > blocks[lowest].max()
    if not apart and not means[-1] - means[lowest] > RISEN * np.hypot(errors[-1], errors[lowest]):
        return None
    last = int(steps[start + (lowest + 1) * size - 1])
    return Rise(last, float(means[lowest]), float(means[-1]))


def movement(key: str, values: Column) -> float:
    """The largest relative change from the first value; for what has an edge at 1, of its distance from there."""
    found = finite(distances(key, values))
    if not len(found) or found[0] == 0:
        return float("inf") if len(found) and found.any() else 0.0
    return float(max(found.max() - found[0], found[0] - found.min()) / abs(found[0]))


def distances(key: str, values: Column) -> Column:
    """From the nearer edge, where there is one at 1."""
    near_1 = parts(key)[2] in SHARES and within(values) and values[0] > 0.5
    return 1 - values if near_1 else values


def within(values: Column) -> bool:
    """Whether all of them lie from 0 to 1."""
    return bool(len(values) and values.min() >= 0 and values.max() <= 1)  # not so where there is a NaN


def growth(e: Evidence, key: str, row: int) -> float:
    """By what factor a hyperparameter had grown at a row, whatever its sign."""
    values = e.column(key, "value")
    return abs(float(values[row] / values[0])) if values[0] else 0.0


def _ended_without_numbers(record: Record) -> bool:
    """A loss that is not told is NaN, too: only with hypergradients that are not finite does it mean anything."""
    if not len(record) or np.isfinite(record.columns["loss"][-1]):
        return False
    return any(not np.isfinite(record.columns[f"{key}.grad"][-1]) for key in record.keys)


def by_level(keys: Iterable[str]) -> list[list[str]]:
    """Those together that one level learns."""
    found: dict[str, list[str]] = {}
    for key in keys:
        found.setdefault(key_above(key), []).append(key)
    return list(found.values())
