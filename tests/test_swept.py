"""What a sweep shows: its table, its pictures, and published figures beside them."""

import json
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_reproduce import TINY, changed
from toy import command, contents

from hyperstack.errors import InputError
from hyperstack.experiments import experiment as experiments
from hyperstack.experiments.beside import beside
from hyperstack.experiments.experiment import load, read
from hyperstack.reports import figure, terminal
from hyperstack.reports.against import against, curve, logarithmic
from hyperstack.sweep.folder import SweepFolder
from hyperstack.sweep.planning import SweepPlan
from hyperstack.sweep.table import axis_name, rows
from hyperstack_cli.swept import panel

PLAN = SweepPlan(
    task="mnist", stacks=["Adam(v0=1e-08)", "Adam(v0=1e-08) / SGD(α, clip)"], grid={"α": [1e-3, 1e-5, 1.0]},
    seeds=[0, 1], epochs=5, device="cpu", batch_size=256, threads=1,
)  # fmt: skip


def results(plan, error, diverged=lambda cell: False):
    """As if all cells had ended, with these errors."""
    return {i: {"test_error": error(cell), "diverged": diverged(cell)} for i, cell in enumerate(plan.cells())}


def drawn(plan, found, published=()):
    shown = panel(plan, rows(plan.cells(), found), published)
    return shown, {line.label: line for line in shown.lines}


def test_error_is_drawn_against_the_values():
    def error(cell):
        return 0.02 + 0.01 * cell.seed + dict(cell.values).get("α", 0.5) / 10

    shown, lines = drawn(PLAN, results(PLAN, error), beside(load("clip-table-2"), PLAN, PLAN.stacks))
    assert (shown.title, shown.unit, shown.across, shown.log_across) == ("mnist", "test error, %", "α", True)
    alone, clipped = PLAN.stacks
    assert list(lines) == [alone, f"{alone}, published", clipped, f"{clipped}, published"]
    assert [line.place for line in shown.lines] == [0, 1, 2, 3]
    assert lines[clipped].steps.tolist() == [1e-5, 1e-3, 1.0]
    assert lines[clipped].values == pytest.approx([2.5001, 2.51, 12.5])
    wide = statistics.stdev([2.0, 3.0])
    assert lines[clipped].least == pytest.approx([2.5001 - wide, 2.51 - wide, 12.5 - wide])
    assert lines[clipped].largest == pytest.approx([2.5001 + wide, 2.51 + wide, 12.5 + wide])
    # What is not varied is level from end to end.
    assert lines[alone].steps.tolist() == [1e-5, 1.0]
    assert lines[alone].values == pytest.approx([7.5, 7.5])
    assert lines[f"{alone}, published"].values.tolist() == [4.63, 4.63]
    # The published curve is whole, also where the sweep has other values.
    published = lines[f"{clipped}, published"]
    assert published.steps.tolist() == [1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2, 5e-2, 1e-1, 5e-1]
    assert published.values == pytest.approx([3.23, 3.21, 3.06, 3.20, 3.35, 16.6, 23.2, 84.27, 86.44, 82.36])
    assert published.least is None


def test_a_curve_for_each_choice_of_the_other_values():
    plan = replace(PLAN, stacks=["Adam(β) / SGD(α)", "SGD(β)"], grid={"β": [0.1, 0.2], "α": [1.0, 2.0, 3.0]})
    assert axis_name(plan.grid) == "α"
    shown, lines = drawn(plan, results(plan, lambda cell: dict(cell.values)["β"] / 10))
    assert list(lines) == ["Adam(0.1) / SGD(α)", "Adam(0.2) / SGD(α)", "SGD(0.1)", "SGD(0.2)"]
    assert [line.values.tolist() for line in shown.lines] == [[1.0] * 3, [2.0] * 3, [1.0] * 2, [2.0] * 2]
    assert not shown.log_across
    assert axis_name({}) is None
    assert axis_name({"a": [1.0], "b": [1.0]}) == "a"


def test_a_single_seed_has_no_band_and_bands_stay_among_the_possible():
    plan = replace(PLAN, seeds=[0])
    _, lines = drawn(plan, results(plan, lambda cell: 0.5))
    assert lines[plan.stacks[1]].least.tolist() == lines[plan.stacks[1]].largest.tolist() == [50.0] * 3
    _, lines = drawn(PLAN, results(PLAN, lambda cell: float(cell.seed)))
    assert (lines[PLAN.stacks[1]].least.tolist(), lines[PLAN.stacks[1]].largest.tolist()) == ([0.0] * 3, [100.0] * 3)


