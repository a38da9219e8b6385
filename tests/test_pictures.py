"""Pictures of runs: what is drawn is what was recorded, in the terminal, as SVG, as PNG and as a page."""

import html
import json
import math
import re
import shutil
import subprocess
import sys
import zlib
from datetime import datetime, timezone
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import command, contents, ok

from hyperstack.errors import InputError
from hyperstack.reports import figure, page, sections, terminal
from hyperstack.reports.markup import Html, element, joined
from hyperstack.reports.panels import POINTS, Line, Panel, drawable, panels, reduced
from hyperstack.reports.reading import reading
from hyperstack.reports.run import Run, load_run
from hyperstack.reports.statistics import statistics
from hyperstack.reports.text import natural, number
from hyperstack.telemetry.jsonl import JsonLines
from hyperstack.telemetry.record import Record
from hyperstack_cli import pictures

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SUMMARY = {"epochs": 2, "steps": 40, "seconds": 1.5, "train_loss": 0.5, "test_error": 0.25}
EVIL = "<script>alert(1)</script>\"'&$x$\x1b[31m\x00"


def made(rows=40, stack="Adam(0.01) / SGD(0.01, clip)", task="toy", keys=("0.lr", "0.beta1", "1.lr"), seed=0):
    """A run of random numbers, without a folder."""
    draw = np.random.default_rng(seed)
    columns = {"step": np.arange(1.0, rows + 1), "loss": draw.random(rows) + 0.5}
    for key in keys:
        columns |= {f"{key}.value": draw.random(rows) + 1, f"{key}.grad": draw.standard_normal(rows)}
        columns[f"{key}.clip"] = np.minimum(1, draw.random(rows) + 0.5)
    plan = {"task": task, "stack": stack, "seed": seed, "device": "cpu"}
    summary = {**SUMMARY, "diverged": False, "finished": True}
    return Run(Path("nowhere"), plan, summary, Record(columns), datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc))


def with_columns(run, **columns):
    """The same with other numbers in some columns; in their names `_` is a dot."""
    changed = {name.replace("__", "."): np.array(values, float) for name, values in columns.items()}
    return Run(run.path, run.plan, run.summary, Record({**run.record.columns, **changed}), run.when)


# ---- panels


def test_a_panel_for_the_loss_and_two_for_each_hyperparameter():
    run = made()
    found = panels([("a", run)], None, log=True)
    titles = ["loss"]
    for key in ("0.lr", "0.beta1", "1.lr"):
        titles += [key, f"hypergradient of {key}"]
    assert [panel.title for panel in found] == titles
    columns = [run["loss"], run["0.lr.value"], np.abs(run["0.lr.grad"])]
    for panel, column in zip(found[:3], columns, strict=True):
        (line,) = panel.lines
        assert line.label == "a"
        np.testing.assert_array_equal(line.steps, run["step"])
        np.testing.assert_array_equal(line.values, column)
    assert [panel.log for panel in found[:3]] == [False, False, True]
    assert not any(panel.log for panel in panels([("a", run)], None, log=False))


def test_runs_are_overlaid_where_they_have_the_same_key():
    one, other = made(), made(keys=("0.lr",), seed=1)
    found = {panel.title: panel for panel in panels([("one", one), ("other", other)], None, log=False)}
    assert [line.label for line in found["0.lr"].lines] == ["one", "other"]
    assert [line.label for line in found["1.lr"].lines] == ["one"]
    np.testing.assert_array_equal(found["0.lr"].lines[1].values, other["0.lr.value"])
    chosen = panels([("one", one), ("other", other)], ["1.lr", "9.lr"], log=False)
    assert [panel.title for panel in chosen] == ["loss", "1.lr", "hypergradient of 1.lr"]


def looks(drawing):
    """Colour and dashes of each line of an SVG, by its class."""
    root = ElementTree.fromstring(drawing)
    groups = [g for g in root.iter(f"{{{figure.SVG}}}g") if re.match("line-", g.get("class", ""))]
    styles = {g.get("class"): g.find(f"{{{figure.SVG}}}path").get("style") for g in groups}
    return {
        name: sorted(part for part in style.split("; ") if re.match("stroke(-dasharray)?:", part))
        for name, style in styles.items()
    }


