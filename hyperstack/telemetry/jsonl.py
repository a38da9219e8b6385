"""The record as a file: JSON lines, a header and then one array a row, readable up to the last whole line.

    {"format": "hyperstack record", "version": 1, "columns": ["step", "loss", "0.lr.value", ...]}
    [1, 2.3024, 0.001, ...]

Every line is valid JSON: not-a-number is written `null`, infinity `1e999`. A killed run leaves at most its last
line incomplete, and readers stop before it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from hyperstack.errors import InputError
from hyperstack.telemetry.recorder import Rows

FORMAT, VERSION = "hyperstack record", 1


class JsonLines:
    """A sink that writes a record; an existing one is continued behind its row of step `after`."""

    def __init__(self, path: str | Path, after: int | None = None) -> None:
        self.path, self.after = Path(path), after
        self._file: TextIO | None = None

    def open(self, columns: list[str]) -> None:
        """Start the file, or cut off what lies behind step `after` and go on."""
        if self.after is not None and self.path.exists():
            _truncate(self.path, columns, self.after)
            self._file = self.path.open("a", encoding="ascii")
        else:
            self._file = self.path.open("w", encoding="ascii")
            header = {"format": FORMAT, "version": VERSION, "columns": columns}
            self._file.write(json.dumps(header) + "\n")
            self._file.flush()

    def write(self, rows: Rows) -> None:
        """One line a row."""
        assert self._file is not None, "open() comes before write()"
        self._file.write("".join(_line(row) for row in rows.tolist()))

    def flush(self) -> None:
        """Hand the lines to the operating system, where they outlive this process."""
        assert self._file is not None, "open() comes before flush()"
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


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

    def __len__(self) -> int:
        return len(self.columns["step"])


def read_record(path: str | Path) -> Record:
    """Every whole row of a record; an InputError where the file is none, or of a newer format."""
    path = Path(path)
    columns, rows = _read(path)
    array = np.array(rows, dtype=np.float64).reshape(len(rows), len(columns))
    return Record({name: array[:, i] for i, name in enumerate(columns)})


def _read(path: Path) -> tuple[list[str], list[list[float | None]]]:
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise InputError(f"cannot read {path}", why=str(error.strerror or error)) from None
    lines = text.split("\n")[:-1]  # what follows the last line break is not a whole line
    columns = _header(path, lines[0] if lines else "")
    rows: list[list[float | None]] = []
    for line in lines[1:]:
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, list) or len(row) != len(columns):
            break
        rows.append(row)
    return columns, rows


def _header(path: Path, line: str) -> list[str]:
    try:
        header = json.loads(line)
        if header["format"] != FORMAT:
            raise KeyError
        version, columns = int(header["version"]), [str(c) for c in header["columns"]]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is not a hyperstack record", instead="name a run folder") from None
    if version > VERSION:
        raise InputError(
            f"{path} is of format version {version}",
            why=f"this hyperstack reads versions up to {VERSION}",
            instead="install a newer hyperstack",
        )
    return columns


def _truncate(path: Path, columns: list[str], after: int) -> None:
    """Drop the rows behind step `after`, and a line that is not whole."""
    if _header(path, path.open(encoding="ascii", errors="replace").readline()) != columns:
        raise InputError(f"{path} records other hyperparameters", instead="resume with the stack of the run")
    kept = 0
    with path.open("rb") as file:
        for number, line in enumerate(file):
            if not line.endswith(b"\n") or (number and int(line[1:].split(b",", 1)[0]) > after):
                break
            kept += len(line)
    with path.open("rb+") as file:
        file.truncate(kept)
