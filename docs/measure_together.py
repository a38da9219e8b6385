"""What a step of a run costs alone and among others: the table of docs/performance.md on runs together.

Alone, a run trains in this process, on one thread; together, each of two processes trains ten runs on one thread, the
ten α of a table with and without clipping. They take turns, some steps at a time; ratios are of neighbours.

`python docs/measure_together.py` prints the CPU time of a step among eight runs over that alone, also convolving; with
the word `whole`, the seconds that the 60 runs of a published table take, together and one after another.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from hyperstack.batches import Batches
from hyperstack.experiments.experiment import Part, load
from hyperstack.memory import keep_freed
from hyperstack.sweep.block import Block
from hyperstack.sweep.final import FinalLoss
from hyperstack.sweep.folder import SweepFolder
from hyperstack.sweep.grid import Cell
from hyperstack.sweep.planning import SweepPlan
from hyperstack.sweep.run import sweep
from hyperstack.tasks import Data, Task, get_task
from hyperstack.training import Plan, Trainer

RUNS, STEPS = 10, 20


def plan(stack: str, compiled: bool = False) -> Plan:
    """A run of the MNIST network."""
    return Plan("mnist", stack, 5, 0, "cpu", 256, threads=1, compile=compiled)


def serve(pipe: Connection, clip: str, compiled: bool) -> None:
    """In a process of its own: so many steps of ten runs as are asked for, until it is 0."""
    torch.set_num_threads(1)
    task = get_task("mnist")
    data = task.load(None, torch.device("cpu"))
    stacks = [f"Adam / SGD({10.0 ** (-6 + 0.5 * r)!r}{clip})" for r in range(RUNS)]
    block = Block([plan(stack, compiled) for stack in stacks], task, data)
    batches = itertools.cycle(itertools.islice(block._batches(), 200))
    pipe.send(None)
    while count := pipe.recv():
        for _ in range(count):
            block._step(*next(batches))
        pipe.send(None)


def alone(task: Task, stack: str) -> Callable[[], object]:
    """A step of one run."""
    data = task.load(None, torch.device("cpu"))
    trainer = Trainer(plan(stack), task, data)
    parts = itertools.cycle(Batches(task, data).order(0, 0).split(256)[:-1])
    return lambda: trainer._step(next(parts))


def published(task: Task) -> Callable[[], object]:
    """A step of the published implementation, Adam / SGD(1e-5)."""
    from gradient_descent_the_ultimate_optimizer import gdtuo

    torch.manual_seed(0)
    data: Any = task.load(None, torch.device("cpu"))
    wrapped = gdtuo.ModuleWrapper(task.model(), optimizer=gdtuo.Adam(optimizer=gdtuo.SGD(1e-5)))
    wrapped.initialize()
    parts = itertools.cycle(Batches(task, data).order(0, 0).split(256)[:-1])

    def step() -> None:
        chosen = next(parts)
        wrapped.begin()
        loss = task.losses(wrapped.forward(data.train_inputs[chosen]), data.train_targets[chosen]).mean()
        wrapped.zero_grad()
        loss.backward(create_graph=True)
        wrapped.step()

    return step


def measured(rounds: int) -> list[tuple[str, float, float, float]]:
    """Milliseconds a run and step, and the ratio to one run alone and to the published implementation: medians."""
    task, context = get_task("mnist"), multiprocessing.get_context("spawn")
    torch.set_num_threads(1)
    singles = {"`Adam / SGD`, alone": alone(task, "Adam / SGD(1e-5)"), "gdtuo, alone": published(task)}
    pairs, processes = {}, []
    for name, compiled in (("2 x 10 together", False), ("2 x 10 together, `--compile`", True)):
        ends = [context.Pipe() for _ in range(2)]
        for (_, theirs), clip in zip(ends, ("", ", clip"), strict=True):
            processes.append(context.Process(target=serve, args=(theirs, clip, compiled), daemon=True))
            processes[-1].start()
        pairs[name] = [mine for mine, _ in ends]
    for pipe in itertools.chain(*pairs.values()):
        pipe.recv()
    found: dict[str, list[float]] = {name: [] for name in (*singles, *pairs)}
    for _ in range(rounds + 2):
        for name, step in singles.items():
            started = time.perf_counter()
            for _ in range(STEPS):
                step()
            found[name].append((time.perf_counter() - started) / STEPS * 1e3)
        for name, pipes in pairs.items():
            started = time.perf_counter()
            for pipe in pipes:
                pipe.send(STEPS)
            for pipe in pipes:
                pipe.recv()
            found[name].append((time.perf_counter() - started) / STEPS / (2 * RUNS) * 1e3)
    for pipe in itertools.chain(*pairs.values()):
        pipe.send(0)
    kept = {name: times[2:] for name, times in found.items()}  # in the first two, everything is recorded and compiled
    bases = [kept[name] for name in singles]
    median = statistics.median

    def ratio(times: list[float], base: list[float]) -> float:
        return median(a / b for a, b in zip(times, base, strict=True))

    return [(name, median(times), ratio(times, bases[0]), ratio(times, bases[1])) for name, times in kept.items()]


def ratio_of(task: Task, rounds: int = 10, runs: int = 8) -> float:
    """CPU time of a run's step among others over that of one alone, in this process, on one thread: the median."""
    torch.set_num_threads(1)
    data = task.load(None, torch.device("cpu"))
    plans = [Plan(task.name, f"Adam / SGD({1e-5 * (r + 1)!r})", 1, 0, "cpu", 256, threads=1) for r in range(runs)]
    block, trainer = Block(plans, task, data), Trainer(plans[0], task, data)
    batches, parts = block._batches(), trainer.source.order(0, 0).split(256)
    found = []
    for part in parts[: rounds + 2]:
        times = [time.process_time()]
        block._step(*next(batches))
        times.append(time.process_time())
        for _ in range(3):
            trainer._step(part)
        times.append(time.process_time())
        found.append((times[1] - times[0]) / runs / ((times[2] - times[1]) / 3))
    return statistics.median(found[2:])  # in the first two, everything is recorded