def test_a_run_looks_the_same_where_others_lack_the_key():
    runs = [("one", made(keys=("0.lr",))), ("other", made(seed=1))]
    found = {panel.title: panel for panel in panels(runs, None, log=False)}
    both, alone = (looks(figure.svg([found[title]], legend=False)) for title in ("0.lr", "1.lr"))
    assert list(both) == ["line-0", "line-1"]
    assert both["line-0"] != both["line-1"]
    assert alone == {"line-1": both["line-1"]}
    text = terminal.plot(found["1.lr"], 80, 20, color=False)
    assert text.splitlines()[-1] == "  o other"
    assert shown_points(text.replace("│", "|"), "o")[0]
    assert not shown_points(text.replace("│", "|"), "*")[0]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count", "high"), [("run", 6, 3), ("run", 4, 4), ("r" * figure.SHORT, 6, 6)])
def test_the_legend_of_a_png_hides_no_line(tmp_path, name, count, high):
    """Two names a line where there are many, and all are short."""
    flat = [Line(f"{name} {i}", np.array([1.0, 2]), np.array([float(i)] * 2), place=i) for i in range(count)]
    named, bare = (Panel("x", "y", flat, False, several) for several in (True, False))
    for name, panel in (("named", named), ("bare", bare)):
        figure.png([panel], tmp_path / f"{name}.png")
    with_legend, without = (pixels((tmp_path / f"{name}.png").read_bytes()) for name in ("named", "bare"))
    above = len(with_legend) - len(without)
    assert above == pytest.approx(150 * figure.ENTRY * high, abs=1)
    assert near(with_legend[:above], figure.COLORS[0]) > 50
    np.testing.assert_allclose(with_legend[above + 30 :], without[30:], atol=80)


