"""Rows on their way from a tower to a file and back, and what is said of them."""

import gc
import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from toy import contents

import hyperstack as hs
from hyperstack import buffers
from hyperstack.errors import InputError, RunError
from hyperstack.reports.series import ASCII, BLOCKS, binned, sparkline
from hyperstack.reports.statistics import statistics, tensor_statistics
from hyperstack.telemetry.jsonl import JsonLines, read_record
from hyperstack.telemetry.mirror import beside
from hyperstack.telemetry.plan import Plan
from hyperstack.telemetry.record import Record
from hyperstack.telemetry.recorder import Recorder
from hyperstack.telemetry.runfolder import RunFolder

COLUMNS = ["step", "loss", "0.lr.value", "0.lr.grad", "0.lr.clip"]
ROWS = np.array(
    [
        [1, 2.5, 0.1, 0.0, 1.0],
        [2, 1 / 3, 5e-324, -1.7976931348623157e308, 0.25],
        [3, np.inf, np.nan, -np.inf, 1.0],
        [7, np.nan, -0.0, 1e22, 0.1 + 0.2],
    ]
)


def written(path, rows=ROWS, after=None, columns=COLUMNS):
    sink = JsonLines(path, after)
    sink.open(columns)
    sink.write(np.asarray(rows))
    sink.flush()
    sink.close()
    return path


def read(path):
    record = read_record(path)
    assert list(record.columns) == COLUMNS
    return np.stack(list(record.columns.values()), axis=1).reshape(len(record), len(COLUMNS))


# ---- the file


def test_numbers_come_back_to_the_last_bit(tmp_path):
    found = read(written(tmp_path / "record.jsonl"))
    assert found.tobytes() == ROWS.tobytes()
    assert read_record(tmp_path / "record.jsonl").keys == ["0.lr"]


def test_every_line_is_json_in_the_strict_sense(tmp_path):
    header, *lines = written(tmp_path / "record.jsonl").read_text().splitlines()
    assert json.loads(header) == {"format": "hyperstack record", "version": 1, "columns": COLUMNS}
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert rows[2] == [3, float("inf"), None, float("-inf"), 1.0]
    assert type(rows[0][0]) is int


def test_wherever_it_is_cut_the_whole_rows_are_read(tmp_path):
    path = written(tmp_path / "record.jsonl")
    whole = path.read_bytes()
    header = whole.index(b"\n") + 1
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        if cut < header - 1:
            with pytest.raises(InputError, match="first line is damaged"):
                read(path)
        else:
            assert read(path).tobytes() == ROWS[: whole[header:cut].count(b"\n")].tobytes()


def test_rows_are_readable_as_soon_as_they_are_flushed(tmp_path):
    sink = JsonLines(tmp_path / "record.jsonl")
    sink.open(COLUMNS)
    assert len(read(sink.path)) == 0
    sink.write(ROWS[:2])
    sink.flush()
    assert len(read(sink.path)) == 2
    sink.close()
    sink.close()


@pytest.fixture
def short_blocks(monkeypatch):
    monkeypatch.setattr("hyperstack.telemetry.jsonl.BLOCK", 3)
    monkeypatch.setattr("hyperstack.telemetry.mirror.BLOCK", 3)
    monkeypatch.setattr("hyperstack.telemetry.mirror.PROBES", 4)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 6, 10])
@pytest.mark.parametrize("known", [0, 1, 2, 5, 10, None])
def test_long_records_are_read_in_blocks_from_text_and_mirror(tmp_path, short_blocks, count, known):
    rows = np.random.default_rng(count).standard_normal((count, 5))
    rows[:, 0] = np.arange(count)
    path = written(tmp_path / "record.jsonl", rows)
    if known is None:
        beside(path).unlink()
    else:  # what a killed run leaves: whole rows, and a part of one
        beside(path).write_bytes(beside(path).read_bytes()[: known * 6 * 8 + 20])
    assert read(path).tobytes() == rows.tobytes()


