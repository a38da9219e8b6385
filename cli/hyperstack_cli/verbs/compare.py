"""`hyperstack compare`: runs side by side."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hyperstack_cli.pictures import one_output, picture_options, show_pictures
from hyperstack_cli.screen import RUN, as_text, err, out
from hyperstack_cli.selection import chosen, key_option, level_option, log_option, steps_option

if TYPE_CHECKING:
    from hyperstack.reports.groups import Group
    from hyperstack.reports.run import Run

EPILOG = """\b
Examples:
  hyperstack compare runs/mnist-001 runs/mnist-002
  hyperstack compare runs --sort error
  hyperstack compare runs --key "0.*" --steps :500
  hyperstack compare runs --plot --key lr
  hyperstack compare runs --level 0 --linear
  hyperstack compare runs --html compared.html
  hyperstack compare runs --json

\b
Exit status: 0 compared, 2 wrong input: no run, a damaged one, a key or steps
that none has.
"""


@click.command(short_help="Show runs side by side.", epilog=EPILOG)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=RUN)
@level_option
@key_option
@steps_option
@log_option
@click.option("--sort", type=click.Choice(["error", "time", "name"]), help="Order of the groups.  [default: as given]")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON, for programs.")
@picture_options
def command(
    runs: tuple[Path, ...],
    wanted: tuple[int, ...],
    patterns: tuple[str, ...],
    span: tuple[int | None, int | None] | None,
    log: bool,
    sort: str | None,
    as_json: bool,
    **pictures: Any,
) -> None:
    """Show each RUN, a run folder or a folder of such, beside the others.

    Runs that differ in their seed only are one group, A, B, ... Where the stacks differ there are carets (^) below.
    Figures are means ± sample standard deviations over the finished runs of a group. Runs that diverged, or have not
    ended, are counted and do not enter; where a group has no finished one, its hyperparameters are theirs.

    \b
    finished    runs that the means are of
    stopped     runs without an end that no process writes: they were killed
    over best   test error above the best group's, in percentage points (pp),
                ± the standard error of that difference
    curve       of the first seed, all groups on one scale of height and steps,
                which stands below; logarithmic where it spans a factor of 100
    last        value after the last step, in natural units
    |grad|      absolute hypergradient before clipping: its median over the
                steps, and the largest of any run
    clipped     the share of steps in which clipping made it smaller

    With --plot, --png or --html the losses and the curves of each hyperparameter are drawn over each other instead;
    that takes `pip install "hyperstack[plots]"`.
    """
    from hyperstack.reports.groups import best, grouped, keys_of
    from hyperstack_cli.comparison import Comparison, remarks

    one_output(pictures["plot"], as_json)
    found, left_out = _read(runs)
    groups = grouped(_cut(found, span) if span else found, sort)
    keys = chosen(keys_of(groups), max(len(run.levels) for run in found), wanted, patterns)
    labelled = [pair for group in groups for pair in group.labelled]
    console = out()
    comparison = Comparison(console, groups, keys, log)
    if pictures["plot"]:
        comparison.legend()
        console.print()
    drawn = show_pictures(
        labelled, keys if patterns or wanted else None, log, sentences=remarks(groups), groups=groups, **pictures
    )
    if as_json:
        content: dict[str, Any] = {"groups": [_group(group, keys) for group in groups]}
        content |= {"best": [group.letter for group in best(groups)], "remarks": remarks(groups)}
        click.echo(as_text({**content, "left_out": left_out}))
        return
    if not drawn:
        comparison.show()
        if notes := remarks(groups):
            console.print()
            for note in notes:
                comparison.say(note)
    for path, problem in left_out.items():
        err().print(f"left out {path}: {problem}", soft_wrap=True)


def _read(paths: Sequence[Path]) -> tuple[list[Run], dict[str, str]]:
    """The runs, each once, and what lies in folders of runs and cannot be read, with the reason."""
    from hyperstack.errors import InputError
    from hyperstack.reports.listing import listed
    from hyperstack.telemetry.runfolder import RunFolder

    found: dict[Path, Run] = {}
    left_out: dict[str, str] = {}
    for path in paths:
        if not os.path.isdir(path) or os.path.isfile(path / "plan.json"):  # unlike Path's they never raise
            folder = RunFolder.existing(path).path
            found.setdefault(folder.resolve(), _load(folder))
            continue
        entries = sorted(listed(path), key=lambda entry: _natural(str(entry.path)))
        for entry in entries:
            try:
                if entry.problem:
                    raise InputError(entry.problem)
                found.setdefault(entry.path.resolve(), _load(entry.path))
            except InputError as error:
                left_out[str(entry.path)] = " ".join(str(error).split())
        if not entries:
            raise InputError(f"{path} holds no run", instead="name runs, or a folder that holds some")
    if not found:
        reasons = "\n".join(f"{path}: {problem}" for path, problem in list(left_out.items())[:5])
        raise InputError("there is no run that can be read", why=reasons, instead="name others")
    return list(found.values()), left_out


def _load(path: Path) -> Run:
    """A run; an InputError also where its files disappear while it is read."""
    from hyperstack.errors import InputError
    from hyperstack.reports.run import load_run

    try:
        return load_run(path)
    except InputError:
        raise
    except (OSError, ValueError):  # no files, or none that may be looked at
        raise InputError(f"{path} has been deleted, or may not be read", instead="name another run") from None


def _cut(runs: list[Run], span: tuple[int | None, int | None]) -> list[Run]:
    """The same runs, with these steps of their records only."""
    from dataclasses import replace

    from hyperstack.errors import InputError

    cut = [replace(run, record=run.record.between(*span)) for run in runs]
    if not any(len(run.record) for run in cut):
        last = max((int(run.record.steps[-1]) for run in runs if len(run.record)), default=0)
        raise InputError("no run has recorded any of these steps", instead=f"the last recorded step is {last}")
    return cut


def _group(group: Group, keys: list[str]) -> dict[str, Any]:
    """A group as JSON, with these keys only."""
    content = group.as_dict()
    return {**content, "keys": {key: summary for key, summary in content["keys"].items() if key in keys}}


def _natural(text: str) -> list[tuple[int, str]]:
    """By which names are ordered: run-2 before run-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,15})", text)]
