"""The published figures of an experiment for the stacks of a sweep."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from hyperstack.dsl import parse
from hyperstack.errors import InputError
from hyperstack.experiments.comparison import Comparison
from hyperstack.experiments.experiment import AnyExperiment, Experiment, Part, Series
from hyperstack.sweep.planning import SweepPlan
from hyperstack.tasks import same_task

OTHERS = "name one of those stacks, or another experiment: hyperstack reproduce --list"


@dataclass(frozen=True)
class Published:
    """The published test errors, 0 to 1, of one stack by the values of its free name; None is that of a stack that
    has none. `part`: how they were trained.
    """

    stack: str
    errors: dict[float | None, float]
    part: Part

    def bound(self) -> dict[str, float]:
        """The same by the stack with its name bound."""
        stack = parse(self.stack)
        names = stack.free_names
        return {str(stack.bind(**dict.fromkeys(names, value or 0.0))): error for value, error in self.errors.items()}


def beside(experiment: AnyExperiment, plan: SweepPlan, stacks: Collection[str]) -> list[Published]:
    """What an experiment says of these stacks, each with one free name or none, for the task of a sweep.

    Of several parts the first with the sweep's batch size counts, else the first. Raises InputError where the
    experiment says nothing of any of them, or gives no test errors.
    """
    if isinstance(experiment, Comparison):
        what = f"{experiment.name} compares optimizers, and has no published figures"
        raise InputError(what, instead="leave --published out, or choose another experiment")
    if experiment.measure == "training loss":
        what = f"{experiment.name} gives training losses, and a sweep shows test errors"
        raise InputError(what, instead="leave --published out, or choose another experiment")
    parts = [part for part in experiment.parts if same_task(part.task, plan.task)]
    if not parts:
        tasks = ", ".join(dict.fromkeys(part.task for part in experiment.parts))
        what = f"{experiment.name} has no curve for {plan.task}"
        raise InputError(what, why=f"it is on {tasks}", instead="see: hyperstack reproduce --list")
    found: dict[str, Published] = {}
    for part in sorted(parts, key=lambda part: part.batch_size != plan.batch_size):
        for series in part.series:
            stack, errors = str(parse(series.stack)), _errors(experiment, part, series)
            if stack in stacks and errors:
                found.setdefault(stack, Published(stack, errors, part))
    if not found:
        there = dict.fromkeys(str(parse(series.stack)) for part in parts for series in part.series)
        why = "it has:\n" + "\n".join(f'  --stack "{stack}"' for stack in there)
        raise InputError(f"{experiment.name} has no curve for these stacks", why=why, instead=OTHERS)
    return list(found.values())


def _errors(experiment: Experiment, part: Part, series: Series) -> dict[float | None, float]:
    right = experiment.measure == "test accuracy"
    pairs = zip(part.values(series), series.published, strict=True)
    return {value: (100 - figure if right else figure) / 100 for value, figure in pairs if figure is not None}
