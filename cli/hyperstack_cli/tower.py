"""A tower at work, on a screen: how far its run has come, and a row for each hyperparameter of each level."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hyperstack.reports.grid import plain
from hyperstack.reports.leveltext import clips, rule_name
from hyperstack.reports.run import levels
from hyperstack.reports.text import natural, number, percent, shortened
from hyperstack.schedule import CONSTANT
from hyperstack.telemetry.record import parts

if TYPE_CHECKING:
    from hyperstack.telemetry.record import Column

AROUND = 5  # lines of the screen that are not for hyperparameters: the bar, the headings, what follows


def headline(plan: Mapping[str, Any], console: Console) -> Text:
    """What a run is, in at most three lines."""
    seed = [f"seed {plan['seed']}"] if "seed" in plan else []
    device = [str(plan["device"])] if "device" in plan else []
    course = [plan["schedule"]] if plan.get("schedule", CONSTANT) != CONSTANT else []
    line = Text(
        shortened(" · ".join([plan["task"], plan["stack"], *course, *seed, *device]), 3 * console.width), style="bold"
    )
    return plain([line])[0] if console.options.ascii_only else line


class TowerView:
    """Draws the latest row of a run. `plan`: what plan.json holds. `steps`: how many are planned, where that is known.

    With `past`, the columns of the rows before, a screen that is wide enough shows their course.
    """

    def __init__(self, console: Console, plan: Mapping[str, Any], steps: int | None) -> None:
        self.console, self.steps = console, steps
        self.batch_size = plan.get("batch_size")
        texts = levels(plan["stack"]) if len(plan.get("stacks", [])) < 2 else []
        self.names = [rule_name(text) for text in texts]
        self.clips = [clips(text) for text in texts[1:]] + [False]  # by the level that is clipped
        self.started: tuple[float, float] | None = None

    def draw(self, row: Mapping[str, float], past: Mapping[str, Column] | None = None) -> Group:
        """The view of a row."""
        if self.started is None or row["step"] < self.started[1]:
            self.started = (time.perf_counter(), row["step"])
        return Group(self._bar(row), self._table(row, past))

    def _bar(self, row: Mapping[str, float]) -> Table:
        step, width = int(row["step"]), self.console.width
        assert self.started is not None
        elapsed, done = time.perf_counter() - self.started[0], step - self.started[1]
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(no_wrap=True)
        if self.steps:
            bar.add_column(ratio=1, min_width=3)
        bar.add_column(no_wrap=True)
        state = f"loss {number(row['loss'])}"
        if width >= 60 and done and elapsed > 0.1:
            unit, size = ("examples", self.batch_size) if self.batch_size else ("steps", 1)
            state += f"  {done * size / elapsed:,.0f} {unit}/s"
            state += (
                f"  {_clock((self.steps - step) * elapsed / done)} left" if self.steps and step < self.steps else ""
            )
        place = f"{step:,}/{self.steps:,}" if self.steps else f"{step:,}"
        progress = [ProgressBar(self.steps, step)] if self.steps else []
        bar.add_row(f"step {place}" if width >= 40 else place, *progress, state)
        return bar

    def _table(self, row: Mapping[str, float], past: Mapping[str, Column] | None) -> Table:
        """A row for each hyperparameter, as many as the screen has room for."""
        width = self.console.width
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column("level", no_wrap=True, style="bold")
        table.add_column("", no_wrap=True)
        course = min(40, (width - 66) // 2 * 2) if past is not None and width >= 72 else 0
        if course:
            table.add_column("its course", no_wrap=True, width=course)
        probed = any(column.endswith(".cosine") for column in row)
        titles = [
            ("value", 0),
            ("hypergradient", 45),
            ("cosine" if probed and not any(self.clips) else "clipped to", 58),
        ]
        shown = [title for title, least in titles if width >= least]
        for title in shown:
            table.add_column(title, justify="right", no_wrap=True, min_width=min(8, width // 4))
        if course:
            assert past is not None
            table.add_row("", "loss", self._line(past["loss"], course), number(row["loss"]))
        keys = [column.removesuffix(".value") for column in row if column.endswith(".value")]
        room = max(1, self.console.height - AROUND - bool(course))
        before = None
        for key in keys if len(keys) <= room else keys[: room - 1]:
            prefix, level, name = parts(key)
            label = f"{prefix} {level} {self.names[level] if level < len(self.names) else ''}".strip()
            drawn = [self._line(past[f"{key}.value"], course)] if past is not None and course else []
            table.add_row(label if label != before else "", name, *drawn, *self._cells(row, key)[: len(shown)])
            before = label
        if len(keys) > room:
            table.add_row("…", f"and {len(keys) - room + 1} more")
        return table

    def _line(self, values: Column, width: int) -> str:
        from hyperstack.reports.series import sparkline

        return sparkline(values, width, ascii_only=self.console.options.ascii_only)

    def _cells(self, row: Mapping[str, float], key: str) -> tuple[str, str, str]:
        """Value, hypergradient, and to what share of itself it was clipped, only where there is a clip to do so.

        Where nothing is clipped and hypergradients are measured at averages, the cosine of the last probe instead.
        """
        value, grad, clip = (row[f"{key}.{what}"] for what in ("value", "grad", "clip"))
        level = parts(key)[1]
        clipped = self.clips[level] if level < len(self.clips) else clip < 1
        last = number(row[f"{key}.cosine"], 3) if f"{key}.cosine" in row and not any(self.clips) else ""
        return natural(value), number(grad, 3), percent(clip, 0) if clipped else last


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
