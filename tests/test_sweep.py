"""Sweeps: which runs there are, that each is trained once, and that nothing finished is ever lost."""

import csv
import io
import itertools
import json
import math
import multiprocessing
import os
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from toy import BATCH, DATA, EXAMPLES, PLAN, Calm, Toy, command, contents

from hyperstack.errors import InputError, RunError
from hyperstack.sweep import planning
from hyperstack.sweep import run as running
from hyperstack.sweep.block import Block
from hyperstack.sweep.folder import SweepFolder
from hyperstack.sweep.grid import Cell, axes, axis, cells, size
from hyperstack.sweep.planning import MOST, PROCESS, SweepPlan, blocks, bytes_of_a_run, jobs_that_fit, runs_that_fit
from hyperstack.sweep.run import sweep
from hyperstack.sweep.table import rows
from hyperstack.training import Trainer
from hyperstack_cli.interrupt import Interrupt

STACKS = ["Adam(0.01) / SGD(α)", "Adam(0.01) / SGD(α, clip)"]
SWEEP = SweepPlan(
    task="calm", stacks=STACKS, grid={"α": [1e-5, 1e-3]}, seeds=[0, 1], epochs=2, device="cpu", batch_size=32, threads=1
)

# ---- grids


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("α=1e-5,1e-4", "α", [1e-5, 1e-4]),
        ("α = 3", "α", [3.0]),
        ("a=-1,+2,", "a", [-1.0, 2.0]),
        ("α=log(1e-6,1e-1,6)", "α", [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]),
        ("α=log(1e-3,7,1)", "α", [1e-3]),
        ("α=lin(0,1,5),2", "α", [0.0, 0.25, 0.5, 0.75, 1.0, 2.0]),
        ("µ=1", "μ", [1.0]),  # the micro sign is a mu
    ],
)
def test_the_values_of_a_name(text, name, values):
    assert axis(text) == (name, values)


@given(st.floats(1e-12, 1e12), st.floats(1e-12, 1e12), st.integers(2, 50))
def test_series_hold_both_ends_and_equal_ratios(first, last, count):
    assume(abs(math.log(last / first)) > 1e-4 * count)  # values that six digits tell apart
    found = axis(f"x=log({first!r},{last!r},{count})")[1]
    assert (found[0], found[-1]) == (first, last)
    steps = [b / a for a, b in itertools.pairwise(found)]
    assert steps == pytest.approx([(last / first) ** (1 / (len(found) - 1))] * len(steps), rel=1e-5)


