"""The training tasks by name. To add one, write a `Task` and name its class in `TASKS`."""

from __future__ import annotations

import difflib
from pathlib import Path

import torch

from hyperstack.errors import InputError
from hyperstack.tasks import own
from hyperstack.tasks.base import Classifier, Data, Notify, Task
from hyperstack.tasks.cifar10 import CIFAR10
from hyperstack.tasks.cifar10_resnet18 import CIFAR10ResNet18
from hyperstack.tasks.imagefolder import ImageFolder
from hyperstack.tasks.mnist import MNIST
from hyperstack.tasks.mnist_networks import MNISTConv, MNISTReLU
from hyperstack.tasks.own import same_task
from hyperstack.tasks.spiral_completion import SpiralCompletion
from hyperstack.tasks.supersample import Supersample, SupersampleQuartic
from hyperstack.tasks.tried import try_out

__all__ = [
    "CIFAR10",
    "MNIST",
    "TASKS",
    "CIFAR10ResNet18",
    "Classifier",
    "Data",
    "ImageFolder",
    "MNISTConv",
    "MNISTReLU",
    "SpiralCompletion",
    "Supersample",
    "SupersampleQuartic",
    "Task",
    "get_task",
    "load_data",
    "same_task",
]

BUILT_IN: tuple[type[Task], ...] = (
    *(MNIST, MNISTReLU, MNISTConv),
    *(CIFAR10, CIFAR10ResNet18, Supersample, SupersampleQuartic, SpiralCompletion),
    ImageFolder,
)
TASKS: dict[str, type[Task]] = {task.name: task for task in BUILT_IN}


def get_task(text: str) -> Task:
    """A new instance of the task called `text`: one of `TASKS`; a class in a file, as `path/to/file.py:MyTask`; or the
    name of an entry point in the group `hyperstack.tasks` of an installed package, in this order.

    `InputError` where there is none, with the nearest known name, and where a file or a package can't be imported.
    """
    if text in TASKS:
        return TASKS[text]()
    if own.is_in_a_file(text):
        return own.from_file(text)
    offered = own.offered()
    if text in offered:
        return own.from_entry_point(offered[text])
    names = sorted({*TASKS, *offered})
    nearest = difflib.get_close_matches(text.lower(), names, n=1)
    raise InputError(
        f"there is no task {text!r}",
        why=f"the tasks are {', '.join(names)}",
        instead=f"use {(nearest or ['mnist'])[0]!r}, or a class in a file: path/to/file.py:MyTask",
    )


def load_data(task: Task, data_dir: Path | None, device: torch.device, notify: Notify | None = None) -> Data:
    """The data of a task; one that is not of `TASKS` is tried out with them first, which may raise an InputError."""
    data = task.load(data_dir, device, notify)
    if type(task) not in TASKS.values():
        try_out(task, data, device)
    return data
