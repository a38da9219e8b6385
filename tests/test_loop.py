"""Telemetry in a loop of one's own, and runs read back in Python."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from toy import contents

import hyperstack as hs
from hyperstack.reports.run import levels
from hyperstack.telemetry.runfolder import RunFolder

STACK = "Adam(0.01) / SGD(0.001, clip)"


def loop(path=None, steps=6, opt=None, recording=None, **options):
    """Train a little; each loss and each row that the optimizer shows by itself."""
    torch.manual_seed(1)
    model = torch.nn.Linear(4, 2)
    opt = hs.HyperOptimizer(model.parameters(), STACK)
    recording = hs.record(opt, path, **options) if path else None
    losses, seen = [], []
    for _ in range(steps):
        opt.zero_grad()
        loss = model(torch.randn(8, 4)).square().mean()
        loss.backward()
        if recording:
            recording.loss(loss)
        opt.step()
        losses.append(loss.item())
        found = (opt.hyperparameters(), opt.hypergradients(), opt.clip_factors())
        seen.append([{key: x.item() for key, x in each.items()} for each in found])
    return model, opt, recording, losses, seen


def test_every_step_is_a_row(tmp_path):
    *_, recording, losses, seen = loop(tmp_path / "run", task="mine")
    run = recording.run()
    assert run.state == "running"
    recording.result(test_error=0.25, note="good")
    recording.close()
    recording.close()
    run = hs.load_run(tmp_path / "run")
    assert (run.state, run.stack, run.plan["task"]) == ("finished", str(hs.parse(STACK)), "mine")
    assert run.levels == ["Adam(0.01)", "SGD(0.001, clip)"]
    assert run["step"].tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(run["loss"], losses, rtol=1e-6)  # a float32 loss
    assert run["loss"].dtype == np.float64
    for key in ("0.lr", "0.beta1", "0.beta2", "1.lr"):
        for i, what in enumerate(("value", "grad", "clip")):
            np.testing.assert_allclose(run[f"{key}.{what}"], [step[i][key] for step in seen], rtol=1e-12)
    assert set(run) == set(run.record.columns)
    assert (run.summary["test_error"], run.summary["note"], run.summary["steps"]) == (0.25, "good", 6)
    assert run.summary["hyperparameters"]["0.lr"] == seen[-1][0]["0.lr"]


def test_the_average_is_that_of_the_clip(tmp_path):
    """The recursion of the paper, over the hypergradients that were recorded."""
    *_, recording, _, _ = loop(tmp_path / "run", steps=20)
    run = recording.run()
    recording.close()
    for key in ("0.lr", "0.beta1", "0.beta2"):
        average, expected = 0.0, []
        for t, grad in enumerate(np.abs(run[f"{key}.grad"]), start=1):
            threshold = ((t - 1) * average + grad) / t
            average = ((t - 1) * average + min(grad, threshold)) / t
            expected.append(average)
        np.testing.assert_allclose(run[f"{key}.average"], expected, rtol=1e-12)
        assert expected[-1] > 0
    assert "1.lr.average" not in run


def test_a_result_is_what_readers_can_read(tmp_path):
    recording = hs.record(loop(steps=0)[1], tmp_path / "run")
    figures = {"accuracy": np.float32(0.5), "worst": math.inf, "count": 3, "note": "good", "nothing": None}
    recording.result(test_error=0, train_loss=torch.tensor(1.5), **figures)
    for wrong in ({"curve": [1, 2]}, {"test_error": "low"}, {"loss": torch.ones(2)}, {"steps": "many"}):
        with pytest.raises(hs.InputError, match=r"give a number or a text|choose another name"):
            recording.result(**wrong)
    recording.result(test_error=0)
    recording.close()
    text = (tmp_path / "run" / "summary.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)
    assert found == {**found, **figures, "worst": None, "test_error": 0.0, "train_loss": 1.5}
    assert hs.load_run(tmp_path / "run").summary == found


def test_a_folder_that_is_taken_is_named_with_what_python_can_do(tmp_path):
    hs.record(loop(steps=0)[1], tmp_path / "run").close()
    with pytest.raises(hs.InputError, match=r"exists already\n.*\nchoose another folder, or .* after=STEP") as refused:
        hs.record(loop(steps=0)[1], tmp_path / "run")
    assert "--" not in str(refused.value).replace(str(tmp_path), "")


def test_it_does_not_change_what_is_learned(tmp_path):
    model, opt, recording, *_ = loop(tmp_path / "run")
    recording.close()
    other, plain, *_ = loop()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert {k: v.item() for k, v in opt.hyperparameters().items()} == {
        k: v.item() for k, v in plain.hyperparameters().items()
    }


def test_every_so_many_steps_and_losses_that_are_not_told(tmp_path):
    model = torch.nn.Linear(4, 2)
    opt = hs.HyperOptimizer(model.parameters(), STACK)
    with hs.record(opt, tmp_path / "run", every=2) as recording:
        for step in range(1, 6):
            model(torch.ones(1, 4)).sum().backward()
            if step == 4:
                recording.loss(0.5)
            opt.step()
    run = hs.load_run(tmp_path / "run")
    assert run["step"].tolist() == [2, 4]
    assert np.isnan(run["loss"][0])
    assert run["loss"][1] == 0.5


@pytest.mark.parametrize("loss", [torch.ones(3), torch.ones(0), None, "0.5"])
def test_a_loss_that_is_not_one_number_is_refused_at_once(loss, tmp_path):
    model = torch.nn.Linear(4, 2)
    opt = hs.HyperOptimizer(model.parameters(), STACK)
    with hs.record(opt, tmp_path / "run") as recording:
        with pytest.raises(hs.InputError, match="the loss "):
            recording.loss(loss)
        for told in (torch.full((1,), 0.25), 0.5, torch.tensor([[0.75]])):
            model(torch.ones(1, 4)).sum().backward()
            recording.loss(told)
            opt.step()
    assert hs.load_run(tmp_path / "run")["loss"].tolist() == [0.25, 0.5, 0.75]


def test_a_state_that_is_loaded_while_it_records(tmp_path):
    """The rows are those of the tower that the state makes, and not of the one before."""
    saved = loop(steps=9)[1].state_dict()
    model = torch.nn.Linear(4, 2)
    opt = hs.HyperOptimizer(model.parameters(), STACK)
    seen = []
    with hs.record(opt, tmp_path / "run"):
        for t in range(6):
            if t == 3:
                opt.load_state_dict(saved)
            opt.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            opt.step()
            seen.append([opt.hyperparameters()["0.lr"].item(), opt.hypergradients()["0.lr"].item()])
    run = hs.load_run(tmp_path / "run")
    assert abs(seen[3][0] - seen[2][0]) > 1e-6
    np.testing.assert_allclose(np.stack([run["0.lr.value"], run["0.lr.grad"]], 1), seen, rtol=1e-12)


def test_a_loop_goes_on_behind_a_step(tmp_path):
    loop(tmp_path / "run")[2].close()
    whole = hs.load_run(tmp_path / "run")
    again = loop(tmp_path / "run", after=4)[2]
    assert hs.load_run(tmp_path / "run").summary is None
    again.close()
    run = hs.load_run(tmp_path / "run")
    assert run["step"].tolist() == list(range(1, 11))
    assert run["loss"][:4].tolist() == whole["loss"][:4].tolist()


def test_an_error_in_the_loop_is_an_interrupted_run(tmp_path):
    model = torch.nn.Linear(4, 2)
    opt = hs.HyperOptimizer(model.parameters(), STACK)
    recording = hs.record(opt, tmp_path / "run")

    def interrupted():
        with recording:
            opt.step()
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    run = hs.load_run(tmp_path / "run")
    assert run.state == "interrupted"
    assert len(run["step"]) == 1


def test_a_network_that_is_not_finite_has_diverged(tmp_path):
    model = torch.nn.Linear(4, 2)
    opt = hs.HyperOptimizer(model.parameters(), STACK)
    with hs.record(opt, tmp_path / "run"):
        model(torch.ones(1, 4)).sum().mul(float("inf")).backward()
        opt.step()
    assert hs.load_run(tmp_path / "run").state == "diverged"


def test_a_program_that_goes_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    recording = loop("run")[2]
    monkeypatch.chdir(tmp_path / "elsewhere")
    recording.close()
    assert hs.load_run(tmp_path / "run").state == "finished"


def test_what_is_refused_writes_nothing(tmp_path):
    opt = hs.HyperOptimizer(torch.nn.Linear(4, 2).parameters(), STACK)
    loop(tmp_path / "run")[2].close()
    before = contents(tmp_path)
    for path, options, said in [
        ("run", {}, "exists already"),
        ("new", {"every": 0}, "every=0"),
        ("run", {"after": 3, "every": 2}, "after=3"),
        ("run", {"after": 99}, "lacks step 99"),
        ("new", {"after": 3}, "there is no run folder"),
    ]:
        with pytest.raises(hs.InputError, match=said):
            hs.record(opt, tmp_path / path, **options)
    other = hs.HyperOptimizer(torch.nn.Linear(4, 2).parameters(), "SGD / SGD")
    with pytest.raises(hs.InputError, match="records other hyperparameters"):
        hs.record(other, tmp_path / "run", after=3)
    assert contents(tmp_path) == before


def test_param_groups_with_stacks_of_their_own(tmp_path):
    one, two = torch.nn.Linear(4, 2), torch.nn.Linear(2, 1)
    groups = [{"params": one.parameters()}, {"params": two.parameters(), "stack": "SGD(0.1) / SGD"}]
    opt = hs.HyperOptimizer(groups, STACK)
    with hs.record(opt, tmp_path / "run"):
        two(one(torch.ones(3, 4))).sum().backward()
        opt.step()
    run = hs.load_run(tmp_path / "run")
    assert run.plan["stacks"] == [str(hs.parse(STACK)), str(hs.parse("SGD(0.1) / SGD"))]
    assert {"0.lr.value", "0.lr.average", "group1.0.lr.value", "group1.1.lr.value"} <= set(run)
    assert "group1.0.lr.average" not in run


PROGRAM = """
import sys, torch, hyperstack as hs
model = torch.nn.Linear(4, 2)
opt = hs.HyperOptimizer(model.parameters(), "Adam / SGD(1e-5)")
hs.record(opt, sys.argv[1])
for _ in range(3):
    opt.zero_grad(); model(torch.ones(1, 4)).sum().backward(); opt.step()
