"""The options that `hyperstack sweep` and `hyperstack reproduce` share: where many runs are trained, and how shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from hyperstack_cli.pictures import plot_options
from hyperstack_cli.screen import Whole

POSITIVE = Whole(1)
PATH = click.Path(path_type=Path)

Verb = TypeVar("Verb", bound=Callable[..., object])


def many_runs(*, out: str, resume: str, yes: str, as_json: str, result: str) -> Callable[[Verb], Verb]:
    """Add the options `device`, `jobs`, `data_dir`, `path`, `resume`, `yes`, `as_json`, `quiet`, `plot` and `png`.

    out, resume, yes, as_json: what the help says of these; result: what is shown with --quiet.
    """
    options = [
        click.option(
            "--device",
            default="auto",
            metavar="NAME",
            help="Where to compute, as for hyperstack train.  [default: auto]",
        ),
        click.option(
            "--jobs",
            type=POSITIVE,
            metavar="N",
            help="Processes at a time, each with runs that it trains together.  [default: as many as there are "
            "cores and memory for]",
        ),
        click.option(
            "--data-dir", type=PATH, metavar="DIR", help="Take the data from the files in DIR, and fetch nothing."
        ),
        click.option("--out", "path", type=PATH, metavar="DIR", help=out),
        click.option("--resume", is_flag=True, help=resume),
        click.option("--yes", is_flag=True, help=yes),
        click.option("--json", "as_json", is_flag=True, help=as_json),
        click.option("--quiet", is_flag=True, help=f"Show the {result} only."),
        plot_options,
    ]

    def add(verb: Verb) -> Verb:
        for option in reversed(options):
            verb = option(verb)
        return verb

    return add
