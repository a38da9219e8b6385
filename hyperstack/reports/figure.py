"""Panels as SVG and PNG, drawn by matplotlib: without its global state, and the same to the byte each time."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from xml.etree import ElementTree

import numpy as np

from hyperstack.reports.markup import printable
from hyperstack.reports.panels import Panel, drawable
from hyperstack.reports.terminal import missing
from hyperstack.reports.text import number, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The colours of Okabe and Ito, which people tell apart who do not see all colours, as they look on white. In an SVG
# each is a variable, so that a page can have others on black.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9")
DASHES = ("solid", "dashed", "dashdot", "dotted", (0, (6, 1, 1, 1, 1, 1)))
INK, FAINT, RULE = "#333333", "#777777", "#dddddd"
VARIABLES = {
    **{color: f"var(--line-{i}, {color})" for i, color in enumerate(COLORS)},
    INK: f"var(--ink, {INK})",
    FAINT: f"var(--faint, {FAINT})",
    RULE: f"var(--rule, {RULE})",
}
WIDTH, HEIGHT = 5.6, 2.4  # inches of a panel
LEFT, RIGHT, BOTTOM, TOP = 0.8, 0.32, 0.42, 0.3  # inches of it around the axes
ROWS = 80  # of panels, which at 150 dots an inch make the highest picture
ENTRY, NAMED, LONGEST = 0.17, 100, 90  # of the legend: inches of a line, the most runs, characters of a name
SHORT, FEW = 32, 4  # characters of names of which two stand side by side over a panel, and runs that have a line each
STYLE: dict[str, Any] = {
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "font.size": 8.5,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.4,
    "path.simplify": False,  # what is drawn is what is given
    "path.snap": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "hyperstack",
    "text.color": INK,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "xtick.color": FAINT,
    "xtick.major.size": 3,
    "ytick.color": FAINT,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
}


def svg(panels: Sequence[Panel], legend: bool = True, across: int = 1) -> str:
    """Panels as one SVG element, to stand in a page: text as text, nothing from outside, colours as variables.

    legend: whether the runs are named above, if there are several. across: how many times as wide as others a single
    panel is.

    Raises InputError where matplotlib, of the extra `plots`, is not installed.
    """
    with _styled(), io.BytesIO() as file:
        unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        _figure(panels, legend, across).savefig(file, format="svg", facecolor="none", metadata=unsaid)
        return _cleaned(file.getvalue(), panels)


def png(panels: Sequence[Panel], path: str | Path | BinaryIO) -> None:
    """Panels as a PNG file of 150 dots an inch: two columns, or more where there are many panels; InputError as `svg`.

    The first of an odd number of panels, which is the loss, is as wide as the picture. What stands at `path` is
    overwritten.
    """
    with _styled():
        _figure(panels, True, 1).savefig(path, format="png", dpi=150, facecolor="white", metadata={"Software": None})


@contextmanager
def _styled() -> Iterator[None]:
    """Matplotlib with its own settings and ours, whatever a user's files say."""
    try:
        from matplotlib import style
    except ImportError:
        raise missing("matplotlib") from None
    with style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        yield


