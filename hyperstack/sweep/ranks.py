"""The processes of one sweep that `torchrun` has started, on one machine or several."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed

from hyperstack.errors import HyperstackError, RunError

T = TypeVar("T")
GO_ON = "go on with --resume: no finished cell is lost"
PATIENCE = timedelta(weeks=1)
"""How long one rank may train after another has done its part, and a machine that went dark goes unnoticed."""


@dataclass(frozen=True)
class Ranks:
    """This process is number `rank` of `world`; without torchrun the only one.

    That another rank has ended, however it did, is noticed at once by those that wait for it, and by nobody else:
    each trains its own part first.
    """

    rank: int = 0
    world: int = 1
    patient: Any = None  # the process group of those who wait for one another's work

    @staticmethod
    @contextmanager
    def joined() -> Iterator[Ranks]:
        """The ranks that torchrun has started, for as long as it is entered."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
            yield Ranks()
            return
        try:
            torch.distributed.init_process_group("gloo")
            patient = torch.distributed.new_group(timeout=PATIENCE)
        except RuntimeError as error:
            raise _lost(error) from None
        try:
            yield Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), patient)
        finally:
            torch.distributed.destroy_process_group()

    @property
    def here(self) -> int:
        """How many of them share this machine."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if self.world > 1 else 1

    def once(self, function: Callable[[], T]) -> T:
        """What `function` returns to the first rank, or its deliberate error, for all of them."""
        found: list[Any] = [None, None]
        if self.rank == 0:
            try:
                found[0] = function()
            except HyperstackError as error:
                found[1] = error
        if self.world > 1:
            self._all(lambda: torch.distributed.broadcast_object_list(found, 0))
        if found[1] is not None:
            raise found[1]
        result: T = found[0]
        return result

    def wait(self) -> None:
        """Until all have come so far; a RunError where one is lost."""
        if self.world > 1:
            self._all(lambda: torch.distributed.barrier(self.patient))

    def _all(self, function: Callable[[], object]) -> None:
        try:
            function()
        except RuntimeError as error:
            raise _lost(error) from None


def _lost(error: RuntimeError) -> RunError:
    why = (str(error).splitlines() or [type(error).__name__])[0]
    return RunError("another rank of this sweep is lost", why=why, instead=GO_ON)
