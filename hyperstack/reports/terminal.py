"""A panel as lines of text: a plot with axes for a terminal, drawn by `uniplot`.

One line is drawn in Braille dots. Several are told apart by their characters, which the legend names, so that colour
is needed nowhere. Each shows the mean of the steps that fall into a column, where there are more than columns.
"""

from __future__ import annotations

import numpy as np

from hyperstack.errors import InputError
from hyperstack.reports.markup import printable
from hyperstack.reports.panels import Line, Panel, drawable
from hyperstack.reports.series import binned
from hyperstack.reports.text import number, shortened
from hyperstack.telemetry.record import Column

MARKS = "*o+x#@%&=~"  # of the lines, if there are several
CROSS = "X"
COLORS = ("blue", "red", "green", "magenta", "cyan", "yellow")
LABELLED = 30  # columns, from which on the vertical axis has numbers
AROUND = 4  # lines above and below the drawing: title, borders, steps
ASCII = str.maketrans({**dict.fromkeys("┌┐└┘", "+"), "─": "-", "│": "|", "…": "."})


def plot(panel: Panel, width: int, height: int, color: bool, ascii_only: bool = False) -> str:
    """A panel in at most `width` columns and about `height` lines; a legend, if it has several lines, goes below.

    color: with ANSI colour codes. ascii_only: for a terminal that shows nothing else.

    Raises InputError where `uniplot`, of the extra `plots`, is not installed.
    """
    try:
        import uniplot
    except ImportError:
        raise missing("uniplot") from None

    several = panel.several
    marked = [i for i, line in enumerate(panel.lines) if line.marked is not None]
    curves = [_curve(line, panel, width if several else 2 * width) for line in panel.lines]
    known = np.concatenate([heights[np.isfinite(heights)] for _, heights in curves])
    marks, colors = ([looks[line.place % len(looks)] for line in panel.lines] for looks in (list(MARKS), list(COLORS)))
    scale = ", log axis" if panel.log else ""
    drawn = [shortened(printable(f"{panel.title}: {panel.unit}{scale}, by {panel.across}"), width)]
    if not len(known):
        drawn.append(shortened("nothing to draw: no such number was recorded", width))
    else:
        rows = max(1, height - AROUND)
        steps = np.concatenate([line.steps for line in panel.lines])
        (first, last), (low, high) = _ends(np.log10(steps) if panel.log_across else steps), _ends(known)
        points = [*curves, *[_marked(panel.lines[i], panel) for i in marked]]
        labels = _labels(low, high, rows, panel.log) if width >= LABELLED else [""] * rows
        wide = max(1, width - 2 - max(len(label) + bool(label) for label in labels))
        body = uniplot.plot_to_string(
            xs=[steps for steps, _ in points],
            ys=[heights for _, heights in points],
            x_min=first,
            x_max=last,
            y_min=low,
            y_max=high,
            lines=[True] * len(curves) + [False] * len(marked),
            y_gridlines=[],
            x_gridlines=[],
            x_labels=False,
            y_labels=False,
            width=wide,
            height=rows,
            character_set="ascii" if several or marked or ascii_only else "braille",
            force_ascii_characters=[*marks, *[CROSS] * len(marked)],
            color=[*colors, *[colors[i] for i in marked]] if color else False,
        )
        sides = ["", *labels, ""]
        drawn += [f"{line} {side}".rstrip() for line, side in zip(body.splitlines(), sides, strict=True)]
        ends = (number(10**first), number(10**last)) if panel.log_across else (f"{first:,.0f}", f"{last:,.0f}")
        drawn.append(shortened(f" {ends[0]}{ends[1].rjust(wide - len(ends[0]))}", width))
    if several:
        styles = zip(panel.lines, marks, colors, strict=True)
        drawn += [_entry(line.label, mark, name, width, color) for line, mark, name in styles]
    text = "\n".join(drawn)
    return text.translate(ASCII).encode("ascii", "replace").decode("ascii") if ascii_only else text


def _curve(line: Line, panel: Panel, points: int) -> tuple[Column, Column]:
    """Steps and heights of a line in at most so many points, each the mean of a part; with `log` of logarithms."""
    heights = binned(drawable(line.values, panel.log), points, panel.log)
    return binned(line.steps, points, panel.log_across), heights


def _marked(line: Line, panel: Panel) -> tuple[Column, Column]:
    """Steps and heights of what is marked in a line."""
    steps, heights = line.steps[line.marked], drawable(line.values, panel.log)[line.marked]
    return np.log10(steps) if panel.log_across else steps, np.log10(heights) if panel.log else heights


def _ends(values: Column) -> tuple[float, float]:
    """The least and the largest, apart."""
    low, high = float(values.min()), float(values.max())
    apart = max(abs(low), abs(high)) / 10 or 1.0
    return (low, high) if high - low > 1e-9 * apart else (low - apart, high + apart)


def _labels(low: float, high: float, rows: int, log: bool) -> list[str]:
    """What the middle of every fourth row stands for, from the highest down."""
    middles = high - (np.arange(rows) + 0.5) * ((high - low) / rows)
    shown = (10**middles if log else middles)[::4].tolist()
    digits = next((d for d in range(3, 15) if len({number(x, d) for x in shown}) == len(shown)), 15)
    return [number(shown[r // 4], digits) if r % 4 == 0 else "" for r in range(rows)]


def missing(package: str) -> InputError:
    """What to say where a package of the extra is not there."""
    return InputError(
        "pictures need packages that are not installed here",
        why=f"there is no {package}",
        instead='pip install "hyperstack[plots]"',
    )


def _entry(label: str, mark: str, color: str, width: int, colored: bool) -> str:
    """A line of the legend."""
    from uniplot.colors import Color

    text = shortened(f"  {mark} {printable(label)}", width)
    return Color.from_terminal(color).colorize(text) if colored else text
