"""How much of an experiment is run, and the running of it: a sweep for each part, in a folder of its own."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from hyperstack.devices import device_failures
from hyperstack.errors import InputError
from hyperstack.experiments.experiment import Experiment, Part
from hyperstack.sweep.folder import SweepFolder
from hyperstack.sweep.grid import Cell
from hyperstack.sweep.planning import SweepPlan
from hyperstack.sweep.run import sweep
from hyperstack.tasks import fetch, get_task

ASKED = "reproduce.json"
NAME_ONE = "name a folder that hyperstack reproduce made"
Results = dict[str, dict[int, dict[str, Any]]]


@dataclass(frozen=True)
class Asked:
    """What is asked for: an experiment, or some of its parts, and how much of the work.

    scale: the share of it, above 0 to 1; seeds: so many instead. note: what is to be said beside the figures.
    """

    experiment: str
    scale: float
    seeds: int | None
    parts: list[str]
    device: str
    note: str

    def write(self, path: Path) -> None:
        """Note it in a folder."""
        write_json(path / ASKED, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Asked:
        """What was asked for in a folder; an InputError where it is none of ours."""
        kinds: dict[str, Any] = {
            "experiment": str, "scale": (int, float), "seeds": (int, type(None)), "parts": list, "device": str,
            "note": str,
        }  # fmt: skip
        try:
            content = json.loads((path / ASKED).read_text(encoding="utf-8"))
            return cls(**{f.name: _of_kind(content[f.name], kinds[f.name]) for f in fields(cls)})
        except OSError as error:
            raise InputError(f"cannot read {path / ASKED}", why=str(error.strerror), instead=NAME_ONE) from None
        except (ValueError, LookupError, TypeError, RecursionError):
            raise InputError(f"{path / ASKED} is damaged", instead=NAME_ONE) from None

    def command(self) -> str:
        """The command that asks for it."""
        words = ["hyperstack", "reproduce", self.experiment]
        words += ["--scale", f"{self.scale:g}"] if self.scale != 1 else []
        words += ["--seeds", str(self.seeds)] if self.seeds else []
        words += [word for name in self.parts for word in ("--part", name)]
        return shlex.join(words)

    def chosen(self, experiment: Experiment) -> list[Part]:
        """The parts that are asked for, in the order of the experiment."""
        known = [part.name for part in experiment.parts]
        if wrong := [name for name in self.parts if name not in known]:
            what = f"{experiment.name} has no part {wrong[0]!r}"
            raise InputError(what, instead=f"its parts are {', '.join(known)}")
        return [part for part in experiment.parts if not self.parts or part.name in self.parts]

    def plan(self, part: Part) -> SweepPlan:
        """The sweep of a part."""
        task = get_task(part.task)
        epochs, seeds = scaled(part.epochs, part.seeds, self.scale)
        return SweepPlan(
            task=part.task,
            stacks=[each.bound(None) for each in part.series],
            grid=part.grid,
            seeds=list(range(self.seeds or seeds)),
            epochs=epochs,
            device=self.device,
            batch_size=part.batch_size,
            threads=task.threads or torch.get_num_threads(),
        )


def scaled(epochs: int, seeds: int, scale: float) -> tuple[int, int]:
    """Epochs and seeds that make up that share of the work, or less; one epoch of one seed at least.

    First seeds are left out, down to two, which an interval needs; then epochs; and where one epoch of two seeds is
    too much, the second seed.
    """
    wanted = scale * seeds * epochs + 1e-9
    kept = max(min(2, seeds), math.floor(wanted / epochs))
    if wanted < kept:
        return 1, 1
    return min(epochs, math.floor(wanted / kept)), kept


def work(part: Part, epochs: int, seeds: int) -> int:
    """Epochs of all its runs."""
    return epochs * seeds * sum(len(part.values(each)) for each in part.series)


def share(pairs: Sequence[tuple[Part, SweepPlan]]) -> float:
    """The share of the work of these parts that their plans are; every epoch of a run counts alike."""
    done = sum(work(part, plan.epochs, len(plan.seeds)) for part, plan in pairs)
    return done / sum(work(part, part.epochs, part.seeds) for part, _ in pairs)


def hours(experiment: Experiment, pairs: Sequence[tuple[Part, SweepPlan]]) -> float:
    """About how long that takes on two CPU cores; parts on the user's own data are not in the experiment's hours."""
    counted = [(part, plan) for part, plan in pairs if not part.own_data]
    every = [part for part in experiment.parts if not part.own_data]
    whole = sum(work(part, part.epochs, part.seeds) for part in every)
    return experiment.hours * sum(work(part, plan.epochs, len(plan.seeds)) for part, plan in counted) / whole


def run(
    parts: Sequence[tuple[Part, SweepPlan]],
    path: Path,
    data_dir: Path | None,
    *,
    jobs: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    after_cell: Callable[[Part, Cell, dict[str, Any]], None] = lambda part, cell, result: None,
    notify: Callable[[str], None] = lambda line: None,
) -> Results:
    """Train what has no result in the folder yet, part after part; the results of each part, by place in its plan.

    data_dir: where the data of those parts are that take the user's own, or if there are none, of all parts.
    """
    own = any(part.own_data for part, _ in parts)
    found: Results = {}
    for part, plan in parts:
        folder = SweepFolder(path / part.name)
        if (folder.path / "sweep.json").exists():
            plan.check_resumes(folder.read_plan())
        results = folder.results(plan, plan.cells())
        if len(results) < len(plan.cells()) and not stop():
            task = get_task(part.task)
            with device_failures():
                source = data_dir if part.own_data or not own else None
                data = task.load(source, torch.device(plan.device), notify)
            folder.path.mkdir(exist_ok=True)
            with folder.locked():
                folder.begin(plan)

                def told(cell: Cell, result: dict[str, Any], part: Part = part) -> None:
                    after_cell(part, cell, result)

                results = sweep(plan, task, data, folder, jobs=jobs, stop=stop, after_cell=told, notify=notify)
        found[part.name] = results
    return found


def write_json(path: Path, content: Any) -> None:
    """A file, as a whole or not at all."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    fetch.write_atomically(path, text.encode(), instead="make room, and go on with --resume: no finished run is lost")


def _of_kind(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind) or (kind is list and not all(isinstance(each, str) for each in value)):
        raise TypeError
    return value
