"""The training loop: what a run leaves behind, and that an interrupted one goes on as if nothing had happened."""

import json
import math
import os

import pytest
import torch
from toy import BATCHES, DATA, PLAN, Toy, assert_same_run, contents, train_toy

import hyperstack as hs
from hyperstack.errors import InputError, RunError
from hyperstack.telemetry.jsonl import read_record
from hyperstack.telemetry.runfolder import RunFolder
from hyperstack.training import Trainer

HIGH = "SGD(per_tensor(0.1), momentum=0.9) / Adam(0.01, clip) / SGD(0.001)"


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Uninterrupted runs, each made once."""
    made = {}

    def get(**changes):
        key = json.dumps(changes)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("straight") / "run"
            train_toy(made[key], **changes)
        return made[key]

    return get


# ---- what a run leaves behind


def test_the_summary_holds_the_result(tmp_path):
    summary = train_toy(tmp_path / "run")
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {k: summary[k] for k in ("task", "stack", "seed", "device", "epochs", "steps", "diverged", "finished")} == {
        "task": "toy", "stack": "Adam / SGD(1e-05)", "seed": 0, "device": "cpu", "epochs": 3, "steps": 3 * BATCHES,
        "diverged": False, "finished": True,
    }  # fmt: skip
    assert summary["seconds"] > 0
    assert 0 < summary["test_error"] < 0.3
    assert set(summary["hyperparameters"]) == {"0.lr", "0.beta1", "0.beta2", "0.eps", "1.lr"}
    assert summary["hyperparameters"]["0.lr"] != 0.001
    assert summary["versions"]["torch"] == torch.__version__
    assert [epoch["number"] for epoch in summary["history"]] == [1, 2, 3]
    assert summary["history"][-1]["test_error"] == summary["test_error"]
    assert summary["history"][-1]["train_loss"] == summary["train_loss"] < summary["history"][0]["train_loss"]


def test_figures_are_those_of_an_ordinary_loop(tmp_path):
    summary = train_toy(tmp_path / "run", epochs=1)
    trainer = Trainer(PLAN, Toy(), DATA)
    losses = []
    for chosen in trainer.source.order(trainer.plan.seed, trainer.epoch).split(PLAN.batch_size):
        trainer.opt.zero_grad()
        loss = Toy().losses(trainer.model(DATA.train_inputs[chosen]), DATA.train_targets[chosen]).mean()
        loss.backward()
        trainer.opt.step()
        losses.append(loss.item())
    trainer.model.eval()
    wrong = trainer.model(DATA.test_inputs).argmax(1) != DATA.test_targets
    assert summary["test_error"] == wrong.double().mean().item()
    assert summary["train_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-12)
    record = RunFolder(tmp_path / "run").read_record().columns
    assert record["loss"].tolist() == losses
    assert record["0.lr.value"][-1] == trainer.opt.hyperparameters()["0.lr"].item()
    assert record["1.lr.grad"][-1] == trainer.opt.hypergradients()["1.lr"].item()


def test_an_epoch_is_every_example_once_in_an_order_of_its_own():
    trainer = Trainer(PLAN, Toy(), DATA)
    first, again = (
        trainer.source.order(trainer.plan.seed, trainer.epoch),
        trainer.source.order(trainer.plan.seed, trainer.epoch),
    )
    trainer.epoch = 1
    second = trainer.source.order(trainer.plan.seed, trainer.epoch)
    assert first.tolist() == again.tolist() != second.tolist()
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(len(DATA.train_inputs)))


def test_equal_seeds_give_equal_runs_and_others_do_not(tmp_path, straight):
    train_toy(tmp_path / "again")
    assert_same_run(straight(), tmp_path / "again")
    assert (straight(seed=1) / "record.jsonl").read_bytes() != (straight() / "record.jsonl").read_bytes()


def test_the_global_generator_does_not_matter(tmp_path, straight):
    torch.manual_seed(99)
    train_toy(tmp_path / "again")
    assert_same_run(straight(), tmp_path / "again")


def test_a_network_that_leaves_the_numbers_is_a_result(tmp_path):
    summary = train_toy(tmp_path / "run", stack="SGD(1e+38) / SGD(1e+38)", epochs=5)
    assert summary["diverged"] is True
    assert summary["finished"] is True
    assert summary["epochs"] < 5
    assert 0 <= summary["test_error"] <= 1
    text = (tmp_path / "run" / "summary.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == summary
    assert not math.isfinite(read_record(tmp_path / "run" / "record.jsonl").columns["loss"][-1])


def test_a_set_number_of_threads_is_kept(tmp_path):
    before = torch.get_num_threads()
    try:
        assert train_toy(tmp_path / "run", threads=2, epochs=1)["threads"] == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# ---- going on


@pytest.mark.parametrize(
    ("stack", "every", "stops"),
    [
        (HIGH, 1, (0, 13, 14, 2 * BATCHES)),
        (HIGH, 3, (1, 2, 8, 29)),
        ("Adam / SGD(1e-05)", 1, (5,)),
        ("Adam / SGD(1e-05)", 40, (BATCHES,)),
        ("RMSProp(centered)", 2, (15,)),
        ("auto(Adam, every=4)", 1, (3, 4, 5, 18)),
        ("Adam(log(0.01)) / SGD(0.1, clip=[cosine], at=average(0.9, every=4))", 2, (6, 8)),
    ],
)
@pytest.mark.slow
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, straight, stack, every, stops):
    path, changes = tmp_path / "run", {"stack": stack, "record_every": every}
    for i, step in enumerate(stops):
        summary = train_toy(path, resume=i > 0, stop_at=step, **changes)
        assert (summary["steps"], summary["finished"]) == (step, False)
        torch.manual_seed(1234)  # the next process starts elsewhere
    train_toy(path, resume=True, **changes)
    assert_same_run(straight(**changes), path)


class Power(Exception):
    """The plug is pulled."""


class Plug:
    """A sink that ends the run without a word, while its record runs behind or ahead of its checkpoint."""

    def __init__(self, step):
        self.step = step

    def open(self, columns):
        pass

    def write(self, rows):
        if rows[-1, 0] >= self.step:
            raise Power

    flush = close = lambda self: None


@pytest.mark.parametrize(
    ("step", "torn"),
    [(1, b""), (5, b"["), (BATCHES, b"[7, 0."), (BATCHES + 1, b"[99, 1.0, 2.0"), (3 * BATCHES, b"\0\0\0")],
)
@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, straight, step, torn):
    path = tmp_path / "run"
    with pytest.raises(Power):
        train_toy(path, sinks=[Plug(step)])
    assert not (path / "summary.json").exists()
    before = len(read_record(path / "record.jsonl"))
    with (path / "record.jsonl").open("ab") as file:
        file.write(torn)
    assert len(read_record(path / "record.jsonl")) == before >= step
    (path / ".checkpoint.pt-0123.tmp").write_bytes(b"half a checkpoint")
    train_toy(path, resume=True)
    assert_same_run(straight(), path)
    assert sorted(contents(path)) == sorted(contents(straight()))


def test_more_epochs_are_the_same_run(tmp_path, straight):
    train_toy(tmp_path / "run", epochs=1)
    train_toy(tmp_path / "run", resume=True, epochs=2)
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["epochs"] == 2
    train_toy(tmp_path / "run", resume=True)
    assert_same_run(straight(), tmp_path / "run")


def test_fewer_epochs_too_unless_they_are_over(tmp_path, straight):
    path = tmp_path / "run"
    train_toy(path, stop_at=BATCHES)
    summary = train_toy(path, resume=True, epochs=1)
    assert (summary["finished"], summary["epochs_planned"]) == (True, 1)
    train_toy(path, resume=True, stop_at=BATCHES + 1)
    before = contents(path)
    with pytest.raises(InputError, match="in epoch 2 already, and 1 are asked for\nask for 2"):
        train_toy(path, resume=True, epochs=1)
    train_toy(tmp_path / "other", epochs=2)
    with pytest.raises(InputError, match="has done 2 epochs already, and 1 are asked for"):
        train_toy(tmp_path / "other", resume=True, epochs=1)
    assert contents(path) == before


def test_a_finished_run_has_nothing_left_to_do(tmp_path, straight):
    train_toy(tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()  # as if it was killed right before
    train_toy(tmp_path / "run", resume=True)
    assert_same_run(straight(), tmp_path / "run")


def test_a_summary_of_how_far_it_came_before_does_not_outlive_that(tmp_path):
    train_toy(tmp_path / "run", stop_at=5)
    with pytest.raises(Power):
        train_toy(tmp_path / "run", resume=True, sinks=[Plug(8)])
    assert not (tmp_path / "run" / "summary.json").exists()


# ---- runs that cannot go on


@pytest.fixture
def stopped(tmp_path):
    train_toy(tmp_path / "run", stop_at=13)
    return tmp_path / "run"


@pytest.mark.sampled(3)
@pytest.mark.parametrize("field", ["task", "stack", "seed", "batch_size", "record_every"])
def test_the_checkpoint_of_another_run_is_refused(stopped, field):
    other = {"task": "tox", "stack": "SGD", "seed": 1, "batch_size": 33, "record_every": 2}
    before = contents(stopped)
    with pytest.raises(InputError, match=f"(?s)another {field.replace('_', ' ')}.*{other[field]}"):
        train_toy(stopped, resume=True, **{field: other[field]})
    assert contents(stopped) == before


def damage(path, change):
    saved = torch.load(path / "checkpoint.pt", weights_only=True)
    torch.save(change(saved), path / "checkpoint.pt")


DAMAGES = {
    "no dictionary": lambda saved: [saved],
    "no model": lambda saved: {k: v for k, v in saved.items() if k != "model"},
    "no plan": lambda saved: {**saved, "plan": {}},
    "another network": lambda saved: {**saved, "model": torch.nn.Linear(2, 2).state_dict()},
    "no optimizer": lambda saved: {**saved, "optimizer": {}},
    "torch's Adam": lambda saved: {
        **saved, "optimizer": torch.optim.Adam(Toy().model().parameters()).state_dict()
    },
    "no progress": lambda saved: {**saved, "progress": {"epoch": 1}},
    "progress of words": lambda saved: {**saved, "progress": {**saved["progress"], "steps": "many"}},
    "a generator's state of another length": lambda saved: {**saved, "random": {"cpu": torch.zeros(3).byte()}},
    "epochs of another kind": lambda saved: {**saved, "epochs": [{"number": 1}]},
}  # fmt: skip


@pytest.mark.sampled(9)
@pytest.mark.parametrize("kind", DAMAGES)
def test_a_checkpoint_that_lacks_something_is_refused(stopped, kind):
    damage(stopped, DAMAGES[kind])
    before = contents(stopped)
    with pytest.raises(InputError):
        train_toy(stopped, resume=True)
    assert contents(stopped) == before


def truncated(content):
    return content[: len(content) // 2]


def flipped(content):
    return content[:500] + bytes([content[500] ^ 0xFF]) + content[501:]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("change", [truncated, lambda content: b"", lambda content: b"checkpoint", flipped])
def test_a_damaged_checkpoint_file_is_refused(stopped, change):
    file = stopped / "checkpoint.pt"
    file.write_bytes(change(file.read_bytes()))
    before = contents(stopped)
    with pytest.raises(InputError, match=r"checkpoint\.pt is damaged"):
        train_toy(stopped, resume=True)
    assert contents(stopped) == before


def test_a_missing_checkpoint_is_refused(stopped):
    (stopped / "checkpoint.pt").unlink()
    with pytest.raises(InputError, match="no checkpoint"):
        RunFolder(stopped).read_checkpoint(torch.device("cpu"))


def test_a_checkpoint_runs_no_code(stopped, tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "trapped"), "w")

    torch.save({"plan": Trap()}, stopped / "checkpoint.pt")
    with pytest.raises(InputError, match="damaged"):
        train_toy(stopped, resume=True)
    assert not (tmp_path / "trapped").exists()


RECORDS = {
    "missing": None,
    "empty": b"",
    "of something else": b'{"step": 1}\n',
    "of other columns": lambda lines: [lines[0].replace(b"0.beta1", b"0.gamma"), *lines[1:]],
    "cut before the checkpoint": lambda lines: lines[:9],
    "with a gap": lambda lines: lines[:13] + lines[14:],
    "with a broken line": lambda lines: [*lines[:4], lines[4][:9] + b"\n", *lines[5:]],
    "with zeros": lambda lines: [*lines[:4], b"\0" * 90],
}


@pytest.mark.sampled(7)
@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_that_does_not_reach_the_checkpoint_is_refused(stopped, kind):
    file, change = stopped / "record.jsonl", RECORDS[kind]
    if change is None:
        file.unlink()
    else:
        file.write_bytes(change if isinstance(change, bytes) else b"".join(change(file.read_bytes().splitlines(True))))
    before = contents(stopped)
    with pytest.raises(InputError, match=r"record\.jsonl"):
        train_toy(stopped, resume=True)
    assert contents(stopped) == before


# ---- runs that fail


def test_a_full_disk_is_a_failed_run_that_can_go_on(tmp_path, straight, monkeypatch):
    path, full = tmp_path / "run", os.open("/dev/full", os.O_WRONLY)

    class Full:
        """Lets the rows of epoch 1 through."""

        def open(self, columns):
            pass

        def write(self, rows):
            if rows[-1, 0] > BATCHES:
                monkeypatch.setattr("os.fsync", lambda number: os.write(full, b"x"))

        flush = close = lambda self: None

    with pytest.raises(RunError, match=r"(?s)cannot write .*checkpoint\.pt.*No space left") as error:
        train_toy(path, sinks=[Full()])
    assert error.value.exit_code == 1
    monkeypatch.undo()
    os.close(full)
    left = [name.name for name in sorted(contents(path))]
    assert left == [
        "checkpoint.pt",
        "plan.json",
        "record.jsonl",
        "record.rows",
    ]
    train_toy(path, resume=True)
    assert_same_run(straight(), path)


def test_a_device_that_fails_is_a_failed_run(tmp_path, monkeypatch):
    def fail(self, chosen):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nsecond line")

    monkeypatch.setattr(Trainer, "_step", fail)
    with pytest.raises(RunError, match=r"(?s)out of memory.*2 GiB\nchoose a smaller batch") as error:
        train_toy(tmp_path / "run")
    assert error.value.exit_code == 1


def test_a_mistake_in_the_code_is_no_deliberate_error(tmp_path, monkeypatch):
    def fail(self, chosen):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Trainer, "_step", fail)
    with pytest.raises(RuntimeError, match="a bug") as error:
        train_toy(tmp_path / "run")
    assert not isinstance(error.value, hs.HyperstackError)


@pytest.mark.gpu
def test_on_a_gpu_an_interrupted_run_goes_on_bit_for_bit(tmp_path):
    train_toy(tmp_path / "straight", device="cuda")
    train_toy(tmp_path / "run", device="cuda", stop_at=13)
    torch.cuda.manual_seed(1234)
    train_toy(tmp_path / "run", device="cuda", resume=True)
    assert_same_run(tmp_path / "straight", tmp_path / "run")
