"""A panel as lines of text: a plot with axes for a terminal, drawn by `uniplot`.

One line is drawn in Braille dots. Several are told apart by their characters, which the legend names, so that colour
is needed nowhere; each shows the mean of the steps that fall into a column, lest one hides the other.
"""

from __future__ import annotations

import numpy as np

from hyperstack.errors import InputError
from hyperstack.telemetry.markup import printable
from hyperstack.telemetry.panels import POINTS, Line, Panel, drawable
from hyperstack.telemetry.record import Column
from hyperstack.telemetry.series import binned
from hyperstack.telemetry.text import shortened

MARKS = "*o+x#@%&=~"  # of the lines, if there are several
COLORS = ("blue", "red", "green", "magenta", "cyan", "yellow")
AROUND = 4  # lines above and below the drawing: title, borders, steps
ASCII = str.maketrans({**dict.fromkeys("┌┐└┘", "+"), "─": "-", "│": "|", "…": "."})
LARGEST = 1e300  # beyond that the height of an axis may be infinite


def plot(panel: Panel, width: int, height: int, color: bool, ascii_only: bool = False) -> str:
    """A panel in at most `width` columns and about `height` lines; a legend, if it has several lines, goes below.

    color: with ANSI colour codes. ascii_only: for a terminal that shows nothing else.

    Raises InputError where `uniplot`, of the extra `plots`, is not installed.
    """
    try:
        import uniplot
    except ImportError:
        raise missing("uniplot") from None

    several = len(panel.lines) > 1
    curves = [_curve(line, panel.log, width if several else POINTS) for line in panel.lines]
    marks, colors = ([all_[i % len(all_)] for i in range(len(curves))] for all_ in (list(MARKS), list(COLORS)))
    scale = ", log axis" if panel.log else ""
    drawn = [shortened(printable(f"{panel.title}: {panel.unit}{scale}, by step"), width)]
    if not any(np.isfinite(values).any() for _, values in curves):
        drawn.append(shortened("nothing to draw: no such number was recorded", width))
    else:
        body = uniplot.plot_to_string(
            xs=[steps for steps, _ in curves],
            ys=[values for _, values in curves],
            lines=True,
            y_as_log=panel.log,
            y_gridlines=[],
            x_gridlines=[],
            x_labels=width >= 20,
            y_labels=width >= 30,
            width=max(1, width - 3),
            height=max(1, height - AROUND),
            line_length_hard_cap=max(4, width),
            character_set="ascii" if several or ascii_only else "braille",
            force_ascii_characters=marks,
            color=colors if color else False,
        )
        drawn += [line.rstrip() for line in body.splitlines()]
    if several:
        styles = zip(panel.lines, marks, colors, strict=True)
        drawn += [_entry(line.label, mark, name, width, color) for line, mark, name in styles]
    text = "\n".join(drawn)
    return text.translate(ASCII).encode("ascii", "replace").decode("ascii") if ascii_only else text


def _curve(line: Line, log: bool, points: int) -> tuple[Column, Column]:
    """A line in at most so many points, each the mean of a part."""
    values = binned(drawable(line.values, log), points, log)
    heights = 10**values if log else np.clip(values, -LARGEST, LARGEST)
    return binned(line.steps, points), heights


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
