"""The processes of one sweep that `torchrun` has started, on one machine or several."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed

from hyperstack.errors import HyperstackError, RunError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process is number `rank` of `world`; without torchrun the only one."""

    rank: int = 0
    world: int = 1

    @staticmethod
    @contextmanager
    def joined() -> Iterator[Ranks]:
        """The ranks that torchrun has started, for as long as it is entered."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
            yield Ranks()
            return
        torch.distributed.init_process_group("gloo")
        try:
            yield Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())
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
            self._all(torch.distributed.barrier)

    def _all(self, function: Callable[[], object]) -> None:
        try:
            function()
        except RuntimeError as error:
            raise RunError(
                "another rank of this sweep is lost",
                why=str(error).splitlines()[0],
                instead="go on with --resume: no finished cell is lost",
            ) from None
