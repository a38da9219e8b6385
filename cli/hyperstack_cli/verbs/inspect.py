"""`hyperstack inspect`: what the tower did in a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hyperstack_cli.pictures import one_output, picture_options, show_pictures
from hyperstack_cli.screen import RUN, as_text, out
from hyperstack_cli.selection import chosen, key_option, level_option, log_option, steps_option

if TYPE_CHECKING:
    from hyperstack.reports.run import Run
    from hyperstack.telemetry.record import Record

EPILOG = """\b
Examples:
  hyperstack inspect runs/mnist-001
  hyperstack inspect runs/mnist-001 --level 0
  hyperstack inspect runs/mnist-001 --key "*.lr" --steps :500
  hyperstack inspect runs/mnist-001 --key beta1 --linear
  hyperstack inspect runs/mnist-001 --json
  hyperstack inspect runs/mnist-001 --plot
  hyperstack inspect runs/mnist-001 --html run.html --png run.png

\b
Exit status: 0 shown, 2 wrong input: no such run, or it is damaged.
"""
TALL = 12  # levels that are shown on a terminal unless one asks for more


@click.command(short_help="Show what the tower did in a run, and what to change.", epilog=EPILOG)
@click.argument("run", type=RUN)
@level_option
@key_option
@steps_option
@log_option
@click.option("--json", "as_json", is_flag=True, help="The same as JSON, for programs, with every sentence.")
@picture_options
def command(
    run: Path,
    wanted: tuple[int, ...],
    patterns: tuple[str, ...],
    span: tuple[int | None, int | None] | None,
    log: bool,
    as_json: bool,
    **pictures: Any,
) -> None:
    """Show what happened to each hyperparameter in RUN, and what to change.

    RUN is a folder that `hyperstack train` or `hs.record` made. A run that still trains, or was killed, is shown as
    far as it was recorded. First the stack as a tree, and the result; then a reading in words, the gravest first
    (!! learning failed or did harm, ! something is wrong, - something could be better); then, for each
    hyperparameter that is learned:

    \b
    value          its curve over the steps; first, last, smallest and largest,
                   in natural units
    hypergradient  the curve of its absolute value before clipping; the median,
                   the value that 95 % of the steps stay below, the largest, and
                   at which step that was
    average        where it is clipped by the cumulative average of its norm: that
                   average after the last step, the threshold of the next
    clipped, to    the share of steps in which clipping made it smaller, and to
                   what share of itself on average over these
    flips          in how many of the steps its sign changed; 50 % for noise
    nan/inf        the number of steps in which it was no number, or infinite

    \b
    Where hypergradients are measured at averages (auto, at=average), all this
    is said of the probes, one every so many steps, and below it stand

    \b
    cosine         its curve over the probes, from -1, where the value is too low
                   and rises, to 1, where it is too high; the median, and the last
    displacement   how far the average moved, or would move with the value, from
                   one probe to the next

    Then, where the primary level clips the network's gradients, the parameters that it clipped most, by name; under
    a layer-wise rule, the trust ratios. What is fixed is not recorded. What there is no room for is left out: a wider
    terminal, or --json, has all of it.

    With --plot, --png or --html the loss and the curves of each hyperparameter are drawn instead; that takes
    `pip install "hyperstack[plots]"`.
    """
    from hyperstack.reports.reading import reading
    from hyperstack.reports.run import load_run
    from hyperstack.reports.view import View

    one_output(pictures["plot"], as_json)
    found = load_run(run)
    record = _between(found, span)
    keys = chosen(found.record.keys, len(found.levels), wanted, patterns)
    everything = not wanted and not patterns
    remarks = reading(found, record) if pictures["html"] else []
    sentences = [remark.text for remark in remarks if everything or remark.concerns(keys)]
    part = [(str(run), replace(found, record=record))]
    if show_pictures(part, None if everything else keys, log, sentences=sentences, **pictures) and not as_json:
        return
    if as_json:
        click.echo(as_text(_plain(found, record, keys)))
        return
    console = out()
    most = TALL if console.is_terminal and everything else None
    console.print(View(found, record, None if everything else keys, log, most))


def _between(run: Run, span: tuple[int | None, int | None] | None) -> Record:
    """The rows of these steps."""
    from hyperstack.errors import InputError

    if span is None:
        return run.record
    record = run.record.between(*span)
    if not len(record) and len(run.record):
        steps = run.record.steps
        ends = f"the record goes from {steps[0]:.0f} to {steps[-1]:.0f}"
        raise InputError("none of these steps was recorded", instead=ends)
    return record


def _plain(run: Run, record: Record, keys: Sequence[str]) -> dict[str, object]:
    from hyperstack.reports.reading import reading
    from hyperstack.reports.statistics import probe_statistics, statistics_of, tensor_statistics

    steps, found = record.steps, statistics_of(record, run.levels)
    return {
        "path": str(run.path),
        "when": run.when.isoformat(),
        "state": run.state,
        "plan": run.plan,
        "summary": run.summary,
        "rows": len(record),
        "steps": [int(steps[0]), int(steps[-1])] if len(record) else None,
        "reading": [remark.as_dict() for remark in reading(run, record, found)],
        "keys": {key: s.as_dict() for key, s in found.items() if key in keys},
        "probes": {key: s.as_dict() for key, s in probe_statistics(record).items() if key in keys},
        "tensors": {name: s.as_dict() for name, s in tensor_statistics(record).items()},
    }
