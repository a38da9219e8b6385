"""`hyperstack sweep`: train a task's network with many stacks, values and seeds, together where that is possible."""

from __future__ import annotations

import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hyperstack.reports.text import percent
from hyperstack_cli.complete import task_names
from hyperstack_cli.interrupt import Interrupt, as_before
from hyperstack_cli.options import POSITIVE, many_runs
from hyperstack_cli.screen import err, schedule_option, silence
from hyperstack_cli.swept import Showing

if TYPE_CHECKING:
    from hyperstack.sweep.folder import SweepFolder
    from hyperstack.sweep.grid import Cell
    from hyperstack.sweep.planning import SweepPlan
    from hyperstack.sweep.ranks import Ranks
    from hyperstack.tasks import Task

DEFAULT_STACK = "Adam / SGD(α)"
MANY = 1000
EPILOG = """\b
Examples:
  hyperstack sweep mnist --grid "α=1e-5,1e-4,1e-3" --seeds 3
  hyperstack sweep mnist --stack "Adam / SGD(α)" \\
      --stack "Adam / SGD(α, clip)" \\
      --grid "α=log(1e-6,1e-1,11)" \\
      --epochs 1 --out sweeps/clip
  hyperstack sweep mnist --out sweeps/clip --resume --png clip.png

\b
Exit status: 0 all cells trained (also where networks diverged), 1 the sweep
failed, 2 wrong input, 130 interrupted.
"""


@click.command(short_help="Train a task's network with many stacks, values and seeds.", epilog=EPILOG)
@click.argument("task", shell_complete=task_names)
@click.option(
    "--stack",
    "stacks",
    multiple=True,
    metavar="TEXT",
    help=f"A stack, with free names for what the grid varies. Once for each stack.  [default: {DEFAULT_STACK}]",
)
@click.option(
    "--grid",
    multiple=True,
    metavar="NAME=VALUES",
    help="The values of a free name: numbers, log(A,B,N) or lin(A,B,N), with commas between. Once for each name.",
)
@click.option("--seeds", type=POSITIVE, metavar="N", help="Train each with the seeds 0 to N - 1.  [default: 1]")
@click.option(
    "--epochs", type=POSITIVE, metavar="N", help="Passes over the training examples.  [default: the task's, mnist: 5]"
)
@click.option("--batch-size", type=POSITIVE, metavar="N", help="Examples in a step.  [default: the task's, mnist: 256]")
@click.option(
    "--threads", type=POSITIVE, metavar="N", help="CPU cores of each job.  [default: mnist: 1; else shared out]"
)
@click.option(
    "--compile/--no-compile",
    default=None,
    help="Make kernels of the optimizers' steps with torch.compile: takes some seconds once a job, and pays off in "
    "sweeps of more than some minutes.  [default: no]",
)
@click.option(
    "--published",
    metavar="EXPERIMENT",
    help="Show the published figures of the same stacks beside the results: a name of hyperstack reproduce --list.",
)
@many_runs(
    out="The sweep folder.  [default: the next sweeps/TASK-NNN]",
    resume="Go on with the sweep in --out. Options left out are that sweep's; a sweep may grow by stacks, values "
    "and seeds, named together with those that it has.",
    yes=f"Do not ask before more than {MANY:,} cells.",
    as_json="Print the results of all cells as JSON instead of a table.",
    result="result",
)
@schedule_option
def command(
    task: str,
    stacks: tuple[str, ...],
    grid: tuple[str, ...],
    seeds: int | None,
    jobs: int | None,
    data_dir: Path | None,
    path: Path | None,
    resume: bool,
    yes: bool,
    as_json: bool,
    quiet: bool,
    plot: bool,
    png: Path | None,
    published: str | None,
    **others: Any,
) -> None:
    """Train the network of TASK with every stack, every combination of values and every seed: the cells.

    Cells that differ in numbers and seeds alone are trained together, step by step, each as `hyperstack train` would
    alone. The sweep folder gets the plan, the result of each cell as it ends, results.json and results.csv. Ctrl-C ends
    the sweep with the finished cells kept, and --resume trains the others. Pictures show the error against the name
    with the most values, a curve for each choice of the others.
    """
    from hyperstack.devices import device_failures, find_device
    from hyperstack.errors import InputError
    from hyperstack.sweep.folder import SweepFolder
    from hyperstack.sweep.ranks import Ranks
    from hyperstack.tasks import get_task, load_data, same_task
    from hyperstack.telemetry.runfolder import RunFolder

    chosen = get_task(task)
    showing = Showing(as_json, quiet, plot, png, published)
    if resume and path is None:
        hint = f"write: hyperstack sweep {shlex.quote(task)} --out DIR --resume"
        raise InputError("--resume needs the folder of the sweep", instead=hint)
    folder = SweepFolder.existing(path) if resume and path else None
    saved = folder.read_plan() if folder else None
    place = find_device(saved.device if saved and others["device"] == "auto" else others["device"])
    task = saved.task if saved and same_task(task, saved.task) else task  # by another path to its file, perhaps
    plan = _plan(chosen, stacks, grid, seeds, {**others, "task": task, "device": str(place)}, saved)
    showing.check(plan, _ask(plan, yes))
    with Ranks.joined() as ranks, ExitStack() as kept:
        quiet = quiet or ranks.rank > 0
        if folder is None and path is not None:
            ranks.once(lambda: RunFolder.check_free(path))
        notify = (lambda line: None) if quiet else (lambda line: err().print(line, style="dim", soft_wrap=True))
        with device_failures():
            data = load_data(chosen, data_dir, place, notify)
        folder = ranks.once(lambda: _open(plan, folder, path, chosen.name, kept))
        _sweep(plan, chosen, data, folder, jobs, ranks, showing, notify)


