"""What lies under a folder: the list, its filters, and folders that are no runs or broken ones."""

import json
import os
import re
import shutil
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import command, contents, ok

from hyperstack.errors import InputError
from hyperstack.reports.listing import STATES, listed, resembles
from hyperstack.telemetry.runfolder import RunFolder
from hyperstack.telemetry.sinks import _lock
from hyperstack_cli.verbs import runs as verb

pytestmark = pytest.mark.usefixtures("elsewhere")

PLAN = {"task": "toy", "stack": "Adam / SGD(1e-05, clip)", "epochs": 1, "seed": 0, "device": "cpu", "batch_size": 1}
SUMMARY = {"epochs": 1, "steps": 3, "seconds": 61.25, "train_loss": 1.0, "test_error": 0.25}
SUMMARY |= {"diverged": False, "finished": True}


def made(path, age=0, summary=SUMMARY, **changes):
    """A run folder without a record, last written to so many seconds ago."""
    folder = RunFolder.create(path)
    folder.begin({**PLAN, **changes})
    if summary:
        folder.write_summary({**summary, **changes})
    for file in path.iterdir():
        os.utime(file, (time.time() - age,) * 2)
    return path


def names(*arguments):
    """The folder of each run that is listed."""
    return [os.path.basename(run["path"]) for run in json.loads(ok("runs", *arguments, "--json"))]


def test_a_real_run(run):
    (entry,) = listed(run)
    summary = RunFolder(run).read_summary()
    assert (entry.path, entry.task, entry.stack, entry.state) == (run, "toy", summary["stack"], "finished")
    assert (entry.figure("test_error"), entry.problem) == (summary["test_error"], "")
    assert entry.when.timestamp() == pytest.approx(max(file.stat().st_mtime for file in run.iterdir()), abs=1e-5)


def test_newest_first_at_any_depth(tmp_path):
    made(tmp_path / "runs" / "old", age=300)
    made(tmp_path / "runs" / "a" / "b" / "new", age=5)
    made(tmp_path / "runs" / "a" / "middle", age=60)
    made(tmp_path / "runs" / "a" / "middle" / "within", age=1)  # of a run nothing more is looked at
    made(tmp_path / "runs" / ".hidden" / "x")
    made(tmp_path / "else")
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "else")
    (tmp_path / "runs" / "round").symlink_to(tmp_path / "runs")
    assert names() == names("runs") == ["new", "middle", "old"]
    assert names("runs/a/middle") == ["middle"]
    assert names("--limit", 2) == ["new", "middle"]
    assert ok("runs", "--limit", 2).splitlines()[-1] == "and 1 older"


def test_what_a_line_says(tmp_path):
    made(tmp_path / "runs" / "x", age=7300)
    heading, line = ok("runs").splitlines()
    assert heading.split() == ["path", "when", "task", "stack", "state", "test", "error", "time"]
    assert re.split("  +", line) == ["runs/x", "2 h", "toy", PLAN["stack"], "finished", "25.00 %", "61.2 s"]
    _, line = ok("runs", columns=140).splitlines()
    assert f"{listed(tmp_path)[0].when:%Y-%m-%d %H:%M}" in line


def test_filters(tmp_path):
    made(tmp_path / "runs" / "a", age=1)
    made(tmp_path / "runs" / "b", age=2, task="other", stack="SGD(0.1)")
    made(tmp_path / "runs" / "c", age=3, diverged=True)
    made(tmp_path / "runs" / "d", age=4, finished=False)
    made(tmp_path / "runs" / "e", age=5, summary=None)
    (tmp_path / "runs" / "f").mkdir()
    (tmp_path / "runs" / "f" / "plan.json").write_text("")
    os.utime(tmp_path / "runs" / "f" / "plan.json", (0, 0))
    assert names() == list("abcdef")
    assert [run["state"] for run in json.loads(ok("runs", "--json"))] == [
        *("finished", "finished", "diverged", "interrupted", "stopped", "damaged")
    ]
    assert names("--task", "other") == ["b"]
    assert names("--stack", "sgd(1E-5,clip)") == list("acde")
    assert names("--stack", "SGD(0.00001") == list("acde")
    assert names("--stack", "SGD(0.1)") == ["b"]
    assert names("--state", "diverged", "--state", "damaged") == ["c", "f"]
    assert ok("runs", "--task", "none") == "none of 6 runs is like that\n"
    assert set(verb.STATES) == set(STATES)


@given(st.text(max_size=20), st.integers(0, 20), st.integers(0, 20))
def test_every_part_of_a_text_resembles_it(text, start, end):
    assert resembles(text, text[start:end].strip())


def test_numbers_are_whole():
    assert resembles("SGD(1e-05)", "SGD( 1e-5 )")
    assert resembles("SGD(0.1)", "0.10")
    assert not resembles("SGD(1e-05)", "SGD(1e-6)")
    assert not resembles("Adam", "SGD")


def test_a_run_that_trains(tmp_path):
    path = made(tmp_path / "runs" / "x", summary=None)
    with RunFolder(path).record.open("a+b") as file:
        _lock(RunFolder(path).record, file)
        assert listed(path)[0].state == "running"
    assert listed(path)[0].state == "stopped"


# ---- broken folders