def test_a_logarithmic_axis_where_it_shows_more():
    run = made(4)
    for values, log in (
        ([1, 2, 3, 99], False),
        ([1, 2, 3, 101], True),
        ([-1, 1, 10, 1e4], False),
        ([0, 1, 9, 1e3], False),
    ):
        shown = panels([("a", with_columns(run, loss=values))], [], log=True)
        assert shown[0].log is log
    for grad, log in ((11, True), (9, False)):
        grads = with_columns(run, **{"0__lr__grad": [0, -1, grad, math.inf]})
        panel = panels([("a", grads)], ["0.lr"], log=True)[2]
        assert panel.log is log
        np.testing.assert_array_equal(panel.lines[0].values, [np.nan if log else 0, 1, grad, np.nan])
    dead = with_columns(run, **{"0__lr__grad": [0, 0, 0, math.nan]})
    panel = panels([("a", dead)], ["0.lr"], log=True)[2]
    assert not panel.log
    np.testing.assert_array_equal(panel.lines[0].values, [0, 0, 0, np.nan])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(math.nan)), min_size=1, max_size=200),
    st.integers(1, 40),
    st.booleans(),
)
def test_a_long_line_keeps_its_mean_and_its_extremes(numbers, points, log):
    values = drawable(np.array(numbers), log)
    line = reduced("a", np.arange(len(values), dtype=float), values, log, points)
    count = len(values)
    if count <= points:
        np.testing.assert_array_equal(line.values, values)
        assert line.least is line.largest is None
        return
    assert len(line.values) == len(line.steps) == points
    for i in range(points):
        part = values[i * count // points : (i + 1) * count // points]
        known = part[~np.isnan(part)]
        if not len(known):
            assert np.isnan([line.values[i], line.least[i], line.largest[i]]).all()
            continue
        mean = 10 ** np.mean(np.log10(known)) if log else np.mean(known)
        assert line.values[i] == pytest.approx(mean, rel=1e-9, abs=1e-6)
        assert (line.least[i], line.largest[i]) == (known.min(), known.max())


# ---- what is drawn equals what was recorded


def curves(text):
    """The points of each line of an SVG, in its own coordinates, and the axis: ticks by their numbers."""
    root = ElementTree.fromstring(text)
    found = []
    for group in root.iter(f"{{{figure.SVG}}}g"):
        if re.match("line-", group.get("class", "")):
            path = group.find(f"{{{figure.SVG}}}path").get("d")
            found.append([(op, float(x), float(y)) for op, x, y in re.findall(r"([ML]) (\S+) (\S+)", path)])
    return found


def proportional(drawn, true):
    """Whether points on a picture are an affine image of what they show."""
    slope, offset = np.polyfit(true, drawn, 1)
    return np.abs(slope * true + offset - drawn).max() < 1e-3


@pytest.mark.parametrize("log", [False, True])
def test_the_points_of_an_svg_are_those_of_the_record(log):
    values = np.exp(np.random.default_rng(0).standard_normal(50) * 4)
    values[[7, 20, 21]] = [math.nan, math.inf, -1 if log else math.nan]
    steps = np.arange(50.0) ** 2
    (points,) = curves(figure.svg([Panel("x", "y", [Line("a", steps, values)], log)]))
    known = np.isfinite(drawable(values, log))
    assert len(points) == known.sum() == 47
    assert [op for op, *_ in points].count("M") == 3  # two gaps
    _, x, y = zip(*points, strict=True)
    assert proportional(np.array(x), steps[known])
    assert proportional(np.array(y), np.log10(values[known]) if log else values[known])
    assert (np.diff(y)[0] < 0) == (values[1] > values[0])  # up is down in an SVG


def test_the_ticks_say_what_is_drawn():
    values = np.array([0.99900001, 0.9990002, 0.9990004])
    drawing = figure.svg([Panel("x", "y", [Line("a", np.array([1.0, 2, 3]), values)], False)])
    ((_, _, first), (_, _, middle), (_, _, last)) = curves(drawing)[0]
    root = ElementTree.fromstring(drawing)
    texts = [
        (t.text, float(t.get("y"))) for t in root.iter(f"{{{figure.SVG}}}text") if re.match(r"0\.999", t.text or "")
    ]
    assert len({text for text, _ in texts}) == len(texts) > 2
    (low, at), (high, top) = texts[0], texts[-1]
    scale = (top - at) / (float(high) - float(low))
    assert (last - first) / (values[2] - values[0]) == pytest.approx(scale, rel=1e-4)
    assert first > middle > last


@pytest.mark.slow
def test_an_svg_is_the_same_each_time_and_needs_nothing():
    shown = panels([("a", made()), (EVIL, made(seed=1))], None, log=True)
    drawing = figure.svg(shown)
    assert drawing == figure.svg(shown)
    root = ElementTree.fromstring(drawing)
    assert len(curves(drawing)) == 2 * len(shown)
    words = ["".join(text.itertext()) for text in root.iter(f"{{{figure.SVG}}}text")]
    assert {"loss", "hypergradient of 0.lr", "step"} <= set(words)  # text as text
    assert any("<script>alert(1)</script>" in text and "$x$" in text for text in words)
    assert "<script" not in drawing
    for part in root.iter():
        for name, value in part.attrib.items():
            assert name.endswith("aria-label") or "//" not in value
            assert not name.endswith("href") or value.startswith("#")
    ids = [part.get("id") for part in root.iter() if part.get("id")]
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', drawing)) <= set(ids)
    assert "metadata" not in drawing
    assert str(datetime.now(timezone.utc).year) not in drawing


def test_a_long_record_is_drawn_with_its_band():
    run = made(5000)
    shown = panels([("a", run)], [], log=False)
    drawing = figure.svg(shown)
    (points,) = curves(drawing)
    assert len(points) == POINTS
    assert 'class="band-0"' in drawing
    assert 'class="band-0"' not in figure.svg(panels([("a", made(POINTS))], [], log=False))


def png_size(content):
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def pixels(content):
    """The pixels of a PNG, rows by columns by colours, read by hand."""
    width, height = png_size(content)
    depth, kind = content[24], content[25]
    assert depth == 8
    size = {2: 3, 6: 4}[kind]
    at, data = 8, b""
    while at < len(content):
        length, name = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        data += content[at + 8 : at + 8 + length] if name == b"IDAT" else b""
        at += 12 + length
    raw = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, 1 + width * size)
    rows, before = [], np.zeros((width, size), np.int64)
    for line in raw:
        row, how = line[1:].reshape(width, size).astype(np.int64), line[0]
        if how in (3, 4):  # each pixel needs the one to its left
            left = corner = np.zeros(size, np.int64)
            for i in range(width):
                up = before[i]
                if how == 3:
                    guess = (left + up) // 2
                else:
                    p = left + up - corner
                    a, b, c = np.abs(p - left), np.abs(p - up), np.abs(p - corner)
                    guess = np.where((a <= b) & (a <= c), left, np.where(b <= c, up, corner))
                left = row[i] = (row[i] + guess) % 256
                corner = up
        elif how == 1:
            row = np.cumsum(row, axis=0) % 256
        elif how == 2:
            row = (row + before) % 256
        rows.append(row)
        before = row
    return np.array(rows)[..., :3]


def near(image, color, tolerance=40):
    """How many pixels have about this colour."""
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(image - wanted).max(axis=-1) <= tolerance).sum())