def test_runs_that_diverged_are_marked():
    wild = results(PLAN, lambda cell: 0.9, lambda cell: dict(cell.values).get("α") == 1.0 and cell.seed == 1)
    shown, lines = drawn(PLAN, wild)
    assert shown.unit == "test error, %, X: runs diverged"
    assert lines[PLAN.stacks[0]].marked is None
    assert lines[PLAN.stacks[1]].marked.tolist() == [False, False, True]
    tame, _ = drawn(PLAN, results(PLAN, lambda cell: 0.9))
    assert tame.unit == "test error, %"
    pictures = [figure.svg([each]) for each in (tame, shown)]
    assert pictures[1].count("<use") == pictures[0].count("<use") + 1
    for each, crosses in ((tame, 0), (shown, 1)):
        assert sum(line.count("X") for line in terminal.plot(each, 80, 18, False).splitlines()[1:-5]) == crosses
    one = against("α", "alone", "%", [curve("a", [1, 2, 3], [1, 2, 3], diverged=[0, 2, 1])])
    assert sum(line.count("X") for line in terminal.plot(one, 80, 18, True).splitlines()[1:]) == 2


@given(st.floats(1e-6, 1e3), st.floats(1.5, 50), st.integers(3, 20))
def test_a_grid_of_equal_ratios_has_a_logarithmic_axis(first, ratio, count):
    assert logarithmic(first * ratio ** np.arange(count))
    assert not logarithmic(first + ratio * np.arange(count))


def test_short_grids():
    assert [logarithmic(np.array(values)) for values in ([], [1.0], [1.0, 2.0], [1.0, 100.0], [0.0, 1.0, 100.0])] == [
        False, False, False, True, False,
    ]  # fmt: skip


# ---- published figures


def test_published_errors_of_a_stack():
    found = beside(load("clip-table-2"), PLAN, PLAN.stacks)
    assert [each.stack for each in found] == PLAN.stacks
    assert found[0].errors == {None: 0.0463}
    assert found[0].bound() == {"Adam(v0=1e-08)": 0.0463}
    assert found[1].bound()["Adam(v0=1e-08) / SGD(0.005, clip)"] == pytest.approx(0.166)
    assert found[1].part.epochs == 5


def test_accuracies_become_errors_and_the_batch_size_chooses():
    stacks = ["LAMB(0.01, eps_inside)"]
    raw = {part.batch_size: part.series[1].published for part in load("lambc-table-1").parts}
    for batch_size, wanted in ((2000, raw[2000]), (3000, raw[3000]), (7, raw[1000])):
        plan = replace(PLAN, task="cifar10-resnet18", batch_size=batch_size, stacks=stacks, grid={})
        (found,) = beside(load("lambc-table-1"), plan, stacks)
        assert found.errors[None] == pytest.approx((100 - wanted[0]) / 100)


# ---- the command

