"""`hyperstack inspect`: what the tower did in a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hyperstack.telemetry.text import number, percent, shortened
from hyperstack_cli.screen import RUN, Whole, out

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from hyperstack.rule import Stack
    from hyperstack.telemetry.statistics import Statistics, TensorStatistics

EPILOG = """\b
Examples:
  hyperstack inspect runs/mnist-001
  hyperstack inspect runs/mnist-001 --level 0
  hyperstack inspect runs/mnist-001 --json

\b
Exit status: 0 shown, 2 wrong input.
"""
WIDE = 116  # columns, from which on values and hypergradients stand side by side
MOST = 8  # parameters of the network that are shown
TALL = 12  # levels that are shown on a terminal unless one asks for more


@click.command(short_help="Show what the tower did in a run.", epilog=EPILOG)
@click.argument("run", type=RUN)
@click.option(
    "--level",
    "wanted",
    multiple=True,
    type=Whole(0),
    metavar="K",
    help="Only level K, counted from 0; may be given several times.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as JSON, for programs.")
def command(run: Path, wanted: tuple[int, ...], as_json: bool) -> None:
    """Show what happened to each hyperparameter in RUN, a folder that `hyperstack train` made.

    \b
    value          first, last, smallest and largest, in natural units
    hypergradient  its absolute value before clipping: the median, the value
                   that 95 % of the steps stay below, and the largest
    clipped        the share of steps in which clipping made it smaller
    nan/inf        the number of steps in which it was no number, or infinite
    gradient of    where the primary level clips the network's gradients, the
                   parameters that it clipped most: the norm before, the share of
                   steps in which it was clipped, and the mean factor in these;
                   and the trust ratio, where a layer-wise rule has one

    All of the recorded steps. What is fixed is not recorded. A run that still trains, or was killed, is shown as far
    as it came.
    """
    from hyperstack.errors import InputError
    from hyperstack.telemetry.runfolder import RunFolder
    from hyperstack.telemetry.statistics import statistics, tensor_statistics

    folder = RunFolder.existing(run)
    plan, summary, record = folder.read_plan(), folder.read_summary(), folder.read_record()
    found, tensors = statistics(record), tensor_statistics(record)
    stack = _stack(plan.stack)
    height = len(stack) if stack else 1 + max((_level(key) for key in found), default=0)
    if beyond := [k for k in wanted if k >= height]:
        raise InputError(f"there is no level {beyond[0]}", instead=f"the levels are 0 to {height - 1}")
    levels = sorted(set(wanted)) or list(range(height))
    if as_json:
        keys = {key: s.as_dict() for key, s in found.items() if _level(key) in levels}
        named = {name: s.as_dict() for name, s in tensors.items()}
        whole = {"plan": plan.as_dict(), "summary": summary, "rows": len(record), "keys": keys, "tensors": named}
        click.echo(json.dumps(whole))
        return
    console = out()
    head = f"{plan.task} · {plan.stack} · seed {plan.seed} · {plan.device}"
    console.print(shortened(head, 3 * console.width), soft_wrap=True)
    console.print(_state(summary, len(record)))
    cut = levels[:TALL] if console.is_terminal and not wanted else levels
    for k in cut:
        _show(console, k, stack, {key: s for key, s in found.items() if _level(key) == k})
        if k == 0 and tensors:
            _show_tensors(console, tensors)
    if len(cut) < len(levels):
        console.print(f"\nand {len(levels) - len(cut)} more levels: see them with --level K, or in a pipe")


def _level(key: str) -> int:
    return int(key.split(".", 1)[0])


def _stack(text: str) -> Stack | None:
    """The stack of a run, or None where one of its rules is not known here."""
    from hyperstack.dsl import parse
    from hyperstack.errors import InputError

    try:
        return parse(text)
    except InputError:
        return None


def _state(summary: dict[str, Any] | None, rows: int) -> str:
    if summary is None:
        return f"not finished: {rows:,} recorded steps so far"
    ended = "diverged" if summary["diverged"] else "finished" if summary["finished"] else "interrupted"
    return (
        f"{ended} after {summary['epochs']} epochs, {summary['steps']:,} steps ({rows:,} recorded), "
        f"{summary['seconds']:.1f} s\n"
        f"test error {percent(summary['test_error'])}, train loss {number(summary['train_loss'])}"
    )


def _show(console: Console, k: int, stack: Stack | None, found: dict[str, Statistics]) -> None:
    """The heading and the tables of level `k`."""
    heading = f"level {k}"
    if stack:
        above = f", learned by level {k + 1}" if k + 1 < len(stack) else ", which nothing above learns"
        heading += f": {stack[k]}{above}"
    console.print(f"\n{heading}", style="bold", soft_wrap=True)
    if not found:
        console.print("  nothing here can be learned")
    else:
        for titles in (VALUES + GRADIENTS,) if console.width >= WIDE else (VALUES, GRADIENTS):
            console.print(_table(found, titles, console.width))
    spread = [name for name, r in stack[k].resolve(1.0).items() if r.per_tensor and r.learned] if stack else []
    if spread:
        console.print(f"  {', '.join(spread)}: one a tensor; shown are their mean and the norm of their hypergradients")


def _show_tensors(console: Console, tensors: dict[str, TensorStatistics]) -> None:
    """The parameters that were clipped most, by name."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 0, 0, 1 if console.width < 72 else 2), pad_edge=True)
    table.add_column("gradient of", no_wrap=True, min_width=13, max_width=24, overflow="ellipsis")
    shown: dict[str, Callable[[TensorStatistics], str]] = {
        "norm 50 %": lambda s: number(s.norm_median, 3),
        "norm max": lambda s: number(s.norm_max, 3),
        "clipped": lambda s: "-" if s.clipped is None else f"{100 * s.clipped:.0f} %",
        "factor": lambda s: number(s.factor, 3),
        "trust 50 %": lambda s: number(s.trust_median, 3),
        "trust max": lambda s: number(s.trust_max, 3),
    }
    first = list(tensors.items())[:MOST]
    columns = {title: [show(s) for _, s in first] for title, show in shown.items()}
    columns = {title: cells for title, cells in columns.items() if set(cells) != {"-"}}
    for title in columns:
        table.add_column(title, justify="right", no_wrap=True)
    for i, (name, _) in enumerate(first):
        table.add_row(name, *(cells[i] for cells in columns.values()))
    console.print(table)
    if len(first) < len(tensors):
        console.print(f"  and {len(tensors) - len(first)} more parameters: see them with --json")


VALUES = ("first", "last", "min", "max")
GRADIENTS = ("50 %", "95 %", "max", "clipped", "nan/inf")


def _table(found: dict[str, Statistics], titles: tuple[str, ...], width: int) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 0, 0, 1 if width < 72 else 2), pad_edge=True)
    table.add_column("hypergradient" if titles == GRADIENTS else "value", no_wrap=True, min_width=13, max_width=20)
    for i, title in enumerate(titles):
        both = len(titles) > len(GRADIENTS) and i == len(VALUES)
        table.add_column(f"hypergradient {title}" if both else title, justify="right", no_wrap=True, min_width=8)
    for key, s in found.items():
        cells = [number(x) for x in (s.first, s.last, s.min, s.max)]
        cells += [number(x, 3) for x in (s.grad_median, s.grad_95, s.grad_max)]
        cells += ["-" if s.clipped is None else f"{100 * s.clipped:.0f} %", str(s.nonfinite)]
        start = len(VALUES) if titles == GRADIENTS else 0
        table.add_row(key.rsplit(".", 1)[1], *cells[start : start + len(titles)])
    return table