@pytest.mark.parametrize("row", [0, 4, 9])
def test_a_mirror_that_disagrees_is_left_aside(tmp_path, short_blocks, row):
    rows = np.arange(50.0).reshape(10, 5)
    path = written(tmp_path / "record.jsonl", rows)
    numbers = np.fromfile(beside(path), "<f8").reshape(10, 6)
    for column, wrong in [(3, 0.5), (0, 0.0), (0, 1e300), (0, np.nan)]:
        changed = numbers.copy()
        changed[row if column else slice(row, None), column] = wrong
        beside(path).write_bytes(changed.tobytes())
        probed = row in (0, 9) or column == 0
        assert (read(path).tobytes() == rows.tobytes()) or not probed


def test_the_mirror_goes_on_behind_a_step_or_is_given_up(tmp_path):
    path = written(tmp_path / "record.jsonl")
    written(path, [[9, 1.0, 1.0, 1.0, 1.0]], after=3)
    assert np.fromfile(beside(path), "<f8").reshape(-1, 6)[:, 1].tolist() == [1, 2, 3, 9]
    beside(path).write_bytes(beside(path).read_bytes()[: 6 * 8])  # of an older run
    written(path, [[10, 1.0, 1.0, 1.0, 1.0]], after=9)
    assert not beside(path).exists()
    assert read(path)[:, 0].tolist() == [1, 2, 3, 9, 10]


LINES = {
    "cut short": b"[3, 1.0]",
    "too long": b"[3, 1.0, 1.0, 1.0, 1.0, 1.0]",
    "a word in it": b'[3, 1.0, "0.1", 1.0, 1.0]',
    "a list in it": b"[3, 1.0, [1.0], 1.0, 1.0]",
    "a flag in it": b"[3, 1.0, true, 1.0, 1.0]",
    "no step": b"[null, 1.0, 1.0, 1.0, 1.0]",
    "half a step": b"[3.5, 1.0, 1.0, 1.0, 1.0]",
    "no list": b'{"step": 3}',
    "no json": b"[3, 1.0, 0.",
    "empty": b"",
    "bytes": b"\xff\x00\xfe",
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("kind", LINES)
def test_a_damaged_line_is_named(tmp_path, kind):
    path = written(tmp_path / "record.jsonl")
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:3], LINES[kind], *lines[4:], b""]))
    with pytest.raises(InputError, match="damaged in line 4"):
        read(path)


