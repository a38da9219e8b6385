"""`hyperstack rules`: every rule that a stack can be made of."""

from __future__ import annotations

import inspect
import json

import click

from hyperstack_cli.screen import out


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The same as JSON, for programs.")
def command(as_json: bool) -> None:
    """List every rule with its formula, hyperparameters (default, domain, how it is learned), options and source,
    and every gradient transform.

    \b
    hyperstack rules
    hyperstack rules --json
    """
    from rich.table import Table
    from rich.text import Text

    import hyperstack as hs

    described = {
        name: {
            "doc": inspect.getdoc(rule) or "",
            "source": rule.source,
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
        for name, rule in sorted(hs.RULES.items())
    }
    transforms = {name: inspect.getdoc(t) or "" for name, t in sorted(hs.TRANSFORMS.items())}
    if as_json:
        click.echo(json.dumps({"rules": described, "transforms": transforms}, ensure_ascii=False))
        return
    console = out()
    for name, rule in described.items():
        console.print(Text(name, style="bold"))
        console.print(Text("  " + str(rule["doc"]).splitlines()[0]))
        table = Table(box=None, padding=(0, 1), pad_edge=True)
        for title in ("", "default", "domain", "learned as", ""):
            table.add_column(title, no_wrap=title != "")
        for key, h in rule["hyperparameters"].items():  # type: ignore[attr-defined]
            how = h["bijection"] if h["learned"] else "fixed"
            table.add_row(key, format(h["default"], "g"), h["domain"], how, Text(h["doc"]))
        for key, o in rule["options"].items():  # type: ignore[attr-defined]
            shown = "flag" if o["default"] is False else format(o["default"], "g")
            table.add_row(key, shown, "", "option", Text(o["doc"]))
        console.print(table)
        console.print(Text(f"  source: {rule['source']}\n"))
    for name, doc in transforms.items():
        console.print(Text(f"gradient transform {name}", style="bold"))
        console.print(Text("  " + doc.splitlines()[0]))
