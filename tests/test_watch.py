"""`hyperstack watch`: runs that train, end, are killed, cut and resumed while somebody looks."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from test_cli_process import LONG, REAL, environment, listening, rows, start, until
from toy import command, contents, ok, train_toy

import hyperstack as hs
from hyperstack.telemetry import follow
from hyperstack.telemetry.follow import Follower
from hyperstack.telemetry.jsonl import JsonLines, read_record
from hyperstack_cli.verbs import watch as verb

pytestmark = pytest.mark.usefixtures("elsewhere")


# ---- the record as it grows

COLUMNS = ["step", "loss", "0.lr.value", "0.lr.grad", "0.lr.clip"]


def table(first, last):
    steps = np.arange(first, last + 1.0)
    return np.column_stack([steps, 1 / steps, steps**2, np.where(steps % 7, -steps, np.nan), np.full(len(steps), 0.5)])


def write(path, first, last, after=None):
    sink = JsonLines(path, after)
    sink.open(COLUMNS)
    sink.write(table(first, last))
    sink.close()


def test_each_look_finds_what_was_added(tmp_path):
    path = tmp_path / "record.jsonl"
    follower = Follower(path)
    assert (follower.look(), follower.last) == (0, {})
    write(path, 1, 5)
    assert (follower.look(), follower.look(), follower.count) == (5, 0, 5)
    whole = path.read_bytes()
    write(path, 6, 9, after=5)
    added = path.read_bytes()[len(whole) :]
    path.write_bytes(whole + added[:-3])  # the last line is half written
    assert (follower.look(), follower.last["step"]) == (3, 8)
    path.write_bytes(whole + added)
    assert (follower.look(), follower.restarts) == (1, 0)
    for i, name in enumerate(COLUMNS):
        np.testing.assert_array_equal(follower.past[name], table(1, 9)[:, i])
        np.testing.assert_array_equal(follower.last[name], table(9, 9)[0, i])


def test_a_look_reads_nothing_again(tmp_path, monkeypatch):
    path = tmp_path / "record.jsonl"
    write(path, 1, 500)
    follower, read = Follower(path), []
    parse = follow.row_of
    monkeypatch.setattr(follow, "row_of", lambda *line: read.append(line[1]) or parse(*line))
    assert (follower.look(), read) == (500, [])  # from the binary rows
    (tmp_path / "record.rows").unlink()
    write(path, 501, 510, after=500)
    assert follower.look() == 10
    assert read == list(range(502, 512))
    assert Follower(path).look() == 510
    assert len(read) == 520


@pytest.mark.parametrize("regrown", [4, 12, 40], ids=["shorter", "as long", "longer"])
def test_rows_that_were_dropped_are_forgotten(tmp_path, regrown):
    path = tmp_path / "record.jsonl"
    write(path, 1, 12)
    follower = Follower(path)
    assert follower.look() == 12
    sink = JsonLines(path, after=3)
    sink.open(COLUMNS)
    other = table(4, regrown) * [1, 2, 1, 1, 1]  # another course from there on
    sink.write(other)
    sink.close()
    follower.look()
    assert (follower.count, follower.restarts) == (regrown, 1)
    record = read_record(path).columns
    for name in COLUMNS:
        np.testing.assert_array_equal(follower.past[name], record[name])


def test_the_same_rows_written_again_are_no_news(tmp_path):
    path = tmp_path / "record.jsonl"
    write(path, 1, 12)
    follower = Follower(path)
    follower.look()
    write(path, 4, 20, after=3)
    assert (follower.look(), follower.count, follower.restarts) == (8, 20, 0)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("blocks", [(30_000,), (1, 4095, 3, 9000, 7, 16_894)])
def test_the_past_is_thinned_evenly(tmp_path, blocks):
    path, last = tmp_path / "record.jsonl", 0
    follower = Follower(path)
    for i, count in enumerate(blocks):
        write(path, last + 1, last + count, after=last if i else None)
        assert follower.look() == count
        last += count
    steps = follower.past["step"]
    assert follow.KEPT <= len(steps) <= 2 * follow.KEPT
    assert len({*np.diff(steps)}) == 1
    assert (steps[0], follower.last["step"], follower.count) == (1, 30_000, 30_000)


@pytest.mark.parametrize("damage", [b"what\n", b"[1, 2]\n", b"[1e999, 1, 1, 1, 1]\n"])
def test_a_damaged_record_is_refused(tmp_path, damage):
    path = tmp_path / "record.jsonl"
    write(path, 1, 3)
    path.write_bytes(path.read_bytes() + damage)
    with pytest.raises(hs.InputError, match="damaged in line 5"):
        Follower(path).look()


# ---- runs that have ended


def test_a_finished_run_is_shown_with_its_result(finished):
    path, result, _ = finished
    before = contents(path)
    head, line, *rest = ok("watch", path).splitlines()
    assert head == "toy · Adam(0.01) / SGD(0.01, clip) / SGD · seed 0 · cpu"
    keys = ["0.lr", "0.beta1", "0.beta2", "1.lr", "2.lr"]
    assert re.fullmatch("step 20/20  loss " + "  ".join(["NUMBER", *(f"{k} NUMBER" for k in keys)]), masked(line))
    assert rest == [result.splitlines()[0], f"inspect    hyperstack inspect {path}"]
    assert contents(path) == before


def masked(text):
    return re.sub(r"(?<= )[\d.]+(e-?\d+)?(?= |$)", "NUMBER", text)


def test_a_diverged_and_an_interrupted_run(tmp_path):
    ok("train", "toy", "--quiet", "--stack", "SGD(1e38) / SGD(1e38)", "--out", "diverged")
    assert "\ndiverged in epoch 1: the loss or the network holds" in ok("watch", "diverged")
    train_toy(tmp_path / "cut", stop_at=13)
    assert ok("watch", "cut").splitlines()[-3:] == [
        "interrupted after step 13, with a checkpoint; to go on:",
        "  hyperstack train toy --out cut --resume",
        "inspect    hyperstack inspect cut",
    ]


def test_a_run_that_was_killed_is_said_to_have_stopped(folder, monkeypatch):
    monkeypatch.setattr(verb, "GRACE", 0.1)
    (folder / "run" / "summary.json").unlink()
    record = folder / "run" / "record.jsonl"
    record.write_bytes(b"".join(record.read_bytes().splitlines(True)[:8]) + b"[8, 0.")
    assert ok("watch", "run").splitlines()[-4:] == [
        "stopped after step 7: no process writes this run any more, and it has no result",
        "to go on from its last checkpoint:",
        "  hyperstack train toy --out run --resume",
        "inspect    hyperstack inspect run",
    ]
    (folder / "run" / "checkpoint.pt").unlink()
    assert "it has no checkpoint to go on from" in ok("watch", "run")


@pytest.mark.slow
def test_a_loop_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setattr(verb, "GRACE", 0.1)
    model = torch.nn.Linear(3, 1)
    opt = hs.HyperOptimizer([{"params": [model.weight]}, {"params": [model.bias]}], "Adam / SGD(1e-5, clip)")
    with hs.record(opt, tmp_path / "run", task="mine") as recording:
        for _ in range(5):
            opt.zero_grad()
            model(torch.ones(2, 3)).square().mean().backward()
            opt.step()
        recording.run()
        seen = []
        thread = threading.Thread(target=lambda: seen.append(in_a_process("watch", "run")))
        thread.start()
        time.sleep(1.5)
        assert not seen
    thread.join()
    lines = seen[0].splitlines()
    assert lines[0].startswith("mine · Adam / SGD(1e-05, clip) · cpu")
    assert lines[1].startswith("step 5  loss nan  0.lr ")
    assert "group1.0.lr" in lines[1]
    assert re.fullmatch(r"[\d.]+ s, 5 steps", lines[-2])
    (tmp_path / "run" / "summary.json").unlink()
    assert "  hs.record(opt, 'run', after=5)\n" in ok("watch", "run")


def in_a_process(*arguments, **more):
    done = subprocess.run([*REAL, *arguments], capture_output=True, text=True, check=True, env=environment(**more))
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("place", ["nothing", "foreign", "file"])
def test_what_holds_no_run_is_refused_at_once(folder, place):
    code, output, remarks = command("watch", place)
    assert (code, output) == (2, "")
    assert remarks.startswith("hyperstack: ")


def test_a_folder_that_stays_empty_is_refused_after_a_while(folder, monkeypatch):
    monkeypatch.setattr(verb, "PATIENCE", 0.2)
    assert command("watch", "empty")[0] == 2


@pytest.mark.slow
def test_a_run_that_is_about_to_begin_is_waited_for(tmp_path):
    (tmp_path / "run").mkdir()
    timer = threading.Timer(0.5, lambda: train_toy(tmp_path / "run", epochs=1))
    timer.start()
    assert "step 10/10" in ok("watch", "run", "--interval", 0.1)
    timer.join()


@pytest.mark.parametrize("interval", ["0", "-1", "nan", "often"])
def test_an_interval_that_is_none_is_refused(run, interval):
    assert command("watch", run, "--interval", interval)[0] == 2


def test_a_terminal_that_knows_ascii_only_is_not_shown_question_marks(run):
    environment = {"PYTHONIOENCODING": "ascii", "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-m", "hyperstack_cli", "watch", run], env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"toy | Adam(0.01)")
    assert b"?" not in done.stdout


def test_watching_needs_no_torch(run):
    code = f"import sys; from hyperstack_cli.main import main\nsys.argv = ['hyperstack', 'watch', {str(run)!r}]\n"
    code += "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules\n"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


# ---- processes


def in_a_terminal(arguments, columns, answer=None):
    """What `hyperstack ARGUMENTS` writes to a terminal of so many columns, and its exit code."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [*REAL, *map(str, arguments)], stdin=child, stdout=child, stderr=child,
        env=environment(COLUMNS=columns, LINES=30), preexec_fn=listening,
    )  # fmt: skip
    os.close(child)
    found = b""
    while True:
        try:
            part = os.read(parent, 65536)
        except OSError:
            break
        found += part
        if not part:
            break
        if answer and answer(process, found):
            answer = None
    os.close(parent)
    return process.wait(timeout=60), found.decode()


