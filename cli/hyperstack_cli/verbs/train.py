"""`hyperstack train`: train a task's network with a stack, and watch the tower while it learns."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hyperstack_cli.complete import task_names
from hyperstack_cli.interrupt import Interrupt, as_before
from hyperstack_cli.outcome import again, inspect_line, outcome
from hyperstack_cli.screen import Whole, bound_stack, err, out, schedule_option, set_option, silence

if TYPE_CHECKING:
    from hyperstack.tasks import Data, Task
    from hyperstack.telemetry.plan import Plan
    from hyperstack.telemetry.runfolder import RunFolder

POSITIVE = Whole(1)
PATH = click.Path(path_type=Path)
EPILOG = """\b
Tasks, with the epochs and batch size taken if none are given:
  mnist                5  256  MNIST digits, a 784-128-10 network with tanh
  mnist-relu           5  256  MNIST digits, a 784-128-10 network with ReLU
  mnist-conv           5  256  MNIST digits, a small convolutional network
  cifar10              5  256  CIFAR-10 photographs, a small convolutional net
  cifar10-resnet18    80 1000  CIFAR-10 photographs, ResNet-18
  supersample          2   16  2x supersampling of CIFAR-10, squared error
  supersample-quartic  2   16  2x supersampling of CIFAR-10, quartic error
  spiral-completion    5   16  images from spiral scans of 1/20 of the pixels
  imagefolder         20   64  images of your own, a folder a class; ResNet-18

\b
A task of your own is a class in a file, path/to/file.py:MyTask, or the name
of an entry point in the group hyperstack.tasks of an installed package.

\b
Examples:
  hyperstack train mnist
  hyperstack train mnist --stack "Adam / SGD(α, clip)" --set α=1e-4 --seed 1
  hyperstack train mnist --stack "auto(Adam)" --epochs 2
  hyperstack train mnist --epochs 2 --out runs/long --sink csv
  hyperstack train mnist --epochs 4 --out runs/long --resume

\b
Files: the run folder holds plan.json, what was asked for; record.jsonl, a row
for each recorded step; record.rows, the same as binary numbers; checkpoint.pt
and summary.json, the result.

