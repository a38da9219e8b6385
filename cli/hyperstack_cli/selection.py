"""The options that choose a part of a run, `--level K`, `--key KEY` and `--steps A:B`, and how its curves are drawn."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

import click

from hyperstack_cli.screen import Whole


class Steps(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """A range of steps: A:B, A: or :B."""

    name = "range"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int | None, int | None]:
        """The first and the last step, None where it is open."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"\s*(\d{0,15})\s*:\s*(\d{0,15})\s*", str(value), re.ASCII)
        first, last = (int(text) if text else None for text in match.groups()) if match else (1, 0)
        if (first is None and last is None) or (first is not None and last is not None and first > last):
            self.fail(f"{str(value)!r} is no range of steps: write 100:200, 100: or :200.", param, ctx)
        return first, last


steps_option = click.option(
    "--steps",
    "span",
    type=Steps(),
    metavar="A:B",
    help="Only steps A to B, both included; A: is from A on, :B is up to B. Curves and figures of hyperparameters "
    "are of these alone; test error and train loss are of the whole run.",
)
level_option = click.option(
    "--level",
    "wanted",
    multiple=True,
    type=Whole(0),
    metavar="K",
    help="Only level K, counted from 0; may be given several times.",
)
log_option = click.option(
    "--log/--linear",
    default=True,
    help="Hypergradients, and other curves where that shows more, on a logarithmic scale, or all on linear ones; "
    "--log if not given.",
)
key_option = click.option(
    "--key",
    "patterns",
    multiple=True,
    metavar="KEY",
    help="Only this hyperparameter, such as 0.lr, or lr on every level; * and ? stand for anything. May be given "
    "several times.",
)


def chosen(known: Sequence[str], height: int, wanted: Sequence[int], patterns: Sequence[str]) -> list[str]:
    """The keys of these levels that match one of these patterns, all where nothing is asked for.

    height: of the stack. An InputError for a level that there is not, for a pattern without a match, and where no key
    is on such a level and matches, too.
    """
    from hyperstack.errors import InputError
    from hyperstack.telemetry.record import parts

    height = max([height, *(parts(key)[1] + 1 for key in known)])
    if beyond := [k for k in wanted if k >= height]:
        raise InputError(f"there is no level {beyond[0]}", instead=f"the levels are 0 to {height - 1}")
    named = _named(known, patterns)
    found = [key for key in named if not wanted or parts(key)[1] in wanted]
    if patterns and not found:
        where = ", ".join(map(str, wanted))
        raise InputError(f"{', '.join(named)}: not on level {where}", instead="leave out --level or --key")
    return found


def _named(known: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The keys that match one of these patterns, all where there are none."""
    for pattern in patterns:
        if not any(_matches(key, pattern) for key in known):
            from hyperstack.errors import InputError

            close = difflib.get_close_matches(pattern, known, n=1, cutoff=0.3)
            instead = f"did you mean {close[0]}? " if close else ""
            listed = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
            raise InputError(
                f"no hyperparameter is called {pattern!r}", instead=f"{instead}there are {listed or 'none'}"
            )
    return [key for key in known if not patterns or any(_matches(key, pattern) for pattern in patterns)]


def _matches(key: str, pattern: str) -> bool:
    return fnmatchcase(key, pattern) or key.rsplit(".", 1)[-1] == pattern
