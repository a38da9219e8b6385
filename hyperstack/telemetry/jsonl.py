"""The record as a file: JSON lines, a header and then one array a row, readable up to the last whole line.

    {"format": "hyperstack record", "version": 1, "columns": ["step", "loss", "0.lr.value", ...]}
    [1, 2.3024, 0.001, ...]

Every line is valid JSON: not-a-number is written `null`, infinity `1e999`. A killed run leaves at most its last
line incomplete, and readers stop before it.
"""

from __future__ import annotations

import json
import math
import re
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from hyperstack.errors import InputError
from hyperstack.telemetry import mirror
from hyperstack.telemetry.record import Record
from hyperstack.telemetry.sinks import ANEW, Lines, Rows

FORMAT, VERSION = "hyperstack record", 1
KEY = re.compile(r"(?:.+\.)?\d{1,4}\.\w+", re.DOTALL)  # as in "0.lr" and "group1.0.lr"
NAME_A_RUN = "name a folder that hyperstack train or hs.record made"


class JsonLines(Lines):
    """A sink that writes a record: a new one, or with `after` an existing one behind its row of step `after`.

    With `after`, rows behind that step are dropped; a record that does not reach it is an InputError and stays as it
    is. One process writes a record at a time; that it is taken is an InputError, too. A failed write is a RunError.
    """

    _mirror: mirror.Mirror

    def header(self, columns: list[str]) -> bytes:
        """What the file is, and its columns."""
        return json.dumps({"format": FORMAT, "version": VERSION, "columns": columns}).encode("ascii") + b"\n"

    def line(self, row: list[float]) -> bytes:
        """One array."""
        return line_of(row)

    def kept(self, columns: list[str], after: int) -> int:
        """The bytes of the record up to its row of step `after`; an InputError where it has none."""
        return _kept(self.path, columns, after)

    def open(self, columns: list[str]) -> None:
        """Start the record, or cut off what lies behind step `after` and go on."""
        super().open(columns)
        assert self._file is not None
        self._end = self._file.seek(0, 2)
        self._mirror = mirror.Mirror(self.path, len(columns), self._end if self.after else 0)

    def write(self, rows: Rows) -> None:
        """One line a row."""
        lines = [line_of(row) for row in rows.tolist()]
        self.put(lines)
        ends = self._end + np.cumsum([len(line) for line in lines], dtype=np.int64)
        self._end = int(ends[-1]) if len(ends) else self._end
        self._mirror.write(rows, ends)

    def flush(self) -> None:
        """Hand the lines to the operating system, where they outlive this process."""
        super().flush()
        self._mirror.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            try:
                super().close()
            finally:
                self._mirror.close()


def line_of(row: list[float]) -> bytes:
    """The line of a row."""
    step, *rest = row
    return f"[{int(step)}, {', '.join(map(_number, rest))}]\n".encode("ascii")


def _number(x: float) -> str:
    if math.isfinite(x):
        return repr(x)
    return "null" if math.isnan(x) else "1e999" if x > 0 else "-1e999"


def read_record(path: str | Path) -> Record:
    """Every whole row of a record; an InputError where the file is none, is damaged, or of a newer format."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            columns = header_of(path, text_of(file.readline()))
            start, width = file.tell(), len(columns)
            known, end = mirror.mirrored(file, path, width, line_of)
            file.seek(max(start, end))
            rest = _rows(path, file, width, known + 2)
            array = np.empty((width, known + len(rest)))
            if not _filled(array, path, known):
                file.seek(start)
                array = _rows(path, file, width, 2).T
            else:
                array[:, known:] = rest.T
    except OSError as error:
        raise InputError(f"cannot read {path}", why=str(error.strerror or error), instead=NAME_A_RUN) from None
    return Record({name: array[i] for i, name in enumerate(columns)})


def _filled(array: NDArray[np.float64], path: Path, count: int) -> bool:
    """Whether the first `count` rows could be taken from the mirror into the columns of `array`."""
    done = 0
    with suppress(OSError, ValueError):
        for block in mirror.blocks(path, len(array), count) if count else ():
            array[:, done : done + len(block)] = block.T
            done += len(block)
    return done == count


def _rows(path: Path, file: BinaryIO, width: int, number: int) -> NDArray[np.float64]:
    """The whole lines from here on, the first of which is line `number`; as arrays, block by block, they are small."""
    found = [np.empty((0, width))]
    rows: list[list[float | None]] = []
    for at, line in enumerate(file, start=number):
        if not line.endswith(b"\n"):
            break  # what a killed run leaves
        rows.append(row_of(path, at, text_of(line), width))
        if len(rows) == BLOCK:
            found.append(np.array(rows, np.float64))
            rows = []
    return np.concatenate([*found, np.array(rows, np.float64)] if rows else found)


def text_of(line: bytes) -> str:
    """A line as text, whatever it holds."""
    return line.decode("ascii", errors="replace")


BLOCK = 4096


def header_of(path: Path, line: str) -> list[str]:
    """The columns that the first line of a record names; an InputError where it is none, or of a newer format."""
    try:
        header = json.loads(line)
        if header["format"] != FORMAT:
            raise KeyError
        version, columns = int(header["version"]), [str(c) for c in header["columns"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            f"{path} is not a hyperstack record, or its first line is damaged", instead=NAME_A_RUN
        ) from None
    if version > VERSION:
        raise InputError(
            f"{path} is of format version {version}",
            why=f"this hyperstack reads versions up to {VERSION}",
            instead="install a newer hyperstack",
        )
    keys = [column.removesuffix(".value") for column in columns[2::3] if column.endswith(".value")]
    first = ["step", "loss", *(f"{key}.{what}" for key in keys for what in ("value", "grad", "clip"))]
    foreign = [key for key in keys if not KEY.fullmatch(key)]
    if foreign or columns[: len(first)] != first or len(set(columns)) != len(columns):
        raise InputError(f"{path} has other columns than a hyperstack record", instead=NAME_A_RUN)
    return columns


def row_of(path: Path, number: int, line: str, width: int) -> list[float | None]:
    """The numbers of line `number`; an InputError where it is damaged."""
    try:
        row = json.loads(line, parse_int=float)
    except (ValueError, RecursionError):
        row = None
    numbers = isinstance(row, list) and len(row) == width and {type(x) for x in row} <= {float, type(None)}
    if not numbers or row[0] is None or not row[0].is_integer():
        raise InputError(f"{path} is damaged in line {number}", instead="cut it there to read what precedes that line")
    return list(row)


def _kept(path: Path, columns: list[str], after: int) -> int:
    """The bytes of a record up to its row of step `after`; an InputError where it has none."""
    with path.open("rb") as file:
        line = file.readline()
        if header_of(path, text_of(line)) != columns:
            raise InputError(f"{path} records other hyperparameters", instead="resume with the stack of the run")
        kept = len(line)
        for number, line in enumerate(file, start=2):
            kept += len(line)
            if line.endswith(b"\n"):
                step, *_ = row_of(path, number, text_of(line), len(columns))
                if step == after:
                    return kept
    raise InputError(f"{path} lacks step {after}, up to which the checkpoint counts on it", instead=ANEW)
