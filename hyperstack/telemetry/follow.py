"""A record while it is being written: what was added since the last look."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hyperstack.errors import InputError
from hyperstack.telemetry import mirror
from hyperstack.telemetry.jsonl import header_of, line_of, row_of, text_of
from hyperstack.telemetry.sinks import Rows

KEPT = 4096  # rows of the past, at least, once there are so many; at most twice as many


class Follower:
    """Reads a record as it grows: each look costs what was added, however long the record is.

    `columns`: their names, empty before there is a header. `last`: the latest row. `past`: rows from the first to the
    latest, all or evenly thinned out. `count`: how many there are in the record. `restarts`: how often it turned out
    to have been cut, as by a run that was resumed, and was read again from its start.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.restarts = path, 0
        self._forget()

    def _forget(self) -> None:
        self.columns: list[str] = []
        self.last: dict[str, float] = {}
        self.count, self._end, self._seen = 0, 0, b""
        self._stride, self._blocks, self._held = 1, list[Rows](), 0

    @property
    def past(self) -> dict[str, Rows]:
        """The columns of the past, by name."""
        rows = np.concatenate([np.empty((0, len(self.columns))), *self._blocks])
        self._blocks = [rows]
        return {name: rows[:, i] for i, name in enumerate(self.columns)}

    def look(self, again: bool = False) -> int:
        """How many rows were added; an InputError where the record is damaged, or cannot be read."""
        try:
            with self.path.open("rb") as file:
                if not self._still_so(file):
                    self._forget()
                    self.restarts += 1
                before = self.count
                if not self.columns:
                    self._begin(file)
                if self.columns:
                    self._go_on(file)
                return self.count - before
        except InputError:
            if again:
                raise
            self._forget()  # it may have been cut while it was read
            self.restarts += 1
            return self.look(again=True)
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise InputError(f"cannot read {self.path}", why=str(error.strerror or error)) from None

    def _still_so(self, file: BinaryIO) -> bool:
        """Whether the line that was read last still stands where it stood."""
        file.seek(self._end - len(self._seen))
        return file.read(len(self._seen)) == self._seen

    def _begin(self, file: BinaryIO) -> None:
        """Read the header, and of a long record the binary rows, as far as they are good."""
        file.seek(0)
        header = file.readline()
        if not header.endswith(b"\n"):
            return
        self.columns, self._end, self._seen = header_of(self.path, text_of(header)), len(header), header
        known, end = mirror.mirrored(file, self.path, len(self.columns), line_of)
        with suppress(OSError, ValueError):
            for rows in mirror.blocks(self.path, len(self.columns), known) if known else ():
                self._add(rows)
        if known and self.count == known:
            self._end, self._seen = end, line_of([self.last[name] for name in self.columns])
        elif known:  # it was cut meanwhile: the text alone, then
            self.last, self.count, self._blocks, self._held, self._stride = {}, 0, [], 0, 1

    def _go_on(self, file: BinaryIO) -> None:
        """Read the whole lines behind what was read."""
        file.seek(self._end)
        rows: list[list[float | None]] = []
        for line in file:
            if not line.endswith(b"\n"):
                break
            rows.append(row_of(self.path, self.count + len(rows) + 2, text_of(line), len(self.columns)))
            self._end, self._seen = self._end + len(line), line
        if rows:
            self._add(np.array(rows, np.float64))

    def _add(self, rows: Rows) -> None:
        self._blocks.append(rows[-self.count % self._stride :: self._stride].copy())
        self._held += len(self._blocks[-1])
        self.count += len(rows)
        self.last = dict(zip(self.columns, rows[-1].tolist(), strict=True))
        while self._held > 2 * KEPT:
            self._blocks = [np.concatenate(self._blocks)[::2]]
            self._held, self._stride = len(self._blocks[0]), 2 * self._stride
