"""Where rows go: the interface of sinks, and what those that write lines of text have in common."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from hyperstack.errors import InputError, write_error

Rows = NDArray[np.float64]
ANEW = "start a new run in another folder"
PATIENCE = 0.1  # seconds; who reads a record may hold it for an instant


class Sink(Protocol):
    """Where rows go. Rows arrive in blocks, in the order of their steps."""

    def open(self, columns: list[str]) -> None:
        """Called once, before any row, with the name of each column."""

    def write(self, rows: Rows) -> None:
        """A block of rows, shape [rows, columns]."""

    def flush(self) -> None:
        """Make what was written readable by others."""

    def close(self) -> None:
        """Called once, after the last row."""


class Lines(ABC):
    """A sink that writes a line of text for each row, into a new file, or with `after` behind the row of that step.

    With `after`, rows behind that step are dropped; a file that does not reach it is an InputError and stays as it
    is. One process writes a file at a time; that it is taken is an InputError, too. A failed write is a RunError.
    """

    def __init__(self, path: str | Path, after: int | None = None) -> None:
        self.path, self.after = Path(path), after
        self._file: BinaryIO | None = None

    @abstractmethod
    def header(self, columns: list[str]) -> bytes:
        """The first line."""

    @abstractmethod
    def line(self, row: list[float]) -> bytes:
        """The line of a row."""

    @abstractmethod
    def kept(self, columns: list[str], after: int) -> int:
        """The bytes of the file up to its row of step `after`; an InputError where it has none."""

    def open(self, columns: list[str]) -> None:
        """Start the file, or cut off what lies behind step `after` and go on."""
        if self.after and not self.path.exists():
            raise InputError(f"{self.path} is missing", why="the run cannot go on without it", instead=ANEW)
        with failures(self.path):
            file = self.path.open("a+b")  # unlike "wb" it cuts nothing before the file is known to be ours
        try:
            _lock(self.path, file)
            start = self.kept(columns, self.after) if self.after else 0
            with failures(self.path):
                file.truncate(start)
                if not start:
                    file.write(self.header(columns))
                file.flush()
        except BaseException:
            with suppress(OSError):
                file.close()
            raise
        self._file = file

    def write(self, rows: Rows) -> None:
        """One line a row."""
        self.put([self.line(row) for row in rows.tolist()])

    def put(self, lines: list[bytes]) -> None:
        """Write lines."""
        assert self._file is not None, "open() comes before write()"
        with failures(self.path):
            self._file.write(b"".join(lines))

    def flush(self) -> None:
        """Hand the lines to the operating system, where they outlive this process."""
        assert self._file is not None, "open() comes before flush()"
        with failures(self.path):
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            with failures(self.path):
                file.close()


@contextmanager
def failures(path: Path) -> Iterator[None]:
    """What the system says of a file it cannot write, as an error of ours."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from None


def _lock(path: Path, file: BinaryIO) -> None:
    """Take the file for this process until it is closed, where the system knows such locks."""
    deadline = time.monotonic() + PATIENCE
    while not _taken(file, exclusively=True):
        if time.monotonic() > deadline:
            raise InputError(f"another process is writing {path}", instead="wait for it, or end it")
        time.sleep(PATIENCE / 10)


def _taken(file: BinaryIO, exclusively: bool) -> bool:
    """Whether the lock of an open file could be taken, or there are no such locks here."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if exclusively else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a network drive without locks
        return True
    return True


def is_being_written(path: Path) -> bool:
    """Whether a process holds the file at `path` as a sink does; False where the system does not tell."""
    try:
        with path.open("rb") as file:
            return not _taken(file, exclusively=False)
    except OSError:
        return False
