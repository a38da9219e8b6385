"""What came out of an experiment, as plain values: what is printed, drawn, and stored as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hyperstack.experiments import standing
from hyperstack.experiments.comparison import Comparison, Contest
from hyperstack.experiments.experiment import AnyExperiment, Claim, Experiment, Part, Series
from hyperstack.experiments.trained import Trained
from hyperstack.experiments.verdicts import INCONCLUSIVE, NOT_REPRODUCED, RULE, Verdict, compared, judged
from hyperstack.experiments.work import Asked, Piece, Results, extent, share
from hyperstack.reports.text import number
from hyperstack.sweep.planning import SweepPlan
from hyperstack.telemetry.summary import versions

Figures = dict[tuple[str, float | None], dict[int, float | None]]


def outcome(experiment: AnyExperiment, asked: Asked, pieces: Sequence[Piece], found: Results) -> Any:
    """All that came out, ready for JSON."""
    own = _compared(pieces, found) if isinstance(experiment, Comparison) else _published(experiment, pieces, found)
    trained = [piece.part for piece in pieces]
    return {
        "experiment": experiment.name,
        "command": asked.command(),
        "title": experiment.title,
        "digits": experiment.digits,
        "share": float(f"{share(pieces):.6g}"),
        "note": asked.note,
        "remarks": list(experiment.remarks),
        "versions": versions(),
        **own,
        "not_run": own["not_run"]
        + [
            {"row": part.name, "published": "", "why": _why_left_out(part, asked)}
            for part in experiment.parts
            if part not in trained
        ],
    }


def _published(experiment: Experiment, pieces: Sequence[Piece], found: Results) -> dict[str, Any]:
    """What the tables of a document come to: published and measured side by side."""
    parts = [(piece.part, piece) for piece in pieces if isinstance(piece.part, Part)]  # one piece a part
    return {
        "source": asdict(experiment.source),
        "measure": experiment.measure,
        "unit": unit(experiment),
        "rule": list(RULE),
        "parts": [_part(experiment, part, piece, found) for part, piece in parts],
        "not_run": [asdict(each) for each in experiment.not_run],
    }


def _compared(pieces: Sequence[Piece], found: Results) -> dict[str, Any]:
    """What a comparison comes to."""
    parts = list(dict.fromkeys(piece.part for piece in pieces if isinstance(piece.part, Contest)))
    return {
        "measure": "test error",
        "unit": "%",
        "rule": list(standing.RULE),
        "parts": [standing.standing(part, pieces, found) for part in parts],
        "not_run": [
            {"row": f"{part.name}: {each.label}", "published": "", "why": each.why_not}
            for part in parts
            for each in part.entrants
            if each.why_not
        ],
    }


def unit(experiment: Experiment) -> str:
    """What the figures count."""
    return "times 100" if experiment.measure == "training loss" else "%"


def _why_left_out(part: Trained, asked: Asked) -> str:
    left_out = asked.parts and part.name not in asked.parts
    return "left out by --part" if left_out else "it needs data of your own: --data-dir"


def _part(experiment: Experiment, part: Part, piece: Piece, found: Results) -> Any:
    plan, results = piece.plan, found.get(piece.folder, {})
    cells = plan.cells()
    by_stack: dict[tuple[str, int], Mapping[str, Any]] = {
        (str(cells[i].stack), cells[i].seed): result for i, result in results.items()
    }
    figures: Figures = {}
    rows = []
    for series in part.series:
        for value, published, spread in zip(part.values(series), series.published, series.spread, strict=True):
            ended = {s: r for s in plan.seeds if (r := by_stack.get((series.bound(value), s))) is not None}
            own = figures[series.label, value] = {s: _figure(experiment.measure, r) for s, r in ended.items()}
            diverged = sum(bool(r["diverged"]) for r in ended.values())
            rows.append(_row(experiment, part, plan, series, value, published, spread, own, diverged))
    return {
        **extent([piece], found),
        "schedule": plan.schedule,
        "series": [{"label": s.label, "stack": s.stack, "name": s.name} for s in part.series],
        "rows": rows,
        "claims": [_claim(experiment, part, plan, claim, figures) for claim in part.claims],
    }


def _row(
    experiment: Experiment,
    part: Part,
    plan: SweepPlan,
    series: Series,
    value: float | None,
    published: float | None,
    spread: float | None,
    own: dict[int, float | None],
    diverged: int,
) -> dict[str, Any]:
    """A row: one stack at one value of its free name."""
    known = [x for x in own.values() if x is not None]
    found: Verdict | None = None
    whole = plan.passes >= part.epochs
    if known and len(known) == len(own):
        found = judged(
            known,
            math.nan if published is None else published,
            spread=spread,
            runs=part.published_runs,
            digits=experiment.digits,
            percent=experiment.measure != "training loss",
            whole=whole,
        )
    broken = NOT_REPRODUCED if whole and len(own) > 1 else INCONCLUSIVE
    verdict = found.verdict if found else broken if own else "not run"
    return {
        "series": series.label,
        "value": value,
        "stack": series.bound(value),
        "published": published,
        "spread": spread,
        "figures": {str(seed): x for seed, x in own.items()},
        "diverged": diverged,
        "mean": found.mean if found else None,
        "half": found.half if found else None,
        "allowed": found.allowed if found and published is not None else None,
        "verdict": None if published is None and own else verdict,
    }


def _claim(experiment: Experiment, part: Part, plan: SweepPlan, claim: Claim, figures: Figures) -> dict[str, Any]:
    """A comparison, seed by seed."""
    first, second = figures[claim.first], figures[claim.second]
    sign = -1.0 if experiment.measure == "test accuracy" else 1.0
    pairs = [(second[seed], first[seed]) for seed in first if seed in second]
    gains = [sign * (b - a) for b, a in pairs if a is not None and b is not None]
    found = compared(gains, claim.within, plan.passes >= part.epochs) if gains and len(gains) == len(pairs) else None
    return {
        "says": says(part, claim),
        "within": claim.within,
        "gains": gains,
        "mean": found.mean if found else None,
        "half": found.half if found else None,
        "verdict": found.verdict if found else INCONCLUSIVE if pairs else "not run",
    }


def says(part: Part, claim: Claim) -> str:
    """A claim in words."""
    name = {series.label: series.name for series in part.series}
    same = claim.first[1] == claim.second[1]
    sides = [
        label if value is None or same else f"{label} at {name[label]} = {number(value)}"
        for label, value in (claim.first, claim.second)
    ]
    alike = f"{sides[0]} and {sides[1]} differ by at most {claim.within:g}" if claim.within is not None else ""
    common = f" at {name[claim.first[0]]} = {number(claim.first[1])}" if same and claim.first[1] is not None else ""
    return (alike or f"{sides[0]} is better than {sides[1]}") + common


def _figure(measure: str, result: Mapping[str, Any]) -> float | None:
    """What the document gives, of one run; None where it is no number."""
    if measure == "training loss":
        loss = result["final_loss"]
        return None if loss is None else 100.0 * float(loss)
    error = 100.0 * float(result["test_error"])
    return error if measure == "test error" else 100.0 - error
