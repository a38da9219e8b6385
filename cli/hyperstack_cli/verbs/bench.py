"""`hyperstack bench`: what a tower costs on the machine at hand."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import click

from hyperstack.reports.text import number
from hyperstack_cli.screen import out

WORKLOADS = ("mnist", "gpt", "resnet")
EPILOG = """\b
Examples:
  hyperstack bench --seconds 5 --only "torch Adam" --only "Adam / SGD"
  hyperstack bench 1e4 1e6 --seconds 1 --only "torch Adam" --only "Adam / SGD"
  hyperstack bench mnist --seconds 1 --memory --json \\
           --only "torch Adam" --only "Adam / SGD, recorded"

\b
Exit status: 0 measured, 1 the machine failed, 2 wrong input.
"""


@click.command(short_help="Time training steps with and without a tower.", epilog=EPILOG)
@click.argument("workloads", nargs=-1, metavar="[WORKLOAD]...")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1),
    default=10.0,
    metavar="X",
    help="How long to measure each workload.  [default: 10]",
)
@click.option("--device", default="cpu", metavar="NAME", help="Where to compute: cpu, cuda, ...  [default: cpu]")
@click.option("--memory", is_flag=True, help="Measure peak memory too, in a process for each contestant.")
@click.option("--only", multiple=True, metavar="NAME", help="Only these contestants; the first is compared with.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON, for programs.")
def command(
    workloads: tuple[str, ...], seconds: float, device: str, memory: bool, only: tuple[str, ...], as_json: bool
) -> None:
    """Time whole training steps with torch.optim.Adam, with towers over Adam, and with the published implementation
    (gdtuo) where it is installed.

    WORKLOAD is mnist (the default), gpt, resnet, or a number of parameters such as 1e6 under a trivial loss. The
    contestants take turns, step by step; ratios are medians of the ratios of neighbouring steps, with their quartiles.
    "recorded" also writes its record, into the folder of temporary files, as train does. "auto(Adam, every=10)", which
    has a probe every ten steps, is measured in means of ten; "auto(Adam), live" is the same stack without probes.

    \b
    step ms   a whole training step, milliseconds
    ratio     to the first contestant
    opt. ms   the optimizer's part of the step, milliseconds, and its ratio
    first s   the first two steps with all that is made then, seconds
    B/par.    the optimizer's state, bytes a parameter
    MiB       peak memory beyond what was there before, with --memory
    """
    import torch
    from rich.table import Table

    from hyperstack.devices import find_device
    from hyperstack.errors import InputError
    from hyperstack_cli.benchmark.contestants import contestants
    from hyperstack_cli.benchmark.measure import as_json as plain
    from hyperstack_cli.benchmark.measure import peak_memory, race, workload

    # The published implementation builds a graph through its own steps, of which torch warns.
    warnings.filterwarnings("ignore", message="Using backward.. with create_graph=True")
    place = find_device(device)
    known = contestants()
    for name in only:
        if name not in known:
            raise InputError(f"there is no contestant {name!r}", instead="choose among " + ", ".join(map(repr, known)))
    for name in workloads:
        if name not in WORKLOADS and not _count(name):
            raise InputError(
                f"there is no workload {name!r}", instead="choose mnist, gpt, resnet, or a number such as 1e6"
            )
    chosen = [known[name] for name in only or known]
    results = {}
    for name in workloads or ("mnist",):
        task = workload(name)
        figures = race(chosen, task, seconds, place)
        if memory:
            figures = [replace(f, memory=peak_memory(f.contestant, name, device)) for f in figures]
        results[name] = plain(figures)
        if as_json:
            continue
        threads = torch.get_num_threads()
        table = Table(title=f"{task.about}, {device}, {threads} threads", title_justify="left", box=None)
        table.add_column("")
        headings = ["step ms", "ratio", "quartiles", "opt. ms", "ratio", "first s", "B/par."]
        for heading in headings + ["MiB"] * memory:
            table.add_column(heading, justify="right", no_wrap=True)
        for f in figures:
            spread = f"{f.spread[0]:.2f}-{f.spread[1]:.2f}"
            row = [number(f.whole), f"{f.ratio:.2f}", spread, number(f.optimizer, 3), f"{f.optimizer_ratio:.2f}"]
            row += [number(f.first / 1e3, 2), "-" if f.state is None else f"{f.state:.1f}"]
            table.add_row(f.contestant, *row, *[number(f.memory)] * memory)
        out().print(table)
    if as_json:
        click.echo(json.dumps({"torch": torch.__version__, "device": device, "workloads": results}))


def _count(text: str) -> bool:
    try:
        return 1 <= float(text) <= 1e9
    except ValueError:
        return False
