"""Every deliberate exception: what was wrong, why, and what to do instead.

Messages are written for the person who made the mistake. The command line prints them without a
traceback and exits with the class's `exit_code`; in Python each class also derives from the
built-in exception that `torch.optim` would raise, so that existing `except` clauses go on working.
"""

from __future__ import annotations

import copyreg
import errno
import textwrap
from pathlib import Path
from typing import Any


class HyperstackError(Exception):
    """Base of every deliberate error: `what` went wrong, `why`, and what to do `instead`."""

    exit_code = 1

    def __init__(self, what: str, *, why: str = "", instead: str = "") -> None:
        self.what, self.why, self.instead = what, why, instead
        super().__init__("\n".join(part for part in (what, why, instead) if part))

    def __reduce__(self) -> tuple[Any, ...]:
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class InputError(HyperstackError, ValueError):
    """The user's input is wrong: a stack, an option, a file. Nothing was written."""

    exit_code = 2


class RunError(HyperstackError, RuntimeError):
    """The input was right, the run failed: a lost device, a full disk."""


class StackError(InputError):
    """One or more mistakes in the text of a stack, each with a caret under its place."""

    SHOWN = 20  # more than these are counted, not printed

    def __init__(self, text: str, mistakes: list[tuple[int, int, str]]) -> None:
        """`mistakes` holds (first column, past-the-last column, message), columns in characters."""
        self.text, self.mistakes = text, sorted(mistakes)
        parts = [_underlined(text, start, end, message) for start, end, message in self.mistakes[: self.SHOWN]]
        count = len(self.mistakes)
        if count > self.SHOWN:
            parts.append(f"  and {count - self.SHOWN} more")
        super().__init__(
            "cannot read this stack" if count == 1 else f"cannot read this stack: {count} mistakes",
            why="\n".join(parts),
            instead="write, for example: Adam / SGD(1e-5, clip)",
        )


def write_error(path: Path, error: OSError) -> HyperstackError:
    """An InputError where the place may not be written to at all, a RunError where the machine fails (a full disk)."""
    forbidden = isinstance(error, PermissionError) or error.errno == errno.EROFS
    kind, instead = (InputError, "choose another folder") if forbidden else (RunError, "")
    return kind(f"cannot write {path}", why=str(error.strerror or error), instead=instead)


def _underlined(text: str, start: int, end: int, message: str, width: int = 68) -> str:
    """The line of `text` that holds column `start`, carets under the place, and the message.

    Long lines are cut to a window around the place, and a message that does not fit behind the carets goes below
    them, so that it stays readable on a screen of 80 columns.
    """
    first = text.rfind("\n", 0, start) + 1
    last = text.find("\n", first)
    line = text[first : len(text) if last < 0 else last]
    column, length = start - first, max(1, min(end - start, len(line) - (start - first)))
    shift = max(0, min(column - width // 2, len(line) - width))
    shown = "".join(" " if c.isspace() else c if c.isprintable() else "?" for c in line[shift : shift + width])
    left, right = "..." if shift else "", "..." if shift + width < len(line) else ""
    carets = " " * (len(left) + column - shift) + "^" * max(1, min(length, width - (column - shift)))
    if len(message) > 600:
        message = f"{message[:300]} ... {message[-300:]}"
    if len(carets) + len(message) < 78:
        return f"  {left}{shown}{right}\n  {carets} {message}"
    return f"  {left}{shown}{right}\n  {carets}\n" + textwrap.indent(textwrap.fill(message, 76), "    ")