WRONG = {
    "α": "is not NAME=VALUES", "=1": "is not NAME=VALUES", "1=2": "is not NAME=VALUES", "α=": "the grid of α is empty",
    "α= ": "is empty", "α=1,1.0": "1.0 twice", "α=1,,2": "cannot read the values", "α=b": "b of α is not a number",
    "α=[1]": "is not a number", "α=1]+[2": "cannot read", "α=True": "not a number", "α=1e999": "not a number",
    "α='1'": "not a number", "α=log(1,2)": "cannot read log(1, 2)", "α=log(0,1,3)": "needs numbers above 0",
    "α=log(1,2,1.5)": "whole number N", "α=lin(1,2,0)": "whole number N", "α=lin(1,2,n=3)": "cannot read",
    "α=exp(1,2,3)": "cannot read exp(1, 2, 3)", "α=lin(0,1,1e9)": "from 1 to 1000000", "α=lin(2,2,3)": "2.0 twice",
    "α=__import__('os').system('touch pwned')": "cannot read", "α=(1": "cannot read", "α=1\0": "cannot read",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_a_grid_that_cannot_be_read(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        axis(text)
    assert WRONG[text] in error.value.what
    assert error.value.instead
    assert not contents(tmp_path)


@given(st.text(max_size=30) | st.from_regex(r"[ab]=[-+0-9e.,()\[\]{} lognit*:@]{0,20}", fullmatch=True))
@settings(max_examples=60)
def test_no_text_makes_anything_but_our_own_error(text):
    try:
        name, values = axis(text)
    except InputError:
        return
    assert name.isidentifier()
    assert values
    assert all(isinstance(v, float) for v in values)


def test_cells_are_every_combination():
    grid = axes(["α=1,2", "β=3,4,5"])
    found = cells(["SGD(β) / SGD(α)", "SGD(α)", "SGD(1.0)"], grid, [0, 7])
    assert size(["SGD(β) / SGD(α)", "SGD(α)", "SGD(1.0)"], grid, 2) == 18
    # SGD(1.0) is there already, as SGD(α) with α = 1
    assert len(found) == len({(c.stack, c.seed) for c in found}) == 16
    assert str(found[0].stack) == "SGD(3.0) / SGD(1.0)"
    assert [c.seed for c in found[:4]] == [0, 7, 0, 7]


@pytest.mark.parametrize(
    ("stacks", "grid", "message"),
    [
        (["SGD(α)"], {}, "leaves α open"),
        (["SGD(α)", "SGD(β)"], {"α": [1.0]}, "leaves β open"),
        (["SGD(alpha)"], {"alpha": [1.0], "beta": [1.0]}, "no stack has a free name beta"),
        (["SGD(α)"], {"α": [1.0, -1.0]}, "outside"),
        (["Adm(α)"], {"α": [1.0]}, "cannot read this stack"),
    ],
)
def test_names_and_stacks_that_do_not_fit(stacks, grid, message):
    with pytest.raises(InputError, match=message):
        cells(stacks, grid, [0])


def test_a_million_cells_are_counted_without_being_made(tmp_path, monkeypatch):
    monkeypatch.setattr("hyperstack.sweep.planning.cells", None)
    monkeypatch.chdir(tmp_path)
    squared = ("--stack", "SGD(α) / SGD(β)", "--grid", "α=lin(0,1,1000)", "--grid", "β=lin(0,1,1000)")
    tracemalloc.start()
    for many in (squared, ("--seeds", 1000, "--grid", "α=lin(0,1,1000)")):
        code, output, remarks = command("sweep", "calm", *many)
        assert (code, output) == (2, "")
        assert "this sweep has 1,000,000 cells" in remarks
        assert "--yes" in remarks
    assert tracemalloc.get_traced_memory()[1] < 5e7  # of a million cells some hundred bytes each would be more
    tracemalloc.stop()
    assert contents(tmp_path) == {}


def test_a_value_that_comes_twice_late_in_a_long_list():
    with pytest.raises(InputError, match=r"0\.5 twice"):
        axis("α=lin(2,3,100000),0.5,0.25,0.5")


# ---- blocks


def test_blocks_hold_one_shape_and_where_they_can_one_seed():
    plan = replace(SWEEP, grid={"α": [10.0**-k for k in range(1, 11)]}, seeds=[0, 1, 2])
    of = plan.cells()
    found = blocks(plan, of, MOST, 2)
    assert sorted(i for block in found for i in block) == list(range(60))
    assert [len(block) for block in found] == [10] * 6
    assert all(len({(of[i].template, of[i].seed) for i in block}) == 1 for block in found)
    assert all(len(block) <= 3 for block in blocks(plan, of, 3))


def test_few_cells_of_many_seeds_are_one_block():
    plan = replace(SWEEP, stacks=STACKS[:1], grid={"α": [0.1]}, seeds=list(range(9)))
    assert blocks(plan, plan.cells(), MOST) == [list(range(9))]
    assert [len(block) for block in blocks(plan, plan.cells(), MOST, 2)] == [4, 5]


def test_what_looks_at_its_own_run_is_alone_and_a_fixed_0_is_of_its_own_shape():
    for alone in ("ALRC(Adam(α))", "auto(Adam, rate=α)"):
        plan = replace(SWEEP, stacks=[alone, "Adam(weight_decay=α)"], grid={"α": [0.0, 0.1, 0.2]}, seeds=[0])
        assert blocks(plan, plan.cells(), MOST) == [[0], [1], [2], [3], [4, 5]]


def of_memory(monkeypatch, there):
    monkeypatch.setattr("hyperstack.sweep.planning._memory", lambda device: there)


def test_blocks_fit_the_memory(monkeypatch):
    assert runs_that_fit(Calm(), DATA, 32) == MOST
    each = bytes_of_a_run(Calm(), DATA, 32)
    for jobs in (1, 3):
        for runs in (1, 2, 7, MOST):
            of_memory(monkeypatch, 4 * jobs * runs * each + 1e-3)
            assert runs_that_fit(Calm(), DATA, 32, jobs) == runs
            of_memory(monkeypatch, 4 * jobs * runs * each - 1)
            assert runs_that_fit(Calm(), DATA, 32, jobs) == max(1, runs - 1)
    of_memory(monkeypatch, 4 * 100 * each)
    assert runs_that_fit(Calm(), DATA, 32) == MOST
    of_memory(monkeypatch, 1)
    assert runs_that_fit(Calm(), DATA, 32) == 1


def test_what_a_run_takes():
    """By hand: the parameters, 16 times; and what autograd keeps of each example, 6 times a batch."""
    parameters = 8 * 16 + 16 + 16 * 3 + 3
    kept = 8 + 16 + 16 + 3 + 3 + 2  # inputs; what tanh gives, for itself and for the next; log-softmax; the target
    for batch in (32, 1000):
        found = bytes_of_a_run(Calm(), DATA, batch)
        assert 16 * 4 * parameters < found
        for_examples = (found - 1 - 16 * 4 * parameters) / 4 / max(6 * min(batch, 300), 128)
        assert for_examples == pytest.approx(kept, abs=4)
    # It is tested on 64 at once.
    assert bytes_of_a_run(Calm(), DATA, 1) == pytest.approx(bytes_of_a_run(Calm(), DATA, 21), rel=0.02)


def test_a_batch_that_is_too_large_is_not_tried(monkeypatch):
    """What a run takes is found on a few examples."""
    seen = []

    class Counting(Calm):
        def losses(self, outputs, targets):
            seen.append(len(outputs))
            return super().losses(outputs, targets)

    large = bytes_of_a_run(Counting(), DATA, 300)
    assert seen == [16]
    assert large > 4 * bytes_of_a_run(Counting(), DATA, 30)


def test_jobs_fit_the_cores_and_the_memory(monkeypatch):
    each = PROCESS + bytes_of_a_run(Calm(), DATA, 32)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    for memory, here, threads, wanted in (
        (1e12, 1, 1, 8), (1e12, 1, 3, 2), (1e12, 1, None, 8), (1e12, 2, 1, 4), (3.5 * each, 1, 1, 3),
        (3.5 * each, 2, 1, 1), (1, 1, 1, 1),
    ):  # fmt: skip
        of_memory(monkeypatch, memory)
        assert jobs_that_fit(replace(SWEEP, threads=threads), Calm(), DATA, here) == wanted
    assert jobs_that_fit(replace(SWEEP, device="cuda"), Calm(), DATA) == 1


@pytest.mark.parametrize(("jobs", "asked", "wanted"), [(1, None, 6), (2, None, 3), (9, None, 3), (1, 5, 5), (2, 5, 5)])
def test_cores_are_shared_out_among_jobs(jobs, asked, wanted, tmp_path, monkeypatch):
    """There are two blocks, and no use for more jobs."""
    given = []

    def trained(work, plans, *_):
        given.append({plan.threads for plan in plans.values()})
        return iter(())

    for name in ("_here", "_in_processes"):
        monkeypatch.setattr(running, name, trained)
    monkeypatch.setattr(running, "THREADS", 6)
    swept(tmp_path / "sweep", replace(SWEEP, threads=asked), jobs=jobs)
    assert given == [{wanted}]


def test_the_memory_of_a_container(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(planning, "LIMITS", [limit, tmp_path / "nothing"])
    whole = planning._memory(torch.device("cpu"))
    assert whole > 1 << 28
    for text, wanted in (("max\n", whole), ("1000000\n", 1_000_000), (str(1 << 62), whole)):
        limit.write_text(text)
        assert planning._memory(torch.device("cpu")) == wanted


def test_test_examples_come_in_batches_that_fit(tmp_path):
    """However many a task allows at once, and to the same error."""
    sizes = []

    class Noting(Calm):
        def error(self, outputs, targets):
            sizes.append(len(outputs))
            return super().error(outputs, targets)

    assert Noting.test_batch_size > len(DATA.test_inputs) == 100
    dict(Block([SWEEP.of_cell(cell) for cell in SWEEP.cells()[:4]], Noting(), DATA).run())
    assert sizes == [64, 36] * 2


# ---- sweeping


def swept(path, plan=SWEEP, task=Calm, **how):
    """Sweep into a folder, new or not; the results and what was said."""
    folder = SweepFolder.existing(path) if path.exists() else SweepFolder.create(path, plan)
    notes, ended = [], []
    with folder.locked():
        results = sweep(
            plan, task(), DATA, folder, notify=notes.append, after_cell=lambda *each: ended.append(each), **how
        )
    return results, ended, notes


class Nothing:
    def record(self, step, loss):
        pass


def alone(cell, plan=SWEEP, task=Calm):
    trainer = Trainer(plan.of_cell(cell), task(), DATA)
    trainer.run(Nothing())
    return trainer.summary()


class Everything:
    def __init__(self):
        self.losses = []

    def record(self, step, loss):
        self.losses.append(loss.item())


def final_loss(cell, plan=SWEEP, task=Calm):
    """The mean loss of the last twentieth of the steps."""
    heard = Everything()
    Trainer(plan.of_cell(cell), task(), DATA).run(heard)
    last = heard.losses[-(len(heard.losses) // 20) :]
    return sum(last) / len(last)


@pytest.mark.slow
def test_every_cell_is_as_it_would_be_alone(tmp_path):
    results, ended, notes = swept(tmp_path / "sweep")
    assert notes == []
    assert [results[i]["together"] for i in range(8)] == [4] * 8
    assert sorted(cell.seed for cell, _ in ended) == [0] * 4 + [1] * 4
    for i, cell in enumerate(SWEEP.cells()):
        wanted = alone(cell)
        assert abs(results[i]["test_error"] - wanted["test_error"]) <= 0.02
        assert results[i]["train_loss"] == pytest.approx(wanted["train_loss"], rel=1e-3)
        assert results[i]["final_loss"] == pytest.approx(final_loss(cell), rel=1e-3)
        for key in ("stack", "seed", "steps", "epochs", "diverged", "finished"):
            assert results[i][key] == wanted[key]


def file_of(path, result):
    """Where a sweep keeps a result."""
    (found,) = (file for file in (path / "cells").iterdir() if json.loads(file.read_text()) == result)
    return found


def test_results_for_people_and_programs(tmp_path):
    results, _, _ = swept(tmp_path / "sweep")
    assert json.loads(file_of(tmp_path / "sweep", results[3]).read_text()) == results[3]
    whole = json.loads((tmp_path / "sweep" / "results.json").read_text())
    assert [row["test_error"] for row in whole] == [results[i]["test_error"] for i in range(8)]
    table = list(csv.DictReader(io.StringIO((tmp_path / "sweep" / "results.csv").read_text())))
    assert [(row["template"], float(row["α"]), int(row["seed"])) for row in table] == [
        (cell.template, cell.values[0][1], cell.seed) for cell in SWEEP.cells()
    ]
    assert [float(row["test_error"]) for row in table] == [results[i]["test_error"] for i in range(8)]
    found = rows(SWEEP.cells(), results)
    assert [row.stack for row in found] == [str(cell.stack) for cell in SWEEP.cells()[::2]]
    errors = [results[i]["test_error"] for i in (2, 3)]
    assert (found[1].mean, found[1].deviation) == (statistics.fmean(errors), statistics.stdev(errors))
    assert (found[1].runs, found[1].diverged) == (2, 0)


def test_a_finished_cell_is_never_run_twice(tmp_path, monkeypatch):
    """Also after an interruption in the middle of a block, and where a result is damaged."""
    stops = iter(range(1000))
    first, ended, _ = swept(tmp_path / "sweep", stop=lambda: next(stops) > 25)  # in the second block of 20 steps
    assert 0 < len(first) < 8
    assert len(first) == len(ended)
    assert len(json.loads((tmp_path / "sweep" / "results.json").read_text())) == len(first)
    before = contents(tmp_path / "sweep" / "cells")
    second, ended, _ = swept(tmp_path / "sweep")
    assert len(second) == 8
    assert len(ended) == 8 - len(first)
    assert before.items() <= contents(tmp_path / "sweep" / "cells").items()
    file_of(tmp_path / "sweep", second[2]).write_text('{"stack": "Adam')
    third, ended, _ = swept(tmp_path / "sweep")
    assert [str(cell.stack) for cell, _ in ended] == ["Adam(0.01) / SGD(0.001)"]
    assert third[2]["test_error"] == pytest.approx(second[2]["test_error"], abs=0.02)
    monkeypatch.setattr(running, "train_cells", None)
    assert swept(tmp_path / "sweep")[0] == third


def test_where_runs_cannot_be_trained_together_they_are_trained_alone(tmp_path):
    plan = replace(SWEEP, task="toy", seeds=[0], stacks=[*STACKS[:1], "ALRC(Adam(α))"])
    results, _, notes = swept(tmp_path / "sweep", plan, Toy)
    assert len(notes) == 1
    assert notes[0].startswith("one run after another: ")
    for i, cell in enumerate(plan.cells()):
        changed = {"seconds": 0, "together": 0, "final_loss": 0}
        assert {**results[i], **changed} == {**alone(cell, plan, Toy), **changed}


def test_convolutions_are_trained_one_after_another_on_a_cpu(tmp_path):
    class Convolving(Calm):
        def model(self):
            layers = [torch.nn.Unflatten(1, (1, 8)), torch.nn.Conv1d(1, 2, 3), torch.nn.Flatten()]
            return torch.nn.Sequential(*layers, torch.nn.Linear(12, 3), torch.nn.LogSoftmax(1))

    plan = replace(SWEEP, seeds=[0], stacks=STACKS[:1])
    results, _, notes = swept(tmp_path / "sweep", plan, Convolving)
    assert notes == ["one run after another: several at once take longer where a CPU convolves"]
    assert [results[i]["together"] for i in range(2)] == [1, 1]
    assert not planning.slow_together(Calm(), DATA)


def test_a_diverged_cell_is_a_result(tmp_path):
    plan = replace(SWEEP, stacks=["SGD(α) / SGD(α)"], grid={"α": [0.01, 1e38]})
    results, _, _ = swept(tmp_path / "sweep", plan)
    assert [results[i]["diverged"] for i in range(4)] == [False, False, True, True]
    assert [row.diverged for row in rows(plan.cells(), results)] == [0, 2]
    assert "NaN" not in (tmp_path / "sweep" / "results.json").read_text()


def test_two_sweeps_on_one_folder(tmp_path):
    folder = SweepFolder.create(tmp_path / "sweep", SWEEP)
    with folder.locked(), pytest.raises(InputError, match="another sweep is at work"), folder.locked():
        pass
    with folder.locked():
        pass


@pytest.mark.slow
def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    swept_before, _, _ = swept(tmp_path / "sweep", stop=iter([*[False] * 25, *[True] * 99]).__next__)
    before = contents(tmp_path / "sweep")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(RunError, match="No space left on device") as error:
            swept(tmp_path / "sweep")
    assert "no finished cell is lost" in error.value.instead
    assert contents(tmp_path / "sweep") == before
    results, ended, _ = swept(tmp_path / "sweep")
    assert len(ended) == 8 - len(swept_before)
    assert len(results) == 8


SMALL_DISK = """
mkdir disk && mount -t tmpfs -o size=40k none disk || exit 77
"$@" --out disk/sweep
code=$?
cp -r disk/sweep kept
exit $code
"""


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_disk_that_is_full_in_mid_sweep(jobs, tmp_path):
    """A real one, of ten blocks; and then a larger one."""
    if not shutil.which("unshare"):
        pytest.skip("needs a Linux that lets users mount")
    asked = [sys.executable, Path(__file__).with_name("toy.py"), "sweep", "toy", *MANY, "--jobs", str(jobs)]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", SMALL_DISK, "sh", *asked], cwd=tmp_path, text=True, capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    if not (tmp_path / "kept").exists():
        pytest.skip(f"no disk of its own to be had: {done.stderr.strip()}")
    assert done.returncode == 1, done.stderr
    assert "No space left on device" in done.stderr
    assert "no finished cell is lost" in done.stderr
    assert "hyperstack sweep toy --out disk/sweep --resume" in done.stderr
    assert "Traceback" not in done.stderr
    said = sum("  seed " in line for line in done.stderr.splitlines())
    before = finished_cells(tmp_path / "kept")
    assert 1 < said == len(before) < 12
    code, output, remarks = command("sweep", "toy", "--out", tmp_path / "kept", "--resume", "--jobs", 1, "--json")
    assert (code, len(json.loads(output))) == (0, 12), remarks
    assert f"12 cells, {said} of them done" in remarks
    assert before.items() <= finished_cells(tmp_path / "kept").items()
    assert not list((tmp_path / "kept").rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(("answer", "code"), [("n", 130), ("y", 0)])
def test_on_a_terminal_it_asks_before_many_cells(answer, code, tmp_path):
    import pty

    mine, theirs = pty.openpty()
    program = "import sys, hyperstack_cli.verbs.sweep as s; s.MANY = 3; import toy; toy.TASKS.update(calm=toy.Calm); "
    program += "from hyperstack_cli.main import main; main()"
    arguments = ["sweep", "calm", "--grid", "α=1e-5,1e-4,1e-3,1e-2", "--epochs", "1", "--jobs", "1", "--out", "out"]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], cwd=tmp_path, stdin=theirs, stderr=theirs, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )  # fmt: skip
    shown = b""
    while b"?" not in shown:
        shown += os.read(mine, 1000)
    assert b"This sweep has 4 cells. Train them all?" in shown
    assert not (tmp_path / "out").exists()
    os.write(mine, f"{answer}\n".encode())
    process.communicate(timeout=120)
    assert process.returncode == code
    assert len(finished_cells(tmp_path / "out")) == (4 if answer == "y" else 0)


@pytest.mark.slow
def test_in_processes(tmp_path):
    one, _, _ = swept(tmp_path / "one")
    two, ended, _ = swept(tmp_path / "two", jobs=2)
    assert len(ended) == 8
    assert [two[i]["test_error"] for i in range(8)] == pytest.approx([one[i]["test_error"] for i in range(8)], abs=0.02)
    gone, ended, _ = swept(tmp_path / "gone", jobs=2, stop=lambda: True)
    assert (gone, ended) == ({}, [])
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_each_cell_is_written_as_it_ends(tmp_path, monkeypatch):
    """Also where another process trains a block of them one after another."""
    monkeypatch.setenv("TOY_DELAY", "0.01")  # at each of 20 steps and a test: 0.2 s a cell
    plan = replace(SWEEP, task="toy", grid={"α": [1e-5, 1e-4, 1e-3, 1e-2]}, stacks=STACKS[:1])
    times = {0: [], 1: []}
    folder = SweepFolder.create(tmp_path / "sweep", plan)

    def after_cell(cell, result):
        times[cell.seed].append(time.monotonic())
        assert sum(map(len, times.values())) == len(list(folder.path.glob("cells/*.json")))

    sweep(plan, Toy(), DATA, folder, jobs=2, after_cell=after_cell)
    for own in times.values():
        assert len(own) == 4
        assert max(own) - min(own) > 0.4


@pytest.mark.slow
def test_a_lost_process_loses_no_finished_cell(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_DELAY", "0.01")
    plan = replace(SWEEP, task="toy")
    folder = SweepFolder.create(tmp_path / "sweep", plan)

    def after_cell(cell, result):
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(RunError, match="ended from outside"):
        sweep(plan, Toy(), DATA, folder, jobs=2, after_cell=after_cell)
    kept = finished_cells(folder.path)
    assert 1 <= len(kept) <= 4
    monkeypatch.delenv("TOY_DELAY")
    results, ended, _ = swept(folder.path, plan, Toy)
    assert (len(results), len(ended)) == (8, 8 - len(kept))
    assert kept.items() <= finished_cells(folder.path).items()


# ---- processes

MANY = ("--grid", "α=log(1e-6,1e-1,6)", "--seeds", "2", "--epochs", "2")


def start(*arguments, launcher=(), **environment):
    """`hyperstack sweep ...` as a process, with the tests' tasks."""
    program = [sys.executable, *launcher, str(Path(__file__).with_name("toy.py")), "sweep"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        [*program, *map(str, arguments)], env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def until(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def finished_cells(path):
    return {p.name: p.read_bytes() for p in (path / "cells").glob("*.json")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "code", "jobs"), [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 1), (signal.SIGKILL, -9, 1),
                                 (signal.SIGINT, 130, 2), (signal.SIGKILL, -9, 2)],
)  # fmt: skip
def test_ended_from_outside(signum, code, jobs, tmp_path):
    """Finished cells are there, a second sweep is refused meanwhile, and the next one trains the others alone."""
    path = tmp_path / "sweep"
    seeds = 2 * jobs  # a job has a block for each seed: when the first ends, there is another to begin with
    total = 6 * seeds
    process = start("toy", *MANY, "--seeds", seeds, "--out", path, "--jobs", jobs, TOY_DELAY="0.03")
    until(lambda: len(finished_cells(path)) > 1, process)
    refused = command("sweep", "toy", "--out", path, "--resume")
    assert (refused[0], "another sweep is at work" in refused[2]) == (2, True)
    process.send_signal(signum)
    process.wait(timeout=120)
    _, remarks = process.communicate(timeout=120)  # to the end: no job of it goes on alone
    assert process.returncode == code, remarks
    assert "Traceback" not in remarks
    before = finished_cells(path)
    assert 1 < len(before) < total
    if signum != signal.SIGKILL:
        assert f"--out {path} --resume" in remarks
        assert len(json.loads((path / "results.json").read_text())) == len(before)
    code, _, remarks = command("sweep", "toy", "--out", path, "--resume", "--jobs", 1, columns=100)
    assert code == 0, remarks
    assert sum("  seed " in line for line in remarks.splitlines()) == total - len(before)
    assert before.items() <= finished_cells(path).items()
    assert len(finished_cells(path)) == total


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.mark.slow
def test_ranks_share_the_cells(tmp_path):
    process = start("calm", *MANY, "--out", tmp_path / "sweep", "--json", launcher=TORCHRUN)
    output, remarks = process.communicate(timeout=240)
    assert process.returncode == 0, remarks
    assert "Traceback" not in remarks
    assert len(finished_cells(tmp_path / "sweep")) == len(json.loads(output)) == 12
    assert len((tmp_path / "sweep" / "results.csv").read_text().splitlines()) == 13
    assert sum("  seed " in line for line in remarks.splitlines()) < 12, "the other rank trained nothing"
    process = start("calm", *MANY, "--out", tmp_path / "sweep", launcher=TORCHRUN)
    _, remarks = process.communicate(timeout=240)
    assert process.returncode != 0
    assert "exists already" in remarks


def processes_of(parent):
    """The processes that another one has started."""
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def rank_of(pid):
    """Which rank a process is, None for none."""
    found = dict(each.partition("=")[::2] for each in Path(f"/proc/{pid}/environ").read_text().split("\0"))
    return int(found["RANK"]) if "RANK" in found else None


def lost(path, remarks):
    """What is said of a rank that is lost."""
    assert "another rank of this sweep is lost" in remarks
    assert "no finished cell is lost" in remarks
    assert f"hyperstack sweep toy --out {path} --resume" in remarks
    assert "hyperstack_cli/main.py" not in remarks, "a rank ends with a traceback; that of torchrun is its own"


def resumed(path, before, launcher, total=12):
    """Go on with a sweep: what is missing is trained, and nothing else."""
    process = start("toy", "--out", path, "--resume", "--jobs", 1, "--json", launcher=launcher)
    output, remarks = process.communicate(timeout=240)
    assert process.returncode == 0, remarks
    assert f"{total} cells, {len(before)} of them done" in remarks
    assert len(json.loads(output)) == total
    assert before.items() <= finished_cells(path).items()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="which process is which rank is seen in /proc")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_the_others_and_costs_no_finished_cell(victim, tmp_path):
    path = tmp_path / "sweep"
    process = start("toy", *MANY, "--out", path, "--jobs", 1, launcher=TORCHRUN, TOY_DELAY="0.03")
    until(lambda: len(finished_cells(path)) > 2, process)
    (pid,) = (pid for pid in processes_of(process.pid) if rank_of(pid) == victim)
    os.kill(pid, signal.SIGKILL)
    _, remarks = process.communicate(timeout=60)
    assert process.returncode != 0
    lost(path, remarks)
    before = finished_cells(path)
    assert 2 < len(before) < 12
    resumed(path, before, TORCHRUN if victim else ())


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_ranks_on_other_machines_do_their_part_before_they_miss_one(victim, tmp_path):
    """Where no torchrun of the same machine ends them."""
    path = tmp_path / "sweep"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "TOY_DELAY": "0.03"}
    ranks = [start("toy", *MANY, "--out", path, "--jobs", 1, RANK=str(rank), **common) for rank in (0, 1)]
    until(lambda: len(finished_cells(path)) > 2, ranks[0])
    ranks[victim].kill()
    _, remarks = ranks[1 - victim].communicate(timeout=120)
    assert ranks[1 - victim].returncode == 1
    lost(path, remarks)
    ranks[victim].communicate(timeout=60)
    before = finished_cells(path)
    folder = SweepFolder(path)
    assert set(range(1 - victim, 12, 2)) <= folder.results(folder.read_plan(), folder.read_plan().cells()).keys()
    assert len(before) < 12
    if victim:
        assert len(json.loads((path / "results.json").read_text())) == len(before)
    resumed(path, before, ())


# ---- the command line


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep of two cells, and what it said."""
    path = tmp_path_factory.mktemp("sweep") / "done"
    found = command("sweep", "calm", "--grid", "α=1e-5,1e-3", "--epochs", 1, "--out", path, columns=120)
    assert found[0] == 0, found[2]
    return path, *found[1:]


def test_the_screen(finished):
    path, output, remarks = finished
    lines = output.splitlines()
    assert lines[0].split() == ["stack", "test", "error", "±", "s.d.", "seeds", "diverged"]
    assert lines[1].startswith("Adam / SGD(1e-05) ")
    assert lines[-1] == f"results    {path / 'results.csv'}"
    assert remarks.splitlines()[0] == "calm · 2 cells"
    assert remarks.splitlines()[2].startswith("2/2  Adam / SGD(0.001)  seed 0  test error ")


def test_resumed_there_is_nothing_left_to_do(finished):
    before = contents(finished[0])
    code, output, remarks = command("sweep", "calm", "--out", finished[0], "--resume", "--json", "--quiet")
    assert (code, remarks) == (0, "")
    assert [row["seed"] for row in json.loads(output)] == [0, 0]
    assert contents(finished[0]) == before


def test_a_sweep_may_grow(tmp_path):
    path, whole = (
        tmp_path / "grown",
        ("--grid", "α=1e-5,1e-4,1e-3", "--seeds", 2, "--stack", "Adam / SGD(α)", "--jobs", 1),
    )
    assert command("sweep", "calm", "--grid", "α=1e-5,1e-3", "--epochs", 1, "--jobs", 1, "--out", path)[0] == 0
    before = finished_cells(path)
    both = (*whole, "--stack", "SGD(0.1)", "--resume", "--out", path, "--json")
    code, output, remarks = command("sweep", "calm", *both)
    assert code == 0, remarks
    assert "8 cells, 2 of them done" in remarks
    assert before.items() <= finished_cells(path).items()
    rows = json.loads(output)
    assert [(row["stack"], row["seed"]) for row in rows] == [
        *((f"Adam / SGD({α})", seed) for α in ("1e-05", "0.0001", "0.001") for seed in (0, 1)),
        *(("SGD(0.1)", seed) for seed in (0, 1)),
    ]
    assert command("sweep", "calm", *both, "--quiet") == (0, output, "")
    code, _, remarks = command("sweep", "calm", *whole, "--resume", "--out", path)
    assert (code, "other stacks" in remarks, "name all of these and more" in remarks) == (2, True, True)


def test_interrupted_before_a_cell_has_ended(elsewhere, monkeypatch, tmp_path):
    """It shows no empty table, and how to go on as it was begun."""
    monkeypatch.setattr(Interrupt, "__call__", lambda self: True)
    began = ("sweep", "calm", "--grid", "α=1e-5,1e-3", "--out", "out", "--jobs", 1, "--png", "a picture.png")
    code, output, remarks = command(*began)
    assert (code, output) == (130, "")
    assert remarks.splitlines()[-2:] == [
        "interrupted, before a cell had ended; to go on:",
        "  hyperstack sweep calm --out out --resume --jobs 1 --png 'a picture.png'",
    ]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert command(*shlex.split(remarks.splitlines()[-1])[1:])[0] == 0
    assert (tmp_path / "a picture.png").exists()


@pytest.mark.parametrize("task", ["calm", "toy"])  # together, and one after another
def test_how_far_it_is(task, monkeypatch, tmp_path):
    monkeypatch.setattr(running, "SAID", 0.0)
    _, _, remarks = command("sweep", task, "--grid", "α=1e-5,1e-3", "--epochs", 1, "--out", tmp_path / "a", "--jobs", 1)
    steps = -(-EXAMPLES // BATCH)
    more = " and 1 more" if task == "calm" else ""
    wanted = [f"step {i} of {steps}: Adam / SGD(1e-05), seed 0{more}" for i in range(steps)]
    said = [line for line in remarks.splitlines() if line.startswith("step") and "1e-05" in line]
    assert [line for line in said if line.endswith(f"seed 0{more}")] == wanted


def test_json_has_what_the_file_has(finished):
    _, output, _ = command("sweep", "calm", "--out", finished[0], "--resume", "--json", "--quiet")
    assert output == (finished[0] / "results.json").read_text()
    assert [row["α"] for row in json.loads(output)] == [1e-5, 1e-3]


COMMANDS = {
    "no grid": ((), "leaves α open"),
    "a grid": (("--grid", "α=1,x"), "x of α is not a number"),
    "two grids": (("--grid", "α=1", "--grid", "α=2"), "α has two grids"),
    "a name": (("--grid", "α=1", "--grid", "β=2"), "no stack has a free name β"),
    "a stack": (("--stack", "Adm(α)", "--grid", "α=1"), "did you mean Adam?"),
    "a value": (("--grid", "α=-1"), "α = -1 does not fit into Adam / SGD(α)\nSGD's lr: -1.0 is outside"),
    "not a PNG": (("--grid", "α=1", "--png", "a.jpg"), "write --png a.png"),
    "no seeds": (("--grid", "α=1", "--seeds", 0), "whole number from 1"),
    "many cells": (("--grid", "α=lin(0,1,1000)", "--grid", "β=lin(0,1,1000)", "--stack", "SGD(α) / SGD(β)"), "--yes"),
    "no values": (("--grid", "α="), "the grid of α is empty"),
    "no data": (("--grid", "α=1", "--data-dir", "nowhere"), "there is no data folder nowhere"),
    "a folder": (("--grid", "α=1", "--out", "done"), "done exists already"),
    "resume of nothing": (("--resume",), "--resume needs the folder"),
    "resume of a foreign folder": (("--resume", "--out", "."), "holds no sweep"),
    "resume of another": (
        ("--resume", "--out", "done", "--grid", "α=1"),
        "  the sweep: --grid α=1e-05,0.001\n  asked:     --grid α=1.0\n",
    ),
    "resume of another task": (("--resume", "--out", "done"), "name that task"),
    "resume of less": (("--resume", "--out", "done", "--grid", "α=1e-3"), "name all of these and more"),
    "more epochs": (("--resume", "--out", "done", "--epochs", 9), "other epochs"),
}


@pytest.mark.parametrize("wrong", COMMANDS)
def test_wrong_input(wrong, finished, monkeypatch):
    monkeypatch.chdir(finished[0].parent)
    before = contents(finished[0].parent)
    task = "toy" if "another task" in wrong else "calm"
    code, output, remarks = command("sweep", task, *COMMANDS[wrong][0])
    assert (code, output) == (2, "")
    assert COMMANDS[wrong][1] in remarks
    assert "Traceback" not in remarks
    assert contents(finished[0].parent) == before


def test_a_damaged_plan(tmp_path):
    for text in ("", "{", "[]", '{"task": "calm"}', "[" * 100_000):
        (tmp_path / "sweep.json").write_text(text)
        code, _, remarks = command("sweep", "calm", "--out", tmp_path, "--resume")
        assert (code, "is damaged" in remarks, "Traceback" in remarks) == (2, True, False)


def test_a_plan_survives_being_written(tmp_path):
    assert SweepFolder.create(tmp_path / "sweep", SWEEP).read_plan() == SWEEP
    assert SWEEP.of_cell(Cell("SGD(α)", (("α", 0.1),), 3)) == replace(
        PLAN, task="calm", stack="SGD(0.1)", seed=3, epochs=2, threads=1
    )
