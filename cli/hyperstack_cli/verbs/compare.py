"""`hyperstack compare`: runs side by side."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hyperstack_cli.screen import err, out

if TYPE_CHECKING:
    from hyperstack.telemetry.groups import Group
    from hyperstack.telemetry.run import Run

EPILOG = """\b
Examples:
  hyperstack compare runs/mnist-001 runs/mnist-002
  hyperstack compare runs --sort error
  hyperstack compare runs --key "0.*" --steps 100:
  hyperstack compare runs --json

\b
Exit status: 0 compared, 2 wrong input: no run, a damaged one, a key or steps
that none has.
"""


class Steps(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """A range of steps: A:B, A: or :B."""

    name = "range"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int | None, int | None]:
        """The first and the last step, None where it is open."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{0,15}):(\d{0,15})", str(value), re.ASCII)
        first, last = (int(text) if text else None for text in match.groups()) if match else (1, 0)
        if first is not None and last is not None and first > last:
            self.fail(f"{str(value)!r} is no range of steps: write 100:200, 100: or :200.", param, ctx)
        return first, last


@click.command(short_help="Show runs side by side.", epilog=EPILOG)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option(
    "--key",
    "wanted",
    multiple=True,
    metavar="KEY",
    help='Only this hyperparameter, "0.lr", or these, "0.*"; repeatable.',
)
@click.option("--steps", "span", type=Steps(), metavar="A:B", help="Only what steps A to B recorded; also A: or :B.")
@click.option("--sort", type=click.Choice(["error", "time", "name"]), help="Order of the groups.  [default: as given]")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON, for programs.")
def command(
    runs: tuple[Path, ...],
    wanted: tuple[str, ...],
    span: tuple[int | None, int | None] | None,
    sort: str | None,
    as_json: bool,
) -> None:
    """Show each RUN, a run folder or a folder of such, beside the others.

    Runs that differ in their seed only are one group, A, B, ... Where the stacks differ there are carets (^) below.
    Figures are means ± sample standard deviations over the finished runs of a group. Runs that diverged, or have not
    ended, are counted and do not enter; where a group has no finished one, its hyperparameters are theirs.

    \b
    finished    runs that the means are of
    cut short   runs that were interrupted; killed: without an end, and no
                process writes them
    over best   test error above the best group's, in percentage points (pp),
                ± the standard error of that difference
    curve       of the first seed, all groups on one scale of height and steps,
                which stands below; logarithmic where it spans a factor of 100
    last        value after the last step, in natural units
    |grad|      absolute hypergradient before clipping: its median over the
                steps, and the largest of any run
    clipped     the share of steps in which clipping made it smaller
    """
    from hyperstack.telemetry.groups import best, grouped, keys_of
    from hyperstack_cli.comparison import Comparison, remarks

    found, left_out = _read(runs)
    groups = grouped(_cut(found, span) if span else found, sort)
    keys = _chosen(keys_of(groups), wanted)
    if as_json:
        content: dict[str, Any] = {"groups": [_group(group, keys) for group in groups]}
        content |= {"best": [group.letter for group in best(groups)], "remarks": remarks(groups)}
        click.echo(json.dumps(_finite({**content, "left_out": left_out}), allow_nan=False))
        return
    console = out()
    comparison = Comparison(console, groups, keys)
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
    from hyperstack.telemetry.listing import listed
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
    from hyperstack.telemetry.run import load_run

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


def _chosen(keys: list[str], wanted: tuple[str, ...]) -> list[str]:
    """The keys that match any of these patterns, all where there are none."""
    import difflib
    from fnmatch import fnmatchcase

    from hyperstack.errors import InputError

    for pattern in wanted:
        if not any(fnmatchcase(key, pattern) for key in keys):
            near = difflib.get_close_matches(pattern, keys, n=1, cutoff=0.4)
            known = f"did you mean {near[0]}?" if near else f"there are {', '.join(keys[:12]) or 'none'}"
            raise InputError(f"no hyperparameter is called {pattern}", instead=known)
    return [key for key in keys if not wanted or any(fnmatchcase(key, pattern) for pattern in wanted)]


def _group(group: Group, keys: list[str]) -> dict[str, Any]:
    """A group as JSON, with these keys only."""
    content = group.as_dict()
    return {**content, "keys": {key: summary for key, summary in content["keys"].items() if key in keys}}


def _natural(text: str) -> list[tuple[int, str]]:
    """By which names are ordered: run-2 before run-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,15})", text)]


def _finite(content: Any) -> Any:
    """The same with null in the place of what is not finite."""
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
