"""`hyperstack train`: train a task's network with a stack, and watch the tower while it learns."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hyperstack_cli.screen import bound_stack, err, number, out, percent, set_option

if TYPE_CHECKING:
    import torch

    from hyperstack.telemetry.runfolder import RunFolder
    from hyperstack.training import Plan

DEFAULT_STACK = "Adam / SGD(1e-5)"
POSITIVE = click.IntRange(min=1)


@click.command()
@click.argument("task")
@click.option("--stack", metavar="STACK", help=f'The stack, as text.  [default: "{DEFAULT_STACK}"]')
@set_option
@click.option("--epochs", type=POSITIVE, help="Passes over the training examples.  [default: the task's, 5 for mnist]")
@click.option("--batch-size", type=POSITIVE, help="Examples a step.  [default: the task's, 256 for mnist]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Of weights and batches.  [default: 0]")
@click.option("--device", default="auto", show_default=True, metavar="DEVICE", help="auto, cpu, cuda, cuda:1, ...")
@click.option("--data-dir", type=click.Path(path_type=Path), help="A folder that holds the data files already.")
@click.option("--out", "folder", type=click.Path(path_type=Path), help="The run folder.  [default: runs/TASK-NNN]")
@click.option("--resume", is_flag=True, help="Go on with the interrupted run in --out.")
@click.option("--record-every", type=POSITIVE, help="Record every N-th step.  [default: 1]")
@click.option("--quiet", is_flag=True, help="Show the result only.")
def command(
    task: str,
    stack: str | None,
    assignments: tuple[str, ...],
    device: str,
    data_dir: Path | None,
    folder: Path | None,
    resume: bool,
    quiet: bool,
    **numbers: int | None,
) -> None:
    """Train TASK (mnist) with a stack of optimizers.

    The run folder gets a record of every step, a checkpoint, and summary.json. Ctrl-C ends the run after the step
    in hand, with a checkpoint from which --resume continues bit for bit.

    \b
    hyperstack train mnist
    hyperstack train mnist --stack "Adam / SGD(α, clip)" --set α=1e-4 --epochs 5 --seed 1
    hyperstack train mnist --out runs/mnist-001 --resume
    """
    from hyperstack.errors import InputError
    from hyperstack.tasks import get_task
    from hyperstack.telemetry.runfolder import RunFolder
    from hyperstack.training import train
    from hyperstack_cli.display import Display

    chosen = get_task(task)
    if resume and folder is None:
        raise InputError(
            "--resume needs the folder of the run", instead=f"write: hyperstack train {task} --out RUN --resume"
        )
    if assignments and stack is None:
        raise InputError("--set binds a name of --stack, and there is no --stack", instead="give the stack as well")
    saved = RunFolder.existing(folder).read_plan() if resume and folder else {}
    text = None if stack is None else str(bound_stack(stack, assignments))
    place = _device(device if device != "auto" or not resume else saved.get("device", "auto"))
    asked = {"task": chosen.name, "stack": text, "device": str(place), **numbers}
    plan = _plan(asked, saved or _defaults(chosen))
    if resume:
        plan.check_resumes(saved)
    elif folder is not None:
        RunFolder.check_free(folder)
    notify = (lambda line: None) if quiet else (lambda line: err().print(line, style="dim"))
    data = chosen.load(data_dir, place, notify)
    run = (
        RunFolder(folder)
        if resume and folder
        else RunFolder.create(folder)
        if folder
        else RunFolder.next_free(Path("runs"), plan.task)
    )
    with Display(plan, len(data.train_inputs), quiet) as display, _Interrupt() as interrupt:
        summary = train(
            plan, chosen, data, run, resume=resume, sinks=[display], stop=interrupt, after_epoch=display.after_epoch
        )
    _report(summary, run, quiet)
    if not summary["finished"]:
        sys.exit(130)


def _defaults(task: Any) -> dict[str, Any]:
    return {
        "stack": str(bound_stack(DEFAULT_STACK, ())),
        "epochs": task.epochs,
        "batch_size": task.batch_size,
        "seed": 0,
        "record_every": 1,
    }


def _plan(asked: dict[str, Any], defaults: dict[str, Any]) -> Plan:
    """The options that were given, and the defaults (or the run's own plan) for the others."""
    from hyperstack.dsl import parse
    from hyperstack.training import Plan

    fields: dict[str, Any] = {name: defaults.get(name) if value is None else value for name, value in asked.items()}
    parse(fields["stack"]).resolve()
    return Plan(**fields)


def _device(name: str) -> torch.device:
    """The device that a user means, or an InputError that says why it cannot be had."""
    import torch

    from hyperstack.errors import InputError

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        if name.startswith("cuda") and not torch.cuda.is_available():
            why = "this PyTorch has no CUDA device"
        raise InputError(f"the device {name!r} cannot be used", why=why, instead="use --device cpu, or auto") from None
    if device.type == "meta":
        raise InputError("the meta device holds no numbers to train", instead="use --device cpu")
    return device


class _Interrupt:
    """Ctrl-C asks for an end after the step in hand; a second one ends at once."""

    def __enter__(self) -> _Interrupt:
        self.asked = False
        self.before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self.before.items():
            signal.signal(signum, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __call__(self) -> bool:
        return self.asked


def _report(summary: dict[str, Any], run: RunFolder, quiet: bool) -> None:
    console = out()
    if not summary["finished"]:
        console.print(f"interrupted after step {summary['steps']:,}, with a checkpoint; to go on:", soft_wrap=True)
        console.print(f"  hyperstack train {summary['task']} --out {run.path} --resume", soft_wrap=True)
        return
    if summary["diverged"]:
        console.print(f"diverged in epoch {summary['epochs']}: the network holds numbers that are not finite")
    console.print(
        f"test error {percent(summary['test_error'])}, train loss {number(summary['train_loss'])}, "
        f"{summary['seconds']:.1f} s, {summary['steps']:,} steps",
        soft_wrap=True,
    )
    if not quiet:
        console.print(f"run        {run.path}", soft_wrap=True)
        console.print(f"inspect    hyperstack inspect {run.path}", soft_wrap=True)