if len(sys.argv) > 2:
    raise KeyError
"""


@pytest.mark.slow
@pytest.mark.parametrize(("more", "state"), [([], "finished"), (["fail"], "interrupted")])
def test_one_line_is_enough(tmp_path, more, state):
    subprocess.run([sys.executable, "-c", PROGRAM, tmp_path / "run", *more], stderr=subprocess.DEVNULL, check=False)
    run = hs.load_run(tmp_path / "run")
    assert run.state == state
    assert run["step"].tolist() == [1, 2, 3]


# ---- reading runs


def test_reading_a_run_needs_no_torch(tmp_path):
    loop(tmp_path / "run")[2].close()
    code = f"""
import sys
from hyperstack.reports.run import load_run
from hyperstack.reports.statistics import statistics
assert statistics(load_run({str(tmp_path / "run")!r}).record)["0.lr"].first > 0
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Adam", ["Adam"]),
        ("Adam / SGD(1e-05, clip) / SGD(α)", ["Adam", "SGD(1e-05, clip)", "SGD(α)"]),
        ("ALRC(Adam(0.1), n=3.0) / SGD", ["ALRC(Adam(0.1), n=3.0)", "SGD"]),
        ("what / is ( this", ["what / is ( this"]),
    ],
)
def test_levels_are_told_apart_without_knowing_rules(text, found):
    assert levels(text) == found