@pytest.mark.slow
@pytest.mark.parametrize("columns", [20, 40, 80, 140])
def test_the_view_of_a_terminal_is_that_of_train(finished, columns):
    code, text = in_a_terminal(["watch", finished[0]], columns)
    assert code == 0
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "\n").splitlines()]
    at = max(i for i, line in enumerate(lines) if line.startswith(("step 20/20", "20/20")))
    view = [line for line in lines[at:] if line][:8]
    assert max(map(len, view[:7])) <= columns
    titles = view[1].split()
    assert titles[:2] == (["level", "its"] if columns >= 72 else ["level", "value"])
    assert ("hypergradient" in titles, "clipped" in titles) == (columns >= 45, columns >= 58)
    assert bool(re.search("[▁-█]{8}", text)) == (columns >= 72)
    assert "".join(line[0] for line in view[2:] if line[0].isdigit())[:3] == "012"


@pytest.mark.slow
def test_a_run_is_followed_killed_and_resumed(tmp_path):
    path = tmp_path / "run"
    process = start(*LONG, "--quiet", "--out", path, TOY_DELAY=0.01)
    until(lambda: rows(path) > 5, process)
    watcher = start("watch", path, "--interval", "0.2", program=REAL)
    time.sleep(2.5)
    process.kill()
    process.communicate()
    killed = rows(path)
    output, remarks = watcher.communicate(timeout=60)
    assert (watcher.returncode, remarks) == (0, "")
    lines = output.splitlines()
    steps = [int(re.match(r"step (\d+)/400  loss ", line)[1]) for line in lines[1:-4]]
    assert len(steps) > 3
    assert steps == sorted({*steps})
    assert steps[-1] == killed
    assert lines[-4:-1] == [
        f"stopped after step {killed}: no process writes this run any more, and it has no result",
        "to go on from its last checkpoint:",
        f"  hyperstack train toy --out {path} --resume",
    ]
    process = start("train", "toy", "--quiet", "--resume", "--out", path, TOY_DELAY=0.005)
    until(lambda: rows(path) > killed, process)
    watcher = start("watch", path, "--interval", "0.2", program=REAL)
    output, remarks = watcher.communicate(timeout=120)
    result = process.communicate()[0]
    assert (watcher.returncode, remarks) == (0, "")
    assert output.splitlines()[-2] == result.rstrip()
    assert "step 400/400" in output


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_under_its_watch_is_followed_on(tmp_path, monkeypatch):
    monkeypatch.setattr(verb, "GRACE", 60.0)
    path, seen = tmp_path / "run", []
    process = start(*LONG, "--quiet", "--epochs", "8", "--out", path, TOY_DELAY=0.05)
    until(lambda: rows(path) > 25, process)
    thread = threading.Thread(target=lambda: seen.append(ok("watch", path, "--interval", 0.1)))
    thread.start()
    time.sleep(1)
    process.kill()
    process.communicate()
    held = rows(path)
    process = start("train", "toy", "--quiet", "--resume", "--out", path, TOY_DELAY=0.03)
    until(lambda: rows(path) != held, process)
    thread.join(timeout=120)
    result = process.communicate()[0]
    assert seen[0].splitlines()[-2] == result.rstrip()
    assert "step 80/80" in seen[0]