BROKEN = {
    "empty": "",
    "half": '{"task": "toy", "st',
    "binary": b"\xff\x00\xfe",
    "a list": "[]",
    "deep": "[" * 100_000,
    "of another program": '{"steps": []}',
    "other kinds": '{"task": 1, "stack": null}',
    "a long number": '{"task": "x", "stack": "y", "seed": ' + "9" * 5000 + "}",
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("file", ["plan.json", "summary.json"])
def test_a_damaged_run_hides_no_other(tmp_path, name, file):
    made(tmp_path / "runs" / "good", age=9)
    path = made(tmp_path / "runs" / "bad")
    content = BROKEN[name]
    (path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    before = contents(tmp_path)
    bad, good = listed(tmp_path / "runs")
    assert (bad.state, good.state) == ("damaged", "finished")
    assert file in bad.problem
    assert "\n" not in bad.problem
    for width in (20, 40, 80, 140):
        lines = ok("runs", columns=width).splitlines()
        assert len(lines) == 4
        assert max(map(len, lines)) <= width
        assert lines[-1].startswith("runs/bad")
    assert contents(tmp_path) == before


def test_what_is_no_run_is_passed_over(tmp_path):
    made(tmp_path / "runs" / "good")
    (tmp_path / "runs" / "starting").mkdir()
    (tmp_path / "runs" / "starting" / ".plan.json-0.tmp").write_text("{")
    (tmp_path / "runs" / "plan.json").mkdir()
    (tmp_path / "runs" / "notes.txt").write_text("mine")
    assert names() == ["good"]


def test_a_link_that_leads_nowhere_is_no_plan(tmp_path):
    (tmp_path / "runs" / "x").mkdir(parents=True)
    (tmp_path / "runs" / "x" / "plan.json").symlink_to("nowhere")
    assert ok("runs") == "no run in runs\n"


def test_a_summary_with_strange_figures(tmp_path):
    path = made(tmp_path / "runs" / "x")
    (path / "summary.json").write_text(json.dumps({**SUMMARY, "test_error": float("nan"), "seconds": float("inf")}))
    line = ok("runs").splitlines()[1]
    assert line.split()[-2:] == ["-", "-"]
    (found,) = json.loads(ok("runs", "--json"), parse_constant=pytest.fail)
    assert found["test_error"] is None


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    made(tmp_path / "runs" / "good")
    (tmp_path / "runs" / "secret").mkdir()
    scan = os.scandir

    def forbidden(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    lines = ok("runs").splitlines()
    assert len(lines) == 4
    assert lines[-1] == "runs/secret: cannot read the folder: Permission denied"


def test_a_run_that_is_deleted_meanwhile(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        made(tmp_path / "runs" / name)
    read = RunFolder.read_heading

    def late(self):
        if self.path.name == "b":
            shutil.rmtree(self.path)
        return read(self)

    monkeypatch.setattr(RunFolder, "read_heading", late)
    assert sorted(names()) == ["a", "c"]
    made(tmp_path / "runs" / "b")
    read_summary = RunFolder.read_summary

    def later(self):
        found = read_summary(self)
        if self.path.name == "a":
            shutil.rmtree(self.path)
        return found

    monkeypatch.setattr(RunFolder, "read_heading", read)
    monkeypatch.setattr(RunFolder, "read_summary", later)
    assert sorted(names()) == ["b", "c"]


def test_names_cannot_steer_the_terminal(tmp_path):
    made(tmp_path / "runs" / "a\x1b[31m\nb", task="\x1b[2J", stack="x\x07\ny")
    (tmp_path / "runs" / "c\x1b").mkdir()
    (tmp_path / "runs" / "c\x1b" / "plan.json").write_text("{")
    for width in (20, 80, 140):
        lines = ok("runs", columns=width).splitlines()
        assert len(lines) == 4
        assert all(line.isprintable() for line in lines)


def test_folders_that_are_not_there(folder):
    for name, part in (("nowhere", "does not exist"), ("file", "it is not a folder")):
        code, output, remarks = command("runs", name)
        assert (code, output) == (2, "")
        assert f"there is no folder {name}" in remarks
        assert part in remarks
        with pytest.raises(InputError):
            listed(folder / name)
    assert command("runs")[0] == 2  # ./runs is not there
    assert ok("runs", "empty") == ok("runs", "foreign").replace("foreign", "empty") == "no run in empty\n"
    assert json.loads(ok("runs", "empty", "--json")) == []


@pytest.mark.parametrize("width", [20, 40, 80, 140])
def test_long_names_fit_the_screen(tmp_path, width):
    made(tmp_path / "runs" / ("long" * 20) / "end", stack="Adam / " * 40 + "SGD", task="t" * 50)
    made(tmp_path / "runs" / "short", age=90_000)
    lines = ok("runs", columns=width).splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= width
    assert lines[1].split()[0].endswith("/end")
    assert "test error" in lines[0]


def test_ages():
    ages = {-5: "0 s", 59: "59 s", 60: "1 min", 3599: "59 min", 3600: "1 h", 86399: "23 h", 86400 * 400: "400 d"}
    assert {seconds: verb._age(seconds) for seconds in ages} == ages


@pytest.mark.slow
def test_ten_thousand_runs_take_seconds(tmp_path):
    for i in range(10_000):
        path = tmp_path / "runs" / str(i // 100) / str(i)
        path.mkdir(parents=True)
        (path / "plan.json").write_text(json.dumps({**PLAN, "seed": i}))
        (path / "summary.json").write_text(json.dumps(SUMMARY))
    started = time.process_time()
    assert ok("runs").count("\n") == 10_001
    assert time.process_time() - started < 10
