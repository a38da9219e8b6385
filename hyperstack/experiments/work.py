"""How much of an experiment is run, and the running of it: a sweep or more for each part, in folders of their own."""

from __future__ import annotations

import json
import math
import shlex
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from hyperstack.devices import device_failures
from hyperstack.errors import InputError
from hyperstack.experiments.experiment import AnyExperiment
from hyperstack.experiments.trained import Trained
from hyperstack.schedule import Schedule
from hyperstack.sweep.folder import SweepFolder
from hyperstack.sweep.grid import Cell, size
from hyperstack.sweep.planning import SweepPlan
from hyperstack.sweep.run import sweep
from hyperstack.tasks import fetch, get_task

ASKED = "reproduce.json"
NAME_ONE = "name a folder that hyperstack reproduce made"
Results = dict[str, dict[int, dict[str, Any]]]


@dataclass(frozen=True)
class Piece:
    """One sweep of an experiment: of a part, or of one entrant in it. `folder`: below the folder of the whole.

    seeds: from which to which of the part's it is for. best_of: the piece in which the one value of its grid has to be
    found; until then it holds the first.
    """

    part: Trained
    folder: str
    plan: SweepPlan
    seeds: tuple[int, int | None]
    best_of: Piece | None = None

    @property
    def whole(self) -> float:
        """Epochs of all its runs in the whole experiment."""
        return self.work(self.part.epochs, len(range(self.part.seeds)[slice(*self.seeds)]))

    def work(self, epochs: float, seeds: int) -> float:
        """Epochs of all its runs, if these were the epochs and seeds."""
        return epochs * size(self.plan.stacks, self.plan.grid, seeds)

    def results(self, path: Path) -> dict[int, dict[str, Any]]:
        """What there is of it below a folder, by place in the plan that is tuned there."""
        plan = self.tuned(path).plan
        return SweepFolder(path / self.folder).results(plan, plan.cells())

    def tuned(self, path: Path) -> Piece:
        """Itself with the value that is found below a folder, once the piece that finds it has ended there."""
        if self.best_of is None or self.best_of.left(path):
            return self
        ((name, _),) = self.plan.grid.items()
        errors: dict[float, list[float]] = {}
        cells = self.best_of.plan.cells()
        for place, result in self.best_of.results(path).items():
            errors.setdefault(dict(cells[place].values)[name], []).append(result["test_error"])
        best = min(errors, key=lambda value: statistics.fmean(errors[value]))
        return replace(self, plan=replace(self.plan, grid={name: [best]}))

    def left(self, path: Path) -> float:
        """The share of its runs that have no result there."""
        cells = self.plan.cells()
        return 1 - len(self.results(path)) / len(cells) if cells else 0.0


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

    def chosen(self, experiment: AnyExperiment) -> list[Trained]:
        """The parts that are asked for, in the order of the experiment."""
        known = [part.name for part in experiment.parts]
        if wrong := [name for name in self.parts if name not in known]:
            what = f"{experiment.name} has no part {wrong[0]!r}"
            raise InputError(what, instead=f"its parts are {', '.join(known)}")
        return [part for part in experiment.parts if not self.parts or part.name in self.parts]

    def pieces(self, part: Trained) -> list[Piece]:
        """The sweeps of a part, each after what tunes it. A drop of the rate comes in proportion to the epochs left."""
        epochs, seeds, of_examples = scaled(part.epochs, part.seeds, self.scale)
        common: dict[str, Any] = {
            "task": part.task,
            "epochs": epochs,
            "device": self.device,
            "batch_size": part.batch_size,
            "threads": get_task(part.task).threads,
            "share": of_examples,
        }
        found: dict[str, Piece] = {}
        for folder, own in part.sweeps.items():
            schedule = str(Schedule.parse(own.schedule).scaled(epochs * of_examples / part.epochs))
            before = found[own.best_of] if own.best_of else None
            grid = {name: values[:1] for name, values in own.grid.items()} if before else own.grid
            chosen = list(range(self.seeds or seeds))[slice(*own.seeds)]
            plan = SweepPlan(stacks=own.stacks, grid=grid, seeds=chosen, schedule=schedule, **common)
            found[folder] = Piece(part, folder, plan, own.seeds, before)
        return [*found.values()]


