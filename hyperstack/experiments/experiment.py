"""A published experiment, as its data file says: what was trained, which figures are claimed, what is left open.

The form of a file, with every key that it may have, is that of the dataclasses below, or of a `Comparison`, which has
entrants; `load` checks it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from hyperstack.dsl import parse
from hyperstack.errors import InputError
from hyperstack.experiments.comparison import Comparison, comparison
from hyperstack.experiments.fields import Damaged, Fields
from hyperstack.experiments.trained import Trained, Wanted, trained
from hyperstack.schedule import CONSTANT, Schedule
from hyperstack.sweep.grid import cells

MEASURES = ("test error", "test accuracy", "training loss")


@dataclass(frozen=True)
class Source:
    """The document: its title and authors, and the place in it."""

    title: str
    authors: str
    place: str


@dataclass(frozen=True)
class Series:
    """One stack, with the published figure for each value of its free name, in the order of the grid.

    published: None where the document gives no figure. spread: the published standard deviations, or None.
    """

    label: str
    stack: str
    published: tuple[float | None, ...]
    spread: tuple[float | None, ...]

    @property
    def name(self) -> str | None:
        """The free name of the stack."""
        return next(iter(parse(self.stack).free_names), None)

    def bound(self, value: float | None) -> str:
        """The stack at a value of its free name, canonically."""
        stack = parse(self.stack)
        return str(stack if value is None or self.name is None else stack.bind(**{self.name: value}))


@dataclass(frozen=True)
class Claim:
    """A comparison: `first` is better than `second`, or with `within` differs from it by no more than that.

    Each is the label of a series and a value of its free name, None where it has none.
    """

    first: tuple[str, float | None]
    second: tuple[str, float | None]
    within: float | None


@dataclass(frozen=True, kw_only=True)
class Part(Trained):
    """The stacks for a task. `published_runs`: over how many runs a figure is the mean.

    schedule: of the primary level's rate.
    """

    published_runs: int
    grid: dict[str, list[float]]
    series: tuple[Series, ...]
    claims: tuple[Claim, ...]
    schedule: str

    @property
    def sweeps(self) -> dict[str, Wanted]:
        """One, with all stacks."""
        return {self.name: Wanted([each.bound(None) for each in self.series], self.grid, self.schedule)}

    @property
    def work(self) -> int:
        """Epochs of all its runs."""
        return self.epochs * self.seeds * sum(len(self.values(each)) for each in self.series)

    def values(self, series: Series) -> list[float | None]:
        """The values of the series' free name; one None where it has none."""
        return list(self.grid[series.name]) if series.name else [None]


@dataclass(frozen=True)
class NotRun:
    """A row of the document that is not trained here, and why."""

    row: str
    published: str
    why: str


@dataclass(frozen=True)
class Experiment:
    """All of it. `digits`: behind the point of the published figures; `hours`: of the whole on two CPU cores, roughly;
    `data`: what must be had; `remarks`: what the document leaves open, and what was chosen.
    """

    name: str
    title: str
    source: Source
    measure: str
    digits: int
    data: str
    hours: float
    remarks: tuple[str, ...]
    parts: tuple[Part, ...]
    not_run: tuple[NotRun, ...]

    def hours_of(self, part: Any) -> float:
        """Those of a part, by its work; of parts on the user's own data, which are not in the hours, 0."""
        counted = [each for each in self.parts if not each.own_data]
        return float(self.hours * part.work / sum(e.work for e in counted)) if part in counted else 0.0

    @property
    def about(self) -> str:
        """What it is, where it stands, and what it needs, in a line."""
        return f"{self.title}. {self.source.authors.partition(',')[0]}: {self.source.place}. {self.data}"


AnyExperiment = Experiment | Comparison


def names() -> list[str]:
    """The experiments that there are."""
    found = (file.name for file in files(__package__).iterdir())
    return sorted(name.removesuffix(".json") for name in found if name.endswith(".json"))


def load(name: str) -> AnyExperiment:
    """An experiment by its name; an InputError where there is none of that name, or its file is damaged."""
    from difflib import get_close_matches

    if name not in names():
        nearest = get_close_matches(name, names(), n=1, cutoff=0.4)
        hint = f"did you mean {nearest[0]}?" if nearest else "see: hyperstack reproduce --list"
        raise InputError(f"there is no experiment {name!r}", instead=hint)
    return read((files(__package__) / f"{name}.json").read_bytes(), name)