SWEEP = ("sweep", "calm", "--stack", "Adam(0.01)", "--stack", "Adam(0.01) / SGD(α)", "--grid", "α=1e-3,1e-5,1e-1")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Published figures for the toy, in an empty folder."""
    texts = {"tiny": json.dumps(TINY)}
    known = experiments.load
    monkeypatch.setattr(experiments, "load", lambda n: read(texts[n], n) if n in texts else known(n))
    monkeypatch.chdir(tmp_path)
    return texts


@pytest.mark.slow
def test_shown_once_and_shown_again(tiny, tmp_path, monkeypatch):
    pictured = ("--published", "tiny", "--plot", "--png")
    code, output, remarks = command(*SWEEP, "--seeds", 2, "--jobs", 1, "--out", "a", *pictured, "a.png", columns=110)
    assert code == 0, remarks
    lines = output.splitlines()
    assert lines[0].split() == ["stack", "test", "error", "±", "s.d.", "published", "seeds", "diverged"]
    table = {line.split("  ")[0]: line for line in lines[1:5]}
    assert "99.00 %" in table["Adam(0.01)"]
    assert "50.00 %" in table["Adam(0.01) / SGD(1e-05)"]
    assert table["Adam(0.01) / SGD(0.001)"].split()[-2:] == ["-", "2"], "nothing is published for it"
    assert "published  tiny, 2 epochs, batches of 32; this sweep: 2 epochs, batches of 32" in lines
    assert "calm: test error, %, by α" in lines
    assert lines[-4:] == [
        "  * Adam(0.01)", "  o Adam(0.01), published", "  + Adam(0.01) / SGD(α)", "  x Adam(0.01) / SGD(α), published"
    ]  # fmt: skip
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr("hyperstack.sweep.run.train_cells", None)
    again = command("sweep", "calm", "--out", "a", "--resume", *pictured, "b.png", columns=110)
    assert (again[0], again[1]) == (0, output), again[2]
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()
    code, output, remarks = command("sweep", "calm", "--out", "a", "--resume", "--json", "--quiet", *pictured[:2])
    assert (code, remarks) == (0, "")
    said = {row["stack"]: row["published"] for row in json.loads(output)}
    assert said["Adam(0.01)"] == 0.99
    assert said["Adam(0.01) / SGD(0.001)"] is None


def test_what_was_interrupted_is_not_drawn(tiny, tmp_path, monkeypatch):
    class Ended:
        exit_code = 130
        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *what: None  # noqa: E731
        __call__ = lambda self: True  # noqa: E731

    monkeypatch.setattr("hyperstack_cli.verbs.sweep.Interrupt", Ended)
    code, output, remarks = command(*SWEEP, "--jobs", 1, "--out", "a", "--plot", "--png", "a.png")
    assert code == 130
    assert "by α" not in output
    assert not (tmp_path / "a.png").exists()
    assert "--out a --resume" in remarks


WRONG = {
    "an unknown experiment": (("--published", "tiiny"), "there is no experiment 'tiiny'"),
    "of another task": (("--published", "clip-table-2"), "clip-table-2 has no curve for calm"),
    "of other stacks": (("--published", "tiny", "--stack", "SGD(α)"), "tiny has no curve for these stacks"),
    "of another name": (("--published", "tiny", "--stack", "Adam(0.01) / SGD(β)", "--grid", "β=1,2"), "no curve for"),
    "a picture": (("--png", "there"), "there exists already"),
    "a folder": (("--png", "nowhere/a.png"), "there is no folder nowhere"),
    "plot and json": (("--plot", "--json"), "both write to standard output"),
    "nothing varied": (("--plot", "--stack", "Adam"), "nothing to draw"),
    "too many curves": (("--plot", "--stack", "SGD(β) / SGD(α)", "--grid", "β=lin(1,2,40)", "--grid",
                         "α=lin(1,2,41)", "--yes"), "this sweep has 40 curves"),
}  # fmt: skip


@pytest.mark.sampled(5)
@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_shown_is_refused_before_anything_is_trained(wrong, tiny, tmp_path):
    (tmp_path / "there").write_text("mine")
    before = contents(tmp_path)
    arguments, message = WRONG[wrong]
    own = () if "--stack" in arguments else ("--stack", "Adam(0.01) / SGD(α)")
    grid = () if wrong == "nothing varied" or "--grid" in arguments else ("--grid", "α=1e-3,1e-5")
    code, output, remarks = command("sweep", "calm", *own, *grid, *arguments)
    assert (code, output) == (2, ""), remarks
    assert message in remarks
    assert "Traceback" not in remarks
    assert contents(tmp_path) == before
    if wrong == "of other stacks":
        assert '--stack "Adam(0.01) / SGD(α, clip)"' in remarks


def test_an_experiment_of_losses_is_refused(tiny):
    tiny["tiny"] = changed(("measure",), "training loss")
    code, _, remarks = command(*SWEEP, "--published", "tiny")
    assert (code, "tiny gives training losses" in remarks) == (2, True)


@pytest.mark.parametrize(("package", "option"), [("uniplot", ("--plot",)), ("matplotlib", ("--png", "a.png"))])
def test_what_draws_is_not_installed(package, option, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, remarks = command(*SWEEP, *option)
    assert (code, f"there is no {package}" in remarks, contents(tmp_path)) == (2, True, {})


def test_the_mean_of_no_number():
    """An error that is none, of a task of one's own, is a gap."""
    _, lines = drawn(PLAN, results(PLAN, lambda cell: math.nan if cell.values else 0.5))
    assert np.isnan(lines[PLAN.stacks[1]].values).all()


# ---- reproduce


def test_two_reproductions_in_one_folder(tiny, tmp_path):
    assert command("reproduce", "tiny", "--out", "a", "--jobs", 1, "--scale", 0.1)[0] == 0
    before = contents(tmp_path)
    with SweepFolder(tmp_path / "a").locked():
        code, _, remarks = command("reproduce", "tiny", "--out", "a", "--resume")
    assert (code, "another sweep is at work in a" in remarks, contents(tmp_path)) == (2, True, before)


@pytest.mark.parametrize("content", [b"\xff\xfe\xff", b"\x80", b'{"name": "tiny"', b"", b"null", "\ud800"])
def test_a_file_that_is_no_text(content):
    with pytest.raises(InputError, match="the experiment tiny is damaged"):
        read(content, "tiny")


def test_a_comparison_has_no_published_figures(tmp_path):
    arguments = ("--stack", "Adam(λ)", "--grid", "λ=0.01,0.1", "--epochs", "1", "--out", tmp_path / "sweep")
    code, _, message = command("sweep", "mnist", *arguments, "--published", "rivals")
    assert code == 2
    assert "rivals compares optimizers, and has no published figures" in message
    assert not (tmp_path / "sweep").exists()
