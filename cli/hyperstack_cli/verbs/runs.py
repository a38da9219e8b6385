"""`hyperstack runs`: what lies under a folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hyperstack.reports.text import percent, printable, shortened
from hyperstack_cli.screen import Whole, as_text, out

if TYPE_CHECKING:
    from hyperstack.reports.listing import Entry

EPILOG = """\b
Examples:
  hyperstack runs
  hyperstack runs runs --task mnist --limit 20
  hyperstack runs --stack "SGD(1e-3, clip)" --state finished
  hyperstack runs --json

\b
Exit status: 0 listed, also where there is no run; 2 wrong input, such as no
such folder.
"""
STATES = ("finished", "diverged", "interrupted", "running", "stopped", "damaged")
GAP = 2  # between columns
LEAST = 8  # characters that a path or a stack is shown with at least
FIRST = ("path", "test error", "state", "stack", "when", "time", "task")  # what is kept longest on a narrow screen


@click.command(short_help="List the runs under a folder.", epilog=EPILOG)
@click.argument("folder", default="runs", type=click.Path(path_type=Path))
@click.option("--task", metavar="NAME", help="Only runs of this task.")
@click.option("--stack", metavar="TEXT", help="Only runs whose stack contains TEXT; spaces and case do not matter.")
@click.option(
    "--state", multiple=True, type=click.Choice(STATES), metavar="STATE", help="Only runs in this state; repeatable."
)
@click.option("--limit", type=Whole(1), metavar="N", help="Only the N newest.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON, for programs.")
def command(
    folder: Path, task: str | None, stack: str | None, state: tuple[str, ...], limit: int | None, as_json: bool
) -> None:
    """List the runs in FOLDER and below it, the one written to last first. FOLDER is ./runs if not given.

    \b
    when        when it was last written to, local time; the age where that is
                too wide: s, min, h, d
    state       finished; diverged; interrupted, with a checkpoint; running;
                stopped: no end, and no process writes it; damaged, with the
                reason below
    test error  of the last epoch, in percent
    time        of training, in seconds

    Numbers in --stack may be written in any way: 1e-5 is 0.00001. Links are not followed, and hidden folders not
    looked into. Records are not read, so that long lists come at once.
    """
    from hyperstack.reports.listing import listed, resembles

    every = listed(folder)
    found = [
        entry
        for entry in every
        if (task is None or entry.task == task)
        and (stack is None or resembles(entry.stack or "", stack))
        and (not state or entry.state in state)
    ]
    shown = found[:limit]
    if as_json:
        click.echo(as_text([entry.as_dict() for entry in shown]))
        return
    console = out()
    ascii_only = console.options.ascii_only

    def say(line: str, style: str = "") -> None:
        text = line.replace("…", ".") if ascii_only else line
        console.print(text.rstrip(), style=style, no_wrap=True, overflow="crop")

    if not every:
        say(shortened(f"no run in {printable(str(folder))}", console.width))
    elif not shown:
        say(shortened(f"none of {len(every):,} runs is like that", console.width))
    else:
        heading, *rows = _table(shown, console.width)
        say(heading, "bold")
        for row in rows:
            say(row)
    for entry in shown:
        if entry.problem:
            say(shortened(printable(f"{entry.path}: {entry.problem}"), console.width))
    if len(shown) < len(found):
        say(f"and {len(found) - len(shown):,} older")


def _table(entries: Sequence[Entry], width: int) -> list[str]:
    """Heading and rows, with as many columns as fit."""
    now = datetime.now(timezone.utc)
    exact = width >= 100
    cells: dict[str, Callable[[Entry], str]] = {
        "path": lambda e: printable(str(e.path)),
        "when": lambda e: f"{e.when:%Y-%m-%d %H:%M}" if exact else _age((now - e.when).total_seconds()),
        "task": lambda e: shortened(printable(e.task or "-"), 12),
        "stack": lambda e: printable(e.stack or "-"),
        "state": lambda e: e.state,
        "test error": lambda e: percent(_number(e.figure("test_error"))),
        "time": lambda e: "-" if _number(e.figure("seconds")) is None else f"{e.figure('seconds'):,.1f} s",
    }
    columns = {name: [name, *map(show, entries)] for name, show in cells.items()}
    natural = {name: max(map(len, column)) for name, column in columns.items()}
    widths = _widths(natural, width)
    return [_row({name: columns[name][i] for name in widths}, widths) for i in range(len(entries) + 1)]


def _widths(natural: dict[str, int], width: int) -> dict[str, int]:
    """The columns that there is room for, and their widths: what is left goes to the paths and the stacks."""
    least = {name: min(LEAST, n) if name in ("path", "stack") else n for name, n in natural.items()}
    kept = list(FIRST)
    while len(kept) > 1 and sum(least[name] + GAP for name in kept) - GAP > width:
        kept.pop()
    widths = {name: least[name] for name in natural if name in kept}
    spare = max(0, width - sum(n + GAP for n in widths.values()) + GAP)
    path, stack = (natural[name] - widths[name] if name in widths else 0 for name in ("path", "stack"))
    more = min(path, max(spare // 2, spare - stack))
    widths["path"] = min(widths["path"] + more, width)
    if "stack" in widths:
        widths["stack"] += min(stack, spare - more)
    return widths


def _row(cells: dict[str, str], widths: dict[str, int]) -> str:
    """A line; of a path that is too long the end is shown, by which paths differ."""
    texts = []
    for name, width in widths.items():
        text = cells[name]
        if name == "path" and len(text) > width:
            text = "…" + text[len(text) - width + 1 :]
        text = shortened(text, width)
        texts.append(text.rjust(width) if name in ("test error", "time") else text.ljust(width))
    return (" " * GAP).join(texts)


def _age(seconds: float) -> str:
    """How long ago, in the largest unit that has passed."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _number(x: Any) -> float | None:
    """A figure of a summary; None where it is no finite number."""
    return x if isinstance(x, float) and math.isfinite(x) else None