def whole(every: int = 5) -> dict[str, float]:
    """Seconds of Table 2 of Huang et al., 60 runs of 5 epochs, on two cores.

    Together, as a sweep of two jobs, with and without kernels; one after another, from each `every`-th of them, half
    before and half behind; and by the steps of the published implementation alone, which is not tested meanwhile.
    """
    torch.set_num_threads(1)
    task = get_task("mnist")
    data, found = task.load(None, torch.device("cpu")), {}
    part = load("clip-table-2").parts[0]
    assert isinstance(part, Part)
    stacks = [each.stack for each in part.series if each.name]
    both = SweepPlan("mnist", stacks, part.grid, [0, 1, 2], part.epochs, "cpu", part.batch_size, threads=1)
    chosen = both.cells()[::every]
    singles: list[float] = []

    def one_after_another(cells: Sequence[Cell]) -> None:
        for cell in cells:
            trainer = Trainer(both.of_cell(cell), task, data)
            started = time.perf_counter()
            trainer.run(FinalLoss(trainer.batches * part.epochs, trainer.total))
            singles.append(time.perf_counter() - started)

    one_after_another(chosen[::2])
    step = published(task)
    for name, compiled in (("together", False), ("together, --compile", True)):
        plan = replace(both, compile=compiled)
        with tempfile.TemporaryDirectory() as place:
            folder = SweepFolder.create(Path(place) / "sweep", plan)
            started = time.perf_counter()
            sweep(plan, task, data, folder, jobs=2)
            found[name] = time.perf_counter() - started
    started = time.perf_counter()
    for _ in range(500):
        step()
    found["gdtuo, one after another"] = (time.perf_counter() - started) / 500 * trained_steps(both, data)
    one_after_another(chosen[1::2])
    found["one after another"] = statistics.fmean(singles) * len(both.cells())
    return found


def trained_steps(plan: SweepPlan, data: Data) -> int:
    """The steps of all runs, if none diverges."""
    return len(plan.cells()) * plan.epochs * math.ceil(len(data.train_inputs) / plan.batch_size)


if __name__ == "__main__":
    keep_freed()  # as a sweep does
    if sys.argv[1:] == ["whole"]:
        for name, seconds in whole().items():
            print(f"{name}: {seconds:.0f} s")
    else:
        for name in ("mnist", "mnist-conv", "cifar10"):
            print(f"{name}: {ratio_of(get_task(name)):.2f}")
