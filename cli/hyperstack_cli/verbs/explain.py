"""`hyperstack explain`: a stack as a tree."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from hyperstack_cli.screen import bound_stack, out, set_option

if TYPE_CHECKING:
    from hyperstack.hyperparameter import Resolved
    from hyperstack.rule import Rule, Stack

EPILOG = """\b
Examples:
  hyperstack explain "Adam / SGD"
  hyperstack explain "SGD(log(0.1)) / Adam(clip)"
  hyperstack explain "Adam(beta1=fixed(0.9)) / SGD(α, clip)" --set α=1e-5

\b
Exit status: 0 explained, 2 the stack cannot be read.
"""


@click.command(short_help="Show a stack as a tree.", epilog=EPILOG)
@click.argument("stack")
@set_option
def command(stack: str, assignments: tuple[str, ...]) -> None:
    """Show what STACK means: each level, its hyperparameters, and by which level each is learned.

    "learned as log" says that the level above learns its logarithm, "shared" that param groups have it in common. "off"
    is what stays at 0. An upper level whose rate is not given starts at a small multiple of the rate of the level below
    it. A free name is shown in the place of its value until --set binds it.
    """
    from rich.text import Text
    from rich.tree import Tree

    bound = bound_stack(stack, assignments)
    console = out()
    tree = Tree(Text(str(bound)), guide_style="dim")
    for k, (level, lines) in enumerate(zip(bound, _lines(bound), strict=True)):
        updates = "the network" if k == 0 else f"level {k - 1}"
        branch = tree.add(Text(f"level {k}: {_name(level)} updates {updates}"))
        for line in lines:
            branch.add(Text(line))
    console.print(tree)
    if bound.free_names:
        console.print(f"to be bound before use: {', '.join(bound.free_names)}", soft_wrap=True)


def _name(level: Rule) -> str:
    """The rule, and what it stands around."""
    from hyperstack.wrapper import Wrapper

    name = type(level).__name__
    return f"{name} around {_name(level.base)}" if isinstance(level, Wrapper) else name


def _options(level: Rule) -> dict[str, bool | float]:
    """What was chosen, also in what it stands around."""
    from hyperstack.wrapper import Wrapper

    return {**(_options(level.base) if isinstance(level, Wrapper) else {}), **level.chosen}


def _lines(stack: Stack) -> list[list[str]]:
    """For each level, a line a hyperparameter, an option and a gradient transform."""
    from hyperstack.hyperparameter import Free
    from hyperstack.rule import Stack

    def closed(level: Rule) -> Rule:
        """The level with a default in the place of each free name, so that the rest can be shown."""
        settings = {
            name: replace(s, value=level.hyperparameters[name].default) if isinstance(s.value, Free) else s
            for name, s in level.settings.items()
        }
        return level.having(settings)

    lines: list[list[str]] = []
    for k, (level, resolved) in enumerate(zip(stack, Stack(map(closed, stack)).resolve(), strict=True)):
        lines.append([_line(stack, k, name, r) for name, r in resolved.items() if not level.off(name)])
        if off := [name for name in resolved if level.off(name)]:
            lines[-1].append(f"off: {', '.join(off)}")
        lines[-1] += [f"{name} = {value}, an option" for name, value in _options(level).items()]
        lines[-1] += [f"clip: {transform}, on the gradient that this level receives" for transform in level.clip]
        if level.at is not None:
            lines[-1].append(f"at: {level.at.in_full()}, where hypergradients are measured")
    return lines


def _line(stack: Stack, k: int, name: str, resolved: Resolved) -> str:
    """A hyperparameter that is in use: its value, or its free name, and who learns it."""
    default = k and name == "lr" and name not in stack[k].settings
    if not resolved.learned:
        how = "fixed"
    elif k + 1 == len(stack):
        how = "nothing above learns it"
    else:
        how = f"learned by level {k + 1} as {resolved.bijection.name}"
    how += f" for {resolved.steps:,} steps" if resolved.steps and k + 1 < len(stack) else ""
    how += ", one number a tensor" * resolved.per_tensor
    how += ", shared" * resolved.shared
    value = _value(stack, k, name, resolved)
    ratio = f" ({stack.ratio(k):g} x the rate below)" if default and value[-1].isdigit() else ""
    return f"{name} = {value}{ratio}  {how}"


def _value(stack: Stack, k: int, name: str, resolved: Resolved) -> str:
    """A number, a free name, or for a default rate over a free name what becomes of that."""
    from hyperstack.hyperparameter import Free

    setting = stack[k].settings.get(name)
    if setting and isinstance(setting.value, Free):
        return setting.value.name
    if k and name == "lr" and setting is None:
        below = _value(stack, k - 1, name, resolved)
        if not below[-1].isdigit():
            return f"{stack.ratio(k):g} x {below}"
    return format(resolved.value, "g")
