"""Published figures and measured ones on the screen, and as pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from hyperstack.reports.against import against, curve
from hyperstack.reports.panels import Line, Panel
from hyperstack.reports.text import number
from hyperstack.schedule import CONSTANT

if TYPE_CHECKING:
    from hyperstack.experiments.experiment import AnyExperiment


def list_experiments(console: Console, experiments: list[AnyExperiment]) -> None:
    """What there is, what each needs, and about how long it takes."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for title in ("experiment", "what it is, and the data it needs"):
        table.add_column(title)
    table.add_column("2 cores", justify="right", no_wrap=True)
    for each in experiments:
        table.add_row(each.name, each.about, duration(each.hours))
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        console.print(line.rstrip(), soft_wrap=True)


def duration(hours: float) -> str:
    """Hours as people say them."""
    if hours < 1 / 60:
        return "a minute"
    return f"{hours * 60:.0f} min" if hours < 1 else f"{hours:,.0f} h"


def show_head(console: Console, found: dict[str, Any]) -> None:
    """What was run, by which document if there is one, how much of it, and the user's note."""
    console.print(f"{found['experiment']}: {found['title']}")
    if source := found.get("source"):
        console.print(f"{source['authors']}: {source['title']}, {source['place']}")
    console.print(scale_line(found))
    if found["note"]:
        console.print(f"note: {found['note']}")


def show(console: Console, found: dict[str, Any]) -> None:
    """All of an outcome: the figures of each part, its claims, what was not run, and by which rule."""
    show_head(console, found)
    for part in found["parts"]:
        console.print(f"\n{part_line(part)}")
        for series in part["series"]:
            console.print(f"  {series['label']}: {series['stack']}", soft_wrap=True)
        console.print(f"{found['measure']}, {found['unit']}")
        console.print(_figures(part, found["digits"]))
        if part["claims"]:
            console.print(_claims(part["claims"]))
    for each in found["not_run"]:
        figures = f" (published: {each['published']})" if each["published"] else ""
        console.print(f"\nnot run: {each['row']}{figures}: {each['why']}")
    console.print("\nremarks")
    for remark in found["remarks"]:
        console.print(item("-", remark))
    console.print("\nhow verdicts are given")
    for line in found["rule"]:
        console.print(item("-", line))


def scale_line(found: dict[str, Any]) -> str:
    """How much of the work was done."""
    done, asked = (sum(part[key] for part in found["parts"]) for key in ("cells_done", "cells"))
    line = f"{number(found['share'], 3)} of the work"
    if found["share"] >= 1:
        line = "all of the work" + (", with more seeds" if found["share"] > 1 else "")
    fewer = [p for p in found["parts"] if p["epochs"] < p["epochs_published"]]
    if "source" in found and len(fewer) == len(found["parts"]):
        line += ": fewer epochs than published, so every verdict is inconclusive"
    return line if done == asked else f"{line}; so far {done:,} of {asked:,} runs have ended"


def part_line(part: dict[str, Any]) -> str:
    """What was trained in a part."""
    epochs = f"{number(part['epochs'])} epoch{'s' if part['epochs'] != 1 else ''}"
    epochs += f" of {part['epochs_published']}" if part["epochs"] != part["epochs_published"] else ""
    seeds = f"{len(part['seeds'])} seed{'s' if len(part['seeds']) > 1 else ''}"
    seeds += f" of {part['seeds_asked']}" if len(part["seeds"]) < part["seeds_asked"] else ""
    if (tuned := part.get("tuned_with")) and tuned < len(part["seeds"]):
        seeds += f", rivals tuned with the first{f' {tuned}' if tuned > 1 else ''}"
    course = part.get("schedule", CONSTANT)
    schedule = "" if course == CONSTANT else f", schedule {course}"
    kept = part.get("examples", 1)
    some = "" if kept == 1 else f", trained and tested with {100 * kept:.3g} % of the examples"
    return f"{part['name']}: {part['task']}, {epochs}, batches of {part['batch_size']}, {seeds}{schedule}{some}"


def measured(row: dict[str, Any], digits: int) -> str:
    """The mean, its interval, and what diverged."""
    if row["mean"] is None:
        return "diverged" if row["figures"] else "-"
    marked = f", {row['diverged']} diverged" if row["diverged"] else ""
    return f"{row['mean']:.{digits}f}{plus_minus(row['half'], digits)}{marked}"


def plus_minus(half: float | None, digits: int = 2) -> str:
    """Half of an interval behind its middle; nothing where there is none."""
    return "" if half is None else f" ± {half:.{digits}f}"


def item(mark: str, text: str) -> Table:
    """A paragraph behind a mark."""
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_row(f" {mark}", text)
    return table


def difference(claims: list[dict[str, Any]]) -> str:
    """The heading of what claims come to: where likeness is claimed, no side is the better one."""
    return "difference" if any(claim.get("within") is not None for claim in claims) else "better by"


def _claims(claims: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("claim")
    table.add_column(difference(claims), justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for claim in claims:
        gain = "" if claim["mean"] is None else f"{claim['mean']:.2f}{plus_minus(claim['half'])}"
        table.add_row(claim["says"], gain, claim["verdict"])
    return table


def _figures(part: dict[str, Any], digits: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    names = [series["name"] for series in part["series"] if series["name"]]
    table.add_column(names[0] if names else "")
    table.add_column("")
    for title in ("published", "measured", "allowed"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for row in sorted(part["rows"], key=lambda row: -math.inf if row["value"] is None else row["value"]):
        value = "" if row["value"] is None else number(row["value"])
        claimed = "-" if row["published"] is None else f"{row['published']:.{digits}f}"
        allowed = "" if row["allowed"] is None else f"± {row['allowed']:.{digits}f}"
        table.add_row(value, row["series"], claimed, measured(row, digits), allowed, row["verdict"] or "")
    return table


def pictures(found: dict[str, Any]) -> list[Panel]:
    """A panel for each part with a grid: measured figures against its values, with intervals, and published ones."""
    panels = []
    most = 100.0 if found["unit"] == "%" else math.inf
    for part in found["parts"]:
        lines = [line for series in part["series"] if series["name"] for line in _lines(part, series, most)]
        if lines:
            name = next(series["name"] for series in part["series"] if series["name"])
            title = part["name"] if len(found["parts"]) > 1 else found["experiment"]
            panels.append(against(name, title, f"{found['measure']}, {found['unit']}", lines))
    return panels


def _lines(part: dict[str, Any], series: dict[str, Any], most: float) -> Iterator[Line]:
    rows = sorted((r for r in part["rows"] if r["series"] == series["label"]), key=lambda row: row["value"])
    values, means, halves, published, diverged = (
        [row[key] for row in rows] for key in ("value", "mean", "half", "published", "diverged")
    )
    if means != [None] * len(rows):
        yield curve(f"{series['label']}, measured", values, means, halves, diverged, most)
    if published != [None] * len(rows):
        yield curve(f"{series['label']}, published", values, published)