@pytest.mark.slow
def test_ctrl_c_ends_the_watching_and_not_the_run(tmp_path):
    path = tmp_path / "run"
    process = start(*LONG, "--quiet", "--out", path, TOY_DELAY=0.02)
    until(lambda: rows(path) > 5, process)

    def interrupt(watcher, found):
        if b"hypergradient" not in found:
            return False
        watcher.send_signal(signal.SIGINT)
        return True

    code, text = in_a_terminal(["watch", path], 80, interrupt)
    assert code == 130
    assert "Traceback" not in text
    assert text.rstrip().endswith("\x1b[?25h")  # the cursor is back
    watcher = start("watch", path, "--interval", "0.1", program=REAL)
    watcher.stdout.readline()
    watcher.send_signal(signal.SIGINT)
    assert watcher.communicate()[1].strip() == ""
    assert watcher.returncode == 130
    assert process.poll() is None
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_a_record_of_a_million_rows_is_watched_at_once(tmp_path):
    width = 17
    columns = ["step", "loss", *(f"0.{name}.{what}" for name in "abcde" for what in ("value", "grad", "clip"))]
    sink = JsonLines(tmp_path / "record.jsonl")
    sink.open(columns)
    draw = np.random.default_rng(0)
    for first in range(0, 1_000_000, 50_000):
        sink.write(np.column_stack([np.arange(first + 1.0, first + 50_001), draw.normal(size=(50_000, width - 1))]))
    sink.close()
    (tmp_path / "plan.json").write_text(json.dumps({"task": "loop", "stack": "Adam / SGD", "device": "cpu"}))
    began = time.perf_counter()
    text = in_a_process("watch", tmp_path)
    assert "step 1,000,000  loss " in text
    assert time.perf_counter() - began < 2 + verb.GRACE
