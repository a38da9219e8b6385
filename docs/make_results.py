"""Measure the tables of README.md and docs/, and write them where they stand.

    python docs/make_results.py              every table, from MNIST runs: about half an hour on two cores
    python docs/make_results.py start        only the tables named; a name that is none gets the list of them
    python docs/make_results.py --show start to the screen, not into the files

`speed`, `sweep`, `probing` (`hyperstack bench`), `together` and `memory` (measure_*.py) want a quiet machine.
`spikes` has runs of its own. Elsewhere a figure is the test error in percent after the last epoch, as `hyperstack train
mnist --stack STACK --seed SEED` reports it: mean ± standard deviation over seeds 0, 1 and 2. A table stands between
`<!-- results: NAME -->` and `<!-- end of results -->`, and is replaced as a whole.
"""

from __future__ import annotations

import datetime
import functools
import itertools
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

import hyperstack as hs
from hyperstack.tasks import Data, Task, get_task
from hyperstack.telemetry.recorder import Recorder
from hyperstack.training import Plan, Trainer

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)


@functools.cache
def loaded(name: str = "mnist") -> tuple[Task, Data]:
    """A task and its data, loaded once."""
    task = get_task(name)
    return task, task.load(None, torch.device("cpu"), print)


@functools.cache
def error(stack: str, epochs: int, seed: int, batch_size: int = 256, name: str = "mnist") -> float:
    """The test error of one run, in percent."""
    task, data = loaded(name)
    trainer = Trainer(Plan(task.name, str(hs.parse(stack)), epochs, seed, "cpu", batch_size), task, data)
    with Recorder(trainer.opt, []) as recorder:
        trainer.run(recorder)
    found = 100 * trainer.summary()["test_error"]
    where = f"{name}  {stack}  epochs {epochs}  batch {batch_size}  seed {seed}"
    print(f"{where}: {found:.2f} %", file=sys.stderr, flush=True)
    return found


def figure(stack: str, epochs: int = 5) -> str:
    """Mean ± standard deviation over the seeds."""
    found = [error(stack, epochs, seed) for seed in SEEDS]
    return f"{mean(found):.2f} ± {stdev(found):.2f}"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, its first column to the left and the figures to the right."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


def start() -> str:
    """What the README shows."""
    stacks = ["Adam", "Adam / SGD(1e-5)", "Adam(v0=1e-8) / SGD(1e-3)", "Adam(v0=1e-8) / SGD(1e-3, clip)"]
    return markdown(["stack", "test error, %"], [[f"`{stack}`", figure(stack)] for stack in stacks])


def clipping() -> str:
    """Table 2 of Huang et al., and the other way of counting."""
    published = {
        "1e-5": ("3.14", "3.23"),
        "1e-4": ("3.05", "3.06"),
        "1e-3": ("4.71", "3.35"),
        "5e-3": ("35.89", "16.6"),
        "1e-2": ("79.57", "23.2"),
    }
    clips = ("", ", clip", ", clip=[cumulative(skip_zeros)]")
    rows = [
        [f"`{rate}`", *(figure(f"Adam(v0=1e-8) / SGD({rate}{clip})") for clip in clips), *published[rate]]
        for rate in published
    ]
    head = ["α", "no clip", "`clip`", "`clip=[cumulative(skip_zeros)]`", "published, no clip", "published, clip"]
    return markdown(head, rows)


def by_ratio(names: Iterable[str], ratios: Iterable[float], epochs: int) -> str:
    """What the rate of the upper level does, relative to the rate below; the default in bold."""
    rows = []
    for name in names:
        rule = hs.RULES[name]
        row = [f"`{name}`", figure(name, epochs)]
        for ratio in ratios:
            found = figure(f"{name} / SGD({rule.hyperparameters['lr'].default * ratio:.12g})", epochs)
            row.append(f"**{found}**" if ratio == rule.upper_ratio else found)
        rows.append(row)
    return markdown(["primary", "alone", *(f"/ SGD, {ratio:g} x" for ratio in ratios)], rows)


def rates() -> str:
    """The first rules, over a wide range."""
    return by_ratio(("Adam", "SGD", "AdaGrad", "RMSProp"), (1e-5, 1e-4, 1e-3, 1e-2, 1e-1), 5)