\b
Exit status: 0 trained (also where the network diverged: see `diverged` in
summary.json), 1 the run failed, 2 wrong input, 130 interrupted.
"""


@click.command(short_help="Train a task's network with a stack.", epilog=EPILOG)
@click.argument("task", shell_complete=task_names)
@click.option(
    "--stack", metavar="TEXT", help="The stack of optimizers.  [default: the task's, mnist: Adam / SGD(1e-5)]"
)
@set_option
@click.option("--epochs", type=POSITIVE, metavar="N", help="Passes over the training examples.  [default: the task's]")
@click.option("--batch-size", type=POSITIVE, metavar="N", help="Examples in a step.  [default: the task's]")
@click.option(
    "--seed",
    type=Whole(0, 2**32 - 1),
    metavar="N",
    help="Draws the first weights and the order of the examples: equal seeds give equal runs.  [default: 0]",
)
@click.option(
    "--device",
    default="auto",
    metavar="NAME",
    help="Where to compute: cpu, cuda, cuda:1, mps, or auto: a CUDA device where there is one.  [default: auto]",
)
@click.option(
    "--threads",
    type=POSITIVE,
    metavar="N",
    help="CPU cores to compute on.  [default: 1 for mnist and mnist-relu, else as many as PyTorch takes]",
)
@click.option(
    "--compile/--no-compile",
    default=None,
    help="Make kernels of the optimizer's step with torch.compile: takes some seconds once, and pays off for large "
    "networks.  [default: no]",
)
@schedule_option
@click.option("--data-dir", type=PATH, metavar="DIR", help="Take the data from the files in DIR, and fetch nothing.")
@click.option("--out", "folder", type=PATH, metavar="DIR", help="The run folder.  [default: the next runs/TASK-NNN]")
@click.option(
    "--resume", is_flag=True, help="Go on with the run in --out. Options left out are that run's; --epochs may change."
)
@click.option("--record-every", type=POSITIVE, metavar="N", help="Record every N-th step.  [default: 1]")
@click.option(
    "--sink",
    "sinks",
    type=click.Choice(["csv", "tensorboard"]),
    multiple=True,
    help="Write the record in this form, too: csv into record.csv of the run folder, tensorboard into its folder "
    "tensorboard, for which TensorBoard must be installed. May be given several times.",
)
@click.option("--quiet", is_flag=True, help="Show the result only.")
def command(
    task: str,
    stack: str | None,
    assignments: tuple[str, ...],
    device: str,
    data_dir: Path | None,
    folder: Path | None,
    resume: bool,
    sinks: tuple[str, ...],
    quiet: bool,
    **others: Any,
) -> None:
    """Train the network of TASK, such as mnist, with a stack of optimizers, and show what each level does meanwhile.

    The first run of a task fetches its data into the cache, ~/.cache/hyperstack or $HYPERSTACK_CACHE. The run folder
    gets the plan, a record of every step, a checkpoint after every epoch, and summary.json. Ctrl-C ends the run after
    the step in hand with a checkpoint, from which --resume continues bit for bit.
    """
    from hyperstack.devices import device_failures, find_device
    from hyperstack.tasks import get_task, load_data, same_task
    from hyperstack.telemetry.outputs import check
    from hyperstack.telemetry.runfolder import RunFolder

    chosen = get_task(task)
    _check_together(task, stack, assignments, folder, resume)
    run = RunFolder.existing(folder) if resume and folder else None
    saved = run.read_plan() if run else None
    text = None if stack is None else str(bound_stack(stack, assignments))
    place = find_device(saved.device if saved and device == "auto" else device)
    if saved and same_task(task, saved.task):
        task = saved.task  # by another path to its file, perhaps
    asked: dict[str, Any] = {"task": task, "stack": text, "device": str(place), **others}
    asked["sinks"] = tuple(dict.fromkeys(sinks)) or None
    plan = _plan(asked, saved.as_dict() if saved else _defaults(chosen))
    check(plan.sinks)
    if saved:
        plan.check_resumes(saved)
    elif folder is not None:
        RunFolder.check_free(folder)
    if run and _is_finished(run, plan):
        return
    notify = (lambda line: None) if quiet else (lambda line: err().print(line, style="dim"))
    with device_failures():
        data = load_data(chosen, data_dir, place, notify)
    if run is None:
        run = RunFolder.create(folder) if folder else RunFolder.next_free(Path("runs"), chosen.name)
    _train(plan, chosen, data, run, resume, quiet)


def _check_together(
    task: str, stack: str | None, assignments: tuple[str, ...], folder: Path | None, resume: bool
) -> None:
    from hyperstack.errors import InputError

    if resume and folder is None:
        hint = f"write: hyperstack train {shlex.quote(task)} --out DIR --resume"
        raise InputError("--resume needs the folder of the run", instead=hint)
    if assignments and stack is None:
        raise InputError("--set binds a name of --stack, and there is no --stack", instead="give the stack as well")


def _defaults(task: Task) -> dict[str, Any]:
    import torch

    from hyperstack.schedule import CONSTANT

    return {
        "stack": str(bound_stack(task.stack, ())),
        "epochs": task.epochs,
        "batch_size": task.batch_size,
        "seed": 0,
        "record_every": 1,
        "threads": task.threads or torch.get_num_threads(),
        "compile": False,
        "sinks": (),
        "schedule": CONSTANT,
    }


def _plan(asked: dict[str, Any], defaults: dict[str, Any]) -> Plan:
    """The options that were given, and the defaults (or the run's own plan) for the others."""
    from hyperstack.dsl import parse
    from hyperstack.errors import InputError
    from hyperstack.schedule import Schedule
    from hyperstack.telemetry.plan import Plan

    fields: dict[str, Any] = {name: defaults.get(name) if value is None else value for name, value in asked.items()}
    stack = parse(fields["stack"])
    if names := stack.free_names:
        hint = "bind " + " and ".join(f"{name} with --set {name}=NUMBER" for name in names)
        raise InputError(f"the stack leaves {', '.join(names)} open", why=f"  {stack}", instead=hint)
    stack.resolve()
    schedule = str(Schedule.parse(fields["schedule"]))
    return Plan(**{**fields, "sinks": tuple(fields["sinks"]), "schedule": schedule})


def _is_finished(run: RunFolder, plan: Plan) -> bool:
    """Whether a run that is to be resumed has nothing left to do; then its result is shown again."""
    from hyperstack.schedule import Schedule

    summary = run.read_summary()
    if not summary or not summary["finished"] or not (summary["diverged"] or plan.epochs == summary["epochs"]):
        return False
    ended = summary["diverged"] or Schedule.parse(plan.schedule).knows_the_end
    more = "" if ended else f"; for more, ask for --epochs {plan.epochs + 1} or higher"
    out().print(f"{run.path} is finished already{more}", soft_wrap=True)
    _report(summary, run, quiet=False)
    return True


def _train(plan: Plan, task: Task, data: Data, run: RunFolder, resume: bool, quiet: bool) -> None:
    from hyperstack.memory import keep_freed
    from hyperstack.training import train
    from hyperstack_cli.display import Display

    keep_freed()
    display = Display(plan, len(data.train_inputs), quiet)
    try:
        with Interrupt() as interrupt, display:
            sinks, after_epoch = [display], display.after_epoch
            summary = train(plan, task, data, run, resume=resume, sinks=sinks, stop=interrupt, after_epoch=after_epoch)
    except KeyboardInterrupt:
        err().print("stopped at once; the run is as its last checkpoint has it, to go on:", soft_wrap=True)
        err().print(f"  {again(plan.as_dict(), run.path, 0)}{as_before()}", soft_wrap=True)
        sys.exit(interrupt.exit_code)
    if summary["finished"]:
        _report(summary, run, quiet)
        return
    try:
        _report(summary, run, quiet)
    except OSError:  # the terminal is what ended it
        silence(sys.stdout)
    sys.exit(interrupt.exit_code)


def _report(summary: dict[str, Any], run: RunFolder, quiet: bool) -> None:
    lines = outcome(summary, summary, run.path)
    if not summary["finished"]:
        lines[-1] += as_before()
    if summary["finished"] and not quiet:
        lines += [f"run        {run.path}", inspect_line(run.path)]
    for line in lines:
        out().print(line, soft_wrap=True)
