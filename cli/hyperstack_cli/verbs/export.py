"""`hyperstack export`: the record of a run for other programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hyperstack_cli.screen import RUN

if TYPE_CHECKING:
    from hyperstack.telemetry.record import Record

EPILOG = """\b
Examples:
  hyperstack export runs/mnist-001 --format csv > run.csv
  hyperstack export runs/mnist-001 --format csv --out mnist-001.csv
  hyperstack export runs/mnist-001 | head -1

\b
Files: reads plan.json and record.jsonl of the run folder.

\b
Exit status: 0 written, 1 the disk is full, 2 wrong input.
"""


@click.command(short_help="Write a run's record as JSON lines or CSV.", epilog=EPILOG)
@click.argument("run", type=RUN)
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "csv"]),
    default="jsonl",
    show_default=True,
    help="One JSON object a line, or a table with a heading.",
)
@click.option(
    "--out",
    "target",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A new file.",
    show_default="standard output",
)
def command(run: Path, form: str, target: Path | None) -> None:
    """Write one row a recorded step of RUN, a folder that `hyperstack train` or `hs.record` made.

    \b
    step, loss   the step, from 1, and its training loss before the update
    KEY.value    a hyperparameter after the step; KEY is LEVEL.NAME as in 0.lr
    KEY.grad     its hypergradient in that step, before clipping
    KEY.clip     the factor by which that was clipped, 1 where it was not
    KEY.average  where it is clipped by the cumulative average of its norm:
                 that average after the step
    loss.bound   under ALRC: the bound on single losses; loss.limited, the
                 share of the step's losses that were limited
    probe        where hypergradients are measured at averages: the number of
                 these probes up to this step; KEY.cosine, what the last one
                 found, from -1 to 1; KEY.displacement, how far the average
                 moved, or would move with the value. Up to the next probe
                 these repeat, and so does KEY.grad
    @NAME.norm   where the primary level clips: the norm of this parameter's
                 gradient; @NAME.clip, the factor; under a layer-wise rule
                 @NAME.trust_ratio, the trust ratio as it was applied

    The hypergradient is that of the raw tensor: of log(value) for a value that is learned as log. Where there is one
    number a tensor, value is their mean and grad the norm of their hypergradients. Not-a-number is null in JSON lines
    and nan in CSV; infinity is 1e999, which readers of JSON take for infinity, and inf.
    """
    from hyperstack.telemetry.runfolder import RunFolder

    record = RunFolder.existing(run).read_record()
    lines = _csv(record) if form == "csv" else _jsonl(record)
    if target is not None:
        _write(target, lines)
        return
    for line in lines:
        click.echo(line)


def _write(target: Path, lines: Iterator[str]) -> None:
    """A new file, or none: what cannot be written whole is removed."""
    from hyperstack.errors import InputError, write_error

    try:
        file = target.open("x", encoding="utf-8")
    except FileExistsError:
        raise InputError(f"{target} exists already", instead="choose another file") from None
    except OSError as error:
        raise InputError(f"cannot write {target}", why=str(error.strerror), instead="choose another file") from None
    try:
        with file:
            file.writelines(line + "\n" for line in lines)
    except BaseException as error:
        with suppress(OSError):
            target.unlink()
        if isinstance(error, OSError):
            raise write_error(target, error) from None
        raise


def _rows(record: Record) -> Iterator[list[float]]:
    for row in zip(*(column.tolist() for column in record.columns.values()), strict=True):
        yield [int(row[0]), *row[1:]]


def _csv(record: Record) -> Iterator[str]:
    yield ",".join(record.columns)
    for row in _rows(record):
        yield ",".join(map(repr, row))


def _jsonl(record: Record) -> Iterator[str]:
    names = [json.dumps(name) for name in record.columns]
    for row in _rows(record):
        yield "{" + ", ".join(f"{name}: {_json(x)}" for name, x in zip(names, row, strict=True)) + "}"


def _json(x: float) -> str:
    return repr(x) if math.isfinite(x) else "null" if math.isnan(x) else "1e999" if x > 0 else "-1e999"
