"""Runs side by side: seeds of one stack as one group, and what the groups came to."""

from __future__ import annotations

import json
import math
import string
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from hyperstack.reports.run import Run, levels
from hyperstack.reports.spread import KeySummary, Spread
from hyperstack.reports.statistics import statistics
from hyperstack.schedule import CONSTANT
from hyperstack.telemetry.record import parts

SORTS = ("error", "time", "name")
BAD = "diverged"


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one task, stack, number of epochs, batch size and kind of device, each of another seed.

    `letter`: its name here, A, B, ... `runs`: in the order of their seeds. `states`: how each of them ended.
    """

    letter: str
    runs: tuple[Run, ...]
    states: tuple[str, ...]

    @property
    def plan(self) -> dict[str, Any]:
        """What was asked for, of the first of the runs."""
        return self.runs[0].plan

    @property
    def task(self) -> str:
        """What it trained."""
        return str(self.plan["task"])

    @property
    def levels(self) -> dict[str, str]:
        """The text of each level by its name, "level 0"; further stacks of a loop's param groups follow."""
        stacks = [levels(text) for text in _stacks(self.plan)]
        prefixes = ("", *(f"group {i} " for i in range(1, len(stacks))))
        return {f"{p}level {k}": text for p, s in zip(prefixes, stacks, strict=True) for k, text in enumerate(s)}

    @property
    def setting(self) -> dict[str, str]:
        """What it was asked to do beside the stack: epochs, batch size, a schedule that is not constant, device."""
        found = {name: self.plan.get(name) for name in ("epochs", "batch_size", "schedule")}
        found["schedule"] = None if found["schedule"] == CONSTANT else found["schedule"]
        return {name: str(x) for name, x in found.items() if x is not None} | {"device": device_kind(self.plan)}

    @property
    def seeds(self) -> list[Any]:
        """The seed of each run, as far as they are known."""
        return [run.plan["seed"] for run in self.runs if run.plan.get("seed") is not None]

    @property
    def labelled(self) -> list[tuple[str, Run]]:
        """Each run with a name of its own: "A", or "A seed 0" where there are several, "A run 1" without seeds."""
        if len(self.runs) == 1:
            return [(self.letter, self.runs[0])]
        known = len(self.seeds) == len(self.runs)
        names = [f"seed {seed}" for seed in self.seeds] if known else [f"run {i + 1}" for i in range(len(self.runs))]
        return [(f"{self.letter} {name}", run) for name, run in zip(names, self.runs, strict=True)]

    @property
    def finished(self) -> list[Run]:
        """The runs that enter means: those that came to their end, and did not diverge."""
        return self.having("finished")

    @property
    def counted(self) -> list[Run]:
        """Whose records the summaries of hyperparameters are of.

        The finished ones; where there are none, those that have not ended; where all diverged, these.
        """
        return self.finished or [r for r, s in zip(self.runs, self.states, strict=True) if s != BAD] or [*self.runs]

    def having(self, *states: str) -> list[Run]:
        """The runs in one of these states."""
        return [run for run, state in zip(self.runs, self.states, strict=True) if state in states]

    def spread(self, figure: str) -> Spread:
        """A figure of the summary, such as "test_error", over the finished runs."""
        return Spread.of(_number(run.summary.get(figure)) for run in self.finished if run.summary)

    @cached_property
    def steps(self) -> list[int]:
        """The different numbers of steps of the finished runs, ascending; of the others where none is finished."""
        return sorted({_steps(run) for run in self.counted})

    @cached_property
    def keys(self) -> dict[str, KeySummary]:
        """The summary of each hyperparameter over the runs in `counted`."""
        found = [statistics(run.record) for run in self.counted]
        names = dict.fromkeys(key for each in found for key in each)
        return {key: KeySummary.of([each[key] for each in found if key in each]) for key in names}

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON but for numbers that are not finite."""
        return {
            "letter": self.letter,
            "task": self.task,
            "stack": self.runs[0].stack,
            "levels": self.levels,
            "setting": self.setting,
            "runs": [_described(*each) for each in zip(self.labelled, self.states, strict=True)],
            **{name: asdict(self.spread(name)) for name in ("test_error", "train_loss", "seconds")},
            "steps": self.steps,
            "keys": {key: asdict(summary) for key, summary in self.keys.items()},
        }


def grouped(runs: Sequence[Run], sort: str | None = None) -> list[Group]:
    """The groups of some runs, in the order in which they are given, or from the best of `sort`.

    sort: "error", the smallest mean test error of each task first; "time", the shortest first; "name", by task and
    stack. Groups without such a figure come last. A second run of one seed is no further sample of chance: it stands
    in a group of its own, as does what differs in anything but the seed.
    """
    found: dict[str, list[Run]] = {}
    for run in runs:
        kind, seed, again = _kind(run.plan), run.plan.get("seed"), 0
        while seed is not None and any(other.plan.get("seed") == seed for other in found.get(f"{again}{kind}", ())):
            again += 1
        found.setdefault(f"{again}{kind}", []).append(run)
    unnamed = [_group(members) for members in found.values()]
    if sort:
        unnamed.sort(key=ORDERS[sort])
    return [replace(group, letter=letter(i)) for i, group in enumerate(unnamed)]


def best(groups: Sequence[Group]) -> list[Group]:
    """For each task that several groups have a test error of, the group whose mean is the smallest."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        if group.spread("test_error").n:
            found.setdefault(group.task, []).append(group)
    return [min(rivals, key=_error) for rivals in found.values() if len(rivals) > 1]


