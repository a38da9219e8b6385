"""A task small enough for tests, and `python tests/toy.py train toy ...`: the command line with that task known."""

import contextlib
import io
import itertools
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from hyperstack.errors import InputError
from hyperstack.tasks import TASKS, Data, Task
from hyperstack.telemetry.plan import Plan
from hyperstack.telemetry.runfolder import RunFolder
from hyperstack.training import train

EXAMPLES, BATCH = 300, 32
BATCHES = 10  # an epoch, the last of them not full


class Toy(Task):
    """Which of three directions a point lies in. Dropout, so that a resumed run needs the state of the generator."""

    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "points in three directions"
    batch_size: ClassVar[int] = BATCH
    epochs: ClassVar[int] = 2

    def load(self, data_dir, device, notify=None):
        if data_dir is not None and not Path(data_dir).is_dir():
            raise InputError(f"there is no data folder {data_dir}", instead="name another")
        draw = torch.Generator().manual_seed(7)
        directions = torch.randn(3, 8, generator=draw)
        targets = torch.randint(3, (EXAMPLES + 100,), generator=draw)
        inputs = directions[targets] + torch.randn(EXAMPLES + 100, 8, generator=draw)
        inputs, targets = inputs.to(device), targets.to(device)
        return Data(inputs[:EXAMPLES], targets[:EXAMPLES], inputs[EXAMPLES:], targets[EXAMPLES:])

    def model(self):
        return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 3), nn.LogSoftmax(dim=1))

    def losses(self, outputs, targets):
        time.sleep(float(os.environ.get("TOY_DELAY", 0)))
        return nn.functional.nll_loss(outputs, targets, reduction="none")

    def error(self, outputs, targets):
        return (outputs.argmax(dim=1) != targets).to(outputs.dtype)


class Calm(Toy):
    """The toy without dropout: runs of it can be trained together."""

    name: ClassVar[str] = "calm"

    def model(self):
        return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3), nn.LogSoftmax(dim=1))


PLAN = Plan(task="toy", stack="Adam / SGD(1e-05)", epochs=3, seed=0, device="cpu", batch_size=BATCH)
DATA = Toy().load(None, torch.device("cpu"))


def train_toy(path, *, resume=False, stop_at=None, sinks=(), written=(), **changes):
    """Train into `path`, interrupted after step `stop_at`; the summary. `written`: the sinks of the plan."""
    plan = replace(PLAN, sinks=written, **changes)
    run = RunFolder(path) if resume else RunFolder.create(path)
    before = run.read_summary() if resume and stop_at is not None else None
    asked = itertools.count(before["steps"] if before else 0)
    data = DATA if plan.device == "cpu" else Toy().load(None, torch.device(plan.device))
    return train(
        plan, Toy(), data, run, resume=resume, sinks=sinks, stop=lambda: stop_at is not None and next(asked) >= stop_at
    )


def assert_same_run(one, other):
    """Bit for bit the same parameters, optimizer state, record and summary; only the time that it took may differ."""
    assert (one / "record.jsonl").read_bytes() == (other / "record.jsonl").read_bytes()
    summaries = [json.loads((path / "summary.json").read_text()) for path in (one, other)]
    checkpoints = [torch.load(path / "checkpoint.pt", weights_only=True) for path in (one, other)]
    for saved in (*summaries, *(c["progress"] for c in checkpoints)):
        assert saved.pop("seconds") > 0
    assert summaries[0] == summaries[1]
    same(*checkpoints)


def same(a, b):
    """Equal in structure, types and every bit."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    else:
        assert a == b


def contents(folder):
    """Every file below a folder, and what it holds: to show that nothing was written or lost."""
    return {p.relative_to(folder): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def altered(content, path, value):
    """Plain values as JSON with the place of this path changed, or taken out where the value is `...`."""
    content = json.loads(json.dumps(content))
    at = content
    for step in path[:-1]:
        at = at[step]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return json.dumps(content)


def command(*arguments, columns=80):
    """The exit code, output and remarks of `hyperstack ARGUMENTS`, in this process, on a screen of so many columns."""
    from hyperstack_cli.main import main

    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        for name in ("FORCE_COLOR", "NO_COLOR", "LINES", "TERM"):
            patch.delenv(name, raising=False)
        patch.setenv("COLUMNS", str(columns))
        patch.setattr(sys, "argv", ["hyperstack", *map(str, arguments)])
        patch.setitem(TASKS, "toy", Toy)
        patch.setitem(TASKS, "calm", Calm)
        output = stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        remarks = stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        with pytest.raises(SystemExit) as end:
            main()
    return end.value.code, output.getvalue(), remarks.getvalue()


def ok(*arguments, columns=80):
    """The output of a command that succeeds, and has nothing to remark."""
    code, output, remarks = command(*arguments, columns=columns)
    assert (code, remarks) == (0, ""), remarks
    return output


STACK = "Adam(α) / SGD(0.01, clip) / SGD"


def finished_run(path):
    """A run of two epochs: what it said."""
    code, output, remarks = command("train", "toy", "--stack", STACK, "--set", "α=0.01", "--out", path)
    assert (code, remarks.count("\n")) == (0, 3), remarks
    return output, remarks


def furnished(folder, run):
    """A folder with a copy of a run, an empty folder, one of something else, and a file."""
    (folder / "run").mkdir()
    for file in run.iterdir():
        (folder / "run" / file.name).write_bytes(file.read_bytes())
    (folder / "empty").mkdir()
    (folder / "foreign").mkdir()
    (folder / "foreign" / "notes.txt").write_text("mine")
    (folder / "file").write_text("mine")
    return folder


if __name__ == "__main__":
    from hyperstack_cli.main import main

    TASKS.update(toy=Toy, calm=Calm)
    main()