def scaled(epochs: int, seeds: int, scale: float) -> tuple[int, int, float]:
    """Epochs, seeds and the share of the examples that make up that share of the work, or less.

    First seeds are left out, down to two, which an interval needs; then epochs; where one epoch of two seeds is too
    much, the second seed; and where one epoch of one is too much, examples.
    """
    wanted = scale * seeds * epochs + 1e-9
    kept = max(min(2, seeds), math.floor(wanted / epochs))
    if wanted < kept:
        return 1, 1, min(1.0, round(wanted, 8))
    return min(epochs, math.floor(wanted / kept)), kept, 1.0


def share(pieces: Sequence[Piece], path: Path | None = None) -> float:
    """The share of the work of these pieces that their plans are, or what of these has no result below `path`.

    Every epoch of a run counts alike.
    """
    counts = [piece.left(path) if path else 1.0 for piece in pieces]
    done = sum(c * p.work(p.plan.passes, len(p.plan.seeds)) for c, p in zip(counts, pieces, strict=True))
    return done / sum(piece.whole for piece in pieces)


def extent(pieces: Sequence[Piece], found: Results) -> dict[str, Any]:
    """How much was trained in a part, whose pieces these are, as plain values."""
    part, plan = pieces[0].part, pieces[0].plan
    return {
        "name": part.name,
        "task": part.task,
        "epochs": plan.passes,
        "epochs_published": part.epochs,
        "examples": plan.share,
        "batch_size": part.batch_size,
        "seeds": sorted({seed for piece in pieces for seed in piece.plan.seeds}),
        "seeds_asked": part.seeds,
        "cells": sum(len(piece.plan.cells()) for piece in pieces),
        "cells_done": sum(len(found.get(piece.folder, {})) for piece in pieces),
    }


def hours(experiment: AnyExperiment, pieces: Sequence[Piece], path: Path | None = None) -> float:
    """About how long that takes on two CPU cores, or what has no result below `path`; parts on the user's own data are
    not in the experiment's hours.
    """
    by_part: dict[str, list[Piece]] = {}
    for piece in pieces:
        by_part.setdefault(piece.part.name, []).append(piece)
    return sum(experiment.hours_of(own[0].part) * share(own, path) for own in by_part.values())


def check_resumes(pieces: Sequence[Piece], path: Path) -> None:
    """An InputError unless what lies in a folder can go on as these pieces, which may have more seeds."""
    for piece in pieces:
        folder = SweepFolder(path / piece.folder)
        if (folder.path / "sweep.json").exists():
            piece.tuned(path).plan.check_resumes(folder.read_plan())


def run(
    pieces: Sequence[Piece],
    path: Path,
    data_dir: Path | None,
    *,
    jobs: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    after_cell: Callable[[Piece, Cell, dict[str, Any]], None] = lambda piece, cell, result: None,
    notify: Callable[[str], None] = lambda line: None,
) -> Results:
    """Train what has no result in the folder yet, piece after piece; the results by folder and place in its plan.

    data_dir: where the data of those parts are that take the user's own, or if there are none, of all parts.
    """
    own = any(piece.part.own_data for piece in pieces)
    found: Results = {}
    for piece in (each.tuned(path) for each in pieces):  # by those before it
        part, plan, folder = piece.part, piece.plan, SweepFolder(path / piece.folder)
        results = piece.results(path)
        if len(results) < len(plan.cells()) and not stop():
            task = get_task(part.task)
            with device_failures():
                source = data_dir if part.own_data or not own else None
                data = task.load(source, torch.device(plan.device), notify)
            folder.path.mkdir(parents=True, exist_ok=True)
            with folder.locked():
                folder.begin(plan)

                def told(cell: Cell, result: dict[str, Any], piece: Piece = piece) -> None:
                    after_cell(piece, cell, result)

                results = sweep(plan, task, data, folder, jobs=jobs, stop=stop, after_cell=told, notify=notify)
        found[piece.folder] = results
    return found


def write_json(path: Path, content: Any) -> None:
    """A file, as a whole or not at all."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    fetch.write_atomically(path, text.encode(), instead="make room, and go on with --resume: no finished run is lost")


def _of_kind(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind) or (kind is list and not all(isinstance(each, str) for each in value)):
        raise TypeError
    return value
