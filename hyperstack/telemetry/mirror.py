"""The rows of a record once more, as binary numbers, so that a record of a million rows opens at once.

Beside `record.jsonl` lies `record.rows`: for each row, where its line ends in the text, in bytes, and then its
numbers, all as little-endian float64. The text is the record. The mirror may be missing, and where the two disagree
nothing is read from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from hyperstack.telemetry.sinks import Rows, failures

NUMBER = np.dtype("<f8")
PROBES = 16  # rows at which text and mirror are compared, the first and the last among them
BLOCK = 8192  # rows that are read at a time


def beside(path: Path) -> Path:
    """Where the mirror of the record at `path` lies."""
    return path.with_suffix(".rows")


class Mirror:
    """Writes the mirror of a record, whose process holds the record itself."""

    def __init__(self, record: Path, width: int, start: int) -> None:
        """For rows of `width` numbers. `start`: where the text goes on, in bytes; 0 for a new record.

        A mirror that does not go up to there is removed, and then there is none.
        """
        self.path = beside(record)
        self._file: BinaryIO | None = None
        with failures(self.path):
            file = self.path.open("r+b" if start and self.path.exists() else "wb")
            kept = _rows_before(file, width, start) if start else 0
            if start and not (kept and _ends(file, width, kept - 1) == start):
                file.close()
                self.path.unlink()
                return
            file.truncate(kept * _stride(width))
            file.seek(0, 2)
            self._file = file

    def write(self, rows: Rows, ends: NDArray[np.int64]) -> None:
        """Rows, and where their lines end in the text."""
        if self._file is not None:
            with failures(self.path):
                self._file.write(np.column_stack([ends, rows]).astype(NUMBER).tobytes())

    def flush(self) -> None:
        """Hand the rows to the operating system."""
        if self._file is not None:
            with failures(self.path):
                self._file.flush()

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            with failures(self.path):
                file.close()


def mirrored(text: BinaryIO, path: Path, width: int, line: Callable[[list[float]], bytes]) -> tuple[int, int]:
    """How many rows of the record `text`, which lies at `path`, its mirror holds, and where the last of them ends.

    `line`: the text of a row, by which the two are compared. (0, 0) where there is no mirror to rely on.
    """
    with suppress(OSError, ValueError), beside(path).open("rb") as file:
        count = _rows_before(file, width, text.seek(0, 2))
        for i in sorted({round(x) for x in np.linspace(0, count - 1, min(PROBES, count))}):
            end, *row = _row(file, width, i)
            expected = line(row)
            text.seek(int(end) - len(expected) - 1)
            if text.read(len(expected) + 1) != b"\n" + expected:
                return 0, 0
        if count:
            return count, int(_ends(file, width, count - 1))
    return 0, 0


def blocks(path: Path, width: int, count: int) -> Iterator[Rows]:
    """The first `count` rows of the mirror of the record at `path`; ValueError where it has fewer by now."""
    with beside(path).open("rb") as file:
        for i in range(0, count, BLOCK):
            wanted = min(BLOCK, count - i)
            yield np.fromfile(file, NUMBER, wanted * (width + 1)).reshape(wanted, width + 1)[:, 1:]


def _stride(width: int) -> int:
    return NUMBER.itemsize * (width + 1)


def _row(file: BinaryIO, width: int, i: int) -> list[float]:
    file.seek(i * _stride(width))
    found: list[float] = np.frombuffer(file.read(_stride(width)), NUMBER).tolist()
    if len(found) != width + 1:
        raise ValueError
    return found


def _ends(file: BinaryIO, width: int, i: int) -> float:
    return _row(file, width, i)[0]


def _rows_before(file: BinaryIO, width: int, end: int) -> int:
    """How many whole rows end at or before byte `end` of the text."""
    low, high = 0, file.seek(0, 2) // _stride(width)
    while low < high:
        middle = (low + high) // 2
        if _ends(file, width, middle) <= end:
            low = middle + 1
        else:
            high = middle
    return low
