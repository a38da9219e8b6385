"""`hyperstack reproduce`: run a published experiment again, and say which of its figures and claims hold."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hyperstack.reports.text import percent
from hyperstack_cli.interrupt import Interrupt, as_before
from hyperstack_cli.options import POSITIVE, many_runs
from hyperstack_cli.pictures import check_drawing, show_panels
from hyperstack_cli.screen import err, out, silence

if TYPE_CHECKING:
    from hyperstack.experiments.experiment import AnyExperiment
    from hyperstack.experiments.work import Asked, Piece, Results
    from hyperstack.sweep.grid import Cell

LONG = 1.0  # hours, from which on it asks
EPILOG = """\b
Examples:
  hyperstack reproduce --list
  hyperstack reproduce clip-table-2 --scale 0.05 --out table-2
  hyperstack reproduce clip-table-2 --out table-2 --resume --png table-2.png

\b
Exit status: 0 the runs have ended (whatever the verdicts), 1 they failed, 2
wrong input, 130 interrupted.
"""


@click.command(short_help="Run a published experiment again, and judge its figures.", epilog=EPILOG)
@click.argument("name", required=False)
@click.option("--list", "listing", is_flag=True, help="Show the experiments, what each needs, and how long it takes.")
@click.option("--scale", type=float, metavar="SHARE", help="Do this share of the work, above 0 to 1.  [default: 1]")
@click.option("--seeds", type=POSITIVE, metavar="N", help="Train each with the seeds 0 to N - 1, whatever --scale is.")
@click.option("--part", "chosen", multiple=True, metavar="PART", help="Only this part of it. Once for each.")
@click.option("--note", default="", metavar="TEXT", help="To be said beside the figures: of the data, say.")
@many_runs(
    out="The folder.  [default: the next reproduced/NAME-001]",
    resume="Go on in --out, with more --seeds perhaps, or show again what it holds.",
    yes="Do not ask before more than an hour of work.",
    as_json="Print the outcome as JSON.",
    result="outcome",
)
def command(
    name: str | None,
    listing: bool,
    jobs: int | None,
    data_dir: Path | None,
    path: Path | None,
    resume: bool,
    yes: bool,
    as_json: bool,
    quiet: bool,
    plot: bool,
    png: Path | None,
    **options: Any,
) -> None:
    """Train what the experiment NAME was made of, and show its published figures and the measured ones side by side.

    Each figure and each comparison gets a verdict, reproduced, not reproduced or inconclusive, by a rule that is shown
    with it. A comparison, such as rivals, shows instead how its entrants stand, and where towers lose. The runs are
    sweeps in a folder of their own: finished ones are kept, and --resume trains the others.
    The outcome also lies there, as results.json.
    """
    from hyperstack.errors import InputError
    from hyperstack.experiments import experiment as experiments
    from hyperstack.experiments.work import check_resumes, hours
    from hyperstack.telemetry.runfolder import RunFolder
    from hyperstack_cli.published import list_experiments

    if listing:
        list_experiments(out(), [experiments.load(each) for each in experiments.names()])
        return
    if name is None:
        raise InputError("which experiment?", instead="see: hyperstack reproduce --list")
    experiment = experiments.load(name)
    check_drawing(plot, png, as_json)
    if resume and path is None:
        hint = f"write: hyperstack reproduce {name} --out DIR --resume"
        raise InputError("--resume needs the folder", instead=hint)
    asked = _asked(experiment, options, path if resume else None)
    pieces = _pieces(experiment, asked, data_dir)
    if (plot or png) and not any(piece.plan.grid for piece in pieces):
        raise InputError(f"{name} has nothing to draw", why="no value is varied in it", instead="leave the option out")
    if resume and path is not None:
        check_resumes(pieces, path)
    elif path is not None:
        RunFolder.check_free(path)
    if not resume or options["seeds"]:
        _ask(hours(experiment, pieces, path if resume else None), name, yes)
    notify = (lambda line: None) if quiet else (lambda line: err().print(line, style="dim", soft_wrap=True))
    with ExitStack() as kept:
        place = _open(asked, path, resume, kept)
        found, code = _run(experiment, asked, pieces, place, data_dir, jobs, notify)
        some = any(part["cells_done"] for part in found["parts"])
        try:
            if some:
                _show(found, place, as_json, quiet, plot, png)
        except OSError:  # the terminal is what ended it
            if not code:
                raise
            silence(sys.stdout)
    if code:
        said = "with the finished runs kept" if some else "before a run had ended"
        again = f"hyperstack reproduce {name} --out {shlex.quote(str(place))} --resume{as_before()}"
        err().print(f"interrupted, {said}; to go on:\n  {again}", soft_wrap=True)
        sys.exit(code)


def _asked(experiment: AnyExperiment, options: dict[str, Any], saved: Path | None) -> Asked:
    """What the options ask for; on resume what was asked for then, from which only the seeds may differ."""
    from hyperstack.devices import find_device
    from hyperstack.errors import InputError
    from hyperstack.experiments.work import Asked

    before = Asked.read(saved) if saved else None
    scale, seeds, parts = options["scale"], options["seeds"], list(options["chosen"])
    if scale is not None and not 0 < scale <= 1:
        raise InputError(f"--scale {scale:g} is not a share of the work", instead="give a number above 0, to 1")
    if before is None:
        device = str(find_device(options["device"]))
        return Asked(experiment.name, 1.0 if scale is None else scale, seeds, parts, device, options["note"])
    given = {"scale": scale, "parts": parts or None, "experiment": experiment.name}
    for key, value in given.items():
        if value is not None and value != (then := getattr(before, key)):
            raise InputError(
                f"what was asked for in this folder has another {key}",
                why=f"  then: {then}\n  now:  {value}",
                instead="leave the option out to go on with that, or choose another --out",
            )
    device = before.device if options["device"] == "auto" else str(find_device(options["device"]))
    note = options["note"] or before.note
    return Asked(before.experiment, before.scale, seeds or before.seeds, before.parts, device, note)


def _pieces(experiment: AnyExperiment, asked: Asked, data_dir: Path | None) -> list[Piece]:
    """What is run of the parts, each with its plan; those that want data of the user's own only with these."""
    from hyperstack.errors import InputError

    chosen = asked.chosen(experiment)
    named = [part for part in chosen if part.name in asked.parts]
    if data_dir is None and (wanting := next((part for part in named if part.own_data), None)):
        what = f"{wanting.name} needs data of your own"
        raise InputError(what, instead="pass --data-dir: a folder with train/CLASS/ and val/CLASS/")
    return [piece for part in chosen if data_dir is not None or not part.own_data for piece in asked.pieces(part)]