def family() -> str:
    """Adam's kin, more briefly."""
    names = ("AdamW", "AMSGrad", "NAdam", "RAdam", "AdaBound", "Yogi", "Lion", "LAMB", "LAMBC")
    return by_ratio(names, (1e-5, 1e-4, 1e-3, 1e-2), 2)


def every() -> str:
    """Every rule at its defaults under an SGD at its default, and some stacks of other levels."""
    stacks = [f"{name} / SGD" for name in sorted(hs.RULES)]
    stacks += ["LAMBC(1e-2) / SGD(1e-4)", "ALRC(Adam, n=3) / SGD(1e-5)", "Adam / LAMBC(1e-2)", "Adam / Adam(1e-2)"]
    rows = [[f"`{stack}`", f"{error(stack, 5, 0):.2f}"] for stack in stacks]
    return markdown(["stack", "test error, %"], rows)


WRONG = ("1e-6", "1e-5", "1e-4", "1e-3", "1e-2")


def wrong() -> str:
    """Five rates to start from, over four orders of magnitude."""
    learned = "Adam(lr=log({}), beta1=fixed(0.9), beta2=fixed(0.999)) / "
    uppers = ("Adam(0.1, beta1=0.9, beta2=0.99)", "SGD(0.1, clip=cosine)")
    rows = []
    for rate in WRONG:
        stacks = [
            f"Adam({rate})",
            *(learned.format(rate) + upper for upper in uppers),
            f"Adam(lr=log({rate})) / {uppers[1]}",
        ]
        rows.append([f"`{rate}`", *(figure(stack) for stack in stacks)])
    head = ["λ", "`Adam(λ)`", *(f"/ `{upper}`" for upper in uppers), "/ `SGD(0.1, clip=cosine)`, betas learned too"]
    return markdown(head, rows)


STARTS = ("1e-6", "1e-3", "1")


def from_starts(label: str, stack: str, epochs: int = 5, batch_size: int = 256, name: str = "mnist") -> list[str]:
    """A row: the errors of a stack from each start λ, of two seeds."""
    row = [label]
    for start in STARTS:
        bound = str(hs.parse(stack).bind(λ=float(start)))
        found = [error(bound, epochs, seed, batch_size, name) for seed in SEEDS[:2]]
        row.append(" ".join(f"{x:.2f}" for x in found))
    return row


FROM = [f"from λ = {start}" for start in STARTS]


def primaries() -> str:
    """`auto` around other rules, and with more to learn."""
    bases = ["Adam(λ)", "AdamW(λ)", "SGD(λ)", "SGD(λ, momentum=0.9)", "RMSProp(λ)", "AdaGrad(λ)", "Lion(λ)", "LAMBC(λ)"]
    bases += ["Adam(λ, beta1=learned(0.9), beta2=learned(0.999))", "Adam(per_tensor(λ))"]
    return markdown(["stack", *FROM], [from_starts(f"`auto({base})`", f"auto({base})") for base in bases])


def numbers() -> str:
    """`auto` with other numbers than its own."""
    changes = ["", *(f"decay={x}" for x in ("0.9", "0.97", "0.999")), *(f"every={x}" for x in (5, 20, 50))]
    changes += [*(f"warmup={x}" for x in (5, 20)), "first=10"]
    changes += [*(f"rate={x}" for x in ("0.3", "3.0")), *(f"bound={x}" for x in ("0.03", "0.3", "0.0"))]
    changes += [f"deviations={x}" for x in ("100.0", "0.0")]
    stacks = [f"auto(Adam(λ){', ' * bool(change)}{change})" for change in changes]
    return markdown(["stack", *FROM], [from_starts(f"`{stack}`", stack) for stack in stacks])


def batches() -> str:
    """`auto` at other batch sizes, and for fewer and more epochs; of many steps also with a longer average, of few with
    a larger bound.
    """
    stack = "auto(Adam(λ))"
    rows = [from_starts(f"batch {size}, 5 epochs", stack, 5, size) for size in (16, 64, 256, 1024, 4096)]
    rows += [from_starts(f"batch 256, {epochs} epoch{'s' * (epochs > 1)}", stack, epochs) for epochs in (1, 2, 30, 100)]
    for size, epochs in ((16, 5), (64, 5), (256, 30)):
        label = f"batch {size}, {epochs} epochs, `decay=0.999, every=1000`"
        rows.append(from_starts(label, "auto(Adam(λ), decay=0.999, every=1000)", epochs, size))
    for size, epochs in ((256, 1), (4096, 5)):
        label = f"batch {size}, {epochs} epoch{'s' * (epochs > 1)}, `bound=1`"
        rows.append(from_starts(label, "auto(Adam(λ), bound=1)", epochs, size))
    return markdown(["", *FROM], rows)


