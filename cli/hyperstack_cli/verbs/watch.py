"""`hyperstack watch`: a run of another process, while it trains."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hyperstack_cli.screen import RUN, out

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

    from hyperstack.telemetry.follow import Follower
    from hyperstack.telemetry.runfolder import RunFolder

LOOK = 0.5  # seconds between looks on a terminal
LINE = 10.0  # seconds between lines elsewhere
GRACE = 2.0  # seconds: between its last row and its summary a run may hold nothing
PATIENCE = 30.0  # seconds until a run that was begun must have a record
EPILOG = """\b
Examples:
  hyperstack watch runs/mnist-001
  hyperstack watch runs/mnist-001 --interval 2
  hyperstack watch runs/mnist-001 --interval 60 > progress.txt

\b
Files: reads plan.json, record.jsonl and summary.json of the run folder, and
writes nothing.

\b
Exit status: 0 the run ended, or was stopped; 2 wrong input; 130 Ctrl-C, which
ends the watching and not the run.
"""


@click.command(short_help="Follow a run while it trains.", epilog=EPILOG)
@click.argument("run", type=RUN)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.05, max=86_400),
    metavar="SECONDS",
    help="How often to look and to show what is new, in seconds.  [default: 0.5 on a terminal, 10 elsewhere]",
)
def command(run: Path, interval: float | None) -> None:
    """Follow RUN, the folder of a run that trains in another process: one of `hyperstack train` or of hs.record.

    On a terminal: how many of the planned steps are done, the loss of the latest recorded step, and for each learned
    hyperparameter its value in natural units, its course since the first step, its raw hypergradient before clipping,
    and to what share of itself it was clipped, or the cosine of the last probe. Elsewhere, as in a pipe, a line now
    and then.

    It ends when the run does, and shows the result. Where the process of the run was killed it says so, at which step,
    and how to go on. It may begin before the run has a record, and it follows a run that is resumed meanwhile.
    """
    from hyperstack.telemetry.follow import Follower

    if interval is not None and math.isnan(interval):  # which no range keeps out
        raise click.BadParameter("nan is no time.", param_hint="--interval")
    console = out()
    folder = _begun(run)
    plan = folder.read_heading()
    follower = Follower(folder.record)
    live = console.is_terminal and not console.is_dumb_terminal
    shown = _Live(console, plan) if live else _Lines(console, plan, LINE if interval is None else interval)
    with shown:
        summary = _follow(folder, follower, shown, min(LOOK if interval is None else interval, GRACE))
    _tell(console, folder, plan, follower, summary)


def _begun(path: Path) -> RunFolder:
    """The run in `path`; where the folder is there and the run about to begin, wait for it."""
    from hyperstack.errors import InputError
    from hyperstack.telemetry.runfolder import RunFolder

    ends = time.monotonic() + PATIENCE
    while True:
        try:
            return RunFolder.existing(path)
        except InputError:
            begins = path.is_dir() and (not any(path.iterdir()) or RunFolder(path).record.exists())
            if not begins or time.monotonic() > ends:
                raise
        time.sleep(0.1)


def _follow(folder: RunFolder, follower: Follower, shown: _Live | _Lines, pause: float) -> dict[str, Any] | None:
    """Show what is added until the run has ended; its summary, or None where it was stopped."""
    from hyperstack.telemetry.sinks import is_being_written

    began = alive = time.monotonic()
    while True:
        held = is_being_written(folder.record)
        summary = None if held else folder.read_summary()
        if follower.look() or held:  # asked in this order: whoever is done has written all of its rows
            alive = time.monotonic()
        if follower.last:
            shown.show(follower)
        waited = time.monotonic() - (alive if folder.record.exists() else max(alive, began + PATIENCE - GRACE))
        if summary is not None or waited > GRACE:
            shown.end(follower)
            return summary
        time.sleep(pause)


def _tell(
    console: Console, folder: RunFolder, plan: dict[str, Any], follower: Follower, summary: dict[str, Any] | None
) -> None:
    """How the run ended."""
    from hyperstack_cli.outcome import again, inspect_line, is_trained, outcome

    if summary is not None:
        lines = outcome(summary, plan, folder.path)
    else:
        step = int(follower.last.get("step", 0))
        lines = [f"stopped after step {step:,}: no process writes this run any more, and it has no result"]
        if not is_trained(plan) or (folder.path / "checkpoint.pt").exists():
            lines += ["to go on from its last checkpoint:", f"  {again(plan, folder.path, step)}"]
        else:
            lines += ["it has no checkpoint to go on from: start a new run in another folder"]
    for line in [*lines, inspect_line(folder.path)]:
        console.print(line, soft_wrap=True)


def _planned(plan: dict[str, Any]) -> int | None:
    """How many steps are planned, where the plan says so."""
    epochs, each = plan.get("epochs"), plan.get("epoch_steps")
    return epochs * each if isinstance(epochs, int) and isinstance(each, int) else None


class _Live:
    """The view of a terminal; a context manager."""

    def __init__(self, console: Console, plan: dict[str, Any]) -> None:
        from rich.live import Live

        from hyperstack_cli.tower import TowerView, headline

        self.view, self.seen = TowerView(console, plan, _planned(plan)), (-1, -1)
        console.print(headline(plan, console))
        self.live: Live = Live(console=console, auto_refresh=False, transient=False)

    def __enter__(self) -> _Live:
        self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.live.stop()

    def show(self, follower: Follower) -> None:
        """Draw what is new."""
        if self.seen != (follower.restarts, follower.count):
            self.seen = follower.restarts, follower.count
            self.live.update(self.view.draw(follower.last, follower.past), refresh=True)

    def end(self, follower: Follower) -> None:
        """The last view stays."""


class _Lines:
    """A line now and then; a context manager."""

    def __init__(self, console: Console, plan: dict[str, Any], interval: float) -> None:
        from hyperstack_cli.tower import headline

        self.console, self.interval, self.total = console, interval, _planned(plan)
        self.due, self.step, self.restarts = 0.0, -1.0, 0
        console.print(headline(plan, console), soft_wrap=True)

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing is held."""

    def show(self, follower: Follower) -> None:
        """A line, where it is time for one and there is something new."""
        if follower.restarts != self.restarts:
            self.restarts, self.step = follower.restarts, -1.0
            self.console.print(f"the run goes on behind an earlier step, {int(follower.last['step']):,} by now")
        elif time.monotonic() >= self.due:
            self.end(follower)

    def end(self, follower: Follower) -> None:
        """A line, where there is something new."""
        from hyperstack.reports.text import natural, number

        row = follower.last
        if not row or row["step"] == self.step:
            return
        self.due, self.step = time.monotonic() + self.interval, row["step"]
        place = f"step {int(row['step']):,}" + (f"/{self.total:,}" if self.total else "")
        values = [f"{c.removesuffix('.value')} {natural(x)}" for c, x in row.items() if c.endswith(".value")]
        self.console.print("  ".join([place, f"loss {number(row['loss'])}", *values]), soft_wrap=True)
        self.console.file.flush()
