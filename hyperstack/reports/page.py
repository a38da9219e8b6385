"""Runs as HTML: one page that works offline, and a fragment for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from hyperstack.errors import InputError
from hyperstack.reports import sections
from hyperstack.reports.markup import Html, element, joined
from hyperstack.reports.panels import panels
from hyperstack.reports.reading import reading

if TYPE_CHECKING:
    from hyperstack.reports.groups import Group
    from hyperstack.reports.run import Run

FEW = 5  # pictures of a fragment: the loss and two hyperparameters
LIGHT = """color-scheme: light; --paper: #ffffff; --ink: #1f2328; --faint: #656d76; --rule: #d8dee4; --soft: #f6f8fa;
--line-0: #0072b2; --line-1: #d55e00; --line-2: #009e73; --line-3: #cc79a7; --line-4: #b8860b; --line-5: #56b4e9;
--good: #1a7f37; --bad: #c4320a;"""
DARK = """color-scheme: dark; --paper: #0f1419; --ink: #e6edf3; --faint: #9aa4af; --rule: #2d343c; --soft: #181e25;
--line-0: #58a6ff; --line-1: #ff8c42; --line-2: #2bc79a; --line-3: #e79bc8; --line-4: #f0b429; --line-5: #a5d8ff;
--good: #4ac26b; --bad: #ff8c66;"""
STYLE = """
.hyperstack { LIGHT
  background: var(--paper); color: var(--ink); line-height: 1.45; padding: 1rem;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; font-size: 15px; }
@media (prefers-color-scheme: dark) { .hyperstack { DARK } }
body.hyperstack { margin: 0; }
.hyperstack > main { max-width: 76rem; margin: 0 auto; padding: 1rem 0 2rem; }
.hyperstack h1 { font-size: 1.35rem; margin: 0 0 1rem; overflow-wrap: anywhere; }
.hyperstack h2 { font-size: 1.05rem; margin: 2rem 0 .6rem; }
.hyperstack code, .hyperstack td { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.hyperstack code { font-size: .95em; overflow-wrap: anywhere; }
.hyperstack .task { margin: 0 0 .5rem; font-size: 1.05rem; overflow-wrap: anywhere; }
.hyperstack .state { font-size: .8rem; margin-left: .5rem; padding: .1rem .55rem; border-radius: 1rem;
  border: 1px solid currentColor; color: var(--faint); }
.hyperstack .finished { color: var(--good); }
.hyperstack .diverged, .hyperstack .stopped { color: var(--bad); }
.hyperstack .tree, .hyperstack .tree ul { list-style: none; margin: 0; padding: 0; }
.hyperstack .tree ul { margin-left: .5rem; padding-left: .9rem; border-left: 1px solid var(--rule); }
.hyperstack .tree ul ul ul ul ul ul ul { margin-left: 0; padding-left: 0; border-left: 0; }
.hyperstack .what { color: var(--faint); font-size: .85rem; margin-left: .4rem; }
.hyperstack .facts { display: flex; flex-wrap: wrap; gap: .8rem 2rem; margin: 1.1rem 0 0; padding: .8rem 1rem;
  background: var(--soft); border-radius: .5rem; }
.hyperstack dt { color: var(--faint); font-size: .75rem; }
.hyperstack dd { margin: 0; font-variant-numeric: tabular-nums; font-weight: 600; }
.hyperstack .scroll { overflow-x: auto; margin-bottom: 1.1rem; }
.hyperstack table { border-collapse: collapse; font-size: .8rem; color: inherit; margin: 0; }
.hyperstack caption { text-align: left; padding: .2rem 0 .35rem; white-space: pre; }
.hyperstack th, .hyperstack td { padding: .28rem .75rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--rule); background: none; }
.hyperstack thead th { color: var(--faint); font-weight: 500; }
.hyperstack th:first-child { text-align: left; padding-left: 0; }
.hyperstack .runs :is(th, td):nth-child(3), .hyperstack .groups :is(th, td):nth-child(2) { text-align: left; }
.hyperstack .panels { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); }
.hyperstack figure { margin: 0; min-width: 0; }
.hyperstack figure.wide { grid-column: 1 / -1; overflow-x: auto; }
.hyperstack figure.wide svg { min-width: 40rem; }
.hyperstack figure svg { display: block; width: 100%; height: auto; overflow: visible; stroke-linejoin: round; }
.hyperstack .legend { display: flex; flex-wrap: wrap; gap: .3rem 1.6rem; margin: 0 0 .8rem; }
.hyperstack .entry { font-weight: 500; overflow-wrap: anywhere; }
.hyperstack details { margin-top: 1.2rem; border-top: 1px solid var(--rule); padding-top: .8rem; }
.hyperstack summary { cursor: pointer; font-weight: 600; }
@media print { .hyperstack { LIGHT font-size: 11px; padding: 0; }
  .hyperstack figure, .hyperstack tr, .hyperstack header { break-inside: avoid; }
  .hyperstack .scroll { overflow: visible; } .hyperstack h2 { break-after: avoid; } }
""".replace("LIGHT", LIGHT).replace("DARK", DARK)
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(title: str, *sections: str) -> str:
    """One self-contained page: light and dark, for screen and paper; no scripts, and nothing from outside.

    sections: escaped, unless they are `Html`.
    """
    head = joined(
        Html('<meta charset="utf-8">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<meta name="color-scheme" content="light dark"><meta name="generator" content="hyperstack">'),
        element("title", title),
        Html(f"<style>{STYLE}</style>"),
    )
    body = element("body", element("main", element("h1", title), *sections), class_="hyperstack")
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n{body}</html>\n'


def report(
    runs: Sequence[tuple[str, Run]],
    keys: Sequence[str] | None = None,
    log: bool = True,
    sentences: Sequence[str] = (),
    groups: Sequence[Group] = (),
) -> str:
    """A page about one run, or one that compares several, each with its label.

    keys, log: as for `panels`. sentences: what the figures say, in words. groups: of the runs, where seeds are to be
    taken together.

    Raises InputError where matplotlib, of the extra `plots`, is not installed.
    """
    drawn = sections.pictures(panels(runs, keys, log), [label for label, _ in runs])
    if len(runs) == 1:
        (label, run), words = runs[0], sections.reading(sentences)
        return page(
            label, sections.heading(run), words, sections.hyperparameters(run, keys), sections.tensors(run), drawn
        )
    each = [
        element("details", element("summary", label), sections.heading(run), sections.hyperparameters(run, keys))
        for label, run in runs
    ]
    title = f"{len(runs)} runs compared"
    together = sections.means(groups)
    return page(title, together, sections.comparison(runs), sections.reading(sentences), drawn, *each)


def fragment(run: Run) -> str:
    """A run as a notebook shows it: what it was, what is remarkable, its tables, and where matplotlib is installed its
    first pictures.
    """
    words = sections.reading([remark.text for remark in reading(run)])
    shown = [sections.heading(run), words, sections.hyperparameters(run)]
    with suppress(InputError):  # without pictures where they cannot be drawn
        shown.append(sections.pictures(panels([("", run)], None, True)[:FEW], [""]))
    return element("div", Html(f"<style>{STYLE}</style>"), *shown, class_="hyperstack")
