"""Fair measurement: contestants take turns step by step, so that what slows the machine slows them all."""

from __future__ import annotations

import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from hyperstack_cli.benchmark.contestants import Contestant, contestants
from hyperstack_cli.benchmark.workloads import WORKLOADS, Workload, plain

WARM_UP = 5


@dataclass(frozen=True)
class Figures:
    """What one contestant needed for a step, in milliseconds; ratios are medians of step-by-step ratios.

    Of one whose steps are not alike, as where only some of them have a probe, ratios are of means of its `period`, and
    times the means of the medians of each of its steps.

    `whole`, `optimizer`: medians; `spread`: the quartiles of the whole step's ratio to the first contestant; `first`:
    of the first two steps, with all that is made, traced or compiled then; `state`: bytes a parameter of the
    optimizer's state dict; `memory`: peak in MiB, None if not measured.
    """

    contestant: str
    whole: float
    optimizer: float
    ratio: float
    spread: tuple[float, float]
    optimizer_ratio: float
    first: float
    state: float | None
    memory: float | None


def workload(name: str) -> Workload:
    """A workload by name, or the trivial one over that many parameters."""
    return WORKLOADS[name] if name in WORKLOADS else plain(int(float(name)))


def race(chosen: list[Contestant], task: Workload, seconds: float, device: torch.device) -> list[Figures]:
    """Let the contestants take turns for about `seconds`, and compare them with the first."""
    torch.manual_seed(0)
    inputs, targets = (x.to(device) for x in task.batch())
    model = task.model()
    trials, first = [], []
    for contestant in chosen:
        copy = task.model()
        copy.load_state_dict(model.state_dict())
        trials.append(contestant.make(copy.to(device), task))
        started = time.perf_counter()
        for _ in range(2):
            trials[-1].step(inputs, targets)
        first.append(time.perf_counter() - started)
    wholes: list[list[float]] = [[] for _ in chosen]
    optimizers: list[list[float]] = [[] for _ in chosen]
    gc.collect()
    ends = time.perf_counter() + seconds
    turn = 0
    least = 2 * max(contestant.period for contestant in chosen)
    while turn < WARM_UP + max(3, least) or time.perf_counter() < ends:
        turn += 1
        for i in sorted(range(len(chosen)), key=lambda i: (i + turn) % len(chosen)):
            started = time.perf_counter()
            optimizer = trials[i].step(inputs, targets)
            if turn > WARM_UP:
                wholes[i].append(time.perf_counter() - started)
                optimizers[i].append(optimizer)
    count = sum(p.numel() for p in model.parameters())
    states = [None if (size := trial.state()) is None else size / count for trial in trials]
    return [_figures(c, wholes, optimizers, i, first[i], states[i]) for i, c in enumerate(chosen)]


def _figures(
    contestant: Contestant,
    wholes: list[list[float]],
    optimizers: list[list[float]],
    i: int,
    first: float,
    state: float | None,
) -> Figures:
    whole, optimizer = (_means(times[i], contestant.period) for times in (wholes, optimizers))
    firsts, first_optimizers = (_means(times[0], contestant.period) for times in (wholes, optimizers))
    ratios = [a / b for a, b in zip(whole, firsts, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return Figures(
        contestant.name,
        whole=1e3 * _usual(wholes[i], contestant.period),
        optimizer=1e3 * _usual(optimizers[i], contestant.period),
        ratio=statistics.median(ratios),
        spread=(low, high),
        optimizer_ratio=statistics.median(a / b for a, b in zip(optimizer, first_optimizers, strict=True)),
        first=1e3 * first,
        state=state,
        memory=None,
    )


def _means(times: list[float], period: int) -> list[float]:
    """The mean of each `period` of them; what is left over at the end is left out."""
    return [statistics.fmean(times[i : i + period]) for i in range(0, len(times) - period + 1, period)]


def _usual(times: list[float], period: int) -> float:
    """The mean over a period of the median of each of its steps."""
    return statistics.fmean(statistics.median(times[k::period]) for k in range(period))


def peak_memory(contestant: str, task: str, device: str, steps: int = 8) -> float:
    """Peak memory of `steps` training steps in a process of its own, in MiB, less what it held before the model."""
    code = f"from hyperstack_cli.benchmark.measure import _alone; _alone({contestant!r}, {task!r}, {device!r}, {steps})"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(json.loads(ended.stdout))


def _alone(contestant: str, task: str, device: str, steps: int) -> None:
    chosen, place = workload(task), torch.device(device)
    inputs, targets = (x.to(place) for x in chosen.batch())
    before = _resident("VmRSS")
    step = contestants()[contestant].make(chosen.model().to(place), chosen).step
    for _ in range(steps):
        step(inputs, targets)
    if place.type == "cuda":
        print(torch.cuda.max_memory_allocated(place) / 2**20)
    else:
        print(_resident("VmHWM") - before)


def _resident(name: str) -> float:
    """This process's memory in MiB, now or at its peak: as Linux has it, else the peak for either."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def as_json(figures: list[Figures]) -> list[dict[str, object]]:
    """Plain values."""
    return [asdict(f) for f in figures]
