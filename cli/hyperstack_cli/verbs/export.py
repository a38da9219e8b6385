"""`hyperstack export`: the record of a run for other programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from hyperstack.telemetry import Record


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True)
@click.option("--out", "target", type=click.Path(path_type=Path), help="A new file.  [default: standard output]")
def command(run: Path, form: str, target: Path | None) -> None:
    """Write one row a recorded step of RUN: `step`, `loss`, and for each hyperparameter KEY its `KEY.value`,
    `KEY.grad` (raw hypergradient, before clipping) and `KEY.clip` (the factor applied).

    Not-a-number is null in JSON lines and nan in CSV; infinity is 1e999 and inf.

    \b
    hyperstack export runs/mnist-001 --format csv > run.csv
    hyperstack export runs/mnist-001 | head -1
    """
    from hyperstack.errors import InputError
    from hyperstack.telemetry.runfolder import RunFolder

    record = RunFolder.existing(run).read_record()
    lines = _csv(record) if form == "csv" else _jsonl(record)
    if target is None:
        for line in lines:
            click.echo(line)
        return
    try:
        with target.open("x", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
    except FileExistsError:
        raise InputError(f"{target} exists already", instead="choose another file") from None
    except OSError as error:
        raise InputError(f"cannot write {target}", why=str(error.strerror), instead="choose another file") from None


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
