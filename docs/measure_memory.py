"""What keeping freed memory gains: the table of docs/performance.md.

Two processes of one thread each train the same network, one of them after `keep_freed`. They take turns, step by step;
ratios are of neighbours.
"""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection

import torch

from hyperstack.memory import keep_freed
from hyperstack.tasks import get_task
from hyperstack.training import Plan, Trainer

SIZES = {"mnist": 256, "cifar10": 256, "cifar10-resnet18": 32}
"""Of each task that is trained, the batch size."""


def serve(pipe: Connection, name: str, keeps: bool) -> None:
    """In a process of its own: a step and its milliseconds whenever one is asked for, until none is."""
    assert not keeps or keep_freed(), "this C library cannot keep what is freed"
    task, size = get_task(name), SIZES[name]
    data = task.load(None, torch.device("cpu"))
    trainer = Trainer(Plan(name, "Adam / SGD(1e-9)", 1, 0, "cpu", size, threads=1), task, data)
    parts = itertools.cycle(trainer.source.order(0, 0).split(size)[:-1])
    while pipe.recv():
        started = time.perf_counter()
        trainer._step(next(parts))
        pipe.send((time.perf_counter() - started) * 1e3)


def times(name: str, rounds: int) -> list[list[float]]:
    """Milliseconds of a step with fresh and with kept memory, in each of so many rounds."""
    context, pipes, found = multiprocessing.get_context("spawn"), [], []
    for keeps in (False, True):
        mine, theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, name, keeps), daemon=True).start()
        pipes.append(mine)
    for _ in range(rounds + 2):
        found.append([])
        for pipe in pipes:
            pipe.send(True)
            found[-1].append(pipe.recv())
    for pipe in pipes:
        pipe.send(False)
    return found[2:]  # in the first two, everything is recorded


def measured(rounds: int = 12) -> list[tuple[str, int, float, float, float]]:
    """Of each task its batch size, milliseconds of a step with fresh and with kept memory, and the ratio: medians."""
    rows = []
    for name, size in SIZES.items():
        found = times(name, rounds)
        fresh, kept = (statistics.median(column) for column in zip(*found, strict=True))
        rows.append((name, size, fresh, kept, statistics.median(b / a for a, b in found)))
    return rows
