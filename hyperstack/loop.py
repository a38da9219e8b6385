"""Telemetry for a loop of one's own: one line, and what the tower does lies in a run folder."""

from __future__ import annotations

import atexit
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperstack.errors import InputError
from hyperstack.optimizer import HyperOptimizer
from hyperstack.reports.run import Run, load_run
from hyperstack.telemetry.jsonl import JsonLines
from hyperstack.telemetry.recorder import Recorder
from hyperstack.telemetry.runfolder import NUMBER, SUMMARY, RunFolder
from hyperstack.telemetry.sinks import Sink
from hyperstack.telemetry.summary import number, plain, versions


def record(
    opt: HyperOptimizer,
    path: str | Path,
    *,
    task: str = "loop",
    every: int = 1,
    after: int | None = None,
    sinks: Sequence[Sink] = (),
) -> Recording:
    """Record what the tower of `opt` does from now on into the run folder `path`.

        recording = hs.record(opt, "runs/mine")      # this line is all that a loop needs

    Every call of `opt.step` adds a row, which `hyperstack inspect runs/mine` and `hs.load_run("runs/mine")` read, also
    while the loop goes on. The result is written when the recording is closed, by `close`, by the end of a `with`
    block, or by the end of the program.

    task: what the loop trains, for the headings.
    every: every so many steps a row, from 1.
    after: goes on with the run in `path` behind its step `after`, a multiple of `every`; rows behind it are dropped.
    sinks: where the rows go beside the record.

    The columns are those of the param groups that there are now; groups that are added later have none.

    Raises InputError where `path` holds anything already, or with `after`, where its record does not reach that step
    or belongs to another stack; RunError, from a step, where the disk is full.
    """
    return Recording(opt, path, task, every, after, sinks)


class Recording:
    """Telemetry at work in a loop: see `record`. A context manager, too."""

    def __init__(
        self, opt: HyperOptimizer, path: str | Path, task: str, every: int, after: int | None, sinks: Sequence[Sink]
    ) -> None:
        if every < 1 or (after or 0) % every:
            raise InputError(f"every={every}, after={after}", instead="record every step, every=1, or every so many")
        self._opt = opt
        folder = Path(path).absolute()  # the program may go elsewhere meanwhile
        another, onward = "choose another folder", "go on with that run behind a step of it: after=STEP"
        self._folder = RunFolder.existing(folder) if after else RunFolder.create(folder, another, onward)
        stacks = list(dict.fromkeys(str(group["stack"]) for group in opt.param_groups))
        first = next(opt.towers())[1].cells
        self._heading: dict[str, Any] = {"task": task, "stack": stacks[0], "device": str(first.device)}
        self._heading |= {"record_every": every} | ({"stacks": stacks} if len(stacks) > 1 else {})
        self._steps, self._started = after or 0, time.perf_counter()
        self._unknown = self._loss = torch.full((), math.nan, dtype=first.dtype, device=first.device)
        self._figures: dict[str, Any] = {}
        self._recorder: Recorder | None = Recorder(opt, [JsonLines(self._folder.record, after), *sinks], every)
        self._folder.begin(self._heading)
        self._hook = opt.register_step_post_hook(self._stepped)
        atexit.register(self._at_exit)

    def loss(self, loss: Tensor | float) -> None:
        """The loss of the next step, where the record is to have it: 0-dim, on the device; it is not waited for.

        Where a step takes a closure, it is told there: what `step` returns comes too late for its row. In a step that
        begins with a probe that is twice, and the last call counts.
        """
        if not isinstance(loss, Tensor):
            if not isinstance(loss, (int, float)):
                raise InputError(
                    f"the loss is a {type(loss).__name__}", instead="give a tensor of one number, or a number"
                )
            loss = torch.full_like(self._unknown, loss)
        if loss.numel() != 1:
            raise InputError(f"the loss has the shape {list(loss.shape)}", instead="give its mean, one number")
        self._loss = loss.detach().reshape(())

    def result(self, *, test_error: float | None = None, **figures: float | str | None) -> None:
        """What came of it, for the summary: the test error, 0 to 1, and whatever else there is to say.

        Numbers that are not finite are None there. An InputError for what is neither a number nor a text.
        """
        found = {name: _figure(name, x) for name, x in {"test_error": test_error, **figures}.items()}
        self._figures |= found

    def run(self) -> Run:
        """The run so far."""
        if self._recorder:
            self._recorder.fetch()
        return load_run(self._folder.path)

    def close(self, finished: bool = True) -> None:
        """Write what is left, and the result; `finished`: whether the loop came to its end."""
        if self._recorder is None:
            return
        recorder, self._recorder = self._recorder, None
        self._hook.remove()
        atexit.unregister(self._at_exit)
        recorder.close()
        self._folder.write_summary(self._summary(finished))

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        self.close(finished=kind is None)

    def _stepped(self, *_: object) -> None:
        self._steps += 1
        if self._recorder:
            self._recorder.record(self._steps, self._loss)
        self._loss = self._unknown

    def _at_exit(self) -> None:
        self.close(finished=not hasattr(sys, "last_value"))  # which an error that ended the program leaves there

    def _summary(self, finished: bool) -> dict[str, Any]:
        params = [p for group in self._opt.param_groups for p in group["params"]]
        return {
            **self._heading,
            "epochs": None,
            "steps": self._steps,
            "seconds": round(time.perf_counter() - self._started, 3),
            "train_loss": None,
            "test_error": None,
            "diverged": not all(bool(torch.isfinite(p).all()) for p in params),
            "finished": finished,
            "hyperparameters": {key: plain(value) for key, value in self._opt.hyperparameters().items()},
            "versions": versions(),
            **self._figures,
        }


def _figure(name: str, x: Any) -> float | str | None:
    """A figure of the summary as JSON has it, and as readers of summaries expect it."""
    if isinstance(x, Tensor):
        x = x.item() if x.numel() == 1 else x
    expected = SUMMARY.get(name)
    try:
        if x is not None and (expected in (NUMBER, float) or not isinstance(x, str | int)):
            x = number(float(x))
    except (TypeError, ValueError):
        raise InputError(f"{name} is a {type(x).__name__}", instead="give a number or a text") from None
    if expected and not isinstance(x, expected):
        raise InputError(f"{name}={x!r} is not what summaries hold there", instead="choose another name")
    return x  # type: ignore[no-any-return]