@pytest.mark.slow
def test_a_png_shows_each_line_in_its_colour(tmp_path):
    shown = panels([("one", made()), ("other", made(seed=1))], ["0.lr"], log=False)
    figure.png(shown[1:2], tmp_path / "a.png")
    figure.png(shown[1:2], tmp_path / "b.png")
    content = (tmp_path / "a.png").read_bytes()
    assert content == (tmp_path / "b.png").read_bytes()
    assert png_size(content) == pytest.approx((150 * figure.WIDTH, 150 * (figure.HEIGHT + 2 * figure.ENTRY)), abs=1)
    image = pixels(content)
    for color in figure.COLORS[:2]:
        assert near(image, color) > 500
    assert near(image, figure.COLORS[2]) == 0


def test_a_hundred_panels_fit_a_picture(tmp_path):
    line = Line("a", np.array([1.0, 2]), np.array([1.0, 2]))
    figure.png([Panel(str(i), "", [line], False) for i in range(7)], tmp_path / "a.png")
    width, height = png_size((tmp_path / "a.png").read_bytes())
    assert (width, height) == (round(300 * figure.WIDTH), round(4 * 150 * figure.HEIGHT))
    most = 150 * figure.HEIGHT * figure.ROWS
    assert most < 2**16


# ---- in the terminal


def shown_points(text, marks="*"):
    """Where a plot in ASCII has its marks: columns and rows, from the upper left corner of the axes."""
    rows = [line.split("|")[1] for line in text.splitlines() if line.count("|") == 2]
    return [(x, y) for y, row in enumerate(rows) for x, c in enumerate(row) if c in marks], len(rows)


def test_a_plot_in_the_terminal_follows_the_record():
    steps = np.arange(60.0)
    rising = Panel("x", "y", [Line("a", steps, steps**2)], False)
    text = terminal.plot(rising, 80, 24, False, ascii_only=True)
    points, rows = shown_points(text)
    wide = max(x for x, _ in points) + 1
    for x, y in points:
        expected = (1 - (x / (wide - 1)) ** 2) * (rows - 1)
        slope = 2 * rows / wide
        assert abs(y - expected) <= 1 + slope
    assert {x for x, _ in points} == set(range(wide))
    exponential = Panel("x", "y", [Line("a", steps, np.exp(steps / 5))], True)
    points, rows = shown_points(terminal.plot(exponential, 80, 24, False, ascii_only=True))
    for x, y in points:  # straight on a logarithmic axis
        assert abs(y - (1 - x / (max(x for x, _ in points))) * (rows - 1)) <= 1.5


def test_several_lines_are_told_apart_without_colour():
    steps = np.arange(50.0)
    panel = Panel(
        "x", "y", [Line("low", steps, steps * 0 + 1), Line("high", steps, steps * 0 + 2, place=1)], False, True
    )
    text = terminal.plot(panel, 60, 16, color=False)
    assert text.splitlines()[-2:] == ["  * low", "  o high"]
    stars, _ = shown_points(text.replace("│", "|"), "*")
    rings, _ = shown_points(text.replace("│", "|"), "o")
    assert min(y for _, y in stars) > max(y for _, y in rings)
    colored = terminal.plot(panel, 60, 16, color=True)
    assert "\x1b[34m" in colored
    assert re.sub(r"\x1b\[\d*m", "", colored) == text


@pytest.mark.sampled(3)
@pytest.mark.parametrize("width", [4, 20, 40, 80, 140])
@pytest.mark.parametrize("lines", [1, 3])
@pytest.mark.parametrize("log", [False, True])
def test_a_plot_keeps_to_the_width(width, lines, log):
    runs = [(f"a run with a long name {i}" * 3, made(300, seed=i)) for i in range(lines)]
    for panel in panels(runs, None, log):
        for ascii_only in (False, True):
            text = terminal.plot(panel, width, 16, False, ascii_only)
            assert max(map(len, text.splitlines())) <= width
            assert not ascii_only or text.isascii()
            assert len(text.splitlines()) <= 16 + (lines > 1) * lines


