"""Columns of text side by side, in as many columns of the terminal as there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len, set_cell_size
from rich.text import Text

# What a terminal without UTF-8 shows instead, a character for a character.
PLAIN = str.maketrans({"├": "|", "└": "`", "─": "-", "│": "|", "·": "|", "…": "~"})


@dataclass(frozen=True)
class Field:
    """A column: its title and a cell a row.

    rank: 0 for what is always shown; where there is no room the highest ranks are left out first. draw: makes the
    cells for a width between `least` and `most`, of what the others leave over.
    """

    title: str
    cells: Sequence[str] = ()
    rank: int = 0
    right: bool = True
    style: str = ""
    draw: Callable[[int], Sequence[str]] | None = None
    least: int = 8
    most: int = 24

    @property
    def width(self) -> int:
        """The columns of the terminal that it takes at least."""
        if self.draw:
            return self.least
        return max(map(cell_len, (self.title, *self.cells)))

    @property
    def empty(self) -> bool:
        """Whether no cell says anything."""
        return self.draw is None and not any(cell.strip(" -") for cell in self.cells)


def fitting(fields: Sequence[Field], width: int) -> list[Field]:
    """Those of `fields` for which there is room; the drawn ones share what is left over."""
    chosen = list(fields)
    while taken(chosen, width) > width and any(f.rank for f in chosen):
        last = max(range(len(chosen)), key=lambda i: (chosen[i].rank, i))
        del chosen[last]
    drawn = [i for i, f in enumerate(chosen) if f.draw]
    over = max(0, width - taken(chosen, width))
    for count, i in zip(range(len(drawn), 0, -1), drawn, strict=True):
        f = chosen[i]
        share = min(f.most - f.least, over // count)
        over -= share
        assert f.draw
        chosen[i] = replace(f, cells=f.draw(f.least + share), draw=None, title=f.title[: f.least + share])
    return chosen


def taken(fields: Sequence[Field], width: int) -> int:
    """The columns that `fields` take at least on a terminal of `width`."""
    return sum(f.width for f in fields) + gap(width) * max(0, len(fields) - 1)


def gap(width: int) -> int:
    """The blanks between columns."""
    return 1 if width < 72 else 2


def grid(fields: Sequence[Field], width: int) -> list[Text]:
    """A line of titles and a line a row, none wider than `width`."""
    chosen, between = fitting(fields, width), " " * gap(width)
    widths = [f.width for f in chosen]
    lines = []
    for row in range(-1, max((len(f.cells) for f in chosen), default=0)):
        line = Text(no_wrap=True)
        for i, (f, wide) in enumerate(zip(chosen, widths, strict=True)):
            cell = f.title if row < 0 else f.cells[row]
            blank = " " * (wide - cell_len(cell))
            style = "dim" if row < 0 else f.style
            line.append(between if i else "").append(blank + cell if f.right else cell + blank, style)
        line.rstrip()
        lines.append(cropped(line, width))
    return lines


def cropped(line: Text, width: int) -> Text:
    """`line`, with an ellipsis for what does not fit."""
    if line.cell_len > width:
        line.truncate(max(0, width - 1))
        line.append("…"[:width])
    return line


def wrapped(text: str, width: int, first: str = "", then: str = "", style: str = "") -> list[Text]:
    """`text` broken into lines of `width` at blanks, behind `first` and `then`; a word that is too long is broken."""
    room = max(1, width - cell_len(first))
    lines: list[str] = []
    rest = ""
    for word in text.split(" "):
        rest = f"{rest} {word}" if rest else word
        while cell_len(rest) > room:
            head, _, tail = rest.rpartition(" ")
            if not head or cell_len(head) > room:
                head = set_cell_size(rest, room).rstrip(" ") or rest[0]
                tail = rest[len(head) :]
            lines.append(head)
            rest = tail.lstrip(" ")
    return [Text(first if i == 0 else then).append(line, style) for i, line in enumerate([*lines, rest])]


def plain(lines: Sequence[Text]) -> list[Text]:
    """The same in ASCII, so far as these are characters of ours."""
    found = []
    for line in lines:
        copy = line.copy()
        copy.plain = line.plain.translate(PLAIN)
        found.append(copy)
    return found
