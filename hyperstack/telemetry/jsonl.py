"""The record as a file: JSON lines, a header and then one array a row, readable up to the last whole line.

    {"format": "hyperstack record", "version": 1, "columns": ["step", "loss", "0.lr.value", ...]}
    [1, 2.3024, 0.001, ...]

Every line is valid JSON: not-a-number is written `null`, infinity `1e999`. A killed run leaves at most its last
line incomplete, and readers stop before it.
"""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from hyperstack.errors import HyperstackError, InputError, RunError
from hyperstack.telemetry.recorder import Rows

FORMAT, VERSION = "hyperstack record", 1


class JsonLines:
    """A sink that writes a record: a new one, or with `after` an existing one behind its row of step `after`.

    With `after`, rows behind that step are dropped; a record that does not reach it is an InputError and stays as it
    is. One process writes a record at a time; that it is taken is an InputError, too. A failed write is a RunError.
    """

    def __init__(self, path: str | Path, after: int | None = None) -> None:
        self.path, self.after = Path(path), after
        self._file: BinaryIO | None = None

    def open(self, columns: list[str]) -> None:
        """Start the file, or cut off what lies behind step `after` and go on."""
        if self.after and not self.path.exists():
            raise InputError(f"{self.path} is missing", why="the run cannot go on without it", instead=ANEW)
        with _failures(self.path):
            file = self.path.open("a+b")  # unlike "wb" it cuts nothing before the file is known to be ours
        try:
            _lock(self.path, file)
            kept = _kept(self.path, columns, self.after) if self.after else 0
            with _failures(self.path):
                file.truncate(kept)
                if not kept:
                    header = {"format": FORMAT, "version": VERSION, "columns": columns}
                    file.write(json.dumps(header).encode("ascii") + b"\n")
                file.flush()
        except BaseException:
            with suppress(OSError):
                file.close()
            raise
        self._file = file

    def write(self, rows: Rows) -> None:
        """One line a row."""
        assert self._file is not None, "open() comes before write()"
        with _failures(self.path):
            self._file.write("".join(_line(row) for row in rows.tolist()).encode("ascii"))

    def flush(self) -> None:
        """Hand the lines to the operating system, where they outlive this process."""
        assert self._file is not None, "open() comes before flush()"
        with _failures(self.path):
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            with _failures(self.path):
                file.close()


ANEW = "start a new run in another folder"


@contextmanager
def _failures(path: Path) -> Iterator[None]:
    """What the system says of a file it cannot write, as an error of ours."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from None


def write_error(path: Path, error: OSError) -> HyperstackError:
    """An InputError where the place may not be written to at all, a RunError where the machine fails (a full disk)."""
    forbidden = isinstance(error, PermissionError) or error.errno == errno.EROFS
    kind, instead = (InputError, "choose another folder") if forbidden else (RunError, "")
    return kind(f"cannot write {path}", why=str(error.strerror or error), instead=instead)


def _lock(path: Path, file: BinaryIO) -> None:
    """Take the file for this process until it is closed, where the system knows such locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"another process is writing {path}", instead="wait for it, or end it") from None
    except OSError:  # a network drive without locks
        return


def _line(row: list[float]) -> str:
    step, *rest = row
    return f"[{int(step)}, {', '.join(map(_number, rest))}]\n"


def _number(x: float) -> str:
    if math.isfinite(x):
        return repr(x)
    return "null" if math.isnan(x) else "1e999" if x > 0 else "-1e999"


@dataclass(frozen=True)
class Record:
    """A record in memory: `columns` by name, one float64 array a column, NaN and infinity as they were."""

    columns: dict[str, NDArray[np.float64]]

    @property
    def keys(self) -> list[str]:
        """The hyperparameters that were recorded, such as "0.lr", in the order of the stack."""
        return [name.removesuffix(".value") for name in self.columns if name.endswith(".value")]

    @property
    def tensors(self) -> dict[str, dict[str, NDArray[np.float64]]]:
        """What was recorded of each parameter of the network, such as its "norm", by its name."""
        found: dict[str, dict[str, NDArray[np.float64]]] = {}
        for column, values in self.columns.items():
            prefix, at, rest = column.partition("@")
            if at:
                name, _, what = rest.rpartition(".")
                found.setdefault(prefix + name, {})[what] = values
        return found

    def __len__(self) -> int:
        return len(self.columns["step"])


def read_record(path: str | Path, block: int = 4096) -> Record:
    """Every whole row of a record; an InputError where the file is none, is damaged, or of a newer format."""
    path = Path(path)
    try:
        with path.open(encoding="ascii", errors="replace", newline="\n") as file:
            columns = _header(path, file.readline())
            blocks, rows = [np.empty((0, len(columns)))], []
            for number, line in enumerate(file, start=2):
                if not line.endswith("\n"):
                    break  # what a killed run leaves
                rows.append(_row(path, number, line, len(columns)))
                if len(rows) == block:  # as an array they take a fifth of the memory
                    blocks.append(np.array(rows, np.float64))
                    rows = []
    except OSError as error:
        raise InputError(f"cannot read {path}", why=str(error.strerror or error), instead=NAME_A_RUN) from None
    if rows:
        blocks.append(np.array(rows, np.float64))
    array = np.concatenate(blocks)
    return Record({name: array[:, i] for i, name in enumerate(columns)})


NAME_A_RUN = "name a folder that hyperstack train made"


def _header(path: Path, line: str) -> list[str]:
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
    if columns[: len(first)] != first or len(set(columns)) != len(columns):
        raise InputError(f"{path} has other columns than a hyperstack record", instead=NAME_A_RUN)
    return columns


def _row(path: Path, number: int, line: str, width: int) -> list[float | None]:
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
        if _header(path, line.decode("ascii", errors="replace")) != columns:
            raise InputError(f"{path} records other hyperparameters", instead="resume with the stack of the run")
        kept = len(line)
        for number, line in enumerate(file, start=2):
            kept += len(line)
            if line.endswith(b"\n"):
                step, *_ = _row(path, number, line.decode("ascii", errors="replace"), len(columns))
                if step == after:
                    return kept
    raise InputError(f"{path} lacks step {after}, up to which the checkpoint counts on it", instead=ANEW)