ODD = {
    "no rows": [],
    "one row": [0.5],
    "nothing finite": [math.nan, math.inf, -math.inf],
    "all negative": [-1.0, -2.0, -3.0],
    "zeros": [0.0, 0.0],
    "constant": [0.1, 0.1, 0.1],
    "huge": [-1.7e308, 1.7e308],
    "tiny": [5e-324, 1e-320],
    "gaps": [1.0, math.nan, 2.0, math.nan, 3.0],
    "one of many": [math.nan, 2.0, math.inf],
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("log", [False, True])
def test_odd_records_are_drawn(name, log):
    values = np.array(ODD[name])
    panel = Panel("x", "y", [Line("a", np.arange(1.0, len(values) + 1), values)], log)
    known = np.isfinite(drawable(values, log))
    text = terminal.plot(panel, 60, 12, False)
    drawing = figure.svg([panel])
    assert ("nothing to draw" in text) == ("nothing to draw" in drawing) == (not known.any())
    if known.any():
        assert re.search("[⠁-⣿]", text)
        (points,) = curves(drawing)
        assert len(points) == known.sum()
        assert "nan" not in drawing


def test_a_point_between_gaps_is_seen():
    steps = np.arange(1.0, 6)
    alone = figure.svg([Panel("x", "y", [Line("a", steps, np.array(ODD["gaps"]))], False)])
    whole = figure.svg([Panel("x", "y", [Line("a", steps, steps)], False)])
    marks = [
        len(re.findall(r'class="line-0">.*?</g>\s*</g>', text, re.DOTALL)[0].split("<use")) - 1
        for text in (alone, whole)
    ]
    assert marks == [3, 0]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e-9, 5e20])
def test_the_numbers_at_the_axes_are_those_of_the_curve(scale, log):
    steps = np.arange(1.0, 201)
    curve = (lambda t: scale * math.exp(t / 20)) if log else (lambda t: scale * t)  # a straight line on its axis
    values = np.array([curve(t) for t in steps])
    text = terminal.plot(Panel("x", "y", [Line("a", steps, values)], log), 80, 24, False, ascii_only=True)
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 2]
    assert text.splitlines()[-1].split() == ["1", "200"]
    labelled = [(row[1], float(row[2])) for row in rows if row[2].strip()]
    assert len(labelled) == 5
    height = math.log10 if log else float
    span = height(curve(200)) - height(curve(1))
    for marks, label in labelled:
        at = 1 + 199 * (marks.index("*") + marks.rindex("*")) / 2 / (len(marks) - 1)  # the step that is drawn there
        assert abs(height(curve(at)) - height(label)) < 1.5 / len(rows) * span


def test_control_characters_do_not_reach_the_terminal():
    panel = Panel(EVIL, EVIL, [Line(EVIL, np.array([1.0]), np.array([1.0]))] * 2, False, True)
    text = terminal.plot(panel, 80, 12, color=False)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)


# ---- the page


class Reader(HTMLParser):
    """What a browser would find: elements, attributes, text; and that everything that opens is closed."""

    VOID = ("meta", "line", "path", "use", "br", "rect")

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.words, self.crossed = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.VOID and self.open.pop() != tag:
            self.crossed.append(tag)

    def handle_data(self, data):
        self.words.append(data)


def test_elements_escape_what_is_not_html():
    assert element("p", "<b>", Html("<i>x</i>"), class_='a"b') == '<p class="a&quot;b">&lt;b&gt;<i>x</i></p>'
    assert element("p", aria_label="x") == '<p aria-label="x"></p>'
    assert element("p", title=Html('"><b>')) == '<p title="&quot;&gt;&lt;b&gt;"></p>'
    assert joined("a\x00\x1b", Html("<br>")) == "a\ufffd\ufffd<br>"


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_any_text_is_text_in_an_element(text):
    found = Reader(element("p", text, title=text))
    assert [tag for tag, _ in found.elements] == ["p"]
    assert not found.crossed


@pytest.fixture(scope="module")
def whole():
    return page.report([("runs/one", made())], sentences=["1.lr: its rate is too high", "<script>two</script>"])


def test_the_page_has_the_run_its_figures_and_its_pictures(whole):
    run = made()
    found = Reader(whole)
    assert not found.open
    assert not found.crossed
    text = " ".join(" ".join(found.words).split())
    for expected in (
        "runs/one",
        "toy",
        "Adam(0.01) level 0 updates the network",
        "SGD(0.01, clip) level 1 updates level 0",
    ):
        assert expected in text
    for expected in ("test error 25.00 %", "time 1.5 s", "2026-01-02 03:04", "1.lr: its rate is too high"):
        assert expected in text
    for key, s in statistics(run.record).items():
        row = f"{key.split('.')[1]} " + " ".join(map(natural, (s.first, s.last, s.min, s.max)))
        assert row in text
        assert f"{number(s.grad_median, 3)} {number(s.grad_95, 3)} {number(s.grad_max, 3)}" in text
    drawings = re.findall(r"<svg xmlns.*?</svg>", whole, re.DOTALL)
    assert len(drawings) == 7
    (points,) = curves(drawings[0])
    assert proportional(np.array([y for *_, y in points]), run["loss"])


