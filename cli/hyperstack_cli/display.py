"""The live view of a training run: a sink that shows the latest row.

On a terminal: a progress bar, and a table with a row for each hyperparameter of each level. Elsewhere (a pipe, a log,
`TERM=dumb`): a line an epoch. Both go to standard error.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hyperstack_cli.screen import err, number, percent

if TYPE_CHECKING:
    from hyperstack.telemetry.recorder import Rows
    from hyperstack.training import Epoch, Plan, Trainer


class Display:
    """Shows a run while it trains; a context manager, and a sink of its recorder."""

    def __init__(self, plan: Plan, examples: int, quiet: bool) -> None:
        self.plan, self.quiet = plan, quiet
        self.per_epoch = math.ceil(examples / plan.batch_size)
        self.steps = self.per_epoch * plan.epochs
        self.console = err()
        self.live: Live | None = None
        self.columns: list[str] = []
        self.row: dict[str, float] = {}
        self.started: tuple[float, float] | None = None

    def __enter__(self) -> Display:
        if not self.quiet:
            # Nothing of a stack is markup: square brackets are lists of transforms.
            head = f"{self.plan.task} · {self.plan.stack} · seed {self.plan.seed} · {self.plan.device}"
            self.console.print(Text(head, style="bold"))
        if not self.quiet and self.console.is_terminal and not self.console.is_dumb_terminal:
            self.live = Live(console=self.console, auto_refresh=False, transient=False)
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live:
            self.live.stop()

    def open(self, columns: list[str]) -> None:
        """The columns that rows will have."""
        self.columns = columns

    def write(self, rows: Rows) -> None:
        """Show the last of these rows."""
        self.row = dict(zip(self.columns, rows[-1].tolist(), strict=True))
        if self.started is None:
            self.started = (time.perf_counter(), rows[0][0])
        if self.live:
            self.live.update(self._view(), refresh=True)

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
            (self.live.console if self.live else self.console).print(Text(line))

    def _view(self) -> Group:
        step = int(self.row["step"])
        assert self.started is not None
        elapsed, done = time.perf_counter() - self.started[0], step - self.started[1]
        rate = f"{done * self.plan.batch_size / elapsed:,.0f} examples/s" if elapsed > 0.1 else ""
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1, min_width=5)
        bar.add_column(no_wrap=True)
        bar.add_row(
            f"step {step:,}/{self.steps:,}",
            ProgressBar(self.steps, step),
            f"loss {number(self.row['loss'])}  {rate}",
        )
        return Group(bar, self._table())

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 1), pad_edge=False)
        table.add_column("level", no_wrap=True)
        table.add_column("hyperparameter", no_wrap=True)
        for title in ("value", "hypergradient", "clip"):
            table.add_column(title, justify="right", no_wrap=True)
        before = None
        for column in self.columns:
            if column.endswith(".value"):
                key = column.removesuffix(".value")
                level, name = key.rsplit(".", 1)
                value, grad, clip = (self.row[f"{key}.{what}"] for what in ("value", "grad", "clip"))
                shown = f"x {clip:.2f}" if clip < 1 else "-"
                table.add_row(level if level != before else "", name, number(value), number(grad, 3), shown)
                before = level
        return table
