"""What a sweep is asked to do, and how its cells are put together into blocks that fit the memory."""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from hyperstack.batches import Batches
from hyperstack.errors import InputError
from hyperstack.rivals import Rival
from hyperstack.schedule import CONSTANT
from hyperstack.sweep.grid import Cell, cells
from hyperstack.tasks import Data, Task
from hyperstack.telemetry.plan import Plan
from hyperstack.together import goes_alone, shape

MOST = 20
"""Runs of a block at most: more of them gain next to nothing, and are lost together where a sweep is interrupted."""
TESTED = 64
"""Test examples at once where the batch is smaller: of runs together no more, and in less memory than a batch takes."""
SAMPLE = 16
PROCESS = 400e6
"""Bytes of a process that has loaded torch."""
LIMITS = [Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory/memory.limit_in_bytes")]
THREADS = torch.get_num_threads()
"""What PyTorch takes, OMP_NUM_THREADS say, before a run has asked for fewer."""
FEW = 4
"""Runs that one seed needs for blocks of its own, in which all take the same batch."""


@dataclass(frozen=True)
class SweepPlan:
    """Stacks with free names, values for each name, seeds, and what every run has in common: see `Plan`.

    threads: of each job; None shares the cores out among them.
    share: of the examples, for training and for testing; a batch at least.
    """

    task: str
    stacks: list[str]
    grid: dict[str, list[float]]
    seeds: list[int]
    epochs: int
    device: str
    batch_size: int
    threads: int | None
    compile: bool = False
    schedule: str = CONSTANT
    share: float = 1.0

    @property
    def passes(self) -> float:
        """Passes over all training examples that make up as much work; a whole number where all are taken."""
        return self.epochs if self.share == 1 else self.epochs * self.share

    def taken(self, data: Data) -> Data:
        """What is trained on, and tested with: all, or evenly spaced examples, as data may be sorted by class."""
        if self.share == 1:
            return data

        def some(examples: Tensor) -> Tensor:
            count = len(examples)
            kept = max(min(self.batch_size, count), math.floor(self.share * count))
            return examples[torch.arange(kept, device=examples.device) * count // kept]

        return Data(*(some(getattr(data, field.name)) for field in fields(data)))

    @classmethod
    def of(cls, content: object) -> SweepPlan:
        """The plan that was saved as `content`; ValueError where it is none."""
        kinds: dict[str, Any] = {
            "str": str,
            "int": int,
            "int | None": (int, type(None)),
            "bool": bool,
            "list[str]": list,
            "list[int]": list,
            "dict[str, list[float]]": dict,
            "float": (int, float),
        }
        if not isinstance(content, dict):
            raise ValueError("it is not a table of names and values")
        content = {"schedule": CONSTANT, "share": 1.0, **content}  # which earlier versions did not have
        wrong = [f.name for f in fields(cls) if not isinstance(content.get(f.name, ...), kinds[str(f.type)])]
        if wrong:
            raise ValueError(f"it lacks {', '.join(wrong)}, or holds something else there")
        return cls(**{f.name: content[f.name] for f in fields(cls)})

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def cells(self) -> list[Cell]:
        """Every run, in an order that depends on nothing else."""
        return cells(self.stacks, self.grid, self.seeds)

    def of_cell(self, cell: Cell) -> Plan:
        """What one run is asked to do."""
        common = ("task", "epochs", "device", "batch_size", "threads", "compile", "schedule")
        return Plan(stack=str(cell.stack), seed=cell.seed, **{name: getattr(self, name) for name in common})

    def check_resumes(self, saved: SweepPlan) -> None:
        """An InputError unless a sweep under plan `saved` can go on under this one, which may have more cells."""
        grown = {
            "stacks": set(saved.stacks) <= set(self.stacks),
            "grid": all(set(values) <= set(self.grid.get(name, ())) for name, values in saved.grid.items()),
            "seeds": set(saved.seeds) <= set(self.seeds),
        }
        for name, mine in self.as_dict().items():
            theirs = getattr(saved, name)
            if name in ("device", "threads", "compile") or theirs == mine or grown.get(name):
                continue
            raise InputError(
                f"the sweep in this folder has {'other' if name.endswith('s') else 'another'} {name.replace('_', ' ')}",
                why=f"  the sweep: {_option(name, theirs)}\n  asked:     {_option(name, mine)}",
                instead=("name that task, " if name == "task" else "leave the option out to take the sweep's own, ")
                + ("name all of these and more, " if name in grown else "")
                + "or choose another --out",
            )


def _option(name: str, value: Any) -> str:
    """What a sweep was asked for, as it is written on the command line."""
    if name == "stacks":
        return " ".join(f'--stack "{stack}"' for stack in value)
    if name == "grid":
        return " ".join(f"--grid {key}={','.join(map(str, values))}" for key, values in value.items())
    if name in ("task", "share"):
        return str(value)
    return f"--{name.replace('_', '-')} {len(value) if name == 'seeds' else value}"


def blocks(plan: SweepPlan, of: Sequence[Cell], limit: int, jobs: int = 1) -> list[list[int]]:
    """The places in `of` of the cells to be trained together, at most `limit` in a block, blocks enough for `jobs`.

    Cells of one shape and seed, which share their batches; where a seed has few, of several seeds. What cannot be
    trained together is alone.
    """
    groups: dict[Hashable, list[int]] = {}
    for i, cell in enumerate(of):
        stack = cell.stack
        key: Hashable = ("alone", i) if isinstance(stack, Rival) or goes_alone(stack) else shape(stack)
        groups.setdefault(key, []).append(i)
    limit = max(1, min(limit, max(FEW, -(-len(of) // max(1, jobs)))))
    found = []
    for group in groups.values():
        by_seed: dict[int, list[int]] = {}
        for i in group:
            by_seed.setdefault(of[i].seed, []).append(i)
        apart = len(group) >= FEW * len(by_seed) or len(by_seed) == 1
        for members in by_seed.values() if apart else [[i for own in by_seed.values() for i in own]]:
            pieces = -(-len(members) // limit)
            found += [members[len(members) * j // pieces : len(members) * (j + 1) // pieces] for j in range(pieces)]
    return found


def runs_that_fit(task: Task, data: Data, batch_size: int, jobs: int = 1) -> int:
    """How many runs a block may have, so that all jobs together take at most a quarter of the memory."""
    room = _memory(data.train_inputs.device) / 4 / jobs
    return max(1, min(MOST, math.floor(room / bytes_of_a_run(task, data, batch_size))))


def slow_together(task: Task, data: Data) -> bool:
    """Whether runs of this network take longer side by side: on a CPU those with convolutions, which with weights of
    each run are grouped ones. `docs/measure_together.py` measures by how much.
    """
    convolves = any(isinstance(module, _ConvNd) for module in task.model().modules())
    return data.train_inputs.device.type == "cpu" and convolves


def bytes_of_a_run(task: Task, data: Data, batch_size: int) -> float:
    """Memory that a run among others takes, as an estimate from above where networks are large.

    Measured on a few examples, because a batch of a network that is too large would be too large here, too.
    """
    torch.manual_seed(0)
    model, saved = task.model().to(data.train_inputs.device), [0]
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def count(x: Tensor) -> Tensor:
        saved[0] += x.numel() * x.element_size() * (x.untyped_storage().data_ptr() not in own)
        return x

    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        first = torch.arange(min(batch_size, SAMPLE, len(data.train_inputs)), device=data.train_inputs.device)
        inputs, targets = Batches(task, data).training(first, 0, 0, 0)
        task.losses(model(inputs), targets)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    examples = max(6 * min(batch_size, len(data.train_inputs)), 2 * TESTED)
    # Parameters, gradient, record, state and what a pull needs; and while a step is recorded, all that it computes.
    return 16 * size + saved[0] / len(first) * examples + 1


def jobs_that_fit(plan: SweepPlan, task: Task, data: Data, here: int = 1) -> int:
    """How many jobs the CPU has cores and memory for, where `here` processes share the machine; 1 elsewhere."""
    if plan.device != "cpu":
        return 1
    cores = (os.cpu_count() or 1) // (plan.threads or 1)
    memory = math.floor(_memory(torch.device("cpu")) / (PROCESS + bytes_of_a_run(task, data, plan.batch_size)))
    return max(1, min(cores, memory) // here)


def _memory(device: torch.device) -> int:
    """Bytes of the device's memory; of the machine's where that is the device, or of what a container may have."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [4 << 30]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for limit in LIMITS:
        with suppress(OSError, ValueError):  # ValueError: it says "max"
            found.append(int(limit.read_text()))
    return min(found)
