"""`hyperstack inspect`: what the tower did in a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hyperstack_cli.screen import number, out, percent

if TYPE_CHECKING:
    from rich.table import Table

    from hyperstack.telemetry.statistics import Statistics


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="The same as JSON, for programs.")
def command(run: Path, as_json: bool) -> None:
    """Show hypergradients, values and clipping of RUN, a folder that `hyperstack train` made.

    For each hyperparameter: its first, last, smallest and largest value; the median, the 95 % quantile and the maximum
    of the absolute raw hypergradient, before clipping; the share of recorded steps in which it was clipped; and in how
    many it was not finite. A run that still trains, or was killed, is shown as far as it was recorded.

    \b
    hyperstack inspect runs/mnist-001
    hyperstack inspect runs/mnist-001 --json
    """
    from hyperstack.dsl import parse
    from hyperstack.telemetry.runfolder import RunFolder
    from hyperstack.telemetry.statistics import statistics

    folder = RunFolder.existing(run)
    plan, summary, record = folder.read_plan(), folder.read_summary(), folder.read_record()
    found = statistics(record)
    if as_json:
        content = {
            "plan": plan,
            "summary": summary,
            "rows": len(record),
            "keys": {k: s.as_dict() for k, s in found.items()},
        }
        click.echo(json.dumps(content, ensure_ascii=False))
        return
    console = out()
    console.print(f"{plan['task']} · {plan['stack']} · seed {plan['seed']}", markup=False, soft_wrap=True)
    console.print(_state(summary, len(record)), soft_wrap=True)
    for k, rule in enumerate(parse(plan["stack"])):
        mine = {key.split(".", 1)[1]: s for key, s in found.items() if key.split(".", 1)[0] == str(k)}
        console.print()
        console.print(f"level {k}: {rule}", markup=False, soft_wrap=True)
        console.print(_table(mine) if mine else "  nothing here is learned")


def _state(summary: dict[str, Any] | None, rows: int) -> str:
    if summary is None:
        return f"not finished, {rows:,} recorded steps so far"
    ended = "diverged" if summary["diverged"] else "finished" if summary["finished"] else "interrupted"
    return (
        f"{ended} after {summary['epochs']} epochs, {summary['steps']:,} steps, {summary['seconds']:.1f} s"
        f" · test error {percent(summary['test_error'])} · {rows:,} recorded steps"
    )


def _table(found: dict[str, Statistics]) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("")
    for title in ("first", "last", "min", "max", "grad 50%", "95%", "max", "clipped", "bad"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, s in found.items():
        figures = (s.first, s.last, s.min, s.max, s.grad_median, s.grad_95, s.grad_max)
        clipped = "-" if s.clipped is None else f"{100 * s.clipped:.0f} %"
        table.add_row(name, *(number(x, 3) for x in figures), clipped, str(s.nonfinite))
    return table
