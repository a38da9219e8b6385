"""What pages about runs are made of: what a run was and came to, its figures in tables, pictures, and sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hyperstack.reports import figure
from hyperstack.reports.groups import best, difference
from hyperstack.reports.markup import Html, element, joined
from hyperstack.reports.panels import Panel
from hyperstack.reports.statistics import (
    ProbeStatistics,
    Statistics,
    TensorStatistics,
    probe_statistics,
    statistics_of,
    tensor_statistics,
)
from hyperstack.reports.text import natural, number, percent
from hyperstack.telemetry.record import parts

if TYPE_CHECKING:
    from hyperstack.reports.groups import Group
    from hyperstack.reports.run import Run
    from hyperstack.reports.spread import Spread

MOST = 20  # parameters of the network in a table
STROKES = ("none", "5 2", "7 2 1 2", "1.5 2", "7 1.5 1.5 1.5")  # as `figure.DASHES`
# The titles are those of `hyperstack inspect`.
HYPERPARAMETER: list[tuple[str, Callable[[Statistics], str]]] = [
    ("first", lambda s: natural(s.first)),
    ("last", lambda s: natural(s.last)),
    ("min", lambda s: natural(s.min)),
    ("max", lambda s: natural(s.max)),
    ("hypergradient median", lambda s: number(s.grad_median, 3)),
    ("95 %", lambda s: number(s.grad_95, 3)),
    ("max", lambda s: number(s.grad_max, 3)),
    ("at step", lambda s: "-" if s.grad_max_step is None else f"{s.grad_max_step:,}"),
    ("average", lambda s: number(s.average, 3)),
    ("clipped", lambda s: percent(s.clipped, 0)),
    ("to", lambda s: percent(s.factor, 0)),
    ("flips", lambda s: percent(s.flips, 0)),
    ("nan/inf", lambda s: f"{s.nonfinite:,}" if s.nonfinite else "-"),
]
PROBE: list[tuple[str, Callable[[ProbeStatistics], str]]] = [
    ("probes", lambda s: f"{s.probes:,}"),
    ("median cosine", lambda s: number(s.cosine_median, 3)),
    ("last", lambda s: number(s.cosine_last, 3)),
    ("median displacement", lambda s: number(s.displacement_median, 3)),
    ("last", lambda s: number(s.displacement_last, 3)),
]
TENSOR: list[tuple[str, Callable[[TensorStatistics], str]]] = [
    ("median norm", lambda s: number(s.norm_median, 3)),
    ("max norm", lambda s: number(s.norm_max, 3)),
    ("clipped", lambda s: percent(s.clipped, 0)),
    ("to", lambda s: percent(s.factor, 0)),
    ("median trust", lambda s: number(s.trust_median, 3)),
    ("max trust", lambda s: number(s.trust_max, 3)),
]


def heading(run: Run) -> Html:
    """What the run was, and what came of it: the stack as a tree, the result, when, and for how long."""
    summary, plan = run.summary or {}, run.plan
    facts = {
        "test error": percent(summary.get("test_error")),
        "train loss": number(summary.get("train_loss")),
        "steps": f"{summary['steps']:,}" if summary else "-",
        "recorded": f"{len(run.record):,} steps",
        "time": f"{summary['seconds']:,.1f} s" if summary else "-",
        "epochs": str(summary.get("epochs") or "-"),
        "seed": str(plan.get("seed", "-")),
        "device": str(plan.get("device", "-")),
        "last written": f"{run.when:%Y-%m-%d %H:%M %Z}".rstrip(),
    }
    shown = [element("div", element("dt", name), element("dd", x)) for name, x in facts.items() if x != "-"]
    state = element("span", run.state, class_=f"state {run.state}")
    title = element("p", element("b", str(plan["task"])), " ", state, class_="task")
    return element("header", title, _tree(run.levels), element("dl", *shown, class_="facts"))


def reading(sentences: Sequence[str]) -> Html:
    """What the figures say, in words."""
    if not sentences:
        return Html()
    return element("section", element("h2", "Reading"), element("ul", *(element("li", s) for s in sentences)))


def hyperparameters(run: Run, keys: Sequence[str] | None = None) -> Html:
    """For each level a table of its hyperparameters; `keys`: only these."""
    found = {key: s for key, s in statistics_of(run.record, run.levels).items() if keys is None or key in keys}
    texts = dict(enumerate(run.levels))
    tables = []
    for place in dict.fromkeys(parts(key)[:2] for key in found):
        prefix, level = place
        name = f"{prefix}: level {level}" if prefix else f"level {level}"
        rows = {parts(key)[2]: s for key, s in found.items() if parts(key)[:2] == place}
        caption = joined(element("b", name), f"  {texts.get(level, '')}")
        tables.append(_table(caption, "hyperparameter", rows, HYPERPARAMETER))
    if probes := {key: s for key, s in probe_statistics(run.record).items() if key in found}:
        tables.append(_table(Html("measured at averages"), "hyperparameter", probes, PROBE))
    return element("section", element("h2", "Hyperparameters"), *tables) if tables else Html()


def tensors(run: Run) -> Html:
    """The parameters of the network that were clipped most, by name."""
    found = tensor_statistics(run.record)
    if not found:
        return Html()
    caption = Html("what was recorded of the network's gradients, those clipped most often first")
    table = _table(caption, "parameter", dict(list(found.items())[:MOST]), TENSOR)
    more = f"and {len(found) - MOST} more: hyperstack inspect RUN --json has them" if len(found) > MOST else ""
    return element("section", element("h2", "Parameters of the network"), table, element("p", more))


def pictures(panels: Sequence[Panel], runs: Sequence[str]) -> Html:
    """The panels, the first across the page, the others in pairs; a legend where there are several `runs`, by label."""
    drawn = [element("figure", Html(figure.svg(panels[:1], legend=False, across=2)), class_="wide")]
    drawn += [element("figure", Html(figure.svg([panel], legend=False))) for panel in panels[1:]]
    legend = element("p", *(_entry(i, label) for i, label in enumerate(runs)), class_="legend")
    shown = [legend] if len(runs) > 1 else []
    return element("section", element("h2", "Pictures"), *shown, element("div", *drawn, class_="panels"))


def means(groups: Sequence[Group]) -> Html:
    """A table with a row for each group: what it is, and what its finished runs came to, mean ± standard deviation."""
    if not any(len(group.runs) > 1 for group in groups):
        return Html()
    winners = best(groups)
    rows = []
    for group in groups:
        rival = next((winner for winner in winners if winner.task == group.task), None)
        above = difference(group, rival) if rival and group is not rival else None
        error, loss, time = (group.spread(name) for name in ("test_error", "train_loss", "seconds"))
        over = "-" if above is None else f"{100 * above[0]:+.2f}"
        over += "" if above is None or above[1] is None else f" ± {100 * above[1]:.2f}"
        cells = [group.runs[0].stack, ", ".join(map(str, group.seeds)) or "-", str(len(group.finished))]
        cells += [_spread(error, lambda x: f"{100 * x:.2f}"), "best" if group is rival else over]
        cells += [_spread(loss, number, lambda x: number(x, 2)), _spread(time, lambda x: f"{x:,.1f}")]
        rows.append(element("tr", element("th", group.letter, scope="row"), *(element("td", x) for x in cells)))
    titles = ("group", "stack", "seeds", "finished", "test error, %", "over best, pp", "train loss", "time, s")
    top = element("tr", *(element("th", title, scope="col") for title in titles))
    caption = element("caption", "mean ± sample standard deviation over the finished runs; over best: ± standard error")
    table = element("table", caption, element("thead", top), element("tbody", *rows), class_="groups")
    return element("section", element("div", table, class_="scroll"))


def _spread(s: Spread, show: Callable[[float], str], deviation: Callable[[float], str] | None = None) -> str:
    """Mean and standard deviation, which is shown as the mean if not said otherwise."""
    if s.mean is None:
        return "-"
    return show(s.mean) if s.std is None else f"{show(s.mean)} ± {(deviation or show)(s.std)}"


def comparison(runs: Sequence[tuple[str, Run]]) -> Html:
    """A table with a row for each run: what it was, and what came of it."""
    titles = ("run", "task", "stack", "seed", "state", "test error", "train loss", "steps", "time")
    rows = []
    for i, (label, run) in enumerate(runs):
        summary = run.summary or {}
        cells = [str(run.plan["task"]), run.stack, str(run.plan.get("seed", "-")), run.state]
        cells += [percent(summary.get("test_error")), number(summary.get("train_loss"))]
        cells += [f"{summary['steps']:,}", f"{summary['seconds']:,.1f} s"] if summary else ["-", "-"]
        rows.append(element("tr", element("th", _entry(i, label), scope="row"), *(element("td", x) for x in cells)))
    top = element("tr", *(element("th", title, scope="col") for title in titles))
    table = element("table", element("thead", top), element("tbody", *rows), class_="runs")
    return element("section", element("div", table, class_="scroll"))


def _tree(levels: list[str]) -> Html:
    """The levels of a stack, each below the one that it updates."""
    tree = Html()
    for k, text in reversed(list(enumerate(levels))):
        what = f"level {k} updates {'the network' if k == 0 else f'level {k - 1}'}"
        tree = element(
            "li", element("code", text), " ", element("span", what, class_="what"), *([tree] if tree else [])
        )
        tree = element("ul", tree, **({"class_": "tree"} if k == 0 else {}))
    return tree


def _table(
    caption: Html, first: str, rows: dict[str, Any], columns: Sequence[tuple[str, Callable[[Any], str]]]
) -> Html:
    """A table of statistics; columns that have nothing to say are left out."""
    cells = [(title, [show(s) for s in rows.values()]) for title, show in columns]
    cells = [(title, column) for title, column in cells if set(column) != {"-"}]
    top = element("tr", *(element("th", title, scope="col") for title in (first, *(title for title, _ in cells))))
    body = [
        element("tr", element("th", name, scope="row"), *(element("td", column[i]) for _, column in cells))
        for i, name in enumerate(rows)
    ]
    table = element("table", element("caption", caption), element("thead", top), element("tbody", *body))
    return element("div", table, class_="scroll")


def _entry(i: int, label: str) -> Html:
    """The line of the i-th run, as it is drawn, and its label."""
    color, dashes = f"var(--line-{i % len(figure.COLORS)})", STROKES[i % len(STROKES)]
    line = f'<line x1="0" y1="5" x2="26" y2="5" stroke="{color}" stroke-width="2" stroke-dasharray="{dashes}"/>'
    swatch = Html(f'<svg class="swatch" width="26" height="10" aria-hidden="true">{line}</svg>')
    return element("span", swatch, " ", label, class_="entry")