def windows() -> str:
    """Windows that grow from one step to a hundred, from one to ten, and of ten steps from the first on to the last."""
    settings = [
        ("mnist", 1, 256),
        ("mnist", 5, 256),
        ("mnist", 5, 4096),
        ("mnist", 5, 64),
        ("mnist", 30, 256),
        ("mnist-relu", 5, 256),
    ]
    rows = []
    for (name, epochs, size), more in itertools.product(settings, ("", ", every=10", ", every=10, first=10")):
        label = f"`{name}`, {epochs} epoch{'s' * (epochs > 1)}, batches of {size} | `auto(Adam(λ){more})`"
        rows.append(from_starts(label, f"auto(Adam(λ){more})", epochs, size, name))
    return markdown([" | ", *FROM], rows).replace("| --- |", "| --- | --- |")


def long() -> str:
    """Rows of Tables 1 and 3 of Huang et al.: 30 epochs."""
    published = {
        "SGD(0.01)": "8.96",
        "SGD(0.01) / SGD(1)": "6.78",
        "AdaGrad(eps_inside, initial=0.1) / SGD(2.5, clip)": "4.11",
    }
    rows = [[f"`{stack}`", figure(stack, epochs=30), figures] for stack, figures in published.items()]
    return markdown(["stack", "test error, %", "published"], rows)


@functools.cache
def trusted(stack: str, batch_size: int, seed: int) -> tuple[float, Tensor, Tensor]:
    """The test error of 5 epochs in percent, and the trust ratios applied and unclipped, each [steps, tensors]."""
    task, data = loaded()
    trainer = Trainer(Plan(task.name, str(hs.parse(stack)), 5, seed, "cpu", batch_size), task, data)
    params, rows = list(trainer.model.parameters()), []
    lengths = [float(p.detach().norm()) for p in params]

    def look() -> bool:
        for i, p in enumerate(params if trainer.steps else ()):
            s = trainer.opt.state[p]
            root = (s["exp_avg_sq"] / (1 - 0.999**trainer.steps)).sqrt()
            r = s["exp_avg"] / (1 - 0.9**trainer.steps) / (root + 1e-6)
            rows.append((float(s["trust_ratio"]), lengths[i] / float(r.norm())))
            lengths[i] = float(p.detach().norm())
        return False

    with Recorder(trainer.opt, []) as recorder:
        trainer.run(recorder, stop=look)
    look()
    found = 100 * trainer.summary()["test_error"]
    print(f"{stack}  batch {batch_size}  seed {seed}: {found:.2f} %", file=sys.stderr, flush=True)
    applied, raw = torch.tensor(rows).view(-1, len(params), 2).unbind(2)
    return found, applied, raw


TRUST = (
    "LAMB(0.01)",
    "LAMBC(0.01)",
    "LAMBC(0.01, trust_max=3)",
    "LAMBC(0.01, trust_max=10)",
    "LAMBC(0.01, deviations=3)",
    "LAMBC(0.01, trust_decay=0.9, deviations=3)",
    "LAMBC(0.01, bound_gamma=0.001)",
    "LAMBC(0.01, bound_gamma=0.1)",
)


def trust() -> str:
    """LAMB and LAMBC at the batch sizes and the rate of Fong et al.: errors and trust ratios."""
    rows = []
    for batch, stack in itertools.product((1000, 2000, 3000), TRUST):
        errors, applied, raw = zip(*(trusted(stack, batch, seed) for seed in SEEDS), strict=True)
        highest = [f"{float(torch.cat(found).max()):.2f}" for found in (applied, raw)]
        over = 100 * float((torch.cat(raw) > torch.cat(applied) * 1.0001).double().mean())
        error = f"{mean(errors):.2f} ± {stdev(errors):.2f}"
        rows.append([str(batch), f"`{stack}`", error, *highest, f"{over:.0f}"])
    return markdown(["batch", "stack", "test error, %", "largest γ", "unclipped", "clipped, %"], rows)


