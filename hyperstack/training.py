"""The one training loop: a task, a stack, and batches that are index lookups into data in memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hyperstack.batches import Batches
from hyperstack.devices import device_failures
from hyperstack.errors import InputError
from hyperstack.level import scalar_dtype
from hyperstack.optimizer import HyperOptimizer
from hyperstack.rivals import make_optimizer
from hyperstack.schedule import Schedule
from hyperstack.tasks import Data, Task
from hyperstack.telemetry.jsonl import JsonLines
from hyperstack.telemetry.outputs import outputs
from hyperstack.telemetry.plan import Plan
from hyperstack.telemetry.recorder import Recorder
from hyperstack.telemetry.runfolder import RunFolder
from hyperstack.telemetry.sinks import Sink
from hyperstack.telemetry.summary import number, plain, versions

__all__ = ["Epoch", "Plan", "Trainer", "train"]


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to: the mean loss of its batches, and the test error (0 to 1) after it."""

    number: int
    train_loss: float
    test_error: float


class Losses(Protocol):
    """What is told the loss of each step: a `Recorder`, say."""

    def record(self, step: int, loss: Tensor) -> None:
        """The loss of step number `step`, from 1: 0-dim, on the device."""


# How far training has come: attributes of the trainer, and what each is.
PROGRESS = {"epoch": int, "batch": int, "steps": int, "seconds": float, "total": Tensor, "diverged": bool}