@pytest.mark.sampled(3)
@pytest.mark.parametrize("content", ["[]", "{}", '{"task": "x"}', '{"task": 1, "stack": "Adam"}', "{"])
def test_a_damaged_heading_is_refused(tmp_path, content):
    loop(tmp_path / "run")[2].close()
    (tmp_path / "run" / "plan.json").write_text(content)
    with pytest.raises(hs.InputError, match=r"plan\.json is damaged"):
        hs.load_run(tmp_path / "run")


def test_resuming_a_loop_with_train_is_refused(tmp_path):
    loop(tmp_path / "run")[2].close()
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["task"] == "loop"
    with pytest.raises(hs.InputError, match=r"it lacks epochs, seed, batch_size"):
        RunFolder(tmp_path / "run").read_plan()


@pytest.mark.slow
def test_names_are_loaded_when_they_are_asked_for():
    code = """
import sys, hyperstack as hs
assert hs.__version__ and "torch" not in sys.modules
assert {"Adam", "HyperOptimizer", "__version__"} <= set(dir(hs))
assert hs.parse("Adam / SGD").free_names == ()
from hyperstack import *
assert HyperOptimizer is hs.HyperOptimizer and hs.optimizer.HyperOptimizer is HyperOptimizer
try:
    hs.nothing
except AttributeError as error:
    assert "has no attribute 'nothing'" in str(error)
else:
    sys.exit("found nothing")
"""
    code = "from hyperstack.dsl import parse; parse('Adam / SGD')"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
