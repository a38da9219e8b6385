"""The one training loop: a task, a stack, and batches that are index lookups into data in memory."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hyperstack.errors import InputError
from hyperstack.optimizer import HyperOptimizer
from hyperstack.tasks import Data, Task
from hyperstack.telemetry import JsonLines, Recorder, Sink
from hyperstack.telemetry.runfolder import RunFolder
from hyperstack.version import __version__


@dataclass(frozen=True)
class Plan:
    """What a run is asked to do. `stack` is canonical text with every name bound; `device` as torch names it."""

    task: str
    stack: str
    epochs: int
    seed: int
    device: str
    batch_size: int
    record_every: int = 1

    def check_resumes(self, saved: dict[str, Any]) -> None:
        """An InputError unless the run saved under plan `saved` can go on under this one: only epochs may differ."""
        for name, mine in asdict(self).items():
            if name not in ("epochs", "device") and saved.get(name) != mine:
                raise InputError(
                    f"the checkpoint belongs to another {name.replace('_', ' ')}",
                    why=f"  the run: {saved.get(name)}\n  asked:   {mine}",
                    instead="leave the option out to take the run's own, or start a new run",
                )


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to: the mean loss of its batches, and the test error (0 to 1) after it."""

    number: int
    train_loss: float
    test_error: float


class Trainer:
    """A network, its optimizer, and how far training has come."""

    def __init__(self, plan: Plan, task: Task, data: Data) -> None:
        self.plan, self.task, self.data = plan, task, data
        torch.manual_seed(plan.seed)
        device = data.train_inputs.device
        self.model = task.model().to(device)
        self.opt = HyperOptimizer(self.model.parameters(), plan.stack)
        self.epoch = self.batch = self.steps = 0
        self.seconds = 0.0
        self.total = torch.zeros((), dtype=torch.float64, device=device)
        self.epochs: list[Epoch] = []
        self.diverged = False

    @property
    def batches(self) -> int:
        """Batches an epoch; the last one holds what is left over."""
        return math.ceil(len(self.data.train_inputs) / self.plan.batch_size)

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self.diverged or self.epoch >= self.plan.epochs

    def run(
        self,
        recorder: Recorder,
        stop: Callable[[], bool] = lambda: False,
        after_epoch: Callable[[Epoch], None] = lambda epoch: None,
    ) -> None:
        """Train until the plan is fulfilled, the network has diverged, or `stop()` is true after a step."""
        started = time.perf_counter() - self.seconds
        while not self.finished:
            order = self._order()
            while self.batch < self.batches:
                if stop():
                    self.seconds = time.perf_counter() - started
                    return
                loss = self._step(order[self.batch * self.plan.batch_size : (self.batch + 1) * self.plan.batch_size])
                recorder.record(self.steps, loss)
            self._end_epoch()
            self.seconds = time.perf_counter() - started
            after_epoch(self.epochs[-1])

    def _order(self) -> Tensor:
        """The examples of this epoch in random order: a function of seed and epoch, so that a run can resume."""
        mixed = int(np.random.SeedSequence([self.plan.seed, self.epoch]).generate_state(1, np.uint64)[0])
        generator = torch.Generator().manual_seed(mixed >> 1)
        order = torch.randperm(len(self.data.train_inputs), generator=generator)
        return order.to(self.data.train_inputs.device)

    def _step(self, chosen: Tensor) -> Tensor:
        self.opt.zero_grad()
        outputs = self.model(self.data.train_inputs[chosen])
        losses = self.task.losses(outputs, self.data.train_targets[chosen])
        self.opt.backward(losses)
        self.opt.step()
        self.steps, self.batch = self.steps + 1, self.batch + 1
        loss = losses.detach().mean()
        self.total += loss
        return loss

    def _end_epoch(self) -> None:
        self.epoch, self.batch = self.epoch + 1, 0
        self.epochs.append(Epoch(self.epoch, float(self.total) / self.batches, self.test_error()))
        self.total.zero_()
        self.diverged = not all(bool(torch.isfinite(p).all()) for p in self.model.parameters())

    @torch.no_grad()
    def test_error(self, batch_size: int = 2000) -> float:
        """The mean error on the test examples, 0 to 1."""
        self.model.eval()
        parts = zip(self.data.test_inputs.split(batch_size), self.data.test_targets.split(batch_size), strict=True)
        errors = torch.cat([self.task.error(self.model(x), y) for x, y in parts])
        self.model.train()
        return float(errors.double().mean())

    def checkpoint(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as tensors and plain values."""
        return {
            "plan": asdict(self.plan),
            "model": self.model.state_dict(),
            "optimizer": self.opt.state_dict(),
            "random": torch.get_rng_state(),
            "progress": {k: getattr(self, k) for k in ("epoch", "batch", "steps", "seconds", "total", "diverged")},
            "epochs": [asdict(epoch) for epoch in self.epochs],
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from a checkpoint, bit for bit as the uninterrupted run would have."""
        self.plan.check_resumes(saved["plan"])
        self.model.load_state_dict(saved["model"])
        self.opt.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"].cpu())
        for name, value in saved["progress"].items():
            setattr(self, name, value)
        self.epochs = [Epoch(**epoch) for epoch in saved["epochs"]]

    def summary(self) -> dict[str, Any]:
        """The result, as it stands in summary.json."""
        last = self.epochs[-1] if self.epochs else None
        return {
            **asdict(self.plan),
            "epochs": self.epoch,
            "epochs_planned": self.plan.epochs,
            "steps": self.steps,
            "seconds": round(self.seconds, 3),
            "train_loss": _number(last.train_loss) if last else None,
            "test_error": last.test_error if last else None,
            "diverged": self.diverged,
            "finished": self.finished,
            "hyperparameters": {k: _plain(v) for k, v in self.opt.hyperparameters().items()},
            "nonfinite": {k: int(v) for k, v in self.opt.nonfinite_counts().items() if int(v)},
            "history": [{**asdict(e), "train_loss": _number(e.train_loss)} for e in self.epochs],
            "versions": {
                "hyperstack": __version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        }


def _number(x: float) -> float | None:
    """A number as JSON has it: not-a-number and infinity are null."""
    return x if math.isfinite(x) else None


def _plain(value: Tensor) -> float | list[float | None] | None:
    return _number(value.item()) if value.dim() == 0 else [_number(x) for x in value.tolist()]


def train(
    plan: Plan,
    task: Task,
    data: Data,
    folder: RunFolder,
    *,
    resume: bool = False,
    sinks: Sequence[Sink] = (),
    stop: Callable[[], bool] = lambda: False,
    after_epoch: Callable[[Trainer, Epoch], None] = lambda trainer, epoch: None,
) -> dict[str, Any]:
    """Run a plan into a folder and return its summary.

    The record grows while it trains; a checkpoint is written after every epoch and where `stop()` ends the run.
    With `resume` the run goes on from the folder's checkpoint, and rows recorded behind it are replaced.
    """
    trainer = Trainer(plan, task, data)
    if resume:
        trainer.restore(folder.read_checkpoint(data.train_inputs.device))
    folder.write_json("plan.json", asdict(plan))
    record = JsonLines(folder.record, after=trainer.steps if resume else None)

    def epoch_ended(epoch: Epoch) -> None:
        folder.write_checkpoint(trainer.checkpoint())
        after_epoch(trainer, epoch)

    with Recorder(trainer.opt, [record, *sinks], plan.record_every) as recorder:
        trainer.run(recorder, stop, epoch_ended)
    folder.write_checkpoint(trainer.checkpoint())
    summary = trainer.summary()
    folder.write_json("summary.json", summary)
    return summary