def read(text: str | bytes, name: str) -> AnyExperiment:
    """The experiment that a file's text describes; an InputError that says where it is wrong."""
    try:
        fields = Fields(json.loads(text), "")
        experiment = comparison(fields) if "entrants" in fields.content else _experiment(fields)
        if experiment.name != name:
            raise Damaged(f"name is {experiment.name!r}")
        return experiment
    except (Damaged, ValueError, RecursionError) as error:
        why = "\n".join(str(error).splitlines()[:4])
        raise InputError(
            f"the experiment {name} is damaged", why=why, instead="install hyperstack anew, or repair the file"
        ) from None


def _experiment(f: Fields) -> Experiment:
    source = f.table("source")
    measure = f.text("measure")
    if measure not in MEASURES:
        raise Damaged(f"measure is {measure!r}, and not one of {', '.join(MEASURES)}")
    percent = measure != "training loss"
    parts = tuple(_part(part, percent) for part in f.tables("parts"))
    if not parts or len({part.name for part in parts}) < len(parts):
        raise Damaged("parts must be there, with different names")
    found = Experiment(
        name=f.text("name"),
        title=f.text("title"),
        source=Source(source.text("title"), source.text("authors"), source.text("place")),
        measure=measure,
        digits=f.whole("digits", 0),
        data=f.text("data"),
        hours=f.number("hours"),
        remarks=tuple(f.texts("remarks")),
        parts=parts,
        not_run=tuple(_not_run(each) for each in f.tables("not_run", [])),
    )
    source.end()
    f.end()
    return found


def _not_run(f: Fields) -> NotRun:
    found = NotRun(f.text("row"), f.text("published"), f.text("why"))
    f.end()
    return found


def _part(f: Fields, percent: bool) -> Part:
    grid = f.grid("grid")
    series = tuple(_series(each, grid, percent) for each in f.tables("series"))
    labels = [each.label for each in series]
    if not series or len(set(labels)) < len(labels):
        raise Damaged(f"{f.place}series must be there, with different labels")
    cells([each.stack for each in series], grid, [0])  # an InputError where a value does not fit its place
    found = Part(
        **trained(f),
        published_runs=f.whole("published_runs", 1),
        grid=grid,
        series=series,
        claims=tuple(claim for each in f.tables("claims", []) for claim in _claims(each, series, grid)),
        schedule=str(Schedule.parse(f.text("schedule") if "schedule" in f.content else CONSTANT)),
    )
    f.end()
    return found


def _series(f: Fields, grid: dict[str, list[float]], percent: bool) -> Series:
    stack = f.text("stack")
    free = parse(stack).free_names
    if len(free) > 1 or any(name not in grid for name in free):
        raise Damaged(f"{f.place}the stack {stack} has free names {', '.join(free)}: one at most, which is in the grid")
    count = len(grid[free[0]]) if free else 1
    label, published = f.text("label"), f.figures("published", count)
    spread = f.figures("spread", count, [None] * count)
    f.end()
    if percent and any(x is not None and not 0 <= x <= 100 for x in published):
        raise Damaged(f"{f.place}published holds what is no percentage")
    return Series(label, stack, tuple(published), tuple(spread))


def _claims(f: Fields, series: tuple[Series, ...], grid: dict[str, list[float]]) -> list[Claim]:
    """A claim for each of the values that it is made for."""
    alike = "like" in f.content
    first, second = (f.text(key) for key in (("like", "as") if alike else ("better", "than")))
    within = f.number("within") if alike else None
    at = f.figures("at", None, [None])
    than_at = f.figures("than_at", len(at), at)
    f.end()
    found = []
    for sides in zip(at, than_at, strict=True):
        places = []
        for label, value in zip((first, second), sides, strict=True):
            one = next((each for each in series if each.label == label), None)
            if one is None:
                raise Damaged(f"{f.place}there is no series {label!r}")
            if one.name and (value is None or value not in grid[one.name]):
                raise Damaged(f"{f.place}{value} is not in the grid of {one.name}")
            places.append((label, value if one.name else None))
        found.append(Claim(places[0], places[1], within))
    return found
