"""The files that a run writes beside its record, where it is asked to: the same rows for other programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hyperstack.errors import InputError
from hyperstack.telemetry.csvfile import CSV
from hyperstack.telemetry.runfolder import RunFolder
from hyperstack.telemetry.sinks import Rows, Sink
from hyperstack.telemetry.tensorboard import TensorBoard, check_installed

FILES = {"csv": "record.csv", "tensorboard": "tensorboard"}
KINDS: dict[str, Callable[..., Sink]] = {"csv": CSV, "tensorboard": TensorBoard}
BLOCK = 4096


def check(names: Sequence[str]) -> None:
    """An InputError where one of these outputs cannot be written here."""
    if unknown := sorted({*names} - {*KINDS}):
        raise InputError(f"the run writes {unknown[0]}, which this hyperstack does not know", instead="update it")
    if "tensorboard" in names:
        check_installed()


def outputs(names: Sequence[str], folder: RunFolder, after: int | None) -> list[Sink]:
    """The sinks of these names for the run in `folder`, new or with `after` behind its step `after`."""
    check(names)
    known = folder.read_plan().sinks if after is not None else ()
    return [Output(name, folder, after, name in known) for name in names]


class Output:
    """A sink into the run folder. What a resumed run did not write before gets the rows of its record first."""

    def __init__(self, name: str, folder: RunFolder, after: int | None, known: bool) -> None:
        path = folder.path / FILES[name]
        self._folder = folder
        self._lacks = bool(after) and not (known and path.exists())
        self._sink = KINDS[name](path, 0 if self._lacks else after)

    def open(self, columns: list[str]) -> None:
        """Open the sink, behind what it has or what the record has; the record is open by now."""
        self._sink.open(columns)
        if self._lacks:
            record = self._folder.read_record().columns
            rows = np.column_stack([record[column] for column in columns])
            for i in range(0, len(rows), BLOCK):
                self._sink.write(rows[i : i + BLOCK])
            self._sink.flush()

    def write(self, rows: Rows) -> None:
        """Hand rows on."""
        self._sink.write(rows)

    def flush(self) -> None:
        """Make them readable by others."""
        self._sink.flush()

    def close(self) -> None:
        """Close the sink."""
        self._sink.close()
