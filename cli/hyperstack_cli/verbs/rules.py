"""`hyperstack rules`: every rule that a stack can be made of."""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import click

from hyperstack.reports.text import number
from hyperstack_cli.screen import out

if TYPE_CHECKING:
    from rich.console import Console

    from hyperstack.choices import Choice
    from hyperstack.rule import Rule
    from hyperstack.wrapper import Wrapper

EPILOG = """\b
Examples:
  hyperstack rules
  hyperstack rules Adam cosine auto
  hyperstack rules --json

\b
Exit status: 0 listed, 2 there is no such rule.
"""


@click.command(short_help="List the rules that stacks are made of.", epilog=EPILOG)
@click.argument("names", nargs=-1, metavar="[RULE]...")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON, for programs.")
def command(names: tuple[str, ...], as_json: bool) -> None:
    """List each RULE, or all of them, the levels that stand around another, gradient transforms, and auto.

    For each rule its formula, its hyperparameters (default, domain, and what the level above learns: the value itself,
    lin, its logarithm, log, its square root, square, or x with (tanh(x) + 1)/2, logit), its options, and its source.
    What is fixed is learned only where one asks for it, as in learned(1e-8). A transform also takes names,
    a pattern of the names of tensors.
    """
    import hyperstack as hs
    from hyperstack.errors import InputError
    from hyperstack.measuring import MEASURED
    from hyperstack.rule import nearest
    from hyperstack.wrapper import WRAPPERS

    known = [*hs.RULES, *WRAPPERS, *hs.TRANSFORMS, *MEASURED, hs.auto.__name__]
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"no rule is called {unknown[0]}", instead=nearest(unknown[0], known))

    def described(kinds: Mapping[str, Any], describe: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {name: describe(kind) for name, kind in sorted(kinds.items()) if not names or name in names}

    chosen, wrappers = described(hs.RULES, _described), described(WRAPPERS, _wrapper)
    transforms, places = described(hs.TRANSFORMS, _choice), described(MEASURED, _choice)
    recipes = described({hs.auto.__name__: hs.auto}, _recipe)
    if as_json:
        found = {"rules": chosen, "wrappers": wrappers, "transforms": transforms, "places": places, "recipes": recipes}
        click.echo(json.dumps(found))
        return
    console = out()
    shown: list[Callable[[], None]] = [
        *(partial(_show, console, name, rule) for name, rule in {**chosen, **wrappers}.items()),
        *(partial(_show_choice, console, f"{name}, a gradient transform", t) for name, t in transforms.items()),
        *(partial(_show_choice, console, f"at={name}, where to measure", place) for name, place in places.items()),
        *(partial(_show_choice, console, f"{name}, the first two levels", each) for name, each in recipes.items()),
    ]
    for i, show in enumerate(shown):
        if i:
            console.print()
        show()


def _described(rule: type[Rule]) -> dict[str, Any]:
    return {
        "doc": inspect.getdoc(rule) or "",
        "source": rule.source,
        "upper_ratio": rule.upper_ratio,
        "hyperparameters": {
            key: {
                "default": h.default,
                "domain": str(h.domain),
                "bijection": h.bijection,
                "learned": h.resolve(None).learned,
                "doc": h.doc,
            }
            for key, h in rule.hyperparameters.items()
        },
        "options": {key: {"default": o.default, "doc": o.doc} for key, o in rule.options.items()},
    }


def _wrapper(wrapper: type[Rule]) -> dict[str, Any]:
    """`base`: the rule that it stands around where none is given; the ratio is that rule's."""
    described = {**_described(wrapper), "base": cast("type[Wrapper]", wrapper).default.__name__}
    del described["upper_ratio"]
    return described


def _choice(choice: type[Choice]) -> dict[str, Any]:
    """A `default` of None: the option has none, and must be given."""
    options = {}
    for f in fields(choice):
        domain = f.metadata.get("domain")
        options[f.name] = {
            "default": None if f.default is MISSING else f.default,
            "domain": " or ".join(domain) if isinstance(domain, tuple) else str(domain or ""),
            "doc": f.metadata.get("doc", ""),
        }
    return {"doc": inspect.getdoc(choice) or "", "options": options}


def _recipe(recipe: Callable[..., Any]) -> dict[str, Any]:
    """Its arguments by name: those of a place to measure at, whose defaults may be others, and the rate of level 1."""
    from hyperstack.measuring import Average
    from hyperstack.rules import SGD

    rate = SGD.hyperparameters["lr"]
    known = {"rate": {"domain": str(rate.domain), "doc": "of level 1, a number without unit"}}
    known |= _choice(Average)["options"]
    given = {name: p.default for name, p in inspect.signature(recipe).parameters.items() if name in known}
    options = {name: {**known[name], "default": default} for name, default in given.items()}
    return {"doc": inspect.getdoc(recipe) or "", "options": options}


def _show_choice(console: Console, title: str, choice: dict[str, Any]) -> None:
    console.print(title, style="bold")
    _paragraph(console, _first_line(choice["doc"]))
    _show_options(console, choice["options"])


def _show_options(console: Console, options: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 0, 0, 2), pad_edge=True, show_header=False)
    for i in range(4):
        table.add_column(no_wrap=i < 3)
    for key, o in options.items():
        if key != "names":
            default = o["default"]
            plain = "flag" if isinstance(default, bool) else "needed" if default is None else default
            table.add_row(key, plain if isinstance(plain, str) else number(plain), o["domain"], o["doc"])
    if table.row_count:
        console.print(table)


def _show(console: Console, name: str, rule: dict[str, Any]) -> None:
    from rich.table import Table

    console.print(f"{name}, around another rule" if "base" in rule else name, style="bold")
    _paragraph(console, _first_line(rule["doc"]))
    table = Table(box=None, padding=(0, 0, 0, 2), pad_edge=True)
    for title in ("", "default", "domain", "learned", ""):
        table.add_column(title, no_wrap=len(table.columns) < 4)
    for key, h in rule["hyperparameters"].items():
        table.add_row(key, number(h["default"]), h["domain"], h["bijection"] if h["learned"] else "fixed", h["doc"])
    for key, o in rule["options"].items():
        shown = "flag" if isinstance(o["default"], bool) else number(o["default"])
        table.add_row(key, shown, "", "option", o["doc"])
    console.print(table)
    if "base" in rule:
        _paragraph(console, f"the rule stands first, {name}({rule['base']}), and keeps its own arguments")
    else:
        _paragraph(console, f"a level above starts at {number(rule['upper_ratio'])} x its lr, where that is not given")
    if rule["source"]:
        _paragraph(console, f"source: {rule['source']}")


def _first_line(doc: str) -> str:
    return doc.partition("\n")[0]


def _paragraph(console: Console, text: str) -> None:
    """Indented text."""
    for line in textwrap.wrap(text, max(20, console.width - 2)):
        console.print(f"  {line}")
