"""How the entrants of a comparison stand, as plain values: errors by start, the best, the area, and who loses where."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hyperstack.experiments.comparison import START, Contest, Entrant
from hyperstack.experiments.verdicts import interval
from hyperstack.experiments.work import Piece, Results, extent
from hyperstack.reports.text import number

RULE = (
    "Every entrant is trained from every start with the same networks, batches and seeds; figures are mean ± standard "
    "deviation (n - 1) over seeds of the test error after the last epoch. A run that diverges counts with the error it "
    "ends with.",
    "Area: the mean of the error over log10 of the start, by the trapezoid rule: the sum of (e[i] + e[i+1]) / 2 · "
    "(log10 λ[i+1] - log10 λ[i]), divided by log10 of the last start over the first, of the starts that all have in "
    "common; with its 95 % t-interval.",
    "Best: the start with the least mean error, of those that all seeds were trained from. It is chosen by the errors "
    "that are shown, which flatters whoever is tuned, and it takes a run a seed from every start, so many in all; a "
    "tower at its default takes one. Where rivals are tuned with the first seeds, it is the start with the least mean "
    "error of these, and with the other seeds rivals are trained from there alone.",
    "A tower loses to a rival where the 95 % t-interval of the differences between runs of one seed lies wholly above "
    "0, and wins where it lies wholly below. A single seed has no interval, and decides nothing. There are many pairs, "
    "of which one in twenty is expected to be decided by chance.",
)
"""The rule in words, as it is shown with every result."""

LOSES, WINS, OPEN = "loses", "wins", "open"
Errors = dict[float, dict[int, float]]


def standing(part: Contest, pieces: Sequence[Piece], found: Results) -> dict[str, Any]:
    """A part of a comparison: what came out, ready for JSON."""
    own = {piece.folder: piece for piece in pieces if piece.part is part}
    seeds = sorted({seed for piece in own.values() for seed in piece.plan.seeds})
    errors: dict[str, Errors] = {}
    entrants = []
    for each in part.entrants:
        mine = [own[folder] for folder in part.sweeps_of(each) if folder in own]
        if mine:
            results = by_start(mine, found)
            errors[each.label] = {
                start: {seed: 100.0 * float(r["test_error"]) for seed, r in results[start].items()} for start in results
            }
            entrants.append(_entrant(each, mine, part.starts, results, errors[each.label]))
    towers = [each for each in part.entrants if each.default is not None and each.label in errors]
    rivals = [each.label for each in part.entrants if each.default is None and each.label in errors]
    content = {
        **extent(list(own.values()), found),
        "tuned_with": None if part.tuned_with is None else min(part.tuned_with, len(seeds)),
        "starts": list(part.starts),
        "entrants": entrants,
        "duels": [_duel(each.label, rival, start, start, errors)
                  for each in towers for rival in rivals for start in part.starts],
        "defaults": [_at_default(each, rivals, errors) for each in towers if rivals],
    }  # fmt: skip
    return {**content, "says": sentences(content)}


def by_start(pieces: Sequence[Piece], results: Results) -> dict[float, dict[int, Mapping[str, Any]]]:
    """The results by start and seed."""
    found: dict[float, dict[int, Mapping[str, Any]]] = {start: {} for start in pieces[0].plan.grid[START]}
    for piece in pieces:
        own = results.get(piece.folder, {})
        for place, cell in enumerate(piece.plan.cells()):
            if place in own:
                found[dict(cell.values)[START]][cell.seed] = own[place]
    return found


def area(errors: Mapping[float, float]) -> float:
    """The mean of an error over log10 of the start, by the trapezoid rule; the starts rise."""
    points = [(math.log10(start), error) for start, error in errors.items()]
    total = sum((a + b) / 2 * (right - left) for (left, a), (right, b) in itertools.pairwise(points))
    return total / (points[-1][0] - points[0][0])


def _entrant(
    each: Entrant,
    pieces: Sequence[Piece],
    starts: Sequence[float],
    results: Mapping[float, Mapping[int, Any]],
    errors: Errors,
) -> dict[str, Any]:
    planned = Counter(dict(cell.values)[START] for piece in pieces for cell in piece.plan.cells())
    rows = []
    for start, figures in errors.items():
        row: dict[str, Any] = {"start": start, "figures": {str(seed): x for seed, x in figures.items()}}
        row |= {"seeds": planned[start], **_spread(list(figures.values()))}
        rows.append({**row, "diverged": sum(bool(r["diverged"]) for r in results[start].values())})
    known = [row for row in rows if len(row["figures"]) == max(planned.values())]
    whole = [seed for seed in errors[starts[0]] if all(seed in errors[start] for start in starts)]
    areas = [area({start: errors[start][seed] for start in starts}) for seed in whole]
    return {
        "label": each.label,
        "stack": each.text,
        "schedule": pieces[0].plan.schedule,
        "default": each.default,
        "runs": len(rows),
        "rows": rows,
        "best": min(known, key=lambda row: row["mean"])["start"] if known else None,
        "area": _spread(areas),
    }


def _spread(figures: Sequence[float]) -> dict[str, float | None]:
    """Their mean, standard deviation, and half of their 95 % t-interval; None for what so few do not have."""
    if not figures:
        return {"mean": None, "deviation": None, "half": None}
    mean, half = interval(figures)
    return {"mean": mean, "deviation": statistics.stdev(figures) if len(figures) > 1 else None, "half": half}


def _duel(tower: str, rival: str, start: float, at: float, errors: Mapping[str, Errors]) -> dict[str, Any]:
    """By how much the error of the tower from `start` is above that of the rival from `at`, seed by seed."""
    mine, theirs = errors[tower][start], errors[rival][at]
    above = [mine[seed] - theirs[seed] for seed in mine if seed in theirs]
    found = _spread(above)
    mean, half = found["mean"], found["half"]
    verdict = OPEN
    if mean is not None and half is not None and abs(mean) > half:
        verdict = LOSES if mean > 0 else WINS
    return {"tower": tower, "rival": rival, "start": start, "at": at, "mean": mean, "half": half, "verdict": verdict}


def _at_default(tower: Entrant, rivals: Sequence[str], errors: Mapping[str, Errors]) -> dict[str, Any] | None:
    """The tower at its default start against the best of all rivals, each at its best of the starts with most seeds."""
    seeds = max(len(figures) for own in errors.values() for figures in own.values())
    assert tower.default is not None
    means = {
        (rival, start): statistics.fmean(figures.values())
        for rival in rivals
        for start, figures in errors[rival].items()
        if len(figures) == seeds > 0
    }
    if not means or len(errors[tower.label][tower.default]) < seeds:
        return None
    rival, at = min(means, key=lambda place: means[place])
    duel = _duel(tower.label, rival, tower.default, at, errors)
    own = statistics.fmean(errors[tower.label][tower.default].values())
    return {**duel, "error": own, "rival_error": means[rival, at]}


def sentences(part: Mapping[str, Any]) -> list[str]:
    """What the figures of a part say, above all where towers lose."""
    found = []
    tuned = f"starts by {_first(part['tuned_with'])}" if part.get("tuned_with") else "runs a seed"
    runs = {each["label"]: f"the best of {each['runs']} {tuned}" for each in part["entrants"]}
    for tower in dict.fromkeys(duel["tower"] for duel in part["duels"]):
        duels = [duel for duel in part["duels"] if duel["tower"] == tower and duel["mean"] is not None]
        if not duels:
            continue
        found.append(f"{tower}, {_score(duels)}.")
        for rival in dict.fromkeys(duel["rival"] for duel in duels):
            own = [duel for duel in duels if duel["rival"] == rival]
            for single in (False, True):
                found += _losses(tower, rival, [duel for duel in own if (duel["half"] is None) == single], single)
        for each in part["defaults"]:
            if each and each["tower"] == tower:
                found += [_default(each, runs), *_ratios(each, part)]
    return found


def _score(duels: Sequence[Mapping[str, Any]]) -> str:
    """How often a tower won; of single runs, how often its error is the smaller one."""
    several = [duel["verdict"] for duel in duels if duel["half"] is not None]
    single = [duel["mean"] for duel in duels if duel["half"] is None]
    said = []
    if several:
        count = {verdict: several.count(verdict) for verdict in (WINS, LOSES, OPEN)}
        said.append(f"wins {count[WINS]}, loses {count[LOSES]}, undecided {count[OPEN]}")
    if single:
        said.append(f"in {sum(mean < 0 for mean in single)} of {len(single)} with a single run the smaller error")
    return f"against {len(duels)} pairs of a rival and a start: {'; '.join(said)}"


def _losses(tower: str, rival: str, duels: Sequence[Mapping[str, Any]], single: bool) -> list[str]:
    """Where a tower loses to a rival; of single runs, where its error is larger."""
    places = [d for d in duels if d["verdict"] == LOSES or (single and d["mean"] > 0)]
    if not places:
        return []
    what = "has the larger error than" if single else "loses to"
    behind = " (single runs, without an interval)" if single else ""
    said = ", ".join(f"{number(d['start'])} by {_difference(d)}" for d in places)
    return [f"{tower} {what} {rival} from {START} = {said}{behind}."]


def _ratios(duel: Mapping[str, Any], part: Mapping[str, Any]) -> list[str]:
    """The error of a tower from its best and its worst start, in those of the best tuned rival."""
    rows = next(each["rows"] for each in part["entrants"] if each["label"] == duel["tower"])
    seeds = max(len(row["figures"]) for row in rows)
    if any(len(row["figures"]) < seeds for row in rows) or not duel["rival_error"]:
        return []
    ratios = [row["mean"] / duel["rival_error"] for row in rows]
    return [f"{duel['tower']} from any start: {min(ratios):.2f} to {max(ratios):.2f} times the error of that rival."]


def _difference(duel: Mapping[str, Any]) -> str:
    """Without its sign."""
    return f"{abs(duel['mean']):.2f}{_half(duel)}"


def _half(duel: Mapping[str, Any]) -> str:
    return "" if duel["half"] is None else f" ± {duel['half']:.2f}"


def _first(seeds: int) -> str:
    return "the first seed" if seeds == 1 else f"the first {seeds} seeds"


def _default(duel: Mapping[str, Any], runs: Mapping[str, str]) -> str:
    """The sentence about a tower at its default start."""
    one = f"{duel['tower']} from its default, {START} = {number(duel['start'])}, one run a seed: {duel['error']:.2f} %"
    other = (
        f"the best tuned rival, {duel['rival']} from {START} = {number(duel['at'])}, {runs[duel['rival']]}: "
        f"{duel['rival_error']:.2f} %"
    )
    if duel["mean"] is None:
        return f"{one}; {other}: they have no seed in common."
    if duel["verdict"] == OPEN:
        return f"{one}; {other}: undecided, {duel['mean']:+.2f}{_half(duel)} from the rival to the tower."
    return f"{one}; {other}: the tower {duel['verdict']} by {_difference(duel)}."
