"""The record as TensorBoard shows it: a scalar for each column."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

from hyperstack.errors import InputError
from hyperstack.telemetry.sinks import ANEW, Rows, failures

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

EVENTS = "events.out.tfevents.*"


class TensorBoard:
    """A sink that writes TensorBoard's event files into a folder: a scalar for each column but the step, as float32.

    `KEY.value` is tagged `KEY/value`, so that what belongs to one hyperparameter stands together. NaN and infinity
    stay what they are. New, or with `after` behind the row of that step: what was written of later steps no longer
    shows. Needs the extra `tensorboard`.

    Raises InputError without it; from `open`, where a new one finds event files in the folder, and with `after`, where
    there are none to go on with. RunError, from a step, where the disk is full.
    """

    def __init__(self, folder: str | Path, after: int | None = None) -> None:
        check_installed()
        self.folder, self.after = Path(folder), after
        self._tags: list[str] = []
        self._writer: SummaryWriter | None = None

    def open(self, columns: list[str]) -> None:
        """Start an event file; the tags are the names of the columns."""
        found = any(self.folder.glob(EVENTS))
        if self.after is None and found:
            raise InputError(f"{self.folder} holds another run's events", instead="choose another folder")
        if self.after and not found:
            raise InputError(f"{self.folder} holds no events", why="the run cannot go on without them", instead=ANEW)
        from torch.utils.tensorboard import SummaryWriter

        self._tags = [tag(column) for column in columns[1:]]
        purge = None if self.after is None else self.after + 1
        with failures(self.folder):
            # Within a process, writers of one second would share a name, and overwrite each other.
            suffix = f".{os.urandom(4).hex()}"
            self._writer = SummaryWriter(str(self.folder), purge_step=purge, filename_suffix=suffix)

    def write(self, rows: Rows) -> None:
        """One event a row, which holds all of its scalars."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        assert self._writer is not None, "open() comes before write()"
        writer = self._writer.file_writer
        assert writer is not None
        with failures(self.folder):
            for step, *numbers in rows.tolist():
                pairs = zip(self._tags, numbers, strict=True)
                writer.add_summary(Summary(value=[Summary.Value(tag=t, simple_value=x) for t, x in pairs]), int(step))

    def flush(self) -> None:
        """Hand the events to the operating system."""
        assert self._writer is not None, "open() comes before flush()"
        with failures(self.folder):
            self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with failures(self.folder):
                writer.close()


def tag(column: str) -> str:
    """What TensorBoard calls a column: "0.lr.value" is "0.lr/value"."""
    key, dot, what = column.rpartition(".")
    return f"{key}/{what}" if dot else column


def check_installed() -> None:
    """An InputError where TensorBoard is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "TensorBoard is not installed", instead='install it with: pip install "hyperstack[tensorboard]"'
        )
