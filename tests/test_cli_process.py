"""The command line as processes: exit codes, signals, terminals, pipes and full disks."""

import fcntl
import json
import os
import pty
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from toy import assert_same_run, command, contents

from hyperstack.telemetry.jsonl import read_record

TOY = [sys.executable, str(Path(__file__).with_name("toy.py"))]
REAL = [sys.executable, "-m", "hyperstack_cli"]
LONG = ("train", "toy", "--epochs", "40", "--stack", "Adam / SGD(0.001, clip) / SGD")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
COLOUR = re.compile(r"\x1b\[[0-9;]*(?:[349][0-7]|[34]8;)[0-9;]*m")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and terminals as POSIX has them")


def environment(**more):
    drop = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    kept = {name: value for name, value in os.environ.items() if name not in drop}
    return {**kept, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color", **{k: str(v) for k, v in more.items()}}


def listening():
    """For a child: hear Ctrl-C, even where the tests themselves were started in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def start(*arguments, program=TOY, prepare=listening, **more):
    return subprocess.Popen(
        [*program, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(**more), preexec_fn=prepare,
    )  # fmt: skip


def ended(process, code):
    """The output of a process that ends with exit code `code`, and shows neither tracebacks nor control codes."""
    output, remarks = process.communicate(timeout=300)
    assert process.returncode == code, remarks
    assert "Traceback" not in remarks
    assert "\x1b" not in output + remarks
    return output, remarks


def rows(path):
    """How many rows of the record can be read at this moment; 0 where there is none yet."""
    record = path / "record.jsonl"
    return len(read_record(record)) if record.exists() and record.stat().st_size else 0


def until(condition, process):
    """Wait for a process to have got somewhere."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run that was never interrupted."""
    path = tmp_path_factory.mktemp("process") / "run"
    assert command(*LONG, "--quiet", "--out", path)[0] == 0
    return path


# ---- signals


@pytest.mark.slow
def test_ctrl_c_ends_a_run_that_can_go_on_bit_for_bit(tmp_path, straight):
    path = tmp_path / "run"
    process = start(*LONG, "--out", path, TOY_DELAY=0.005)
    until(lambda: rows(path) > 20, process)
    code, _, remarks = command("train", "toy", "--resume", "--out", path)
    assert code == 2
    assert f"another process is writing {path}/record.jsonl" in remarks
    process.send_signal(signal.SIGINT)
    output, remarks = ended(process, 130)
    summary = json.loads((path / "summary.json").read_text())
    assert (summary["finished"], summary["epochs_planned"]) == (False, 40)
    assert output == (
        f"interrupted after step {summary['steps']}, with a checkpoint; to go on:\n"
        f"  hyperstack train toy --out {path} --resume\n"
    )
    assert remarks.startswith("toy · Adam / SGD(0.001, clip) / SGD · seed 0 · cpu\nepoch 1/40  train loss ")
    assert 20 < rows(path) == summary["steps"] < 400
    assert "\ninterrupted: " in command("inspect", path)[1]
    code, output, _ = command("train", "toy", "--out", path, "--resume")
    assert code == 0
    assert f"inspect    hyperstack inspect {path}" in output
    assert_same_run(straight, path)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_system_that_ends_it_leaves_the_same(tmp_path, straight, signum):
    process = start(*LONG, "--quiet", "--out", tmp_path / "run", TOY_DELAY=0.005)
    until(lambda: rows(tmp_path / "run") > 20, process)
    process.send_signal(signum)
    ended(process, 128 + signum)
    assert command("train", "toy", "--quiet", "--resume", "--out", tmp_path / "run")[0] == 0
    assert_same_run(straight, tmp_path / "run")


@pytest.mark.slow
def test_a_second_ctrl_c_does_not_wait(tmp_path, straight):
    path = tmp_path / "run"
    process = start(*LONG, "--out", path, TOY_DELAY=60)
    until((path / "checkpoint.pt").exists, process)
    time.sleep(0.5)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    _, remarks = ended(process, 130)
    assert f"as its last checkpoint has it, to go on:\n  hyperstack train toy --out {path} --resume\n" in remarks
    assert command("train", "toy", "--quiet", "--resume", "--out", path)[0] == 0
    assert_same_run(straight, path)


@pytest.mark.slow
def test_ctrl_c_before_training_leaves_nothing(tmp_path):
    process = start(*LONG, "--out", tmp_path / "run")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode != 0  # 130, or whatever the import that it fell into makes of it
    assert contents(tmp_path) == {}


@pytest.mark.slow
def test_killed_at_random_moments_it_goes_on_bit_for_bit(tmp_path, straight):
    path, draw, kills = tmp_path / "run", random.Random(0), 0
    while True:
        resume = ("--resume",) if (path / "checkpoint.pt").exists() else ()
        if not resume:
            assert not path.exists() or not (path / "plan.json").exists() or kills
        arguments = ("train", "toy", "--resume") if resume else LONG
        before = rows(path)
        process = start(*arguments, "--quiet", "--out", path, TOY_DELAY=0.002)
        if kills < 5:
            until(lambda least=before: rows(path) != least, process)
            time.sleep(draw.uniform(0, 0.4))
            process.kill()
            process.communicate()
            kills += 1
            record = read_record(path / "record.jsonl").columns
            assert record["step"].tolist() == list(range(1, 1 + len(record["step"])))
            assert command("export", path)[1].count("\n") == len(record["step"])
        else:
            ended(process, 0)
            break
    assert_same_run(straight, path)


# ---- disks and pipes


@pytest.mark.slow
def test_a_full_disk_ends_a_run_that_can_go_on(tmp_path, straight):
    path = tmp_path / "run"

    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    process = start(*LONG, "--out", path, prepare=little_room)
    _, remarks = ended(process, 1)
    assert remarks.endswith(f"hyperstack: cannot write {path}/record.jsonl\nFile too large\n")
    assert rows(path) > 100
    assert not (path / "summary.json").exists()
    assert command("train", "toy", "--quiet", "--resume", "--out", path)[0] == 0
    assert_same_run(straight, path)


@pytest.mark.slow
def test_progress_that_cannot_be_shown_is_no_reason_to_stop(tmp_path, straight):
    full = os.open("/dev/full", os.O_WRONLY)
    done = subprocess.run(
        [*TOY, *LONG, "--out", str(tmp_path / "a")], stdout=subprocess.PIPE, stderr=full, env=environment(), check=False
    )
    assert done.returncode == 0
    assert done.stdout.startswith(b"test error")
    assert_same_run(straight, tmp_path / "a")
    process = start(*LONG, "--out", tmp_path / "b", TOY_DELAY=0.001)
    process.stderr.close()  # `hyperstack train 2>&1 | head -1`
    with process.stdout:
        assert process.wait(timeout=300) == 0
    assert_same_run(straight, tmp_path / "b")


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_failure(straight):
    for verb in (f"export {straight}", "rules", f"inspect {straight}", "export --help"):
        script = f"set -o pipefail; {' '.join(TOY)} {verb} | head -1"
        done = subprocess.run(["bash", "-c", script], env=environment(), capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    script = f"{' '.join(TOY)} export {straight} > /dev/full"
    done = subprocess.run(["bash", "-c", script], env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "hyperstack: cannot write the output: No space left on device\n")


def test_the_module_is_the_command():
    output, remarks = ended(start("trian", program=REAL), 2)
    assert output == ""
    assert "No such command 'trian'. Did you mean 'train'?" in remarks


@pytest.mark.slow
def test_a_screen_without_greek_is_no_reason_to_fail(tmp_path):
    for arguments in (("explain", "Adam(α)"), ("rules",), (*LONG, "--out", tmp_path / "run")):
        ended(start(*arguments, PYTHONIOENCODING="ascii"), 0)


# ---- terminals

SESSION = """
import fcntl, os, struct, sys, termios
sys.path.insert(0, {tests!r})
import torch
from toy import TASKS, Toy
from hyperstack_cli.main import main
TASKS["toy"] = Toy
torch.set_num_threads(1)
for number, (width, height, variable, stack) in enumerate({cases!r}):
    fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    before = dict(os.environ)
    os.environ.update([variable.split("=")] if variable else [])
    sys.argv = ["hyperstack", "train", "toy", "--epochs", "3", "--stack", stack, "--out", str(number)]
    print("=====", flush=True)
    try:
        main()
    except SystemExit as end:
        assert end.code == 0
    os.environ.clear()
    os.environ.update(before)
"""
TALL = " / ".join(["Adam", *["SGD(log(1e-9), clip)"] * 63])
THREE = "Adam / SGD(0.001, clip) / SGD(per_tensor(0.1), momentum=0.9)"
CASES = {
    "80 columns": (80, 24, "", THREE),
    "60 columns": (60, 24, "", THREE),
    "40 columns": (40, 24, "", THREE),
    "20 columns": (20, 24, "", THREE),
    "without colour": (80, 24, "NO_COLOR=1", THREE),
    "dumb": (80, 24, "TERM=dumb", THREE),
    "64 levels": (80, 24, "", TALL),
}


def typed(program, folder):
    """What a Python program writes to a terminal."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=folder, stdin=child, stdout=child, stderr=child, env=environment()
    )
    os.close(child)
    found = b""
    while True:
        try:
            part = os.read(parent, 65536)
        except OSError:  # Linux's word for the end
            break
        if not part:
            break
        found += part
    os.close(parent)
    assert process.wait() == 0, found.decode()
    return found.decode().replace("\r\n", "\n")


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """What each case shows."""
    program = SESSION.format(tests=str(Path(__file__).parent), cases=list(CASES.values()))
    shown = typed(program, tmp_path_factory.mktemp("session")).split("=====\n")[1:]
    return dict(zip(CASES, shown, strict=True))


def final(text):
    """The last view, and the lines below it."""
    lines = ESCAPE.sub("", text).replace("\r", "\n").splitlines()
    place = max(i for i, line in enumerate(lines) if line.startswith(("step ", "30/30")))
    return lines[place:]


@pytest.mark.slow
def test_in_a_terminal_the_tower_is_watched(session):
    bar, heading, *table = final(session["80 columns"])
    assert re.match(r"step 30/30 ━+ loss [\d.]+(  [\d,]+ examples/s)?$", bar.rstrip())
    assert heading.split() == ["level", "value", "hypergradient", "clipped", "to"]
    cells = [line.split() for line in table]
    names = [["0", "Adam", "lr"], ["beta1"], ["beta2"], ["1", "SGD", "lr"], ["2", "SGD", "lr"], ["momentum"]]
    for name, row in zip(names, cells, strict=False):
        assert row[: len(name)] == name
        values = row[len(name) :]
        assert len(values) == (4 if names.index(name) < 3 else 2)  # what it was clipped to, where there is a clip
        assert all(float(x) is not None for x in values if x != "%")
    assert cells[len(names)][:2] == ["test", "error"]
    assert cells[-1] == ["inspect", "hyperstack", "inspect", "0"]
    assert [line for line in ESCAPE.sub("", session["80 columns"]).splitlines() if "epoch 3/3" in line]


@pytest.mark.slow
def test_a_narrow_terminal_shows_less(session):
    for kind, titles in (("60 columns", 5), ("40 columns", 2), ("20 columns", 2)):
        width = CASES[kind][0]
        lines = final(session[kind])
        rows = lines[: 2 + 6]
        assert max(len(line) for line in rows) <= width
        assert len(rows[1].split()) == titles
        assert "".join(line.split()[0] for line in rows[2:8] if line[0].isdigit()) == "012"
        if width >= 40:
            assert "…" not in "".join(rows)


@pytest.mark.slow
def test_no_color_is_without_colour(session):
    assert COLOUR.search(session["80 columns"])
    assert not COLOUR.search(session["without colour"])
    assert len(final(session["without colour"])) == len(final(session["80 columns"]))


@pytest.mark.slow
def test_a_dumb_terminal_gets_lines(session):
    text = session["dumb"]
    assert "\x1b[1A" not in text
    assert "hypergradient" not in text
    assert ESCAPE.sub("", text).count("epoch ") == 3


@pytest.mark.slow
def test_a_high_stack_does_not_flood_the_screen(session):
    text = ESCAPE.sub("", session["64 levels"])
    head = text.split("epoch 1/3")[0].split("step ")[0]
    assert len(head) < 3 * 80 + 10
    lines = final(session["64 levels"])
    assert len(lines) <= 24
    assert lines[-4].split() == ["…", "and", "48", "more"]


@pytest.mark.slow
def test_a_terminal_that_is_closed_leaves_a_run_that_can_go_on(tmp_path, straight):
    path = tmp_path / "run"
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [*TOY, *LONG, "--out", str(path)], stdin=child, stdout=child, stderr=child,
        env=environment(TOY_DELAY="0.01"), start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(child)
    until(lambda: rows(path) > 20, process)
    os.close(parent)
    assert process.wait(timeout=300) == 128 + signal.SIGHUP
    assert json.loads((path / "summary.json").read_text())["finished"] is False
    assert command("train", "toy", "--quiet", "--resume", "--out", path)[0] == 0
    assert_same_run(straight, path)


# ---- the real thing


@pytest.mark.slow
def test_mnist_is_learned_interrupted_and_continued_bit_for_bit(tmp_path):
    train = ("train", "mnist", "--epochs", "2", "--out")
    output, _ = ended(start(*train, tmp_path / "straight", program=REAL), 0)
    assert output.startswith("test error 4.")
    path = tmp_path / "run"
    for cut in (40, 300):
        process = start(*(("train", "mnist", "--resume", "--out") if path.exists() else train), path, program=REAL)
        until(lambda least=cut: rows(path) > least, process)
        process.send_signal(signal.SIGINT if cut == 40 else signal.SIGKILL)
        process.communicate()
        assert process.returncode == (130 if cut == 40 else -signal.SIGKILL)
        assert 40 < rows(path) < 470
    ended(start("train", "mnist", "--resume", "--out", path, program=REAL), 0)
    assert_same_run(tmp_path / "straight", path)
    assert json.loads((path / "plan.json").read_text())["threads"] == 1
    exported = [json.loads(line) for line in command("export", path)[1].splitlines()]
    assert len(exported) == 470
    assert exported[-1]["0.lr.value"] > 0.002
    assert command("inspect", path)[1].startswith("mnist · seed 0 · cpu · ")
