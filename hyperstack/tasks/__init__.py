"""The training tasks by name. To add one, write a `Task` and name its class in `TASKS`."""

from __future__ import annotations

import difflib

from hyperstack.errors import InputError
from hyperstack.tasks.base import Data, Task
from hyperstack.tasks.mnist import MNIST

__all__ = ["MNIST", "TASKS", "Data", "Task", "get_task"]

TASKS: dict[str, type[Task]] = {task.name: task for task in (MNIST,)}


def get_task(name: str) -> Task:
    """The task called `name`; `InputError` that names the nearest known one where there is none."""
    if name in TASKS:
        return TASKS[name]()
    nearest = difflib.get_close_matches(name.lower(), TASKS, n=1)
    raise InputError(
        f"there is no task {name!r}",
        why=f"the tasks are {', '.join(sorted(TASKS))}",
        instead=f"use {(nearest or sorted(TASKS))[0]!r}",
    )
