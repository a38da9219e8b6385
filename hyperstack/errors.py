"""Every deliberate exception: what was wrong, why, and what to do instead.

Messages are written for the person who made the mistake. The command line prints them without a
traceback and exits with the class's `exit_code`; in Python each class also derives from the
built-in exception that `torch.optim` would raise, so that existing `except` clauses go on working.
"""

from __future__ import annotations


class HyperstackError(Exception):
    """Base of every deliberate error: `what` went wrong, `why`, and what to do `instead`."""

    exit_code = 1

    def __init__(self, what: str, *, why: str = "", instead: str = "") -> None:
        self.what, self.why, self.instead = what, why, instead
        super().__init__("\n".join(part for part in (what, why, instead) if part))


class InputError(HyperstackError, ValueError):
    """The user's input is wrong: a stack, an option, a file. Nothing was written."""

    exit_code = 2


class RunError(HyperstackError, RuntimeError):
    """The input was right, the run failed: a lost device, a full disk."""


class StackError(InputError):
    """One or more mistakes in the text of a stack, each with a caret under its place."""

    def __init__(self, text: str, mistakes: list[tuple[int, int, str]]) -> None:
        """`mistakes` holds (first column, past-the-last column, message), columns in characters."""
        self.text, self.mistakes = text, sorted(mistakes)
        parts = [_underlined(text, start, end, message) for start, end, message in self.mistakes]
        count = len(parts)
        super().__init__(
            "cannot read this stack" if count == 1 else f"cannot read this stack: {count} mistakes",
            why="\n".join(parts),
            instead="write, for example: Adam / SGD(1e-5, clip)",
        )


def _underlined(text: str, start: int, end: int, message: str, width: int = 68) -> str:
    """The line of `text` that holds column `start`, carets under the place, and the message.

    Long lines are cut to a window around the place, so that a message stays readable on a screen.
    """
    text = text.replace("\t", " ")
    first = text.rfind("\n", 0, start) + 1
    last = text.find("\n", first)
    line = text[first : len(text) if last < 0 else last]
    column, length = start - first, max(1, end - start)
    shift = max(0, min(column - width // 2, len(line) - width))
    shown = "".join(c if c.isprintable() else "?" for c in line[shift : shift + width])
    left, right = "..." if shift else "", "..." if shift + width < len(line) else ""
    carets = "^" * max(1, min(length, width - (column - shift)))
    return f"  {left}{shown}{right}\n  {' ' * (len(left) + column - shift)}{carets} {message}"