def _figure(panels: Sequence[Panel], legend: bool, across: int) -> Figure:
    """All panels, below one another in rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(panels)
    columns = across if count == 1 else 2 * -(-count // ROWS // 2)
    across = columns if count % 2 else 1  # of the first panel
    rows = -(-(count - 1 + across) // columns)
    named = panels[0].lines[:NAMED] if legend and panels[0].several else []
    short = len(named) > FEW and all(len(line.label) <= SHORT for line in named)
    abreast = columns * (1 + short)
    total = HEIGHT * rows + ENTRY * -(-len(named) // abreast)
    figure = Figure((WIDTH * columns, total))
    FigureCanvasAgg(figure)
    for i, panel in enumerate(panels):
        place = i + across - 1 if i else 0
        left, bottom = place % columns * WIDTH + LEFT, (rows - 1 - place // columns) * HEIGHT + BOTTOM
        wide, high = WIDTH * (1 if i else across) - LEFT - RIGHT, HEIGHT - BOTTOM - TOP
        axes = figure.add_axes((left / columns / WIDTH, bottom / total, wide / columns / WIDTH, high / total))
        _draw(axes, panel)
        if named and i == 0:
            _name(figure, axes, len(named), abreast)
    return figure


def _name(figure: Figure, axes: Axes, count: int, abreast: int) -> None:
    """The legend of these axes, so many names a line, above all of the panels, where it hides nothing."""
    drawn, names = (found[:count] for found in axes.get_legend_handles_labels())
    short = [shortened(str(name), LONGEST) for name in names]
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.0}
    legend = figure.legend(drawn, short, **place, ncols=abreast, fontsize=7.5, handlelength=2.6, labelspacing=0.3)
    for handle in legend.get_lines():
        handle.set_marker("None")


def _draw(axes: Axes, panel: Panel) -> None:
    """One panel; a long record's line is its mean, in a band from the least to the largest."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    shown = [drawable(line.values, panel.log) for line in panel.lines]
    if not any(np.isfinite(values).any() for values in shown):
        axes.set_yticks([])
        axes.text(0.5, 0.5, "nothing to draw", transform=axes.transAxes, ha="center", va="center", color=FAINT)
    elif panel.log:
        axes.set_yscale("log", nonpositive="mask")
    for line, values in zip(panel.lines, shown, strict=True):
        i = line.place
        axes.plot(
            line.steps,
            values,
            color=COLORS[i % len(COLORS)],
            linestyle=DASHES[i % len(DASHES)],
            marker="o",
            markersize=2.5,
            markevery=None if panel.log_across else _alone(values),
            label=printable(line.label),
            clip_on=False,
            gid=f"line-{i}",
        )
        if line.least is not None and line.largest is not None:
            low, high = drawable(line.least, panel.log), drawable(line.largest, panel.log)
            axes.fill_between(
                line.steps, low, high, color=COLORS[i % len(COLORS)], alpha=0.2, linewidth=0, gid=f"band-{i}"
            )
        if line.marked is not None:
            color = COLORS[i % len(COLORS)]
            axes.plot(line.steps[line.marked], values[line.marked], "X", color=color, markersize=7, clip_on=False)
    axes.set_title(printable(panel.title), pad=8)
    unit = f"{printable(panel.unit)}, log axis" if panel.log else printable(panel.unit)
    axes.set_title(unit, loc="right", fontsize=8, fontweight="normal", color=FAINT, pad=8)
    axes.set_xlabel(printable(panel.across), loc="right", labelpad=1)
    axes.margins(x=0.01)
    if panel.log_across:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: number(x)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x == round(x) else ""))
    digits = _digits(axes.get_yticks().tolist())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: number(y, digits)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _digits(ticks: Sequence[float]) -> int:
    """How many digits tell the ticks of an axis apart."""
    return next((d for d in range(3, 15) if len({number(tick, d) for tick in ticks}) == len(ticks)), 15)


def _alone(values: np.ndarray[Any, Any]) -> list[int]:
    """The points between gaps, which a line does not show."""
    known = np.concatenate([[False], np.isfinite(values), [False]])
    return [int(i) for i in np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:])]


SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
KEPT = re.compile(r"(line|band)-\d+$")  # besides what is referred to


def _cleaned(drawing: bytes, panels: Sequence[Panel]) -> str:
    """An SVG file as an element for a page: its own size and fonts left to the page, no metadata, no names of parts."""
    root = ElementTree.fromstring(drawing)
    for part in list(root):
        style = part.find(f"{{{SVG}}}style")
        if style is not None or part.tag.endswith("metadata"):  # the style would hold for the whole page
            root.remove(part)
    parts = list(root.iter())
    targets = set(re.findall(r"url\(#([^)]+)\)", drawing.decode()))
    targets |= {part.get(f"{{{XLINK}}}href", "").removeprefix("#") for part in parts}
    for part in parts:
        name, look = part.get("id"), part.get("style")
        if name and KEPT.match(name):
            part.set("class", part.attrib.pop("id"))
        elif name and name not in targets:
            del part.attrib["id"]
        if look:
            look = re.sub(r"#[0-9a-f]{6}", lambda found: VARIABLES.get(found[0], found[0]), look)
            part.set("style", re.sub(r"font-family: [^;]*", "font-family: inherit", look))
    for name in ("width", "height"):
        del root.attrib[name]
    root.set("role", "img")
    root.set("aria-label", "; ".join(printable(panel.title) for panel in panels))
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return ElementTree.tostring(root, encoding="unicode")