def difference(one: Group, other: Group) -> tuple[float, float | None] | None:
    """By how much the mean test error of `one` is above that of `other`, and the standard error of that.

    sqrt(s₁²/n₁ + s₂²/n₂), as in Welch's test; None with fewer than two seeds on a side. None where an error is missing.
    """
    mine, theirs = one.spread("test_error"), other.spread("test_error")
    if mine.mean is None or theirs.mean is None:
        return None
    known = mine.error is not None and theirs.error is not None
    return mine.mean - theirs.mean, math.hypot(mine.error or 0.0, theirs.error or 0.0) if known else None


def keys_of(groups: Sequence[Group]) -> list[str]:
    """Every key of any group, level by level; within a level as the first group that has it."""
    return sorted(dict.fromkeys(key for group in groups for key in group.keys), key=_place)


def letter(i: int) -> str:
    """The name of group `i`: A to Z, AA, AB, ..."""
    return (letter(i // 26 - 1) if i >= 26 else "") + string.ascii_uppercase[i % 26]


def device_kind(plan: dict[str, Any]) -> str:
    """The kind of device of a run: "cuda" of "cuda:1"."""
    return str(plan.get("device", "-")).partition(":")[0]


def _place(key: str) -> tuple[str, int]:
    """The param group and the level of a key; of what is no key of ours, none."""
    try:
        return parts(key)[:2]
    except ValueError:
        return key, -1


def _group(members: list[Run]) -> Group:
    runs = tuple(sorted(members, key=lambda run: _ordered(run.plan.get("seed"))))
    return Group("", runs, tuple(run.state for run in runs))


def _kind(plan: dict[str, Any]) -> str:
    """What the runs of a group have in common; as text, since a plan may hold anything."""
    common = [plan["task"], *_stacks(plan), plan.get("epochs"), plan.get("batch_size"), device_kind(plan)]
    common.append(plan.get("schedule", CONSTANT))
    return json.dumps(common)


def _stacks(plan: dict[str, Any]) -> list[str]:
    """The text of each stack: of the first param group, and of others that have another."""
    found = plan.get("stacks")
    return [str(text) for text in found] if isinstance(found, list) and found else [str(plan["stack"])]


def _ordered(seed: Any) -> tuple[bool, float, str]:
    """By which seeds are ordered: numbers first."""
    known = _number(seed)
    return known is None, known or 0.0, str(seed)


def _number(x: Any) -> float | None:
    """A number that a file holds; None where it is none."""
    try:
        return float(x) if isinstance(x, int | float) else None
    except OverflowError:
        return None


def _steps(run: Run) -> int:
    """How far a run came: as its summary says, or as it was recorded."""
    if run.summary:
        return int(run.summary["steps"])
    return int(run.record.steps[-1]) if len(run.record) else 0


def _described(labelled: tuple[str, Run], state: str) -> dict[str, Any]:
    label, run = labelled
    names = ("test_error", "train_loss", "seconds", "steps")
    figures = {name: (run.summary or {}).get(name) for name in names}
    return {"label": label, "path": str(run.path), "seed": run.plan.get("seed"), "state": state, **figures}


def _error(group: Group) -> float:
    mean = group.spread("test_error").mean
    return math.inf if mean is None else mean


def _time(group: Group) -> float:
    mean = group.spread("seconds").mean
    return math.inf if mean is None else mean


ORDERS: dict[str, Callable[[Group], tuple[Any, ...]]] = {
    "error": lambda group: (group.task, _error(group)),
    "time": lambda group: (_time(group),),
    "name": lambda group: (group.task, group.runs[0].stack),
}
