"""Sweeps: which runs there are, that each is trained once, and that nothing finished is ever lost."""

import csv
import io
import itertools
import json
import math
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from toy import DATA, PLAN, Calm, Toy, command, contents

from hyperstack.errors import InputError, RunError
from hyperstack.sweep import run as running
from hyperstack.sweep.folder import SweepFolder
from hyperstack.sweep.grid import Cell, axes, axis, cells, size
from hyperstack.sweep.planning import MOST, SweepPlan, blocks, runs_that_fit
from hyperstack.sweep.run import sweep
from hyperstack.sweep.table import rows
from hyperstack.training import Trainer

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


def test_blocks_fit_the_memory(monkeypatch):
    assert runs_that_fit(Calm(), DATA, 32) == MOST
    for bytes_there, wanted in ((1, 1), (500_000, range(2, MOST))):
        monkeypatch.setattr("hyperstack.sweep.planning._memory", lambda device, there=bytes_there: there)
        found = runs_that_fit(Calm(), DATA, 32)
        assert found == wanted if isinstance(wanted, int) else found in wanted


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


def test_results_for_people_and_programs(tmp_path):
    results, _, _ = swept(tmp_path / "sweep")
    assert json.loads((tmp_path / "sweep" / "cells" / "00003.json").read_text()) == results[3]
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
    (tmp_path / "sweep" / "cells" / "00002.json").write_text('{"stack": "Adam')
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


@pytest.mark.slow
def test_in_processes(tmp_path):
    one, _, _ = swept(tmp_path / "one")
    two, ended, _ = swept(tmp_path / "two", jobs=2)
    assert len(ended) == 8
    assert [two[i]["test_error"] for i in range(8)] == pytest.approx([one[i]["test_error"] for i in range(8)], abs=0.02)
    gone, ended, _ = swept(tmp_path / "gone", jobs=2, stop=lambda: True)
    assert (gone, ended) == ({}, [])
    assert multiprocessing.active_children() == []


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
                                 (signal.SIGINT, 130, 2)],
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
    _, remarks = process.communicate(timeout=120)
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


@pytest.mark.slow
def test_ranks_share_the_cells(tmp_path):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = start("calm", *MANY, "--out", tmp_path / "sweep", "--json", launcher=torchrun)
    output, remarks = process.communicate(timeout=240)
    assert process.returncode == 0, remarks
    assert "Traceback" not in remarks
    assert len(finished_cells(tmp_path / "sweep")) == len(json.loads(output)) == 12
    assert len((tmp_path / "sweep" / "results.csv").read_text().splitlines()) == 13
    assert sum("  seed " in line for line in remarks.splitlines()) < 12, "the other rank trained nothing"
    process = start("calm", *MANY, "--out", tmp_path / "sweep", launcher=torchrun)
    _, remarks = process.communicate(timeout=240)
    assert process.returncode != 0
    assert "exists already" in remarks


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


COMMANDS = {
    "no grid": ((), "leaves α open"),
    "a grid": (("--grid", "α=1,x"), "x of α is not a number"),
    "two grids": (("--grid", "α=1", "--grid", "α=2"), "α has two grids"),
    "a name": (("--grid", "α=1", "--grid", "β=2"), "no stack has a free name β"),
    "a stack": (("--stack", "Adm(α)", "--grid", "α=1"), "did you mean Adam?"),
    "a value": (("--grid", "α=-1"), "outside"),
    "no seeds": (("--grid", "α=1", "--seeds", 0), "whole number from 1"),
    "many cells": (("--grid", "α=lin(0,1,1000)", "--grid", "β=lin(0,1,1000)", "--stack", "SGD(α) / SGD(β)"), "--yes"),
    "a folder": (("--grid", "α=1", "--out", "done"), "done exists already"),
    "resume of nothing": (("--resume",), "--resume needs the folder"),
    "resume of a foreign folder": (("--resume", "--out", "."), "holds no sweep"),
    "resume of another": (("--resume", "--out", "done", "--grid", "α=1"), "another grid"),
    "more epochs": (("--resume", "--out", "done", "--epochs", 9), "other epochs"),
}


@pytest.mark.parametrize("wrong", COMMANDS)
def test_wrong_input(wrong, finished, monkeypatch):
    monkeypatch.chdir(finished[0].parent)
    before = contents(finished[0].parent)
    code, output, remarks = command("sweep", "calm", *COMMANDS[wrong][0])
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
