"""The live view of a training run: a sink that shows the latest row.

On a terminal: a progress bar, and a table with a row for each hyperparameter of each level. Elsewhere (a pipe, a log,
`TERM=dumb`): a line an epoch. Both go to standard error; where that fails, the run goes on unseen.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from rich.live import Live
from rich.text import Text

from hyperstack.reports.text import number, percent
from hyperstack_cli.screen import err, silence
from hyperstack_cli.tower import TowerView, headline

if TYPE_CHECKING:
    from hyperstack.telemetry.plan import Plan
    from hyperstack.telemetry.sinks import Rows
    from hyperstack.training import Epoch, Trainer


class Display:
    """Shows a run while it trains; a context manager, and a sink of its recorder."""

    def __init__(self, plan: Plan, examples: int, quiet: bool) -> None:
        self.plan, self.quiet = plan, quiet
        self.console = err()
        steps = math.ceil(examples / plan.batch_size) * plan.epochs
        self.view = TowerView(self.console, plan.as_dict(), steps)
        self.live: Live | None = None
        self.columns: list[str] = []

    def __enter__(self) -> Display:
        if not self.quiet:
            self._try(self._start)
        return self

    def _start(self) -> None:
        self.console.print(headline(self.plan.as_dict(), self.console))
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
        row = dict(zip(self.columns, rows[-1].tolist(), strict=True))
        if self.live:
            live = self.live
            self._try(lambda: live.update(self.view.draw(row), refresh=True))

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
