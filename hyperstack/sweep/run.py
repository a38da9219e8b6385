"""Runs a sweep: block after block, or several at a time in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from typing import Any

import torch

from hyperstack.devices import device_failures
from hyperstack.errors import RunError
from hyperstack.memory import keep_freed
from hyperstack.sweep.block import Block, CannotTogether
from hyperstack.sweep.final import FinalLoss
from hyperstack.sweep.folder import SweepFolder
from hyperstack.sweep.grid import Cell
from hyperstack.sweep.planning import THREADS, SweepPlan, blocks, jobs_that_fit, runs_that_fit, slow_together
from hyperstack.sweep.ranks import Ranks
from hyperstack.tasks import Data, Task, get_task
from hyperstack.tasks.own import is_in_a_file
from hyperstack.telemetry.plan import Plan
from hyperstack.training import Trainer

Result = dict[str, Any]
Found = Iterator[tuple[int, Result]]
SAID = 30.0
"""Seconds between lines on how far the runs in hand are."""
Report = str | tuple[int, Result]  # of a process: a remark, or a result with its place


def sweep(
    plan: SweepPlan,
    task: Task,
    data: Data,
    folder: SweepFolder,
    *,
    jobs: int | None = 1,
    ranks: Ranks | None = None,
    stop: Callable[[], bool] = lambda: False,
    after_cell: Callable[[Cell, Result], None] = lambda cell, result: None,
    notify: Callable[[str], None] = lambda line: None,
) -> dict[int, Result]:
    """Train every cell of a plan that has no result in the folder yet; the results, by place in `plan.cells()`.

    jobs: blocks of cells at a time, each in a process of its own; None: as many as the machine has cores and memory
    for. ranks: share the blocks; each writes into the folder, and all have all results in the end. stop: ends the sweep
    soon after it is true; blocks in hand are given up, finished cells kept. notify: gets a line where cells are trained
    one after another, and why.
    The folder must be `locked` by the caller, on the first rank.
    """
    ranks = ranks or Ranks()
    cells, data = plan.cells(), plan.taken(data)
    results = ranks.once(lambda: folder.results(plan, cells))
    pending = [i for i in range(len(cells)) if i not in results]
    jobs = jobs or jobs_that_fit(plan, task, data, ranks.here)
    limit = runs_that_fit(task, data, plan.batch_size, jobs * ranks.here)
    if slow_together(task, data) and len(pending) > 1:
        limit = 1
        notify("one run after another: several at once take longer where a CPU convolves")
    of_all = blocks(plan, [cells[i] for i in pending], limit, jobs * ranks.world)
    work = [[pending[i] for i in block] for block in of_all[ranks.rank :: ranks.world]]
    share = max(1, THREADS // max(1, min(jobs, len(work)) * ranks.here))
    plans = {i: replace(plan, threads=plan.threads or share).of_cell(cells[i]) for i in pending}
    told: set[str] = set()

    def once(line: str) -> None:
        if line not in told:
            told.add(line)
            notify(line)

    try:
        for i, result in (
            _in_processes(work, plans, task, data, jobs, stop, once)
            if (jobs > 1 and len(work) > 1)
            else _here(work, plans, task, data, stop, once)
        ):
            folder.write(cells[i], result)
            results[i] = result
            after_cell(cells[i], result)
        ranks.wait()
        results = folder.results(plan, cells) if ranks.world > 1 else results
    finally:
        if ranks.rank == 0:
            folder.conclude(cells, results if ranks.world == 1 else folder.results(plan, cells))
    return results


def train_cells(
    plans: Sequence[Plan], task: Task, data: Data, stop: Callable[[], bool], notify: Callable[[str], None]
) -> Found:
    """Train runs together where that is possible, else one after another; each with its place, as it ends."""
    torch.set_num_threads(plans[0].threads or torch.get_num_threads())
    if len(plans) > 1:
        try:
            block = Block(plans, task, data)
            yield from block.run(_watched(stop, plans, block.planned, notify))
            return
        except CannotTogether as error:
            notify(f"one run after another: {error.why}")
    for r, plan in enumerate(plans):
        if stop():
            return
        trainer = Trainer(plan, task, data)
        steps = trainer.batches * plan.epochs
        recorder = FinalLoss(steps, trainer.total)
        trainer.run(recorder, _watched(stop, [plan], steps, notify))
        if trainer.finished:
            yield r, {**trainer.summary(), "final_loss": recorder.mean(), "together": 1}


def _watched(
    stop: Callable[[], bool], plans: Sequence[Plan], steps: int, notify: Callable[[str], None]
) -> Callable[[], bool]:
    """`stop`, which is asked at every step; now and then it says how far these runs are."""
    done, said = 0, time.monotonic()
    more = f" and {len(plans) - 1} more" if len(plans) > 1 else ""

    def asked() -> bool:
        nonlocal done, said
        if time.monotonic() - said >= SAID:
            said = time.monotonic()
            notify(f"step {done:,} of {steps:,}: {plans[0].stack}, seed {plans[0].seed}{more}")
        done += 1
        return stop()

    return asked


def _here(
    work: Sequence[list[int]],
    plans: dict[int, Plan],
    task: Task,
    data: Data,
    stop: Callable[[], bool],
    notify: Callable[[str], None],
) -> Found:
    for block in work:
        if stop():
            return
        with device_failures():
            for r, result in train_cells([plans[i] for i in block], task, data, stop, notify):
                yield block[r], result


def _in_processes(
    work: Sequence[list[int]],
    plans: dict[int, Plan],
    task: Task,
    data: Data,
    jobs: int,
    stop: Callable[[], bool],
    notify: Callable[[str], None],
) -> Found:
    context = multiprocessing.get_context("spawn")
    ending, reports = context.Event(), context.SimpleQueue()
    given = (_sent(task, plans), data, ending, reports)
    with ProcessPoolExecutor(min(jobs, len(work)), context, _prepare, given) as pool:
        waiting = {pool.submit(_train_block, block, [plans[i] for i in block]) for block in work}
        try:
            while waiting:
                if stop() and not ending.is_set():
                    ending.set()
                    for future in waiting:
                        future.cancel()
                done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                while not reports.empty():
                    report = reports.get()
                    if isinstance(report, str):
                        notify(report)
                    else:
                        yield report
                for future in (future for future in done if not future.cancelled()):
                    future.result()  # or what went wrong; what it reported before has been read
        except BrokenProcessPool:
            raise RunError(
                "a process of this sweep was ended from outside",
                why="perhaps the memory did not suffice for so many at a time",
                instead="go on with --resume, and fewer --jobs: no finished cell is lost",
            ) from None
        finally:
            ending.set()


_prepared: dict[str, Any] = {}


def _sent(task: Task, plans: dict[int, Plan]) -> Task | tuple[str, dict[str, Any]]:
    """A task as another process can have it: that of a file cannot be pickled, and is found there again by its text."""
    text = next(iter(plans.values())).task
    return (text, vars(task)) if is_in_a_file(text) else task


def _prepare(task: Task | tuple[str, dict[str, Any]], data: Data, ending: Event, reports: SimpleQueue[Report]) -> None:
    """In a new process: what all its blocks need. Ctrl-C reaches it, too, and is left to the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if isinstance(task, tuple):
        text, known = task
        task = get_task(text)
        vars(task).update(known)
    _prepared.update(task=task, data=data, ending=ending, reports=reports)


def _end_with_parent() -> None:
    """Nobody would hear of results after it."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _train_block(block: Sequence[int], plans: Sequence[Plan]) -> None:
    """Report each result as it is there: a later one may never be. The pipe has it when `put` returns."""
    task, data, ending, reports = (_prepared[name] for name in ("task", "data", "ending", "reports"))
    with device_failures():
        for r, result in train_cells(plans, task, data, ending.is_set, reports.put):
            reports.put((block[r], result))
