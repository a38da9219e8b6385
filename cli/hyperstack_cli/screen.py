"""What the verbs share in showing things: consoles, numbers, and the options that several of them have."""

from __future__ import annotations

import json
import math
import os
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

import click
from rich.console import Console

from hyperstack_cli.complete import RunPath

if TYPE_CHECKING:
    from hyperstack.rule import Stack


RUN = RunPath()  # the type of an argument that names a run folder, or several


class Plain(Console):
    """A console that shows text as it is: no markup (a stack holds square brackets), no smileys."""

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def on_broken_pipe(self) -> None:
        """Rich would end the program with an error; `hyperstack rules | head` is none."""
        raise  # what is being handled


def out() -> Console:
    """Results: standard output, without colour codes where it is no terminal."""
    return Plain()


def err() -> Console:
    """Progress and remarks: standard error."""
    return Plain(stderr=True)


def silence(stream: TextIO) -> None:
    """Send what is still written to a broken stream nowhere, so that Python does not fail on it when it ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def as_text(content: Any) -> str:
    """JSON that every program can read, with null in the place of what is not finite."""
    return json.dumps(_finite(content), allow_nan=False)


def _finite(content: Any) -> Any:
    """The same with null in the place of what is not finite."""
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


class Whole(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """A whole number from `low` up, to `high` at most."""

    name = "number"

    def __init__(self, low: int, high: int | None = None) -> None:
        self.low, self.high = low, high

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number that `value` says, or click's error."""
        try:
            number = int(str(value))
        except ValueError:
            number = self.low - 1
        if number < self.low or (self.high is not None and number > self.high):
            top = "up" if self.high is None else f"to {self.high}"
            self.fail(f"{str(value)!r} is not a whole number from {self.low} {top}.", param, ctx)
        return number


def bound_stack(text: str, assignments: Iterable[str]) -> Stack:
    """The stack of a text with its free names bound by `NAME=NUMBER` assignments."""
    from hyperstack.dsl import parse
    from hyperstack.errors import InputError

    values: dict[str, float] = {}
    for assignment in assignments:
        name, equals, value = (part.strip() for part in assignment.partition("="))
        try:
            if not equals or not name:
                raise ValueError
            new = float(value)
        except ValueError:
            raise InputError(
                f"--set {assignment!r} is not NAME=NUMBER", instead="write, for example: --set α=1e-5"
            ) from None
        name = unicodedata.normalize("NFKC", name)  # as the stack reads names: the micro sign is a mu
        if name in values:
            raise InputError(f"--set gives {name} twice", instead="give each name once")
        values[name] = new
    return parse(text).bind(**values)


set_option = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="NAME=NUMBER",
    help="Bind a free name of the stack, such as α in SGD(α), to a number: --set α=1e-5. Once for each name.",
)

schedule_option = click.option(
    "--schedule",
    metavar="SCHEDULE",
    help="The course of the primary level's rate over the planned steps: constant, cosine, or drop(STEPS,FACTOR).  "
    "[default: constant]",
)
