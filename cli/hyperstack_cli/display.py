"""The live view of a training run: a sink that shows the latest row.

On a terminal: a progress bar, and a table with a row for each hyperparameter of each level. Elsewhere (a pipe, a log,
`TERM=dumb`): a line an epoch. Both go to standard error; where that fails, the run goes on unseen.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hyperstack.telemetry.text import number, percent, shortened
from hyperstack_cli.screen import err, silence

if TYPE_CHECKING:
    from hyperstack.rule import Stack
    from hyperstack.telemetry.plan import Plan
    from hyperstack.telemetry.sinks import Rows
    from hyperstack.training import Epoch, Trainer

AROUND = 5  # lines of the screen that are not for hyperparameters: the bar, the headings, what follows


class Display:
    """Shows a run while it trains; a context manager, and a sink of its recorder."""

    def __init__(self, plan: Plan, stack: Stack, examples: int, quiet: bool) -> None:
        self.plan, self.quiet = plan, quiet
        self.levels = [type(level).__name__ for level in stack]
        self.clips = [bool(level.clip) for level in list(stack)[1:]] + [False]  # by the level that is clipped
        self.per_epoch = math.ceil(examples / plan.batch_size)
        self.steps = self.per_epoch * plan.epochs
        self.console = err()
        self.live: Live | None = None
        self.columns: list[str] = []
        self.row: dict[str, float] = {}
        self.started: tuple[float, float] | None = None

    def __enter__(self) -> Display:
        if not self.quiet:
            self._try(self._start)
        return self

    def _start(self) -> None:
        head = f"{self.plan.task} · {self.plan.stack} · seed {self.plan.seed} · {self.plan.device}"
        self.console.print(Text(shortened(head, 3 * self.console.width), style="bold"))
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self.live = Live(console=self.console, auto_refresh=False, transient=False)
            self.live.start()

    def __exit__(self, *exception: object) -> None:
        if self.live:
            self._try(self.live.stop)

    def open(self, columns: list[str]) -> None:
        """The columns that rows will have."""
        self.columns = columns

    def write(self, rows: Rows) -> None:
        """Show the last of these rows."""
        self.row = dict(zip(self.columns, rows[-1].tolist(), strict=True))
        if self.started is None:
            self.started = (time.perf_counter(), self.row["step"])
        if self.live:
            live = self.live
            self._try(lambda: live.update(self._view(), refresh=True))

    def flush(self) -> None:
        """Rows are shown as they come."""

    def close(self) -> None:
        """The last view stays on the screen."""

    def after_epoch(self, trainer: Trainer, epoch: Epoch) -> None:
        """A line for the epoch that ended."""
        line = (
            f"epoch {epoch.number}/{self.plan.epochs}  train loss {number(epoch.train_loss)}"
            f"  test error {percent(epoch.test_error)}  {trainer.seconds:.1f} s"
        )
        if not self.quiet:
            self._try(lambda: self.console.print(Text(line)))

    def _try(self, show: Callable[[], object]) -> None:
        """Show something; where nobody looks any more (a closed terminal, a full disk), stop showing."""
        try:
            show()
        except OSError:
            self.quiet = True
            silence(sys.__stderr__ or sys.stderr)
            if self.live:
                live, self.live = self.live, None
                with suppress(OSError):
                    live.stop()

    def _view(self) -> Group:
        return Group(self._bar(), self._table())

    def _bar(self) -> Table:
        step, width = int(self.row["step"]), self.console.width
        assert self.started is not None
        elapsed, done = time.perf_counter() - self.started[0], step - self.started[1]
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1, min_width=3)
        bar.add_column(no_wrap=True)
        state = f"loss {number(self.row['loss'])}"
        if width >= 60 and done and elapsed > 0.1:
            left = (self.steps - step) * elapsed / done
            state += f"  {done * self.plan.batch_size / elapsed:,.0f} examples/s"
            state += f"  {_clock(left)} left" if step < self.steps else ""
        place = f"{step:,}/{self.steps:,}"
        bar.add_row(f"step {place}" if width >= 40 else place, ProgressBar(self.steps, step), state)
        return bar

    def _table(self) -> Table:
        """A row for each hyperparameter, as many as the screen has room for."""
        width = self.console.width
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column("level", no_wrap=True, style="bold")
        table.add_column("", no_wrap=True)
        shown = [title for title, least in (("value", 0), ("hypergradient", 45), ("clip", 55)) if width >= least]
        for title in shown:
            table.add_column(title, justify="right", no_wrap=True, min_width=min(8, width // 4))
        keys = [column.removesuffix(".value") for column in self.columns if column.endswith(".value")]
        room = max(1, self.console.height - AROUND)
        before = None
        for key in keys if len(keys) <= room else keys[: room - 1]:
            level, name = key.rsplit(".", 1)
            label = f"{level} {self.levels[int(level)]}"
            table.add_row(label if level != before else "", name, *self._cells(key)[: len(shown)])
            before = level
        if len(keys) > room:
            table.add_row("…", f"and {len(keys) - room + 1} more")
        return table

    def _cells(self, key: str) -> tuple[str, str, str]:
        """Value, hypergradient and clip factor, this one only where there is a clip to apply it."""
        value, grad, clip = (self.row[f"{key}.{what}"] for what in ("value", "grad", "clip"))
        clipped = self.clips[int(key.split(".")[0])]
        return number(value), number(grad, 3), f"x {clip:.2f}" if clipped else ""


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
