"""A run on a terminal: what it was, what is remarkable in it, and a row for each hyperparameter.

    print(hs.load_run("runs/mnist-001"))

Lines are made for a width; where that is small, what matters least is left out, and nothing is ever broken or wider.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from hyperstack.reports.evidence import Remark
from hyperstack.reports.grid import plain, wrapped
from hyperstack.reports.leveltext import per_tensor
from hyperstack.reports.reading import reading
from hyperstack.reports.rows import key_rows, probe_rows, tensor_rows
from hyperstack.reports.run import Run
from hyperstack.reports.statistics import probe_statistics, statistics_of, tensor_statistics
from hyperstack.reports.text import number, percent
from hyperstack.schedule import CONSTANT
from hyperstack.telemetry.record import Record, parts

REMARKS = 6  # sentences that are shown
MARKS = {3: ("!!", "bold red"), 2: ("! ", "yellow"), 1: ("- ", "")}


@dataclass(frozen=True)
class View:
    """What a rich console shows of a run.

    record: the steps to show; all if None. keys: the hyperparameters to show; all if None. log: whether the heights of
    the hypergradients are those of their logarithms. most: how many levels are shown; all if None.
    """

    run: Run
    record: Record | None = None
    keys: Sequence[str] | None = None
    log: bool = True
    most: int | None = None

    def lines(self, width: int, ascii_only: bool = False) -> list[Text]:
        """Every line, none wider than `width` columns; with `ascii_only` in characters that any terminal has."""
        record = self.run.record if self.record is None else self.record
        chosen = record.keys if self.keys is None else [key for key in record.keys if key in set(self.keys)]
        shown = [key for key in chosen if self.most is None or parts(key)[1] < self.most]
        lines = [*_header(self.run, record, width, self.most), Text()]
        if record.keys:
            found = statistics_of(record, self.run.levels)
            remarks = [r for r in reading(self.run, record, found) if self.keys is None or r.concerns(chosen)]
            lines += [*_reading(remarks, len(record), width), Text()]
            lines += key_rows(self.run, record, {key: found[key] for key in shown}, width, self.log, ascii_only)
            if probes := {key: s for key, s in probe_statistics(record).items() if key in shown and s.probes}:
                lines += [Text(), *probe_rows(record, probes, width, ascii_only)]
            if len(shown) < len(chosen):
                left = f"and {len(chosen) - len(shown)} more hyperparameters of higher levels: see them with --level K"
                lines += [Text(), *wrapped(left, width)]
        if (tensors := tensor_statistics(record)) and any(parts(key)[1] == 0 for key in chosen or ["0.lr"]):
            lines += [Text(), *tensor_rows(tensors, width)]
        while lines and not lines[-1].plain:
            lines.pop()
        return plain(lines) if ascii_only else lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self.lines(options.max_width, options.ascii_only):
            yield Text(line.plain, spans=line.spans, no_wrap=True, overflow="ignore")

    def __str__(self) -> str:
        width = shutil.get_terminal_size().columns
        return "\n".join(line.plain for line in self.lines(width))


# ---- what it was


def _header(run: Run, record: Record, width: int, most: int | None) -> list[Text]:
    plan, summary = run.plan, run.summary or {}
    course = str(plan.get("schedule", CONSTANT))
    what = [
        plan["task"],
        course if course != CONSTANT else "",
        f"seed {plan['seed']}" if "seed" in plan else "",
        str(plan.get("device", "")),
    ]
    what.append(f"{run.when:%Y-%m-%d %H:%M %Z}".rstrip())
    lines = wrapped(" · ".join(part for part in what if part), width, style="bold")
    lines += _tree(run, record, width, most)
    rows = f"{len(run.record):,}"
    steps = (
        f"{summary['steps']:,} steps ({rows} recorded), {summary['seconds']:,.1f} s"
        if summary
        else (f"{rows} steps recorded so far")
    )
    count = summary.get("epochs")
    epochs = "" if count is None else "1 epoch, " if count == 1 else f"{count} epochs, "
    ended = wrapped(f"{run.state}: {epochs}{steps}", width)
    ended[0].stylize(_state_style(run.state), 0, len(run.state))
    lines += ended
    if summary:
        lines += wrapped(
            f"test error {percent(summary['test_error'])}, train loss {number(summary['train_loss'])}", width
        )
    if len(record) != len(run.record):
        part = f"steps {record.steps[0]:,.0f} to {record.steps[-1]:,.0f}" if len(record) else "no steps"
        lines += wrapped(f"shown below: {part}, {len(record):,} recorded", width)
    return lines


def _state_style(state: str) -> str:
    return {"finished": "green", "diverged": "bold red", "running": "cyan"}.get(state, "yellow")


def _tree(run: Run, record: Record, width: int, most: int | None) -> list[Text]:
    """The stack, a line or more a level."""
    if len(run.stacks) > 1:
        return [line for text in run.stacks for line in wrapped(text, width, "├── ", "│   ")]
    lines: list[Text] = []
    levels = run.levels
    known = levels[:most]
    for k, text in enumerate(known):
        below = "the network" if k == 0 else f"level {k - 1}"
        last = k + 1 == len(levels)
        said = f"level {k}: {text} updates {below}"
        if not last and not any(parts(key)[1] == k for key in record.keys):
            said += ", nothing of it is learned"
        measured = [record.probes(key) for key in record.probed if parts(key)[1] == k - 1]
        if measured and len(record):
            count = int(measured[0][-1])
            said += f", at averages: {count:,} probe{'s' * (count != 1)}"
        if spread := per_tensor(text):
            said += f"; {', '.join(sorted(spread))}: one a tensor, shown are the mean and the norm"
        lines += wrapped(said, width, *(("└── ", "    ") if last else ("├── ", "│   ")))
    if len(known) < len(levels):
        lines += wrapped(f"and {len(levels) - len(known)} more levels", width, "└── ", "    ")
    return lines


# ---- what is remarkable


def _reading(remarks: Sequence[Remark], rows: int, width: int) -> list[Text]:
    if not remarks:
        return wrapped(f"reading: nothing remarkable in {rows:,} recorded steps", width)
    lines = wrapped("reading", width, style="bold")
    for remark in remarks[:REMARKS]:
        mark, style = MARKS[remark.severity]
        lines += wrapped(remark.text, width, f"{mark} ", "   ", style)
    if len(remarks) > REMARKS:
        lines += wrapped(f"and {len(remarks) - REMARKS} more: see them with --json", width, "   ", "   ")
    return lines
