"""The optimizers that are compared, each as a function from a model to one training step."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hyperstack as hs
from hyperstack.telemetry.recorder import Recorder
from hyperstack_cli.benchmark.workloads import Workload

Step = Callable[[Tensor, Tensor], float]
"""One training step on a batch; returns the seconds that the optimizer's part took."""


@dataclass(frozen=True)
class Trial:
    """A contestant at work on a model: its step, and what its state dict takes, in bytes, if it has one."""

    step: Step
    state: Callable[[], int | None] = lambda: None


@dataclass(frozen=True)
class Contestant:
    """A name for the table, and how to make a step for a model. `period`: in so many steps all kinds of them occur."""

    name: str
    make: Callable[[nn.Module, Workload], Trial]
    period: int = 1


def _ordinary(
    optimizer: Callable[[nn.Module], torch.optim.Optimizer], record: bool = False
) -> Callable[[nn.Module, Workload], Trial]:
    """The ordinary loop with an optimizer, and with a recorder that writes every row to a file if asked for."""

    def make(model: nn.Module, workload: Workload) -> Trial:
        opt = optimizer(model)
        recorder = _recorder(opt) if record and isinstance(opt, hs.HyperOptimizer) else None
        count = 0

        def step(inputs: Tensor, targets: Tensor) -> float:
            nonlocal count
            opt.zero_grad()
            loss = workload.loss(model(inputs), targets)
            loss.backward()
            _wait(inputs)
            started = time.perf_counter()
            opt.step()
            if recorder:
                count += 1
                recorder.record(count, loss)
            _wait(inputs)
            return time.perf_counter() - started

        return Trial(step, lambda: _bytes(opt.state_dict()))

    return make


def _closing(stack: str, **options: Any) -> Callable[[nn.Module, Workload], Trial]:
    """A loop with a closure. Of its step all but one forward and backward is the optimizer's part."""

    def make(model: nn.Module, workload: Workload) -> Trial:
        opt = hs.HyperOptimizer(model.parameters(), stack, **options)

        def step(inputs: Tensor, targets: Tensor) -> float:
            inside = 0.0

            def closure() -> Tensor:
                nonlocal inside
                began = time.perf_counter()
                opt.zero_grad()
                loss = workload.loss(model(inputs), targets)
                loss.backward()
                _wait(inputs)
                inside = time.perf_counter() - began
                return loss

            started = time.perf_counter()
            opt.step(closure)
            _wait(inputs)
            return time.perf_counter() - started - inside

        return Trial(step, lambda: _bytes(opt.state_dict()))

    return make


def _bytes(state: Any) -> int:
    """What the tensors in nested dicts and lists take, each memory counted once."""
    found: dict[int, int] = {}

    def walk(value: Any) -> None:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, (dict, list, tuple)):
            for each in value.values() if isinstance(value, dict) else value:
                walk(each)

    walk(state)
    return sum(found.values())


def _recorder(opt: hs.HyperOptimizer) -> Recorder:
    """A recorder as `hyperstack train` has it: text and binary rows, on the disk of temporary files until it ends."""
    folder = tempfile.mkdtemp(prefix="hyperstack-bench-")
    sink = hs.JsonLines(Path(folder) / "record.jsonl")
    recorder = Recorder(opt, [sink])

    def end() -> None:
        sink.close()
        shutil.rmtree(folder, ignore_errors=True)

    weakref.finalize(recorder, end)
    return recorder


def _gdtuo(model: nn.Module, workload: Workload) -> Trial:
    """The published implementation, Adam / SGD(1e-5); its optimizer cannot be timed apart from its loop."""
    gdtuo: Any = importlib.import_module("gradient_descent_the_ultimate_optimizer.gdtuo")
    wrapped = gdtuo.ModuleWrapper(model, optimizer=gdtuo.Adam(optimizer=gdtuo.SGD(1e-5)))
    wrapped.initialize()

    def step(inputs: Tensor, targets: Tensor) -> float:
        wrapped.begin()
        loss = workload.loss(wrapped.forward(inputs), targets)
        wrapped.zero_grad()
        loss.backward(create_graph=True)
        started = time.perf_counter()
        wrapped.step()
        return time.perf_counter() - started

    return Trial(step)


def _wait(like: Tensor) -> None:
    if like.is_cuda:
        torch.cuda.synchronize(like.device)


def contestants() -> dict[str, Contestant]:
    """Every contestant by name; the first one is what the others are compared with."""

    def torch_adam(**options: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
        return lambda model: torch.optim.Adam(model.parameters(), **options)

    def stack(text: str, **options: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
        return lambda model: hs.HyperOptimizer(model.parameters(), text, **options)

    probing = hs.auto(hs.Adam, every=10, first=10)  # more often than by itself, and so that all tens are alike
    live = probing[0] / hs.SGD(1.0, clip=[hs.cosine()])
    assert probing[1].at is not None
    every = probing[1].at.every
    found = [
        Contestant("torch Adam", _ordinary(torch_adam())),
        Contestant("torch Adam, foreach", _ordinary(torch_adam(foreach=True))),
        Contestant("torch Adam, fused", _ordinary(torch_adam(fused=True))),
        Contestant("Adam", _ordinary(stack("Adam"))),
        Contestant("Adam / SGD", _ordinary(stack("Adam / SGD(1e-5)"))),
        Contestant("Adam / SGD, clip", _ordinary(stack("Adam / SGD(1e-5, clip)"))),
        Contestant("Adam / SGD, recorded", _ordinary(stack("Adam / SGD(1e-5)"), record=True)),
        Contestant("Adam / SGD / SGD", _ordinary(stack("Adam / SGD(1e-5) / SGD(1e-9)"))),
        Contestant("auto(Adam), live", _closing(str(live))),
        Contestant("auto(Adam, every=10)", _closing(str(probing)), every),
        Contestant("Adam, compiled", _ordinary(stack("Adam", compile=True))),
        Contestant("Adam / SGD, compiled", _ordinary(stack("Adam / SGD(1e-5)", compile=True))),
        Contestant("auto(Adam), live, compiled", _closing(str(live), compile=True)),
        Contestant("auto(Adam, every=10), compiled", _closing(str(probing), compile=True), every),
    ]
    if importlib.util.find_spec("gradient_descent_the_ultimate_optimizer"):
        found.append(Contestant("gdtuo Adam / SGD", _gdtuo))
    return {c.name: c for c in found}