def _ask(needed: float, name: str, yes: bool) -> None:
    """An InputError where it takes very long and nobody says that this is meant."""
    from hyperstack.errors import InputError
    from hyperstack_cli.published import duration

    if needed <= LONG or yes:
        return
    what = f"{name} takes about {duration(needed)} on two cores"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise InputError(what, instead="say that you mean it with --yes, or ask for less with --scale 0.1")
    click.confirm(f"{what}. Go on?", abort=True, err=True)


def _open(asked: Asked, path: Path | None, resume: bool, kept: ExitStack) -> Path:
    """The folder, a new one unless it is resumed, for this process alone until `kept` is closed."""
    from hyperstack.sweep.folder import SweepFolder
    from hyperstack.telemetry.runfolder import RunFolder

    if resume and path is not None:
        place = path
    else:
        run = RunFolder.create(path) if path else RunFolder.next_free(Path("reproduced"), asked.experiment)
        place = run.path
    kept.enter_context(SweepFolder(place).locked())
    asked.write(place)
    return place


def _run(
    experiment: AnyExperiment,
    asked: Asked,
    pieces: list[Piece],
    place: Path,
    data_dir: Path | None,
    jobs: int | None,
    notify: Any,
) -> tuple[dict[str, Any], int]:
    """The outcome of all pieces, noted in the folder, and an exit code where it was interrupted."""
    from hyperstack.experiments.comparison import START, Contest
    from hyperstack.experiments.outcome import outcome
    from hyperstack.experiments.work import hours, run, write_json
    from hyperstack.memory import keep_freed
    from hyperstack_cli.published import duration

    keep_freed()
    total = sum(len(piece.plan.cells()) for piece in pieces)
    done = sum(len(piece.results(place)) for piece in pieces)
    if done < total:
        known = hours(experiment, pieces, place)
        about = f", about {duration(known)} on two cores" if known else ""
        notify(f"{experiment.name} · {total:,} runs" + (f", {done:,} of them done" if done else "") + about)

    def after_cell(piece: Piece, cell: Cell, result: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        what = "diverged" if result["diverged"] else f"test error {percent(result['test_error'])}"
        said = f"{START} = {dict(cell.values)[START]:g}" if isinstance(piece.part, Contest) else result["stack"]
        notify(f"{done:,}/{total:,}  {piece.folder}  {said}  seed {cell.seed}  {what}")

    code = 0
    with Interrupt() as interrupt:
        told: dict[str, Any] = {"stop": interrupt, "after_cell": after_cell, "notify": notify}
        results: Results = run(pieces, place, data_dir, jobs=jobs, **told)
        if sum(map(len, results.values())) < total:
            code = interrupt.exit_code
    found = outcome(experiment, asked, [piece.tuned(place) for piece in pieces], results)
    write_json(place / "results.json", found)
    return found, code


def _show(found: dict[str, Any], place: Path, as_json: bool, quiet: bool, plot: bool, png: Path | None) -> None:
    from hyperstack_cli.published import pictures, show
    from hyperstack_cli.standing import comparison_pictures, show_comparison

    compared = "source" not in found
    panels = comparison_pictures(found) if compared else pictures(found)
    if as_json:
        click.echo(json.dumps(found, indent=1, ensure_ascii=False))
    elif compared:
        show_comparison(out(), found)
    else:
        show(out(), found)
    if panels:
        show_panels(lambda: panels, plot=plot, png=png)
    if not quiet:
        err().print(f"results    {place / 'results.json'}", soft_wrap=True)
