"""What a run writes beside its record: CSV and TensorBoard, new, resumed, added later."""

import csv
import importlib.util
import json

import numpy as np
import pytest
import torch
from toy import assert_same_run, command, contents, ok, train_toy

import hyperstack as hs
from hyperstack.telemetry.jsonl import read_record
from hyperstack.telemetry.outputs import FILES, KINDS
from hyperstack.telemetry.plan import Plan

pytestmark = pytest.mark.usefixtures("elsewhere")

STACK = "Adam(0.01) / SGD(0.01, clip)"


def events(folder):
    """What TensorBoard itself reads of a folder: steps and values by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    scalars = {tag: found.Scalars(tag) for tag in found.Tags()["scalars"]}
    return {tag: ([e.step for e in es], np.array([e.value for e in es], np.float32)) for tag, es in scalars.items()}


def assert_shown(folder, record):
    """TensorBoard has every column of a record but the step, each number as float32."""
    shown, columns = events(folder), dict(record.columns)
    steps = columns.pop("step").tolist()
    assert set(shown) == {"/".join(name.rsplit(".", 1)) for name in columns}
    for name, column in columns.items():
        at, values = shown["/".join(name.rsplit(".", 1))]
        assert at == steps, name
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(values, column.astype(np.float32))


def assert_tabled(file, record):
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    for name, column in record.columns.items():
        np.testing.assert_array_equal([float(row[name]) for row in rows], column)


# ---- the sink


def test_tensorboard_reads_back_whole_arrays(tmp_path):
    columns = ["step", "loss", "0.lr.value", "0.lr.grad", "group1.0.lr.value", "@net.0.weight.norm"]
    rows = np.random.default_rng(0).normal(size=(700, len(columns)))
    rows[:, 0] = np.arange(1, 701)
    rows[3, 1:4] = np.nan, np.inf, -np.inf
    rows[4, 1:4] = 1e300, 1e-300, 0.1
    sink = hs.TensorBoard(tmp_path / "events")
    sink.open(columns)
    for block in np.split(rows, [1, 300]):
        sink.write(block)
        sink.flush()
    sink.close()
    shown = events(tmp_path / "events")
    assert sorted(shown) == ["0.lr/grad", "0.lr/value", "@net.0.weight/norm", "group1.0.lr/value", "loss"]
    for i, tag in enumerate(["loss", "0.lr/value", "0.lr/grad", "group1.0.lr/value", "@net.0.weight/norm"], 1):
        steps, values = shown[tag]
        assert steps == list(range(1, 701))
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(values, rows[:, i].astype(np.float32))


def test_what_was_flushed_can_be_read_before_the_end(tmp_path):
    sink = hs.TensorBoard(tmp_path)
    sink.open(["step", "loss"])
    sink.write(np.array([[1, 0.5], [2, 0.25]]))
    sink.flush()
    assert events(tmp_path)["loss"][0] == [1, 2]
    sink.close()
    sink.close()


@pytest.mark.parametrize("after", [0, 2])
def test_going_on_hides_what_came_later(tmp_path, after):
    for kept, rows in ((None, [1, 2, 3, 4]), (after, range(after + 1, 6))):
        sink = hs.TensorBoard(tmp_path, kept)
        sink.open(["step", "loss"])
        sink.write(np.array([[step, step * (1 if kept is None else 10)] for step in rows], float))
        sink.close()
    steps, values = events(tmp_path)["loss"]
    assert (steps, values.tolist()) == ([1, 2, 3, 4, 5], [(1 if s <= after else 10) * s for s in range(1, 6)])


def test_events_of_another_run_and_events_that_are_missing_are_refused(tmp_path):
    with pytest.raises(hs.InputError, match="holds no events"):
        hs.TensorBoard(tmp_path, after=3).open(["step", "loss"])
    assert list(tmp_path.iterdir()) == []
    sink = hs.TensorBoard(tmp_path)
    sink.open(["step", "loss"])
    sink.close()
    before = contents(tmp_path)
    with pytest.raises(hs.InputError, match="holds another run's events"):
        hs.TensorBoard(tmp_path).open(["step", "loss"])
    assert contents(tmp_path) == before


def test_a_folder_that_cannot_be_made_is_an_input_error_or_the_runs(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(hs.HyperstackError, match="cannot write"):
        hs.TensorBoard(tmp_path / "file" / "events").open(["step", "loss"])


def test_without_tensorboard_nothing_is_written(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "tensorboard" else find(name, *a))
    with pytest.raises(hs.InputError, match=r'pip install "hyperstack\[tensorboard\]"'):
        hs.TensorBoard(tmp_path / "events")
    code, output, remarks = command("train", "toy", "--sink", "tensorboard", "--out", "run")
    assert (code, output) == (2, "")
    assert 'pip install "hyperstack[tensorboard]"' in remarks
    assert contents(tmp_path) == {}


def test_a_loop_of_ones_own_may_have_it(tmp_path):
    model = torch.nn.Linear(3, 1)
    opt = hs.HyperOptimizer(model.parameters(), STACK)
    with hs.record(opt, tmp_path / "run", sinks=[hs.TensorBoard(tmp_path / "events")]) as recording:
        for step in range(6):
            opt.zero_grad()
            loss = (model(torch.ones(2, 3)) * step).square().mean()
            loss.backward()
            recording.loss(loss)
            opt.step()
    assert_shown(tmp_path / "events", hs.load_run(tmp_path / "run").record)


# ---- train --sink


def test_train_writes_both(tmp_path):
    ok("train", "toy", "--quiet", "--stack", STACK, "--out", "run", "--sink", "csv", "--sink", "tensorboard")
    record = read_record(tmp_path / "run" / "record.jsonl")
    assert len(record) == 20
    assert_tabled(tmp_path / "run" / "record.csv", record)
    assert_shown(tmp_path / "run" / "tensorboard", record)
    for name in ("plan.json", "summary.json"):
        assert json.loads((tmp_path / "run" / name).read_text())["sinks"] == ["csv", "tensorboard"]


def test_train_writes_none_unless_it_is_asked_to(run):
    assert not [name for name in FILES.values() if (run / name).exists()]


@pytest.mark.parametrize("kind", ["pdf", "", "CSV"])
def test_a_sink_that_is_none_is_refused(tmp_path, kind):
    code, _, remarks = command("train", "toy", "--sink", kind, "--out", "run")
    assert code == 2
    assert "'csv', 'tensorboard'" in remarks
    assert contents(tmp_path) == {}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("cut", [0, 4, 13, 20])
def test_a_resumed_run_goes_on_with_them_bit_for_bit(tmp_path, cut):
    one, other = tmp_path / "one", tmp_path / "other"
    both = {"stack": STACK, "written": ("csv", "tensorboard")}
    train_toy(one, **both)
    train_toy(other, stop_at=cut, **both)
    train_toy(other, resume=True, **both)
    assert_same_run(one, other)
    assert (one / "record.csv").read_bytes() == (other / "record.csv").read_bytes()
    assert_shown(other / "tensorboard", read_record(one / "record.jsonl"))


@pytest.mark.slow
def test_the_run_keeps_them_and_they_may_change(tmp_path):
    train_toy(tmp_path / "run", stop_at=7, stack=STACK, written=("csv",))
    ok("train", "toy", "--quiet", "--resume", "--epochs", 1, "--out", "run")
    table = tmp_path / "run" / "record.csv"
    assert_tabled(table, read_record(tmp_path / "run" / "record.jsonl"))
    ok("train", "toy", "--quiet", "--resume", "--epochs", 2, "--out", "run", "--sink", "tensorboard")
    assert table.read_text().count("\n") == 11  # as it was
    assert_shown(tmp_path / "run" / "tensorboard", read_record(tmp_path / "run" / "record.jsonl"))
    ok("train", "toy", "--quiet", "--resume", "--epochs", 3, "--out", "run", "--sink", "csv")
    assert_tabled(table, read_record(tmp_path / "run" / "record.jsonl"))
    table.unlink()
    ok("train", "toy", "--quiet", "--resume", "--epochs", 4, "--out", "run")
    record = read_record(tmp_path / "run" / "record.jsonl")
    assert len(record) == 40
    assert_tabled(table, record)
    ok("train", "toy", "--quiet", "--resume", "--epochs", 5, "--out", "run", "--sink", "tensorboard")
    assert_shown(tmp_path / "run" / "tensorboard", read_record(tmp_path / "run" / "record.jsonl"))


def test_a_table_that_was_damaged_stays_as_it_is(tmp_path):
    train_toy(tmp_path / "run", stop_at=13, written=("csv",))
    table = tmp_path / "run" / "record.csv"
    table.write_bytes(table.read_bytes()[:200])
    before = contents(tmp_path)
    code, _, remarks = command("train", "toy", "--resume", "--out", "run")
    assert code == 2
    assert "record.csv" in remarks
    assert contents(tmp_path) == before


def test_plans_of_runs_from_before_there_were_sinks():
    plan = Plan("toy", STACK, 1, 0, "cpu", 32)
    content = plan.as_dict()
    assert content.pop("sinks") == []
    assert Plan.of(content) == plan
    assert Plan.of({**content, "sinks": ["csv"]}).sinks == ("csv",)
    with pytest.raises(ValueError, match="sinks"):
        Plan.of({**content, "sinks": "csv"})
    assert set(KINDS) == set(FILES)


def test_a_sink_of_a_newer_version_is_refused(tmp_path):
    train_toy(tmp_path / "run", stop_at=13)
    plan = tmp_path / "run" / "plan.json"
    plan.write_text(plan.read_text().replace('"sinks": []', '"sinks": ["holograms"]'))
    code, _, remarks = command("train", "toy", "--resume", "--out", "run")
    assert code == 2
    assert "holograms" in remarks
