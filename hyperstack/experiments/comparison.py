"""A comparison, as its data file says: who is trained on which tasks, each from the same range of starting rates."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace
from typing import Any

from hyperstack.experiments.fields import Damaged, Fields
from hyperstack.experiments.trained import Trained, Wanted, trained
from hyperstack.rivals import KNOWN, is_there, missing, read_optimizer
from hyperstack.schedule import CONSTANT, Schedule

START = "λ"  # the free name of every entrant


@dataclass(frozen=True)
class Entrant:
    """Who is trained: a stack or a rival whose starting rate is λ, under a schedule.

    default: the start of those who do not tune it; a tower, which is compared with the others, has one. finer: rates
    between the starts of all, from which it is trained too, for the best of them.
    """

    label: str
    text: str
    schedule: str
    default: float | None
    finer: tuple[float, ...] = ()

    @property
    def place(self) -> str:
        """Its folder: the label in small letters, with hyphens."""
        return re.sub(r"[^a-z0-9]+", "-", self.label.lower()).strip("-")

    @property
    def why_not(self) -> str | None:
        """Why it cannot be trained here: its package is not installed."""
        name = self.text.partition("(")[0]
        if name not in KNOWN or is_there(name):
            return None
        error = missing(name)
        return f"{error.what}: {error.instead}"


@dataclass(frozen=True, kw_only=True)
class Contest(Trained):
    """A task on which all entrants are trained, from each of the starts. `hours`: of it on two CPU cores, roughly.

    tuned_with: so many of the seeds tune the rivals, which with the others are trained from their best start alone;
    None: all entrants are trained from every start with every seed.
    """

    hours: float
    tuned_with: int | None
    starts: tuple[float, ...]
    entrants: tuple[Entrant, ...]

    @property
    def sweeps(self) -> dict[str, Wanted]:
        """One for each entrant that can be trained here; another one for each that is tuned by the first."""
        return {folder: wanted for each in self.entrants for folder, wanted in self.sweeps_of(each).items()}

    def sweeps_of(self, each: Entrant) -> dict[str, Wanted]:
        """Those of an entrant."""
        if each.why_not is not None:
            return {}
        folder = f"{self.name}/{each.place}"
        tuned_with = self.tuned_with if each.default is None else None
        first = Wanted([each.text], {START: sorted((*self.starts, *each.finer))}, each.schedule, (0, tuned_with))
        if tuned_with is None:
            return {folder: first}
        return {folder: first, f"{folder}/best": replace(first, seeds=(tuned_with, None), best_of=folder)}


@dataclass(frozen=True)
class Comparison:
    """All of it. `data`: what must be had; `remarks`: what the starts mean, and what was chosen."""

    name: str
    title: str
    digits: int
    data: str
    remarks: tuple[str, ...]
    parts: tuple[Contest, ...]

    @property
    def hours(self) -> float:
        """Of the whole on two CPU cores, roughly."""
        return sum(part.hours for part in self.parts)

    def hours_of(self, part: Any) -> float:
        """Those of a part."""
        return float(part.hours)

    @property
    def about(self) -> str:
        """What it is, and what it needs, in a line."""
        return f"{self.title}. {self.data}"


def comparison(f: Fields) -> Comparison:
    """What the fields of a file say; `Damaged` where they say it wrongly."""
    starts = tuple(f.figures("starts", None))
    if len(starts) < 2 or any(not x or x <= 0 for x in starts) or any(a >= b for a, b in itertools.pairwise(starts)):
        raise Damaged("starts are not two or more rising numbers above 0")
    entrants = tuple(_entrant(each, starts) for each in f.tables("entrants"))
    if len({each.place for each in entrants}) < len(entrants) or not all(each.place for each in entrants):
        raise Damaged("entrants must have different labels")
    if {each.default is None for each in entrants} != {True, False}:
        raise Damaged("there must be entrants with a default, the towers, and entrants without one")
    parts = tuple(_contest(each, starts, entrants) for each in f.tables("parts"))
    if not parts or len({part.name for part in parts}) < len(parts):
        raise Damaged("parts must be there, with different names")
    texts = {name: f.text(name) for name in ("name", "title", "data")}
    found = Comparison(**texts, digits=f.whole("digits", 0), remarks=tuple(f.texts("remarks")), parts=parts)
    f.end()
    return found


def _entrant(f: Fields, starts: tuple[float, ...]) -> Entrant:
    rival = "rival" in f.content
    text = f"{f.text('rival')}({START})" if rival else f.text("stack")
    schedule = f.text("schedule") if "schedule" in f.content else CONSTANT
    default = f.number("default") if "default" in f.content else None
    finer = tuple(f.figures("finer", None, []))
    found = Entrant(f.text("label"), text, str(Schedule.parse(schedule)), default, finer)
    f.end()
    if rival and text.partition("(")[0] not in KNOWN:
        raise Damaged(f"{f.place}{text.partition('(')[0]} is none of {', '.join(KNOWN)}")
    if read_optimizer(text).free_names != (START,):
        raise Damaged(f"{f.place}{START} is not the one free name of {text}")
    if any(not x or x in starts or not starts[0] < x < starts[-1] for x in finer) or len({*finer}) < len(finer):
        raise Damaged(f"{f.place}finer are not different numbers between the starts")
    for start in (*starts, *finer):
        read_optimizer(text).bind(**{START: start}).resolve()
    if default is not None and default not in starts:
        raise Damaged(f"{f.place}the default {default:g} is none of the starts")
    return found


def _contest(f: Fields, starts: tuple[float, ...], entrants: tuple[Entrant, ...]) -> Contest:
    tuned_with = f.whole("tuned_with", 1) if "tuned_with" in f.content else None
    found = Contest(**trained(f), hours=f.number("hours"), tuned_with=tuned_with, starts=starts, entrants=entrants)
    f.end()
    return found
