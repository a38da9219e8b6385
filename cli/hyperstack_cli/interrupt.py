"""Ends a run on request: Ctrl-C, and what a system sends to a process that is to end; and how to go on with it."""

from __future__ import annotations

import shlex
import signal
from contextlib import suppress

import click

FORGOTTEN = ("jobs", "data_dir", "published", "plot", "png")
"""Options, as parameters of a verb, that no folder remembers."""
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupt:
    """While it is entered, a signal makes it true; a second one ends the program at once (KeyboardInterrupt).

    A signal that was ignored before, as under nohup, stays ignored.
    """

    def __init__(self) -> None:
        self.signum: int | None = None

    def __enter__(self) -> Interrupt:
        self._before = {}
        with suppress(ValueError):  # outside the main thread nobody may listen
            for signum in SIGNALS:
                if signal.getsignal(signum) is not signal.SIG_IGN:
                    self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: object) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum

    def __call__(self) -> bool:
        """Whether the run is to end."""
        return self.signum is not None

    @property
    def exit_code(self) -> int:
        """What shells report of a program that a signal ended: 130 after Ctrl-C."""
        return 128 + (self.signum or signal.SIGINT)


def as_before() -> str:
    """The options of this call that it takes again to go on with it, with a blank before each."""
    context = click.get_current_context()
    found = ""
    for option in context.command.params:
        value = context.params.get(option.name or "")
        if option.name in FORGOTTEN and value not in (None, False):
            found += f" {option.opts[0]}" + ("" if value is True else f" {shlex.quote(str(value))}")
    return found
