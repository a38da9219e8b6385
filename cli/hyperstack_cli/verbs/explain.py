"""`hyperstack explain`: a stack as a tree."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from hyperstack_cli.screen import bound_stack, out, set_option

if TYPE_CHECKING:
    from hyperstack.rule import Rule, Stack


@click.command()
@click.argument("stack")
@set_option
def command(stack: str, assignments: tuple[str, ...]) -> None:
    """Show what STACK means: each level, its hyperparameters, what is learned by which level and what is fixed.

    An upper level whose rate is not given starts at 0.01 times the rate of the level below it.

    \b
    hyperstack explain "Adam / SGD"
    hyperstack explain "Adam(beta1=fixed(0.9)) / SGD(α, clip)" --set α=1e-5
    """
    from rich.text import Text
    from rich.tree import Tree

    bound = bound_stack(stack, assignments)
    console = out()
    tree = Tree(Text(str(bound)), guide_style="dim")
    for k, (level, lines) in enumerate(zip(bound, _lines(bound), strict=True)):
        updates = "the network" if k == 0 else f"level {k - 1}"
        branch = tree.add(Text(f"level {k}: {type(level).__name__} updates {updates}"))
        for line in lines:
            branch.add(Text(line))
        for name, value in level.chosen.items():
            branch.add(Text(f"{name} = {value}, an option"))
        for transform in level.clip:
            branch.add(Text(f"clip: {transform}, on the gradient that this level receives"))
    console.print(tree)
    if bound.free_names:
        names = ", ".join(bound.free_names)
        console.print(f"to be bound before use: {names}", soft_wrap=True)


def _lines(stack: Stack) -> list[list[str]]:
    """For each level, a line a hyperparameter."""
    from hyperstack.hyperparameter import Free
    from hyperstack.rule import Stack

    def closed(level: Rule) -> Rule:
        """The level with a default in the place of each free name, so that the rest can be shown."""
        settings = {
            name: replace(s, value=level.hyperparameters[name].default) if isinstance(s.value, Free) else s
            for name, s in level.settings.items()
        }
        return type(level)(**settings, **level.chosen, clip=level.clip)

    lines: list[list[str]] = []
    for k, (level, resolved) in enumerate(zip(stack, Stack(map(closed, stack)).resolve(), strict=True)):
        above = k + 1 < len(stack)
        lines.append([])
        for name, r in resolved.items():
            setting = level.settings.get(name)
            open_name = setting.value.name if setting and isinstance(setting.value, Free) else None
            how = f"learned by level {k + 1} as {r.bijection.name}" if above else "nothing above learns it"
            if r.per_tensor:
                how += ", one number a tensor"
            why = "default: 0.01 x the rate below; " if k and name == "lr" and setting is None else ""
            if not r.learned:
                how = "off" if level.off(name) else "fixed"
            lines[-1].append(f"{name} = {open_name or format(r.value, 'g')}  {why}{how}")
    return lines
