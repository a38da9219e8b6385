"""What the verbs share in showing things: numbers, levels, and the options that name a stack."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click
from rich.console import Console

if TYPE_CHECKING:
    from hyperstack.rule import Stack


def out() -> Console:
    """Results: standard output, without colour codes where it is no terminal."""
    return Console(highlight=False, soft_wrap=False)


def err() -> Console:
    """Progress and remarks: standard error."""
    return Console(stderr=True, highlight=False)


def number(x: float | None, digits: int = 4) -> str:
    """A number as people read it: 0.00379, 1.2e-07, 1,175; a dash where there is none."""
    if x is None:
        return "-"
    if not math.isfinite(x):
        return "nan" if math.isnan(x) else "inf" if x > 0 else "-inf"
    if x == 0 or 1e-3 <= abs(x) < 1e5:
        return f"{x:.{digits}g}"
    return f"{x:.{digits - 2}e}"


def percent(x: float | None) -> str:
    """A share from 0 to 1 in percent."""
    return "-" if x is None else f"{100 * x:.2f} %"


def bound_stack(text: str, assignments: Iterable[str]) -> Stack:
    """The stack of a text with its free names bound by `NAME=NUMBER` assignments."""
    from hyperstack.dsl import parse
    from hyperstack.errors import InputError

    values: dict[str, float] = {}
    for assignment in assignments:
        name, equals, value = (part.strip() for part in assignment.partition("="))
        try:
            if not equals:
                raise ValueError
            new = float(value)
        except ValueError:
            raise InputError(
                f"--set {assignment!r} is not NAME=NUMBER", instead="write, for example: --set α=1e-5"
            ) from None
        if name in values:
            raise InputError(f"--set gives {name} twice", instead="give each name once")
        values[name] = new
    return parse(text).bind(**values)


set_option = click.option(
    "--set", "assignments", multiple=True, metavar="NAME=NUMBER", help="Bind a free name of the stack, such as α=1e-5."
)