class Trainer:
    """A network, its optimizer, and how far training has come."""

    def __init__(self, plan: Plan, task: Task, data: Data) -> None:
        self.plan, self.task, self.data = plan, task, data
        if plan.threads:
            torch.set_num_threads(plan.threads)
        torch.manual_seed(plan.seed)
        device = data.train_inputs.device
        self.model = task.model().to(device)
        self.opt = make_optimizer(self.model.named_parameters(), plan.stack, compile=plan.compile)
        self.rates = [group["lr"] for group in self.opt.param_groups]
        self.schedule = Schedule.parse(plan.schedule)
        self.source = Batches(task, data)
        self.epoch = self.batch = self.steps = 0
        self.seconds = 0.0
        self.total = torch.zeros((), dtype=scalar_dtype(device), device=device)
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
        recorder: Losses | None = None,
        stop: Callable[[], bool] = lambda: False,
        after_epoch: Callable[[Epoch], None] = lambda epoch: None,
    ) -> None:
        """Train until the plan is fulfilled, the network has diverged, or `stop()` is true after a step.

        recorder: is told the loss of each step.
        """
        started = time.perf_counter() - self.seconds
        while not self.finished:
            order = self.source.order(self.plan.seed, self.epoch)
            while self.batch < self.batches:
                if stop():
                    self.seconds = time.perf_counter() - started
                    return
                loss = self._step(order[self.batch * self.plan.batch_size : (self.batch + 1) * self.plan.batch_size])
                if recorder is not None:
                    recorder.record(self.steps, loss)
            self._end_epoch()
            self.seconds = time.perf_counter() - started
            after_epoch(self.epochs[-1])

    def _step(self, chosen: Tensor) -> Tensor:
        factor = self.schedule.factor(self.steps, self.batches * self.plan.epochs)
        for group, rate in zip(self.opt.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        inputs, targets = self.source.training(chosen, self.plan.seed, self.epoch, self.batch)

        def closure() -> Tensor:
            self.opt.zero_grad()
            losses = self.task.losses(self.model(inputs), targets)
            self.opt.backward(losses)
            return losses.detach().mean()

        loss: Tensor = self.opt.step(closure)
        self.steps, self.batch = self.steps + 1, self.batch + 1
        self.total += loss
        return loss

    def _end_epoch(self) -> None:
        self.epoch, self.batch = self.epoch + 1, 0
        train_loss = float(self.total) / self.batches
        self.epochs.append(Epoch(self.epoch, train_loss, self.test_error()))
        self.total.zero_()
        finite = all(bool(torch.isfinite(p).all()) for p in self.model.parameters())
        self.diverged = not (finite and math.isfinite(train_loss))

    @torch.no_grad()
    def test_error(self) -> float:
        """The mean error on the test examples, 0 to 1; at the averaged weights, where the stack keeps them."""
        self.model.eval()
        with self.opt.averaged():
            errors = [self.task.error(self.model(inputs), targets) for inputs, targets in self.source.testing()]
        self.model.train()
        return float(torch.cat(errors).cpu().double().mean())

    def checkpoint(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as tensors and plain values."""
        return {
            "plan": self.plan.as_dict(),
            "model": self.model.state_dict(),
            "optimizer": self.opt.state_dict(),
            "random": {name: source.get_rng_state() for name, source in self._random().items()},
            "progress": {name: getattr(self, name) for name in PROGRESS},
            "epochs": [asdict(epoch) for epoch in self.epochs],
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from a checkpoint, bit for bit as the uninterrupted run would have.

        An InputError where it is damaged, belongs to another plan, or is already behind what is asked for.
        """
        try:
            self.plan.check_resumes(Plan.of(saved["plan"]))
            self.model.load_state_dict(saved["model"])
            self.opt.load_state_dict(saved["optimizer"])
            for name, source in self._random().items():
                if name in saved["random"]:
                    source.set_rng_state(saved["random"][name].cpu())
            for name, kind in PROGRESS.items():
                value = saved["progress"][name]
                if not isinstance(value, kind):
                    raise TypeError(f"{name} is {value!r}")
                setattr(self, name, value)
            self.total = self.total.to(self.data.train_inputs.device, scalar_dtype(self.data.train_inputs.device))
            self.epochs = [Epoch(**epoch) for epoch in saved["epochs"]]
        except InputError:
            raise
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            raise InputError("the checkpoint is damaged", why=why, instead="start a new run") from None
        begun = self.epoch + (self.batch > 0)
        if self.plan.epochs < begun:
            what = f"the run is in epoch {begun}" if self.batch else f"the run has done {begun} epochs"
            raise InputError(
                f"{what} already, and {self.plan.epochs} are asked for", instead=f"ask for {begun} or more"
            )

    def _random(self) -> dict[str, Any]:
        """Where random numbers come from, each with `get_rng_state` and `set_rng_state`."""
        cuda = self.data.train_inputs.device.type == "cuda"
        return {"cpu": torch, **({"cuda": torch.cuda} if cuda else {})}

    def summary(self) -> dict[str, Any]:
        """The result, as it stands in summary.json."""
        last = self.epochs[-1] if self.epochs else None
        return {
            **self.plan.as_dict(),
            "epochs": self.epoch,
            "epochs_planned": self.plan.epochs,
            "steps": self.steps,
            "seconds": round(self.seconds, 3),
            "train_loss": number(last.train_loss) if last else None,
            "test_error": last.test_error if last else None,
            "diverged": self.diverged,
            "finished": self.finished,
            "hyperparameters": {k: plain(v) for k, v in self.opt.hyperparameters().items()},
            "nonfinite": {k: int(v) for k, v in self.opt.nonfinite_counts().items() if int(v)},
            "history": [{**asdict(e), "train_loss": number(e.train_loss)} for e in self.epochs],
            "versions": versions(),
        }


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

    The record grows while it trains; a checkpoint is written at the start, after every epoch and where `stop()` ends
    the run. With `resume` the run goes on from the folder's checkpoint, and rows recorded behind it are replaced.
    """
    with device_failures():
        trainer = Trainer(plan, task, data)
        if not isinstance(trainer.opt, HyperOptimizer):
            raise InputError(f"{plan.stack} is no stack", why="only towers are recorded", instead="give it to a sweep")
        if resume:
            trainer.restore(folder.read_checkpoint(data.train_inputs.device))
        recorded = trainer.steps - trainer.steps % plan.record_every
        after = recorded if resume else None
        written = [JsonLines(folder.record, after), *outputs(plan.sinks, folder, after)]
        with Recorder(trainer.opt, [*written, *sinks], plan.record_every) as recorder:

            def save() -> None:
                recorder.fetch()  # first the rows: a checkpoint counts on every row before it
                folder.write_checkpoint(trainer.checkpoint())

            def epoch_ended(epoch: Epoch) -> None:
                save()
                after_epoch(trainer, epoch)

            folder.begin({**plan.as_dict(), "epoch_steps": trainer.batches})
            if not resume:
                save()
            trainer.run(recorder, stop, epoch_ended)
            if trainer.batch:
                save()
    summary = trainer.summary()
    folder.write_summary(summary)
    return summary