HEADERS = {
    "nothing": b"",
    "no json": b"{\n",
    "no table": b"[1, 2]\n",
    "another format": b'{"format": "numbers", "version": 1, "columns": []}\n',
    "no columns": b'{"format": "hyperstack record", "version": 1}\n',
    "columns of another kind": b'{"format": "hyperstack record", "version": 1, "columns": ["step", "0.lr.value"]}\n',
    "columns that are not whole": json.dumps(
        {"format": "hyperstack record", "version": 1, "columns": COLUMNS[:-1]}
    ).encode()
    + b"\n",
    "no number of version": b'{"format": "hyperstack record", "version": "new", "columns": ["step", "loss"]}\n',
    "deep": b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("kind", HEADERS)
def test_what_is_no_record_is_refused(tmp_path, kind):
    (tmp_path / "record.jsonl").write_bytes(HEADERS[kind])
    with pytest.raises(InputError, match="hyperstack record"):
        read(tmp_path / "record.jsonl")


def test_a_record_of_a_newer_format_is_refused(tmp_path):
    path = written(tmp_path / "record.jsonl")
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(InputError, match=r"version 2\n.*versions up to 1\ninstall a newer"):
        read(path)


def test_a_missing_record_is_refused(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_record(tmp_path / "record.jsonl")
    with pytest.raises(InputError, match="directory"):
        read_record(tmp_path)


# ---- going on


@pytest.mark.parametrize(("after", "kept"), [(None, 0), (0, 0), (1, 1), (3, 3), (7, 4)])
@pytest.mark.parametrize("torn", [b"", b"[8, 1.0, 0.1,"])
def test_an_existing_record_goes_on_behind_a_step(tmp_path, after, kept, torn):
    path = written(tmp_path / "record.jsonl")
    path.write_bytes(path.read_bytes() + torn)
    more = [[9, 1.0, 1.0, 1.0, 1.0]]
    assert read(written(path, more, after)).tobytes() == np.concatenate([ROWS[:kept], more]).tobytes()


@pytest.mark.parametrize("after", [4, 8])
def test_a_step_that_it_lacks_is_named(tmp_path, after):
    before = written(tmp_path / "record.jsonl").read_bytes()
    with pytest.raises(InputError, match=f"lacks step {after}"):
        written(tmp_path / "record.jsonl", after=after)
    assert (tmp_path / "record.jsonl").read_bytes() == before


def test_a_record_of_other_columns_does_not_go_on(tmp_path):
    before = written(tmp_path / "record.jsonl").read_bytes()
    with pytest.raises(InputError, match="other hyperparameters"):
        written(tmp_path / "record.jsonl", after=3, columns=[c.replace("lr", "eps") for c in COLUMNS])
    assert (tmp_path / "record.jsonl").read_bytes() == before


def test_two_do_not_write_one_record(tmp_path):
    pytest.importorskip("fcntl", reason="there are no file locks here")
    first = JsonLines(tmp_path / "record.jsonl")
    first.open(COLUMNS)
    first.write(ROWS)
    first.flush()
    for after in (None, 3):
        with pytest.raises(InputError, match=r"another process is writing .*record\.jsonl"):
            JsonLines(tmp_path / "record.jsonl", after).open(COLUMNS)
    first.close()
    assert read(tmp_path / "record.jsonl").tobytes() == ROWS.tobytes()


def test_a_full_disk_is_a_failed_run(tmp_path):
    sink = JsonLines(tmp_path / "record.jsonl")
    sink.open(COLUMNS)
    os.dup2(os.open("/dev/full", os.O_WRONLY), sink._file.fileno())
    sink.write(ROWS)
    with pytest.raises(RunError, match=r"cannot write .*record\.jsonl\nNo space left"):
        sink.flush()
    with pytest.raises(RunError, match="No space left"):
        sink.close()
    sink.close()
    gc.collect()  # a file that was left open would say so now


def test_a_place_where_nothing_may_be_written_is_named(tmp_path):
    with pytest.raises(RunError, match=r"cannot write .*record\.jsonl"):
        JsonLines(tmp_path / "nowhere" / "record.jsonl").open(COLUMNS)
    if os.getuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"):
        JsonLines(tmp_path / "record.jsonl").open(COLUMNS)


# ---- the recorder


class Memory:
    def __init__(self):
        self.blocks, self.calls = [], []

    def open(self, columns):
        self.columns = columns

    def write(self, rows):
        self.blocks.append(rows.copy())

    def flush(self):
        self.calls.append("flush")

    def close(self):
        self.calls.append("close")

    @property
    def table(self):
        return dict(zip(self.columns, np.concatenate(self.blocks).T, strict=True))


STACK = "Adam(log(0.01), beta1=square(0.9), eps=learned(log(1e-8))) / SGD(per_tensor(0.001), clip) / SGD(0.1)"


def recorded(stack=STACK, steps=12, **options):
    """What a recorder hands to a sink, and the readings of the optimizer beside it."""
    torch.manual_seed(3)
    model, sink, readings = torch.nn.Linear(5, 3), Memory(), []
    opt = hs.HyperOptimizer(model.parameters(), stack)
    with Recorder(opt, [sink], seconds=1e9, **options) as recorder:
        for step in range(1, steps + 1):
            opt.zero_grad()
            loss = model(torch.randn(4, 5)).square().mean()
            loss.backward()
            opt.step()
            recorder.record(step, loss)
            found = (opt.hyperparameters(), opt.hypergradients(), opt.clip_factors())
            readings.append((step, loss.item(), *found))
    return sink, readings


def test_a_row_is_what_the_optimizer_says_of_itself():
    sink, readings = recorded()
    table = sink.table
    assert list(table)[:5] == ["step", "loss", "0.lr.value", "0.lr.grad", "0.lr.clip"]
    assert {key for *_, grads, _ in readings for key in grads} >= {name.rsplit(".", 1)[0] for name in list(table)[2:]}
    for i, (step, loss, values, grads, factors) in enumerate(readings):
        assert (table["step"][i], table["loss"][i]) == (step, loss)
        for key in {name.rsplit(".", 1)[0] for name in list(table)[2:]}:
            assert table[f"{key}.value"][i] == pytest.approx(values[key].mean().item(), rel=1e-12)
            assert abs(table[f"{key}.grad"][i]) == pytest.approx(grads[key].norm().item(), rel=1e-12)
            assert table[f"{key}.clip"][i] == factors[key].item()
    assert (table["0.lr.clip"] < 1).any()
    assert (table["0.lr.grad"] < 0).any()


@pytest.mark.slow
def test_a_row_does_not_depend_on_the_block_that_it_travelled_in():
    """The last bit of a sigmoid is another where it is computed alone than among eight neighbours."""
    stack, steps = "Adam(log(0.01), beta1=logit(0.5), beta2=square(0.7)) / Adam(0.03)", 100
    whole, _ = recorded(stack, steps)
    assert len(whole.blocks) == 1
    for block in (1, 7):
        parts, _ = recorded(stack, steps, block=block)
        assert [len(b) for b in parts.blocks] == [block] * (steps // block) + [steps % block] * (steps % block > 0)
        assert np.concatenate(parts.blocks).tobytes() == whole.blocks[0].tobytes()
        assert parts.calls == ["flush"] * len(parts.blocks) + ["close"]


def test_every_third_step():
    whole, _ = recorded()
    third, _ = recorded(every=3)
    assert third.table["step"].tolist() == [3, 6, 9, 12]
    assert np.concatenate(third.blocks).tobytes() == whole.blocks[0][2::3].tobytes()


def test_what_is_fixed_is_not_recorded():
    sink, _ = recorded("Adam(beta1=fixed(0.9)) / SGD(1e-5)")
    assert [name for name in sink.columns if name.endswith(".value")] == ["0.lr.value", "0.beta2.value", "1.lr.value"]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("upper", ["", " / SGD(1e-6)"], ids=["alone", "measured"])
def test_what_is_done_to_each_tensor_is_recorded(upper, fused, monkeypatch):
    """Norms and factors against the gradients themselves, trust ratios against the steps."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(buffers, "BLOCK", 16)
    torch.manual_seed(3)
    model, sink = torch.nn.Linear(5, 3).double(), Memory()
    stack = f"LAMBC(0.1, trust_max=0.8, clip=[norm(0.3, per='tensor', names='weight'), value(0.05)]){upper}"
    opt = hs.HyperOptimizer(model.named_parameters(), stack, compile=fused)
    expected = []
    with Recorder(opt, [sink], seconds=1e9) as recorder:
        for step in range(1, 9):
            opt.zero_grad()
            loss = model(torch.randn(4, 5, dtype=torch.float64)).square().mean()
            loss.backward()
            row = {}
            for name, p in model.named_parameters():
                norm = float(p.grad.norm())
                short = p.grad * min(1.0, 0.3 / norm) if name == "weight" else p.grad
                row[f"@{name}.norm"] = norm
                row[f"@{name}.clip"] = float(short.clamp(-0.05, 0.05).norm()) / norm
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            opt.step()
            recorder.record(step, loss)
            rate = 0.1 if step == 1 else None
            for name, p in model.named_parameters() if rate else ():  # the first step of Adam is a sign
                row[f"@{name}.trust_ratio"] = float((p.detach() - before[name]).norm()) / rate / p.numel() ** 0.5
            expected.append(row)
    for i, row in enumerate(expected):
        for column, value in row.items():
            assert sink.table[column][i] == pytest.approx(value, rel=1e-4 if "trust" in column else 1e-12), column
    assert (sink.table["@weight.clip"] < 1).all()
    assert 0 < sink.table["@weight.trust_ratio"].min() <= sink.table["@weight.trust_ratio"].max() <= 0.8 + 1e-12
    assert len(set(sink.table["@bias.trust_ratio"])) > 4
    assert not [name for name in sink.columns if name.startswith("@") and name.rsplit(".", 1)[1] == "value"]


def test_what_limits_losses_is_recorded():
    torch.manual_seed(3)
    model, sink = torch.nn.Linear(5, 3), Memory()
    opt = hs.HyperOptimizer(model.parameters(), "ALRC(SGD(1e-9), mean0=1.0, square0=5.0, n=1) / SGD(1e-9)")
    with Recorder(opt, [sink], seconds=1e9) as recorder:
        for step, spikes in ((1, 3), (2, 0)):
            opt.zero_grad()
            losses = (model(torch.randn(8, 5)) * 0).square().mean(1) + torch.tensor(
                [100.0] * spikes + [0.5] * (8 - spikes)
            )
            opt.backward(losses)
            opt.step()
            recorder.record(step, losses.mean())
    mean = 0.999 * 1 + 0.001 * (3 * 100 + 5 * 0.5) / 8
    square = 0.999 * 5 + 0.001 * (3 * 100**2 + 5 * 0.25) / 8
    assert sink.table["loss.bound"].tolist() == pytest.approx([3.0, mean + (square - mean**2) ** 0.5], rel=1e-5)
    assert sink.table["loss.limited"].tolist() == [3 / 8, 0.0]


# ---- statistics


def test_statistics_of_tensors_are_numpys():
    draw = np.random.default_rng(0)
    norm, clip, trust = draw.uniform(size=100), draw.choice([0.25, 0.5, 1.0], 100), draw.uniform(size=100)
    norm[4] = np.nan
    columns = {"step": np.arange(100.0), "@a.b.clip": np.ones(100), "group1.@a.clip": clip, "group1.@a.norm": norm}
    record = Record({**columns, "@0.trust_ratio": trust})
    found = tensor_statistics(record)
    assert list(found) == ["group1.a", "a.b", "0"]
    known = norm[np.isfinite(norm)]
    assert (found["group1.a"].norm_median, found["group1.a"].norm_max) == (np.median(known), known.max())
    assert (found["group1.a"].clipped, found["group1.a"].factor) == ((clip < 1).mean(), clip[clip < 1].mean())
    assert (found["a.b"].clipped, found["a.b"].factor, found["a.b"].norm_max) == (0.0, None, None)
    assert (found["0"].trust_median, found["0"].trust_max) == (np.median(trust), trust.max())
    assert found["0"].clipped is None
    json.dumps([s.as_dict() for s in found.values()], allow_nan=False)


def test_statistics_are_numpys():
    draw = np.random.default_rng(0)
    value, grad, clip = draw.normal(size=200), draw.normal(size=200), draw.choice([0.5, 1.0], 200)
    value[3], grad[5], grad[6] = np.nan, np.inf, np.nan
    columns = {"step": np.arange(200.0), "loss": value, "0.lr.value": value, "0.lr.grad": grad, "0.lr.clip": clip}
    found = statistics(Record(columns))["0.lr"]
    known, norms = value[np.isfinite(value)], np.abs(grad[np.isfinite(grad)])
    assert (found.first, found.last, found.min, found.max) == (value[0], value[-1], known.min(), known.max())
    assert (found.grad_median, found.grad_95, found.grad_max) == (
        np.median(norms), np.quantile(norms, 0.95), norms.max(),
    )  # fmt: skip
    assert (found.clipped, found.nonfinite) == ((clip < 1).mean(), 2)
    json.dumps(found.as_dict(), allow_nan=False)


@pytest.mark.parametrize("rows", [0, 3])
def test_statistics_of_nothing_are_none(rows):
    nothing = np.full(rows, np.nan)
    columns = dict.fromkeys(COLUMNS, nothing)
    found = statistics(Record(columns))["0.lr"]
    assert {found.first, found.last, found.min, found.max, found.grad_median, found.grad_95, found.grad_max} == {None}
    assert (found.clipped, found.nonfinite) == (None if rows == 0 else 0.0, rows)


# ---- the folder

PLAN = Plan(task="mnist", stack="Adam", epochs=5, seed=0, device="cpu", batch_size=256)


def test_a_plan_comes_back(tmp_path):
    run = RunFolder.create(tmp_path / "a" / "b")
    run.begin(PLAN.as_dict())
    assert RunFolder.existing(tmp_path / "a" / "b").read_plan() == PLAN
    assert run.read_summary() is None


def test_a_folder_with_anything_in_it_is_no_place_for_a_run(tmp_path):
    (tmp_path / "empty").mkdir()
    assert RunFolder.create(tmp_path / "empty").path == tmp_path / "empty"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / ".hidden").touch()
    (tmp_path / "file").touch()
    before = contents(tmp_path)
    for name, why in (("full", "exists already"), ("file", "exists already"), ("file/run", "cannot make the folder")):
        with pytest.raises(InputError, match=why):
            RunFolder.create(tmp_path / name)
    with pytest.raises(InputError, match=r"File name too long|cannot"):
        RunFolder.create(tmp_path / ("x" * 300))
    assert contents(tmp_path) == before


def test_runs_are_numbered(tmp_path):
    made = [RunFolder.next_free(tmp_path / "runs", "mnist").path.name for _ in range(3)]
    (tmp_path / "runs" / "mnist-004").touch()
    made.append(RunFolder.next_free(tmp_path / "runs", "mnist").path.name)
    assert made == ["mnist-001", "mnist-002", "mnist-003", "mnist-005"]
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot make a folder"):
        RunFolder.next_free(tmp_path / "file", "mnist")


def test_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "file").touch()
    reasons = {"missing": "does not exist", "file": "not a folder", "": "no plan", "x" * 300: "may not be read"}
    for name, why in reasons.items():
        with pytest.raises(InputError, match=why):
            RunFolder.existing(tmp_path / name)


PLANS = {
    "empty": "", "no json": "{", "a list": "[]", "deep": "[" * 100_000, "lacking": '{"task": "mnist"}',
    "of other kinds": json.dumps({**PLAN.as_dict(), "epochs": "five"}),
    "bytes": "\udcff",
}  # fmt: skip


@pytest.mark.parametrize("kind", PLANS)
def test_a_damaged_plan_is_refused(tmp_path, kind):
    (tmp_path / "plan.json").write_bytes(PLANS[kind].encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"(?s)plan\.json is damaged"):
        RunFolder.existing(tmp_path).read_plan()


def test_a_plan_of_a_newer_hyperstack_is_read_as_far_as_it_is_known(tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps({**PLAN.as_dict(), "precision": "half"}))
    assert RunFolder.existing(tmp_path).read_plan() == PLAN


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"epochs": 5, "steps": 3, "seconds": "long"}'])
def test_a_damaged_summary_is_refused(tmp_path, text):
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(InputError, match=r"summary\.json is damaged"):
        RunFolder(tmp_path).read_summary()


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    run.write_checkpoint({"steps": 1})
    run.begin(PLAN.as_dict())
    before = contents(tmp_path)
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr("os.fsync", lambda number: os.write(full, b"x"))
    writes = (lambda: run.write_checkpoint({"steps": 2}), lambda: run.write_summary({}), lambda: run.begin({}))
    for write in writes:
        with pytest.raises(RunError, match="No space left"):
            write()
    os.close(full)
    assert contents(tmp_path) == before


def test_a_file_is_replaced_as_a_whole(tmp_path):
    run = RunFolder(tmp_path)
    run.write_summary({"steps": 1})
    with (tmp_path / "summary.json").open() as reader:  # who reads meanwhile sees the old one to its end
        run.write_summary({"steps": 2})
        assert json.load(reader) == {"steps": 1}
    assert json.loads((tmp_path / "summary.json").read_text()) == {"steps": 2}


def test_files_have_the_permissions_that_the_user_wants(tmp_path):
    before = os.umask(0o027)
    try:
        RunFolder(tmp_path).write_checkpoint({})
    finally:
        os.umask(before)
    assert (tmp_path / "checkpoint.pt").stat().st_mode & 0o777 == 0o640


# ---- series as text


def test_a_series_in_parts():
    values = np.array([1.0, 3.0, np.nan, 5.0, np.inf, np.nan, 10.0, 1000.0])
    assert binned(values, 4).tolist()[:2] == [2.0, 5.0]
    assert np.isnan(binned(values, 4)[2])
    np.testing.assert_allclose(binned(values, 4, log=True)[[0, 3]], [np.log10(3) / 2, 2.0])
    np.testing.assert_allclose(binned(np.full(5, 1.7e308), 1), 1.7e308)
    assert binned(np.array([0.0, -1.0, 10.0]), 9, log=True).tolist()[2:] == [1.0]


@given(hnp.arrays(np.float64, st.integers(0, 60)), st.integers(1, 40), st.booleans(), st.booleans())
def test_any_series_is_a_line(values, width, log, ascii_only):
    line = sparkline(values, width, log, ascii_only)
    assert len(line) == min(width, len(values))
    assert set(line) <= set((ASCII if ascii_only else BLOCKS) + " ")


def test_a_series_rises_and_falls():
    assert sparkline(np.arange(8.0), 8) == BLOCKS
    assert sparkline(10.0 ** np.arange(8), 8, log=True, ascii_only=True) == ASCII
    assert sparkline(np.array([2.0, 2.0, np.nan]), 8) == "▁▁ "
    assert sparkline(np.array([-1e308, 1e308]), 8) == "▁█"
