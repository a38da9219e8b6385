"""The record as a table for spreadsheets and other programs: comma-separated values."""

from __future__ import annotations

from hyperstack.errors import InputError
from hyperstack.telemetry.sinks import ANEW, Lines


class CSV(Lines):
    """A sink that writes comma-separated values: a heading, then a line a row; not-a-number is nan, infinity inf.

    New, or with `after` behind the row of step `after`; errors as in `JsonLines`.
    """

    def header(self, columns: list[str]) -> bytes:
        """The names of the columns."""
        return ",".join(map(_quoted, columns)).encode() + b"\n"

    def line(self, row: list[float]) -> bytes:
        """The step as a whole number, and the other numbers to the last bit."""
        return ",".join([str(int(row[0])), *map(repr, row[1:])]).encode() + b"\n"

    def kept(self, columns: list[str], after: int) -> int:
        """The bytes of the file up to its row of step `after`; an InputError where it has none."""
        with self.path.open("rb") as file:
            if file.readline() != self.header(columns):
                raise InputError(f"{self.path} has other columns", instead="resume with the stack of the run")
            for line in file:
                if line.startswith(b"%d," % after) and line.endswith(b"\n"):
                    return file.tell()
        raise InputError(f"{self.path} lacks step {after}, up to which the checkpoint counts on it", instead=ANEW)


def _quoted(name: str) -> str:
    """The name of a column; that of a parameter may hold anything."""
    return '"' + name.replace('"', '""') + '"' if set(name) & set(',"\n\r') else name
