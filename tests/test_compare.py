"""Runs side by side: groups, means, what differs, and the screen."""

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import command, contents, ok

from hyperstack.reports.curves import Curves
from hyperstack.reports.groups import best, difference, grouped, letter
from hyperstack.reports.marks import TOKEN, marked
from hyperstack.reports.run import load_run
from hyperstack.reports.spread import Spread
from hyperstack.reports.statistics import statistics
from hyperstack.telemetry.jsonl import JsonLines
from hyperstack.telemetry.record import Record
from hyperstack.telemetry.runfolder import RunFolder

pytestmark = pytest.mark.usefixtures("elsewhere")

TOY = Path(__file__).parent / "toy.py"
CLIPPED, PLAIN = "Adam(0.01) / SGD(0.001, clip)", "SGD(0.1) / SGD(0.01)"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of five runs: three seeds of one stack, two of another."""
    folder = tmp_path_factory.mktemp("compare")
    for stack, name, seeds in ((CLIPPED, "adam", (0, 1, 2)), (PLAIN, "sgd", (0, 1))):
        for seed in seeds:
            path = folder / f"{name}-{seed}"
            ok("train", "toy", "--quiet", "--epochs", 1, "--stack", stack, "--seed", seed, "--out", path)
    return folder


@pytest.fixture
def runs(tmp_path, trained):
    """A copy of these, in the current folder."""
    return shutil.copytree(trained, tmp_path / "runs")


def made(path, *, key="0.lr", rows=(), **given):
    """A run that was never trained: rows of step, loss, value, grad, clip; plan and summary as given."""
    plan = {"task": "toy", "stack": "Adam", "epochs": 1, "seed": 0, "device": "cpu", "batch_size": 1}
    summary = {"epochs": 1, "steps": 3, "seconds": 1.5, "train_loss": 1.0, "test_error": 0.5}
    ending = {"diverged": False, "finished": True}
    folder = RunFolder.create(path)
    sink = JsonLines(folder.record)
    sink.open(["step", "loss", *(f"{key}.{what}" for what in ("value", "grad", "clip"))])
    sink.write(np.array(rows, np.float64).reshape(-1, 5))
    sink.close()
    folder.begin(plan | {name: x for name, x in given.items() if name in plan})
    if given.get("ended", True):
        folder.write_summary({**plan, **summary, **ending} | {n: x for n, x in given.items() if n != "ended"})
    return path


def all_of(folder):
    return [load_run(path) for path in sorted(folder.iterdir())]


# ---- figures


finite = st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-100)  # whose squares numpy can tell from 0


@given(st.lists(finite | st.sampled_from([None, math.nan, math.inf, -math.inf])))
def test_spread_is_mean_and_sample_standard_deviation(numbers):
    known = np.array([x for x in numbers if x is not None and np.isfinite(x)])
    found = Spread.of(numbers)
    assert found.n == len(known)
    assert (found.mean is None) == (len(known) == 0)
    assert (found.std is None) == (len(known) < 2)
    if len(known):
        np.testing.assert_allclose(found.mean, known.mean(), rtol=1e-12, atol=1e-12 * np.abs(known).max())
    if len(known) > 1:
        np.testing.assert_allclose(found.std, known.std(ddof=1), rtol=1e-9, atol=1e-12 * np.abs(known).max())
        assert found.error == found.std / math.sqrt(len(known))


def test_the_spread_of_large_numbers_is_finite():
    assert Spread.of([1.5e308, 1.5e308]) == Spread(1.5e308, 0.0, 2)


def test_groups_against_numpy(trained):
    adam, sgd = grouped(all_of(trained))
    assert ([group.letter for group in (adam, sgd)], adam.seeds, sgd.seeds) == (["A", "B"], [0, 1, 2], [0, 1])
    for group, name in ((adam, "adam"), (sgd, "sgd")):
        summaries = [json.loads((trained / f"{name}-{seed}" / "summary.json").read_text()) for seed in group.seeds]
        for figure in ("test_error", "train_loss", "seconds"):
            numbers = [summary[figure] for summary in summaries]
            found = group.spread(figure)
            np.testing.assert_allclose([found.mean, found.std], [np.mean(numbers), np.std(numbers, ddof=1)], rtol=1e-12)
        records = [load_run(trained / f"{name}-{seed}") for seed in group.seeds]
        for key, s in group.keys.items():
            norms = [np.abs(run[f"{key}.grad"]) for run in records]
            np.testing.assert_allclose(s.last.mean, np.mean([run[f"{key}.value"][-1] for run in records]), rtol=1e-12)
            np.testing.assert_allclose(s.median.mean, np.mean([np.median(n) for n in norms]), rtol=1e-12)
            assert s.max == max(n.max() for n in norms)
            np.testing.assert_allclose(s.clipped.mean, np.mean([np.mean(run[f"{key}.clip"] < 1) for run in records]))
    errors = [np.array([json.loads((p / "summary.json").read_text())["test_error"] for p in trained.glob(f"{n}-*")])
              for n in ("adam", "sgd")]  # fmt: skip
    mean, error = difference(sgd, adam)
    np.testing.assert_allclose(mean, errors[1].mean() - errors[0].mean(), rtol=1e-12)
    np.testing.assert_allclose(error, np.sqrt(sum(e.var(ddof=1) / len(e) for e in errors)), rtol=1e-12)
    assert best([adam, sgd]) == [min((adam, sgd), key=lambda group: group.spread("test_error").mean)]


@pytest.mark.parametrize(
    "change",
    [{"task": "x"}, {"stack": "SGD"}, {"epochs": 2}, {"batch_size": 2}, {"device": "cuda"}],
    ids=lambda c: next(iter(c)),
)
def test_what_differs_in_more_than_the_seed_is_another_group(tmp_path, change):
    paths = [made(tmp_path / "a"), made(tmp_path / "b", seed=1), made(tmp_path / "c", seed=2, **change)]
    assert [group.seeds for group in grouped([load_run(p) for p in paths])] == [[0, 1], [2]]


def test_another_device_of_one_kind_is_the_same_group(tmp_path):
    paths = [made(tmp_path / "a", device="cuda:0"), made(tmp_path / "b", seed=1, device="cuda:1")]
    assert len(grouped([load_run(p) for p in paths])) == 1


def test_a_seed_twice_is_no_further_sample(tmp_path):
    paths = [made(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 1), ("c", 0))]
    assert [group.seeds for group in grouped([load_run(p) for p in paths])] == [[0, 1], [0]]


def test_orders(tmp_path):
    figures = {"a": ("SGD", 0.3, 2.0), "b": ("Adam", 0.2, 3.0), "c": ("Lion", None, 1.0)}
    for name, (stack, error, seconds) in figures.items():
        made(tmp_path / name, stack=stack, test_error=error, seconds=seconds)
    runs = all_of(tmp_path)
    for sort, order in ((None, "abc"), ("error", "bac"), ("time", "cab"), ("name", "bca")):
        groups = grouped(runs, sort)
        assert ("".join(g.runs[0].path.name for g in groups), [g.letter for g in groups]) == (order, ["A", "B", "C"])


def test_letters_go_on():
    assert [letter(i) for i in (0, 25, 26, 27, 51, 52, 701, 702)] == ["A", "Z", "AA", "AB", "AZ", "BA", "ZZ", "AAA"]


def test_what_diverged_or_has_not_ended_does_not_enter_means(tmp_path):
    rows = [[1, 1, 0.5, 1, 1]]
    made(tmp_path / "a", test_error=0.2, rows=rows)
    made(tmp_path / "b", seed=1, test_error=0.9, diverged=True, rows=[[1, 1, 9, 9, 1]])
    made(tmp_path / "c", seed=2, ended=False, rows=rows)
    made(tmp_path / "d", seed=3, test_error=0.4, rows=rows)
    made(tmp_path / "e", seed=4, test_error=0.9, finished=False, rows=rows)
    (group,) = grouped(all_of(tmp_path))
    assert group.states == ("finished", "diverged", "stopped", "finished", "interrupted")
    assert (group.spread("test_error").n, group.spread("test_error").mean) == (2, pytest.approx(0.3))
    assert group.keys["0.lr"].max == 1
    screen = ok("compare", tmp_path)
    for label, count in (("finished", 2), ("diverged", 1), ("stopped", 1), ("interrupted", 1)):
        assert re.search(rf"^  {label} +{count}$", screen, re.MULTILINE)
    assert "do not enter the means" in screen


# ---- what differs

texts = st.lists(st.none() | st.text("SGDam()=/,. 01e-α\n", max_size=20), min_size=1, max_size=4)


def is_part(part, whole):
    """Whether the tokens of one are those of the other in order, with others between."""
    rest = iter(whole)
    return all(token in rest for token in part)


@given(texts)
def test_marks(columns):
    found = marked(columns)
    assert ["".join(text for text, _ in pieces) for pieces in found] == [text or "" for text in columns]
    for pieces in found:
        kept = [token for text, differs in pieces if not differs for token in TOKEN.findall(text)]
        for other in columns:
            assert is_part("".join(kept), other or "")
    if len(set(columns)) == 1:
        assert not any(differs for pieces in found for _, differs in pieces)
    elif None not in columns:
        assert any(differs for pieces in found for _, differs in pieces)


def test_marks_of_stacks():
    def shown(*given):
        return [
            "".join(("^" if differs else " ") * len(t) for t, differs in pieces).rstrip() for pieces in marked(given)
        ]

    assert shown("SGD(0.001, clip)", "SGD(0.001)") == ["         ^^^^^^", ""]
    assert shown("SGD(0.001)", "SGD(1e-05)") == ["    ^^^^^", "    ^^^^^"]
    assert shown("Adam", "Adam", "AdamW") == ["^^^^", "^^^^", "^^^^^"]
    assert shown("Adam", None) == ["^^^^", ""]


# ---- curves


def test_curves_have_one_scale():
    def record(values):
        return Record({"step": np.arange(1.0, len(values) + 1), "x": np.array(values)})

    records = [record([0.0, 1, 2, 3]), record([7.0, 7, 7, 7]), record([0.0, 7])]
    curves = Curves(records, "x", 4)
    assert curves.lines() == ["▁▂▃▄", "████", "▁█"]
    assert (curves.range, curves.log, curves.flat) == ((0.0, 7.0), False, False)
    wide = Curves([record([1.0, 1000.0]), record([10.0, math.inf, math.nan])], "x", 4)
    assert wide.log
    np.testing.assert_allclose(wide.range, (1, 1000))
    assert Curves([record([2.0, 2.0]), record([])], "x", 4).flat
    assert Curves([record([math.nan])], "y", 4).lines() == [""]


# ---- the screen


def test_the_screen(runs):
    screen = ok("compare", "runs")
    lines = screen.splitlines()
    assert lines[0] == "toy · epochs 1 · batch 32 · device cpu"
    assert lines[1:4] == [f"A  {CLIPPED}", "   " + "^" * 4 + " " + "^" * 4 + " " * 8 + "^" * 11, lines[3]]
    adam, sgd = grouped(all_of(runs))
    for group in (adam, sgd):
        s = group.spread("test_error")
        assert f"{100 * s.mean:.2f} ± {100 * s.std:.2f} %" in screen
    (winner,) = best([adam, sgd])
    assert f"{winner.letter} (best)" in screen
    value = next(line for line in lines[lines.index("0.beta1") :] if line.split()[0] == "value")
    assert value.split()[-1] == "-"  # SGD has no beta1


@pytest.mark.parametrize("width", [20, 40, 80, 140])
@pytest.mark.parametrize("number", [1, 2, 5])
def test_it_fits_the_screen(runs, width, number):
    names = ["adam-0", "sgd-0", "adam-1", "sgd-1", "adam-2"]
    for i, name in enumerate(names[:number]):  # a group each
        plan = runs / name / "plan.json"
        plan.write_text(json.dumps({**json.loads(plan.read_text()), "epochs": i + 1}))
    screen = ok("compare", *(runs / name for name in names[:number]), columns=width)
    assert max(map(len, screen.splitlines())) <= width
    assert "\x1b" not in screen
    heads = re.findall(r"(?<!\S)([A-E])(?: \(best\))?(?= |$)", screen, re.MULTILINE)
    assert set(heads) == set("ABCDE"[:number])
    assert len(re.findall("^ *test error", screen, re.MULTILINE)) >= (number if width < 40 else 1)


def test_for_programs(runs):
    found = json.loads(ok("compare", runs, "--json", "--sort", "error"), parse_constant=pytest.fail)
    groups = grouped(all_of(runs), "error")
    assert [g["letter"] for g in found["groups"]] == found["best"] + ["B"] == ["A", "B"]
    for shown, group in zip(found["groups"], groups, strict=True):
        s = group.spread("test_error")
        assert shown["test_error"] == {"mean": s.mean, "std": s.std, "n": s.n}
        assert list(shown["keys"]) == list(group.keys)
        assert [run["label"] for run in shown["runs"]] == [f"{group.letter} seed {seed}" for seed in group.seeds]


def test_chosen_keys_and_steps(runs):
    found = json.loads(ok("compare", "runs/adam-0", "--json", "--key", "0.b*", "--key", "1.lr", "--steps", "3:5"))
    keys = found["groups"][0]["keys"]
    assert list(keys) == ["0.beta1", "0.beta2", "1.lr"]
    run = load_run(runs / "adam-0")
    assert keys["0.beta1"]["last"]["mean"] == run["0.beta1.value"][4]
    assert keys["0.beta1"]["max"] == statistics(run.record.between(3, 5))["0.beta1"].grad_max
    text = ok("compare", "runs/adam-0", "--key", "0.lr")
    assert "0.lr" in text.splitlines()
    assert "0.beta1" not in text.splitlines()


def test_levels_and_scales_are_chosen_as_for_one_run(tmp_path):
    rows = [[step, 1.0, 10.0 ** (step % 4), 10.0 ** -(step % 8), 1] for step in range(1, 41)]
    made(tmp_path / "a", rows=rows, stack="Adam / SGD(clip)")
    made(tmp_path / "b", rows=rows, stack="SGD / SGD", key="1.lr")
    both, upper = ok("compare", "a", "b"), ok("compare", "a", "b", "--level", 1)
    assert "\n0.lr\n" in both
    assert ("\n0.lr\n" in upper, "\n1.lr\n" in upper) == (False, True)
    assert both.count(", log\n") == 4  # value and gradient of two keys
    assert ", log\n" not in ok("compare", "a", "b", "--linear")


def test_a_stack_without_a_clip_has_no_share_that_was_clipped(tmp_path):
    made(tmp_path / "a", rows=[[1, 1, 1, 1, 0.5], [2, 1, 1, 1, 1]], stack="Adam / SGD(clip)")
    made(tmp_path / "b", rows=[[1, 1, 1, 1, 1]], stack="Adam / SGD")
    assert re.search(r"^  clipped +50 % +-$", ok("compare", "a", "b"), re.MULTILINE)


@pytest.mark.slow
def test_pictures_say_what_the_letters_stand_for_and_what_was_left_out(tmp_path):
    rows = [[step, 1.0, step, 1, 1] for step in range(1, 41)]
    made(tmp_path / "set" / "a", rows=rows, stack="Adam / SGD(clip)")
    made(tmp_path / "set" / "b", rows=rows, stack="Adam / SGD")
    (made(tmp_path / "set" / "c") / "plan.json").write_text("")
    code, output, remarks = command("compare", "set", "--plot", columns=80)
    assert code == 0
    assert output.splitlines()[1] == "A  Adam / SGD(clip)"
    assert output.index("B  Adam / SGD\n") < output.index("by step")
    assert "left out set/c" in remarks
    code, output, remarks = command("compare", "set", "--html", "x.html", "--json")
    assert ("left out set/c" in remarks, list(json.loads(output)["left_out"])) == (False, ["set/c"])


def test_a_page_takes_the_seeds_of_a_group_together(tmp_path):
    rows = [[1, 1.0, 1, 1, 1]]
    for seed, error in enumerate((0.1, 0.2, 0.6)):
        made(tmp_path / f"a{seed}", rows=rows, seed=seed, test_error=error, stack="<SGD>")
    made(tmp_path / "b", rows=rows, test_error=0.5)
    for names, expected in ((("a0", "a1", "a2", "b"), True), (("a0", "b"), False)):
        assert command("compare", *names, "--html", f"{len(names)}.html")[0] == 0
        text = re.sub(r"<[^>]+>", " ", (tmp_path / f"{len(names)}.html").read_text())
        said = " ".join(text.split())
        assert ("A &lt;SGD&gt; 0, 1, 2 3 30.00 ± 26.46 best 1 ± 0 1.5 ± 0.0" in said) is expected
        assert ("B Adam 0 1 50.00 +20.00 1 1.5" in said) is expected


def test_runs_of_different_tasks(tmp_path):
    made(tmp_path / "a", task="x")
    made(tmp_path / "b", task="y")
    screen = ok("compare", "a", "b")
    assert "of different tasks: their errors do not compare" in screen
    assert re.search(r"^  task +x +y$", screen, re.MULTILINE)
    assert "best" not in screen


def test_one_run_twice_is_one_run(runs):
    assert [len(g["runs"]) for g in json.loads(ok("compare", runs / "adam-0", runs, "--json"))["groups"]] == [3, 2]


def test_what_is_not_finite_and_what_is_empty(tmp_path):
    made(tmp_path / "a", rows=[[1, math.nan, math.inf, -math.inf, 1], [2, 1e308, -1e308, 1e308, 0.5]])
    made(tmp_path / "b", seed=1, rows=[[1, math.inf, math.nan, math.nan, math.nan]], test_error=None, train_loss=None)
    made(tmp_path / "c", stack="SGD", key="group1.0.lr")
    for width in (20, 80):
        screen = ok("compare", ".", columns=width)
        assert max(map(len, screen.splitlines())) <= width
    found = json.loads(ok("compare", ".", "--json"), parse_constant=pytest.fail)
    assert found["groups"][0]["keys"]["0.lr"]["max"] == 1e308
    assert found["groups"][0]["test_error"] == {"mean": 0.5, "std": None, "n": 1}


def test_names_cannot_steer_the_terminal(tmp_path):
    made(tmp_path / "a", task="\x1b[31mred\nline", stack="\x1b]0;title\x07")
    screen = ok("compare", "a")
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", screen)
    assert screen.splitlines()[0].startswith("?[31mred line · ")


def test_a_screen_that_knows_ascii_only(runs):
    environment = {"PYTHONIOENCODING": "ascii", "PATH": "", "COLUMNS": "80", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", "hyperstack_cli", "compare", "runs"],
        cwd=runs.parent,
        env=environment,
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"?" not in done.stdout
    assert b" +- " in done.stdout


def test_comparing_needs_no_torch(runs):
    program = (
        "import sys; from hyperstack_cli.main import cli\n"
        "for verb in ('compare', 'runs'): cli.main([verb, 'runs'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", program], cwd=runs.parent, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr


# ---- wrong input


WRONG = {
    "nothing": (("nowhere",), ["there is no run folder nowhere"]),
    "a file": (("file",), ["it is not a folder"]),
    "an empty folder": (("empty",), ["empty holds no run"]),
    "a key": (("run", "--key", "0.lrr"), ["no hyperparameter is called '0.lrr'", "did you mean 0.lr?"]),
    "steps": (("run", "--steps", "5:3"), ["'5:3' is no range of steps"]),
    "steps that are none": (("run", "--steps", "five"), ["'five' is no range"]),
    "steps that nobody has": (("run", "--steps", "100:"), ["no run has recorded", "the last recorded step is 20"]),
    "no run at all": ((), ["Missing argument"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input(folder, name):
    arguments, parts = WRONG[name]
    before = contents(folder)
    code, output, remarks = command("compare", *arguments)
    assert (code, output) == (2, "")
    assert all(part in remarks for part in parts), remarks
    assert contents(folder) == before


def test_what_is_damaged_hides_nothing(runs):
    (runs / "adam-0" / "plan.json").write_text("{")
    (runs / "sgd-0" / "record.jsonl").write_text("")
    code, output, remarks = command("compare", "runs")
    assert code == 0
    assert re.search(r"^  finished +2 +1$", output, re.MULTILINE)
    assert [line.split(":")[0] for line in remarks.splitlines()] == ["left out runs/adam-0", "left out runs/sgd-0"]
    assert command("compare", "runs/adam-0")[0] == 2
    for path in runs.iterdir():
        (path / "plan.json").write_text("{")
    code, output, remarks = command("compare", "runs")
    assert (code, output) == (2, "")
    assert "there is no run that can be read" in remarks


@pytest.mark.slow
def test_a_run_that_was_killed(tmp_path, runs):
    path = tmp_path / "killed"
    arguments = ["train", "toy", "--quiet", "--epochs", "1", "--stack", CLIPPED, "--seed", "7", "--out", str(path)]
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": "", "TOY_DELAY": "0.2"}
    process = subprocess.Popen([sys.executable, TOY, *arguments], env=environment)
    record, deadline = path / "record.jsonl", time.monotonic() + 60
    while not (record.exists() and record.read_bytes().count(b"\n") > 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert re.search(r"^  running +1 ", ok("compare", path, runs), re.MULTILINE)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert re.search(r"^  stopped +1 ", ok("compare", path, runs), re.MULTILINE)
    rows = record.read_bytes().splitlines(keepends=True)[1:]
    whole = [json.loads(row) for row in rows if row.endswith(b"\n")]
    found = json.loads(ok("compare", path, "--json"))["groups"][0]
    assert (found["steps"], found["keys"]["0.lr"]["last"]["mean"]) == ([len(whole)], whole[-1][2])


def test_a_run_that_is_deleted_meanwhile(runs, monkeypatch):
    from hyperstack.reports import run as module

    read = module.last_written

    def late(folder):
        if folder.path.name == "sgd-1":
            shutil.rmtree(folder.path)
        return read(folder)

    monkeypatch.setattr(module, "last_written", late)
    code, output, remarks = command("compare", "runs")
    assert (code, remarks.splitlines()[0]) == (
        0,
        "left out runs/sgd-1: runs/sgd-1 has been deleted, or may not be read name another run",
    )
    assert re.search(r"^  finished +3 +1$", output, re.MULTILINE)