def _open(plan: SweepPlan, folder: SweepFolder | None, path: Path | None, name: str, kept: ExitStack) -> SweepFolder:
    """The folder, a new one if need be, for this sweep alone until `kept` is closed."""
    from hyperstack.sweep.folder import SweepFolder
    from hyperstack.telemetry.runfolder import RunFolder

    if folder is None:
        run = RunFolder.create(path) if path else RunFolder.next_free(Path("sweeps"), name)
        folder = SweepFolder(run.path)
    kept.enter_context(folder.locked())
    folder.begin(plan)
    return folder


def _plan(
    task: Task,
    stacks: tuple[str, ...],
    grid: tuple[str, ...],
    seeds: int | None,
    others: dict[str, Any],
    saved: SweepPlan | None,
) -> SweepPlan:
    """The options that were given, and the defaults (or the sweep's own plan) for the others."""
    from hyperstack.dsl import parse
    from hyperstack.schedule import CONSTANT, Schedule
    from hyperstack.sweep.grid import axes, size
    from hyperstack.sweep.planning import SweepPlan

    defaults: dict[str, Any] = saved.as_dict() if saved else {
        "stacks": [DEFAULT_STACK], "grid": {}, "seeds": [0], "epochs": task.epochs, "batch_size": task.batch_size,
        "threads": task.threads, "compile": False, "schedule": CONSTANT,
        "share": 1.0,
    }  # fmt: skip
    asked: dict[str, Any] = {
        "stacks": list(dict.fromkeys(str(parse(text)) for text in stacks)) or None,
        "grid": axes(grid) or None,
        "seeds": None if seeds is None else list(range(seeds)),
        **others,
        "share": None,
        "schedule": others["schedule"] and str(Schedule.parse(others["schedule"])),
    }
    plan = SweepPlan(**{name: defaults[name] if value is None else value for name, value in asked.items()})
    size(plan.stacks, plan.grid, len(plan.seeds))
    if saved:
        plan.check_resumes(saved)
    return plan


def _ask(plan: SweepPlan, yes: bool) -> list[Cell]:
    """The cells; an InputError where there are very many and nobody says that this is meant."""
    from hyperstack.errors import InputError
    from hyperstack.sweep.grid import size

    count = size(plan.stacks, plan.grid, len(plan.seeds))
    if count > MANY and not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise InputError(f"this sweep has {count:,} cells", instead="say that you mean it with --yes")
        click.confirm(f"This sweep has {count:,} cells. Train them all?", abort=True, err=True)
    return plan.cells()  # a value that does not fit is found before anything is written


def _sweep(
    plan: SweepPlan,
    task: Task,
    data: Any,
    folder: SweepFolder,
    jobs: int | None,
    ranks: Ranks,
    showing: Showing,
    notify: Any,
) -> None:
    from hyperstack.errors import RunError
    from hyperstack.memory import keep_freed
    from hyperstack.sweep.run import sweep

    keep_freed()
    cells = plan.cells()
    known = folder.results(plan, cells)
    done = len(known)
    notify(f"{plan.task} · {len(cells):,} cell{'s' * (len(cells) > 1)}" + (f", {done:,} of them done" if done else ""))

    def after_cell(cell: Cell, result: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        what = "diverged" if result["diverged"] else f"test error {percent(result['test_error'])}"
        notify(f"{done:,}/{len(cells):,}  {result['stack']}  seed {cell.seed}  {what}")

    try:
        with Interrupt() as interrupt:
            told: dict[str, Any] = {"stop": interrupt, "after_cell": after_cell, "notify": notify}
            results = sweep(plan, task, data, folder, jobs=jobs, ranks=ranks, **told)
    except KeyboardInterrupt:
        _say_how_to_go_on(plan, folder)
        sys.exit(interrupt.exit_code)
    except RunError as error:
        raise RunError(error.what, why=error.why, instead=f"{error.instead}\n  {_again(plan, folder)}") from error
    if ranks.rank:
        sys.exit(0 if len(results) == len(cells) else interrupt.exit_code)
    try:
        if results:
            showing.show(plan, cells, results, folder.path)
    except OSError:  # the terminal is what ended it
        if len(results) == len(cells):
            raise
        silence(sys.stdout)
    if len(results) < len(cells):
        _say_how_to_go_on(plan, folder)
        sys.exit(interrupt.exit_code)


def _say_how_to_go_on(plan: SweepPlan, folder: SweepFolder) -> None:
    kept = "with the finished cells kept" if folder.results(plan, plan.cells()) else "before a cell had ended"
    err().print(f"interrupted, {kept}; to go on:", soft_wrap=True)
    err().print(f"  {_again(plan, folder)}", soft_wrap=True)


def _again(plan: SweepPlan, folder: SweepFolder) -> str:
    return f"hyperstack sweep {shlex.quote(plan.task)} --out {shlex.quote(str(folder.path))} --resume{as_before()}"