def test_the_page_asks_for_nothing_and_runs_nothing(whole):
    found = Reader(
        page.report([(EVIL, made(stack=f'Mine("{EVIL}")', task=EVIL, keys=("0.<script>",)))], None, True, [EVIL])
    )
    for reader in (found, Reader(whole)):
        tags = {tag for tag, _ in reader.elements}
        assert tags.isdisjoint(
            {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image", "foreignobject"}
        )
        for _, attributes in reader.elements:
            assert not [name for name in attributes if name.startswith("on")]
            assert all(value.startswith("#") for name, value in attributes.items() if "href" in name or name == "src")
    assert "".join(found.words).count("<script>alert(1)</script>") >= 5  # as text
    assert "@import" not in whole
    assert not re.search(r"url\((?!#)", whole)
    policy = (
        dict(found.elements)["meta"] if False else [a for t, a in found.elements if t == "meta" and "http-equiv" in a]
    )
    assert policy == [{"http-equiv": "Content-Security-Policy", "content": page.POLICY}]
    assert page.POLICY.startswith("default-src 'none'; style-src 'unsafe-inline';")


def test_a_page_about_several_runs():
    text = page.report([("one", made()), ("other", made(seed=1, stack="SGD(0.1)", keys=("0.lr",)))], None, True)
    found = Reader(text)
    assert not found.open
    assert not found.crossed
    words = " ".join(" ".join(found.words).split())
    assert "2 runs compared" in words
    assert "one toy Adam(0.01) / SGD(0.01, clip) 0 finished 25.00 %" in words
    drawings = re.findall(r"<svg xmlns.*?</svg>", text, re.DOTALL)
    assert [len(curves(drawing)) for drawing in drawings] == [2, 2, 2, 1, 1, 1, 1]
    assert len([tag for tag, _ in found.elements if tag == "details"]) == 2


@pytest.mark.slow
def test_runs_without_a_result_or_rows_have_a_page():
    empty = made(0)
    unfinished = Run(empty.path, {"task": "toy", "stack": "not / ) python"}, None, empty.record, empty.when)
    words = " ".join(Reader(page.report([("x", unfinished)])).words)
    assert "stopped" in words
    assert "nothing to draw" in words
    for values in (ODD["one row"], ODD["nothing finite"], ODD["all negative"]):
        odd = made(len(values), keys=("0.lr",))
        odd = with_columns(odd, loss=values, **{"0__lr__value": values, "0__lr__grad": values})
        page.report([("x", odd), ("y", made(1))])


def test_sixty_four_levels_have_a_page(tmp_path):
    run = made(30, stack=" / ".join(["SGD"] * 64), keys=[f"{k}.lr" for k in range(64)])
    text = sections.heading(run) + sections.hyperparameters(run)
    assert " ".join(Reader(text).words).count("updates level") == 63
    shown = panels([("x", run)], None, True)
    assert len(shown) == 129


def test_a_notebook_shows_a_run(monkeypatch):
    run = with_columns(made(), **{"0__lr__grad": np.zeros(40)})
    text = run._repr_html_()
    assert text.startswith('<div class="hyperstack">')
    words = " ".join(" ".join(Reader(text).words).split())
    assert [remark.text for remark in reading(run)]
    assert all(remark.text in words for remark in reading(run))
    assert len(re.findall(r"<svg xmlns", text)) == page.FEW
    assert not Reader(text).crossed
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    plain = run._repr_html_()
    assert "<svg" not in plain
    assert "Hyperparameters" in plain


def test_parameters_of_the_network_stand_in_a_table():
    columns = {
        f"@{EVIL}.norm": [1.0] * 40,
        f"@{EVIL}.clip": [0.5] * 40,
        "@1.bias.norm": [3.0] * 40,
        "@1.bias.clip": [1.0] * 40,
    }
    run = made()
    run = Run(
        run.path,
        run.plan,
        run.summary,
        Record({**run.record.columns, **{k: np.array(v) for k, v in columns.items()}}),
        run.when,
    )
    found = Reader(sections.tensors(run))
    assert "script" not in {tag for tag, _ in found.elements}
    words = " ".join(" ".join(found.words).split())
    assert "1 1 100 % 50 % 1.bias 3 3 0 % -" in words


def test_what_is_not_installed_is_named(monkeypatch):
    panel = panels([("a", made())], [], False)
    for module, draw in (("matplotlib", figure.svg), ("uniplot", lambda shown: terminal.plot(shown[0], 80, 16, False))):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(InputError, match=re.escape(f'there is no {module}\npip install "hyperstack[plots]"')):
            draw(panel)


# ---- the command line


@pytest.fixture
def at_home(elsewhere, folder):
    return folder


@pytest.fixture
def made_run(tmp_path):
    """A folder of a run whose hypergradients were all 0, of which a reading speaks."""
    path = tmp_path / "made"
    path.mkdir()
    (path / "plan.json").write_text(json.dumps({"task": "toy", "stack": "Adam(0.01) / SGD(0.01, clip) / SGD"}))
    sink = JsonLines(path / "record.jsonl")
    sink.open(["step", "loss", *(f"{key}.{what}" for key in ("0.lr", "1.lr") for what in ("value", "grad", "clip"))])
    sink.write(np.array([[step, 1.0, 0.01, 0, 1, 0.01, 0, 1] for step in range(1, 41)]))
    sink.close()
    return path


def test_inspect_draws(at_home):
    record = load_run("run").record
    text = ok("inspect", "run", "--plot", columns=80)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("┌") == 1 + 2 * len(record.keys)
    one = ok("inspect", "run", "--plot", "--level", 1)
    assert [line.split(":")[0] for line in one.splitlines() if "by step" in line] == [
        *("loss", "1.lr", "hypergradient of 1.lr")
    ]
    code, output, remarks = command("inspect", "run", "--level", 1, "--png", "a.png", "--html", "a.html", columns=80)
    assert (code, output, remarks) == (0, "", "wrote a.png\nwrote a.html\n")
    assert png_size(Path("a.png").read_bytes())[0] == round(300 * figure.WIDTH)
    assert "Adam(0.01)" in Path("a.html").read_text()
    code, output, _ = command("inspect", "run", "--level", 1, "--png", "b.png", "--json")
    assert (code, json.loads(output)["rows"]) == (0, 20)


def test_the_page_says_what_each_sentence_is_about(at_home, made_run):
    remarks = reading(load_run(made_run))
    assert {remark.key for remark in remarks} == {"0.lr", "1.lr"}
    for options, keys in (((), {"0.lr", "1.lr"}), (("--key", "1.*"), {"1.lr"})):
        file = f"{len(keys)}.html"
        command("inspect", made_run, "--html", file, *options)
        words = " ".join(" ".join(Reader(Path(file).read_text()).words).split())
        for remark in remarks:
            assert (f"{remark.key}: {remark.sentence}" in words) is (remark.key in keys)


@pytest.mark.parametrize(
    "options",
    [
        ("--png", "taken"),
        ("--html", "taken"),
        ("--png", "new", "--html", "taken"),
        ("--png", "new", "--html", "new"),
        ("--png", "none/new"),
        ("--html", "empty"),
        ("--html", "link"),
    ],
)
def test_files_are_never_overwritten(at_home, options):
    Path("taken").write_text("mine")
    Path("empty").mkdir(exist_ok=True)
    Path("link").symlink_to("nowhere")
    before = contents(at_home)
    code, output, remarks = command("inspect", "run", *options)
    assert (code, output) == (2, "")
    assert re.search("exists already|there is no folder|named twice", remarks)
    assert contents(at_home) == before


@pytest.mark.slow
def test_a_full_disk_leaves_nothing(at_home, monkeypatch):
    write, asked = pictures._write, []

    def fail(path, content):
        asked.append(path)
        if len(asked) == 2:
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(pictures, "_write", fail)
    before = contents(at_home)
    code, _, remarks = command("inspect", "run", "--level", 1, "--png", "a.png", "--html", "a.html")
    assert (code, remarks) == (1, "hyperstack: cannot write a.html\nNo space left on device\n")
    assert len(asked) == 2
    assert contents(at_home) == before


def test_without_links_files_are_still_written_whole(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(pictures.os, "link", refuse)
    pictures.write_new({tmp_path / "a": b"one", tmp_path / "b": b"two"})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"one", "b": b"two"}
    with pytest.raises(InputError, match="exists already"):
        pictures.write_new({tmp_path / "c": b"", tmp_path / "a": b""})
    assert not (tmp_path / "c").exists()


def test_what_is_missing_writes_nothing(at_home, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    before = contents(at_home)
    code, _, remarks = command("inspect", "run", "--png", "a.png", "--plot")
    assert (code, remarks.splitlines()[-1]) == (2, 'pip install "hyperstack[plots]"')
    assert contents(at_home) == before


def test_a_million_rows_are_drawn_in_seconds():
    draw = np.random.default_rng(0).random(1_000_000)
    run = made(1_000_000, keys=())
    run = with_columns(run, loss=draw)
    (panel,) = panels([("a", run)], [], True)
    (line,) = panel.lines
    assert len(line.values) == POINTS
    assert (np.nanmin(line.least), np.nanmax(line.largest)) == (draw.min(), draw.max())
    assert len(page.report([("a", run)])) < 200_000


# ---- in a real browser

browser = pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome, and there is none here")
PROBE = """<script>
const boxes = selector => [...document.querySelectorAll(selector)].map(e => e.getBoundingClientRect()).map(
  r => [Math.round(r.left), Math.round(r.top), Math.round(r.width), Math.round(r.height)]);
const found = {figures: boxes('figure'), lines: boxes('[class^="line-"]'), tables: boxes('table'),
  page: [innerWidth, document.documentElement.scrollWidth],
  ink: getComputedStyle(document.body).color, paper: getComputedStyle(document.body).backgroundColor,
  stroke: getComputedStyle(document.querySelector('.line-0 path')).stroke,
  requests: performance.getEntriesByType('resource').length, alerts: window.alerted || 0};
const out = document.createElement('pre'); out.id = 'probe'; out.textContent = JSON.stringify(found);
document.body.append(out);
</script>"""


def measured(output):
    """What the probe found."""
    (text,) = re.findall('<pre id="probe">(.*?)</pre>', output)
    return json.loads(html.unescape(text))


def browse(tmp_path, path, *options, width=1200):
    """What the browser writes: of the page, and of what it complains about."""
    quiet = "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
    arguments = [BROWSER, "--headless", "--no-sandbox", *quiet.split(), "--disable-sync", "--hide-scrollbars"]
    arguments += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},1600", "--enable-logging=stderr"]
    done = subprocess.run(
        [*arguments, *options, path.as_uri()], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [500, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_lays_out(tmp_path, whole, dark, width):
    bare, probed = tmp_path / "bare.html", tmp_path / "probed.html"
    bare.write_text(whole)
    probed.write_text(re.sub(r"<meta http-equiv[^>]*>", "", whole).replace("</body>", PROBE + "</body>"))
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    output, complaints = browse(tmp_path, probed, scheme, "--dump-dom", width=width)
    assert not complaints
    found = measured(output)
    assert found["page"][0] >= found["page"][1], "the page is wider than the window"
    assert (found["requests"], found["alerts"]) == (0, 0)
    assert len(found["figures"]) == len(found["lines"]) == 7
    assert len(found["tables"]) == 2
    for _, _, wide, high in found["figures"] + found["lines"]:
        assert wide > 200
        assert high > 20
    tops = [top for _, top, *_ in found["figures"]]
    assert tops[0] < tops[1]
    assert (tops[1] == tops[2]) == (width > 900)  # side by side where there is room
    ink, paper, stroke = ([int(x) for x in re.findall(r"\d+", found[name])[:3]] for name in ("ink", "paper", "stroke"))
    assert (sum(ink) > sum(paper)) == dark
    _, complaints = browse(tmp_path, bare, scheme, f"--screenshot={tmp_path / 'shot.png'}", width=width)
    assert not complaints
    image = pixels((tmp_path / "shot.png").read_bytes())
    for color in (ink, paper, stroke):
        assert near(image, "#" + "".join(f"{x:02x}" for x in color), 30) > 500


@browser
@pytest.mark.slow
def test_a_hostile_run_runs_nothing_in_a_browser(tmp_path):
    evil = '<script>window.alerted = 1</script><img src="x" onerror="window.alerted = 1"></style><svg onload=alerted=1>'
    run = made(stack=f'Mine("{evil}")', task=evil, keys=(f"0.{evil.replace('.', ' ')}",))
    text = page.report([(evil, run), ("b", made())], None, True, [evil])
    path = tmp_path / "probed.html"
    path.write_text(re.sub(r"<meta http-equiv[^>]*>", "", text).replace("</body>", PROBE + "</body>"))
    output, complaints = browse(tmp_path, path, "--dump-dom")
    assert not complaints
    found = measured(output)
    assert (found["requests"], found["alerts"]) == (0, 0)
