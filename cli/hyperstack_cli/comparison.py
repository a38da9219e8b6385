"""Groups of runs on the screen: a legend whose differences are underlined, and tables with a column a group."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from hyperstack.reports.curves import Curves
from hyperstack.reports.groups import Group, best, difference
from hyperstack.reports.leveltext import is_clipped
from hyperstack.reports.marks import Pieces, marked
from hyperstack.reports.text import number, printable, shortened

if TYPE_CHECKING:
    from rich.console import Console

    from hyperstack.reports.spread import Spread

GAP = 2  # between columns
LABEL = 13  # width of the names of the rows, indented
NARROW = 32  # columns, below which there is room for means only
LEAST, MOST = 8, 40  # characters of a sparkline
PLAIN = str.maketrans({"·": "-", "…": ".", "±": "~"})  # for terminals that know ASCII only
SETTINGS = {"task": "task", "epochs": "epochs", "batch_size": "batch", "schedule": "schedule", "device": "device"}
ENDED = ("diverged", "interrupted", "running", "stopped")


@dataclass(frozen=True)
class Row:
    """A row of the table: its name, and a cell a group; or a heading without cells; or the curves of a column."""

    label: str
    cells: Sequence[str] = ()
    curve: str = ""


class Comparison:
    """What `compare` shows, on a console."""

    def __init__(self, console: Console, groups: Sequence[Group], keys: Sequence[str], log: bool = True) -> None:
        self.console, self.groups, self.keys, self.log = console, groups, keys, log
        self.ascii = console.options.ascii_only
        self.best = best(groups)
        self.narrow = console.width < NARROW
        self.indent = "" if self.narrow else "  "
        self.label = LABEL - 2 + len(self.indent)
        self.curves: dict[str, Curves] = {}
        self.settings = {
            name: [printable({"task": g.task, **g.setting}.get(name, "-")) for g in groups] for name in SETTINGS
        }

    def show(self) -> None:
        """All of it."""
        self.legend()
        rows = [*self._results(), Row("loss"), Row("curve", curve="loss"), *(r for k in self.keys for r in self._of(k))]
        natural = max(LEAST, *(len(cell) for row in rows for cell in row.cells))
        room = max(1, (self.console.width - self.label) // (natural + GAP))
        size = math.ceil(len(self.groups) / math.ceil(len(self.groups) / room))
        width = max(1, min((self.console.width - self.label) // size - GAP, max(natural, MOST)))
        records = [group.counted[0].record for group in self.groups]
        for row in rows:
            if row.curve:
                absolute = row.curve.endswith(".grad")
                self.curves[row.curve] = Curves(records, row.curve, min(width, MOST), absolute, self.log)
        for start in range(0, len(self.groups), size):
            self._table(rows, range(start, min(start + size, len(self.groups))), width)

    def say(self, note: str) -> None:
        """A remark in words."""
        self.console.print(Text(self._plain(printable(note))), overflow="fold")

    def legend(self) -> None:
        """What the groups are."""
        words = {"epochs": "epochs {}", "batch_size": "batch {}", "device": "device {}"}
        common = [words.get(name, "{}").format(c[0]) for name, c in self.settings.items() if {*c} == {c[0]} != {"-"}]
        if common:
            self._line((shortened(" · ".join(common), self.console.width), "bold"))
        names = dict.fromkeys(name for group in self.groups for name in group.levels)
        texts = {name: [_clean(group.levels.get(name)) for group in self.groups] for name in names}
        differences = {name: marked(column) for name, column in texts.items()}
        indent = len(self.groups[-1].letter) + GAP
        for i, group in enumerate(self.groups):
            lines = _lines([(name, differences[name][i]) for name in group.levels], self.console.width - indent)
            for j, line in enumerate(lines):
                self._underlined("" if j else group.letter, indent, line)
            paths = ", ".join(printable(str(run.path)) for run in group.runs)
            self._line((" " * indent + shortened(paths, self.console.width - indent), "dim"))

    def _underlined(self, letter: str, indent: int, line: Pieces) -> None:
        """A line of a stack, and carets under what other stacks lack."""
        self._line((letter.ljust(indent), "bold"), *((text, "bold" if differs else "") for text, differs in line))
        if any(differs for _, differs in line):
            self._line((" " * indent + "".join(("^" if differs else " ") * len(text) for text, differs in line), ""))

    def _results(self) -> Iterator[Row]:
        """What was asked for, where that differs, and what came of it."""
        groups = self.groups
        for name, label in SETTINGS.items():
            if len({*self.settings[name]}) > 1:
                yield Row(label, [shortened(cell, 16) for cell in self.settings[name]])
        if any(group.seeds for group in groups):
            yield Row("seeds", [shortened(printable(", ".join(map(str, g.seeds))) or "-", 16) for g in groups])
        yield Row("finished", [str(len(group.finished)) for group in groups])
        for state in ENDED:
            if any(counts := [len(group.having(state)) for group in groups]):
                yield Row(state, [str(n or "-") for n in counts])
        yield Row("test error", [self._fixed(g.spread("test_error"), "%", 2) for g in groups])
        if self.best:
            yield Row("over best", [self._over_best(group) for group in groups])
        yield Row("train loss", [self._spread(group.spread("train_loss")) for group in groups])
        yield Row("time", [self._fixed(group.spread("seconds"), "s", 1) for group in groups])
        yield Row("steps", [" to ".join(f"{n:,}" for n in sorted({g.steps[0], g.steps[-1]})) for g in groups])

    def _of(self, key: str) -> Iterator[Row]:
        """What became of a hyperparameter, and the hypergradients that it had."""
        found = [group.keys.get(key) for group in self.groups]
        yield Row(printable(key))
        yield Row("value", curve=f"{key}.value")
        yield Row("last", [self._spread(s.last) if s else "-" for s in found])
        yield Row("|grad|", curve=f"{key}.grad")
        yield Row("median", [self._spread(s.median, 3) if s else "-" for s in found])
        yield Row("max", [number(s.max, 3) if s else "-" for s in found])
        if any(key in group.counted[0].record.probed for group in self.groups):
            yield Row("cosine", curve=f"{key}.cosine")
        if any(s and s.clipped.mean for s in found):
            clipped = [
                s and is_clipped(key, g.runs[0].levels, s.clipped.mean) for g, s in zip(self.groups, found, strict=True)
            ]
            yield Row(
                "clipped",
                [self._fixed(s.clipped, "%", 0) if s and c else "-" for s, c in zip(found, clipped, strict=True)],
            )

    def _over_best(self, group: Group) -> str:
        """By how much the test error is above that of the best group, in percentage points."""
        rival = next((one for one in self.best if one.task == group.task), None)
        found = difference(group, rival) if rival else None
        if found is None or group is rival:
            return "-" if found is None else "best"
        mean, error = found
        return f"{100 * mean:+.2f}{'' if error is None or self.narrow else f' ± {100 * error:.2f}'} pp"

    def _spread(self, s: Spread, digits: int = 4) -> str:
        """Mean and standard deviation."""
        if s.mean is None or s.std is None or self.narrow:
            return number(s.mean, digits)
        if s.std and s.mean and math.isfinite(s.std):  # as many digits as show what differs
            digits = min(9, max(digits, 2 + math.floor(math.log10(abs(s.mean))) - math.floor(math.log10(s.std))))
        return f"{number(s.mean, digits)} ± {number(s.std, 2)}"

    def _fixed(self, s: Spread, unit: str, decimals: int) -> str:
        """The same with so many decimals, in percent or seconds."""
        factor = 100 if unit == "%" else 1
        if s.mean is None:
            return "-"
        deviation = "" if s.std is None or self.narrow else f" ± {factor * s.std:,.{decimals}f}"
        return f"{factor * s.mean:,.{decimals}f}{deviation} {unit}"

    def _table(self, rows: Sequence[Row], chosen: range, width: int) -> None:
        """The columns of some groups."""
        names = [self.groups[i].letter + (" (best)" if self.groups[i] in self.best else "") for i in chosen]
        self._line()
        self._cells("", names, width, "bold")
        for row in rows:
            if row.curve:
                self._curves(row, chosen, width)
            elif row.cells:
                self._cells(row.label, [row.cells[i] for i in chosen], width)
            else:
                self._line((shortened(row.label, self.console.width), "bold"))

    def _curves(self, row: Row, chosen: range, width: int) -> None:
        """The curves of a column, and below them, what the scale is; nothing where it never moved."""
        curves = self.curves[row.curve]
        if curves.flat:
            return
        lines = curves.lines(self.ascii)
        self._cells(row.label, [lines[i] or "-" for i in chosen], width)
        low, high = apart(*curves.range)
        scale = f"{low} to {high}{', log' if curves.log else ''}"
        room = self.console.width - self.label - GAP
        self._line((" " * (self.label + GAP - self.narrow if len(scale) <= room else 0) + scale, "dim"))

    def _cells(self, label: str, cells: Sequence[str], width: int, style: str = "") -> None:
        head = (self.indent + label).ljust(self.label + GAP - self.narrow)
        texts = [shortened(cell.replace("±", "+-") if self.ascii else cell, width) for cell in cells]
        self._line((head, ""), ("".join(text.ljust(width + GAP) for text in texts), style))

    def _line(self, *parts: tuple[str, str]) -> None:
        text = Text.assemble(*((self._plain(text), style) for text, style in parts))
        text.rstrip()
        self.console.print(text, no_wrap=True, overflow="crop")

    def _plain(self, text: str) -> str:
        return text.translate(PLAIN) if self.ascii else text


def remarks(groups: Sequence[Group]) -> list[str]:
    """What one should know before one believes the figures."""
    found = []
    if len({group.task for group in groups}) > 1:
        found.append("the runs are of different tasks: their errors do not compare")
    if any(group.having(*ENDED) for group in groups):
        found.append("runs that diverged, or have not ended, do not enter the means")
    for winner in best(groups):
        for group in groups:
            found_difference = difference(group, winner) if group.task == winner.task and group is not winner else None
            if found_difference and found_difference[1] is not None and found_difference[0] < 2 * found_difference[1]:
                found.append(
                    f"{group.letter} is less than two standard errors above {winner.letter}: that may be chance"
                )
        rivals = [group for group in groups if group.task == winner.task]
        if single := [group.letter for group in rivals if group.spread("test_error").n == 1]:
            found.append(f"one finished run does not tell merit from chance: {', '.join(single)}")
    return found


def apart(low: float, high: float) -> tuple[str, str]:
    """Two numbers as text, with as many digits as tell them apart."""
    texts = [(number(low, digits), number(high, digits)) for digits in range(3, 10)]
    return next((pair for pair in texts if pair[0] != pair[1]), texts[0])


def _clean(text: str | None) -> str | None:
    return None if text is None else printable(text)


def _lines(levels: Sequence[tuple[str, Pieces]], width: int) -> list[Pieces]:
    """A stack in lines of at most `width`: in one where that holds it, else a level a line, cut where it must be."""
    signs = ["" if i == 0 else "| " if name.endswith("level 0") else "/ " for i, (name, _) in enumerate(levels)]
    separated = [[(sign, False), *pieces] for sign, (_, pieces) in zip(signs, levels, strict=True)]
    whole = [piece for pieces in separated for piece in ((" ", False), *pieces)][1:]
    if sum(len(text) for text, _ in whole) <= width:
        return [whole]
    return [line for pieces in separated for line in _cut(pieces, max(1, width))]


def _cut(pieces: Pieces, width: int) -> Iterator[Pieces]:
    characters = [(c, differs) for text, differs in pieces for c in text]
    for start in range(0, len(characters), width):
        yield characters[start : start + width]