def layers() -> str:
    """The unclipped trust ratios of each tensor, batches of 1000: median and largest over steps and seeds."""
    rows = []
    for stack in TRUST[:2]:
        raw = torch.cat([trusted(stack, 1000, seed)[2] for seed in SEEDS])
        pairs = zip(raw.median(0).values.tolist(), raw.max(0).values.tolist(), strict=True)
        rows.append([f"`{stack}`", *(f"{middle:.2g} / {largest:.2g}" for middle, largest in pairs)])
    names = [name for name, _ in loaded()[0].model().named_parameters()]
    return markdown(["stack", *(f"`{name}`" for name in names)], rows)


def spiky(stack: str, power: int, seed: int, steps: int = 4000) -> tuple[float, float]:
    """100 times the mean training loss over the last quarter of the steps, and the test error in percent.

    A small network learns MNIST as a regression, to one output of 1 and nine of 0, from one example a step.
    """
    task, data = loaded()
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(784, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    opt, targets, losses = hs.HyperOptimizer(model.parameters(), stack), torch.eye(10)[data.train_targets], []
    for i in torch.randint(len(targets), (steps,)):
        opt.zero_grad()
        loss = (model(data.train_inputs[i : i + 1]) - targets[i : i + 1]).pow(power).mean(1)
        opt.backward(loss)
        opt.step()
        losses.append(loss.detach())
    with torch.no_grad():
        missed = task.error(model(data.test_inputs), data.test_targets).mean().item()
    found = 100 * torch.cat(losses)[-steps // 4 :].mean().item(), 100 * missed
    print(f"{stack}  power {power}  seed {seed}: {found[0]:.3f}, {found[1]:.2f} %", file=sys.stderr, flush=True)
    return found


def spikes(seeds: int = 8) -> str:
    """Table I of Ede and Beanland in miniature: mean ± standard error, differences seed by seed."""

    def columns(found: list[tuple[float, float]]) -> list[str]:
        pairs = zip(zip(*found, strict=True), (3, 1), strict=True)
        return [f"{mean(x):.{digits}f} ± {stdev(x) / len(x) ** 0.5:.{digits}f}" for x, digits in pairs]

    rows = []
    for power, order in ((4, "quartic"), (2, "squared")):
        alone = [spiky("Adam(0.005)", power, seed) for seed in range(seeds)]
        for n in (2, 3, 4):
            stack = f"ALRC(Adam(0.005), n=fixed({n}), decay1=0.99, decay2=0.99)"
            found = [spiky(stack, power, seed) for seed in range(seeds)]
            less = [(x - a, y - b) for (x, y), (a, b) in zip(found, alone, strict=True)]
            (loss, missed), (loss_less, missed_less) = columns(found), columns(less)
            rows.append([f"{order}, n = {n}", loss, loss_less, missed, missed_less])
        loss, missed = columns(alone)
        rows.append([f"{order}, Adam alone", loss, "", missed, ""])
    return markdown(["", "training loss x 100", "difference", "test error, %", "difference"], rows)


def bench(*arguments: str) -> list[dict[str, Any]]:
    """The figures of `hyperstack bench` for each workload, with the workload's name."""
    command = [sys.executable, "-m", "hyperstack_cli", "bench", "--json", *arguments]
    print(" ".join(command[2:]), file=sys.stderr, flush=True)
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    return [{"workload": name, **row} for name, rows in found["workloads"].items() for row in rows]


def machine() -> str:
    """Where it was measured."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return f"{model}, {os.cpu_count()} cores, PyTorch {torch.__version__}, {datetime.date.today():%B %Y}"


def rows_of(figures: list[dict[str, Any]]) -> list[list[str]]:
    """The columns that matter, as text; memory and time as ratios too."""
    rows = []
    for f in figures:
        first = next(g for g in figures if g["workload"] == f["workload"])
        low, high = f["spread"]
        rows.append(
            [
                f["workload"],
                f"`{f['contestant']}`",
                f"{f['whole']:.3g}",
                f"{f['ratio']:.2f} ({low:.2f}-{high:.2f})",
                f"{f['optimizer']:.3g}",
                f"{f['optimizer_ratio']:.2f}",
                f"{f['first'] / 1e3:.2g}",
                "" if f["state"] is None else f"{f['state']:.0f}",
                f"{f['memory']:.0f}",
                f"{f['memory'] / first['memory']:.2f}",
            ]
        )
    return rows


HEAD = ["", "", "step, ms", "ratio (quartiles)", "optimizer, ms", "ratio", "first 2, s", "B/par.", "peak, MiB", "ratio"]


def speed() -> str:
    """Whole training steps of three networks."""
    return f"{machine()}.\n\n" + markdown(HEAD, rows_of(bench("mnist", "gpt", "resnet", "--seconds", "60", "--memory")))


def sweep() -> str:
    """How the cost grows with the number of parameters."""
    names = ("torch Adam", "torch Adam, fused", "Adam", "Adam / SGD", "Adam / SGD, compiled")
    only = [word for name in names for word in ("--only", name)]
    return markdown(HEAD, rows_of(bench("1e4", "1e5", "1e6", "1e7", "1e8", "--seconds", "15", "--memory", *only)))


def probing() -> str:
    """What measuring at averages costs, against the same tower that measures live."""
    rows = []
    for (workload, seconds), form in itertools.product(
        {"mnist": 30, "gpt": 30, "resnet": 90}.items(), ("", ", compiled")
    ):
        only = [
            word for name in (f"auto(Adam), live{form}", f"auto(Adam, every=10){form}") for word in ("--only", name)
        ]
        for f in bench(workload, "--seconds", str(seconds), *only):
            ratio = "{:.2f} ({:.2f}-{:.2f})".format(f["ratio"], *f["spread"])
            rows.append([workload, f"`{f['contestant']}`", ratio, f"{f['state']:.0f}"])
            print(*rows[-1], file=sys.stderr, flush=True)
    return f"{machine()}.\n\n" + markdown(["", "", "ratio (quartiles)", "B/par."], rows)


def measured(call: str) -> Any:
    """What a function of a file beside this one returns, in a process of its own."""
    code = f"import json, {call.partition('.')[0]}; print(json.dumps({call}))"
    run = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def together() -> str:
    """Runs trained together, in as many processes as there are cores, against one after another."""
    rows = [[name, *(f"{x:.2f}" for x in figures)] for name, *figures in measured("measure_together.measured(30)")]
    return f"{machine()}.\n\n" + markdown(["", "a run's step, ms", "ratio to one alone", "ratio to gdtuo"], rows)


def memory() -> str:
    """Training steps with what is freed handed back to the system, and kept."""
    rows = []
    for name, size, fresh, kept, ratio in measured("measure_memory.measured()"):
        rows.append([f"`{name}`, batches of {size}", f"{fresh:.3g}", f"{kept:.3g}", f"{ratio:.2f}"])
    return f"{machine()}.\n\n" + markdown(["", "fresh, ms", "kept, ms", "ratio"], rows)


TABLES: dict[str, Callable[[], str]] = {
    f.__name__: f
    for f in (
        start,
        clipping,
        wrong,
        rates,
        family,
        every,
        primaries,
        numbers,
        windows,
        batches,
        trust,
        layers,
        spikes,
        long,
        speed,
        sweep,
        probing,
        together,
        memory,
    )
}
PLACE = re.compile(r"(<!-- results: (\w+) -->\n).*?(\n<!-- end of results -->)", re.DOTALL)


def places() -> Iterator[tuple[Path, str]]:
    """Every file that holds a table, and the table's name."""
    for path in [HERE.parent / "README.md", *sorted(HERE.glob("*.md"))]:
        for match in PLACE.finditer(path.read_text()):
            yield path, match[2]


def main(arguments: list[str]) -> None:
    """Measure the tables that are named, or all of them."""
    show = "--show" in arguments
    names = [a for a in arguments if a != "--show"] or list(TABLES)
    if unknown := set(names) - set(TABLES):
        sys.exit(f"no table is called {', '.join(unknown)}: choose among {', '.join(TABLES)}")
    torch.set_num_threads(1)  # the network is small, and results do not hang on the number of cores
    for name in names:
        table = TABLES[name]()
        print(f"{name}\n\n{table}\n")
        for path in [] if show else {path for path, held in places() if held == name}:
            text = path.read_text()
            path.write_text(PLACE.sub(lambda m: m[0] if m[2] != name else m[1] + table + m[3], text))  # noqa: B023


if __name__ == "__main__":
    main(sys.argv[1:])
