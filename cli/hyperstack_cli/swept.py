"""What a sweep came to, on the screen, as JSON and as a picture, with published figures beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from hyperstack.reports.text import number, percent
from hyperstack_cli.pictures import check_drawing, show_panels
from hyperstack_cli.screen import out

if TYPE_CHECKING:
    from hyperstack.experiments.beside import Published
    from hyperstack.experiments.experiment import Part
    from hyperstack.reports.panels import Line, Panel
    from hyperstack.sweep.grid import Cell
    from hyperstack.sweep.planning import SweepPlan
    from hyperstack.sweep.table import Row

CURVES = 30  # more cannot be told apart


@dataclass
class Showing:
    """How the results of a sweep are to be shown: as its options say. published: the name of an experiment."""

    as_json: bool
    quiet: bool
    plot: bool
    png: Path | None
    published: str | None
    figures: list[Published] = field(default_factory=list)

    def check(self, plan: SweepPlan, cells: Sequence[Cell]) -> None:
        """An InputError where that cannot be, before anything is trained; finds the published figures."""
        from hyperstack.errors import InputError
        from hyperstack.experiments import experiment
        from hyperstack.experiments.beside import beside
        from hyperstack.sweep.table import along, axis_name

        check_drawing(self.plot, self.png, self.as_json)
        if not (self.plot or self.png or self.published):
            return
        name = axis_name(plan.grid)
        stacks = {along(name, cell.template, cell.values) for cell in cells}
        if self.published:
            self.figures = beside(experiment.load(self.published), plan, stacks)
        if name is None and (self.plot or self.png):
            raise InputError("this sweep has nothing to draw", why="no value is varied", instead="leave the option out")
        if len(stacks) > CURVES and (self.plot or self.png):
            raise InputError(
                f"this sweep has {len(stacks):,} curves, and no more than {CURVES} can be told apart",
                why=f"it is drawn against {name}, with a curve for each choice of the other values",
                instead="leave the option out, or sweep less at once",
            )

    def show(self, plan: SweepPlan, cells: list[Cell], results: dict[int, dict[str, Any]], path: Path) -> None:
        """The table or the JSON, and where all cells have ended, the pictures."""
        from hyperstack.sweep.table import rows

        known = {stack: error for each in self.figures for stack, error in each.bound().items()}
        if self.as_json:
            said = [
                {"template": cells[i].template, **dict(cells[i].values), **result, **_published(known, result["stack"])}
                for i, result in sorted(results.items())
            ]
            click.echo(json.dumps(said, indent=1, ensure_ascii=False))
        else:
            self._print(plan, rows(cells, results), known, path)
        if (self.plot or self.png) and len(results) == len(cells):
            show_panels(lambda: [panel(plan, rows(cells, results), self.figures)], plot=self.plot, png=self.png)

    def _print(self, plan: SweepPlan, found: list[Row], known: Mapping[str, float], path: Path) -> None:
        console = out()
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column("stack")
        for title in ("test error", "± s.d.", *["published"][: len(known)], "seeds", "diverged"):
            table.add_column(title, justify="right", no_wrap=True)
        for row in found:
            spread = "" if math.isnan(row.deviation) else f"{number(100 * row.deviation, 2)} %"
            beside = [percent(known.get(row.stack))][: len(known)]
            diverged = str(row.diverged) if row.diverged else ""
            table.add_row(row.stack, percent(row.mean), spread, *beside, str(row.runs), diverged)
        console.print(table)
        for how in dict.fromkeys(_how(each.part) for each in self.figures):
            console.print(f"published  {self.published}, {how}; this sweep: {_how(plan)}", soft_wrap=True)
        if not self.quiet:
            console.print(f"results    {path / 'results.csv'}", soft_wrap=True)


def panel(plan: SweepPlan, found: Sequence[Row], published: Sequence[Published]) -> Panel:
    """Test error against the name with the most values: a curve for each stack and choice of the other values, in a
    band of a standard deviation over seeds, and the published ones; what is not varied is level.
    """
    from hyperstack.reports.against import against, curve
    from hyperstack.sweep.table import along, axis_name

    name = axis_name(plan.grid)
    assert name is not None
    ends = [min(plan.grid[name]), max(plan.grid[name])]
    curves: dict[str, list[Row]] = {}
    for row in found:
        curves.setdefault(along(name, row.template, row.values), []).append(row)
    lines: list[Line] = []
    for stack, members in curves.items():
        level = name not in dict(members[0].values)
        members = sorted(members, key=lambda row: dict(row.values).get(name, 0.0)) * (1 + level)
        values = ends if level else [dict(row.values)[name] for row in members]
        means, spreads = [100 * row.mean for row in members], [100 * row.deviation for row in members]
        lines.append(curve(stack, values, means, spreads, [row.diverged for row in members], 100.0))
        for each in (each for each in published if each.stack == stack):
            points = sorted((value, 100 * error) for value, error in each.errors.items() if value is not None)
            points = points or [(end, 100 * each.errors[None]) for end in ends]
            lines.append(curve(f"{stack}, published", [at for at, _ in points], [error for _, error in points]))
    return against(name, plan.task, "test error, %", lines)


def _published(known: Mapping[str, float], stack: str) -> dict[str, float | None]:
    return {"published": known.get(stack)} if known else {}


def _how(trained: Part | SweepPlan) -> str:
    return f"{trained.epochs} epoch{'s' * (trained.epochs > 1)}, batches of {trained.batch_size}"
