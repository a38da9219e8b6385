"""Schedules: what they are by torch's own schedulers, alone, side by side, and in a run that is resumed."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import DATA, PLAN, Calm, Toy, assert_same_run, command, contents, ok, train_toy

from hyperstack.batches import Batches
from hyperstack.errors import InputError
from hyperstack.schedule import Schedule
from hyperstack.sweep.block import Block
from hyperstack.sweep.final import FinalLoss
from hyperstack.sweep.planning import SweepPlan
from hyperstack.tasks import Data
from hyperstack.telemetry.plan import Plan
from hyperstack.training import Trainer


class Exact(Calm):
    """In float64."""

    def model(self):
        return super().model().double()


DATA64 = Data(DATA.train_inputs.double(), DATA.train_targets, DATA.test_inputs.double(), DATA.test_targets)
SCHEDULES = st.sampled_from([Schedule(), Schedule("cosine")]) | st.builds(
    Schedule, st.just("drop"), st.integers(1, 10**9), st.floats(0, 1e9)
)


@given(SCHEDULES)
def test_the_text_of_a_schedule_reads_back(schedule):
    assert Schedule.parse(str(schedule)) == schedule
    assert Schedule.parse(f" {schedule} ") == schedule


@given(st.text(max_size=30) | st.from_regex(r"drop\([-+0-9e., ]{0,30}\)", fullmatch=True))
def test_no_text_makes_anything_but_our_own_error(text):
    try:
        found = Schedule.parse(text)
    except InputError:
        return
    assert all(math.isfinite(found.factor(t, 10)) and found.factor(t, 10) >= 0 for t in range(10))


NONE = ["", "linear", "cosine()", "drop", "drop(0, 0.1)", "drop(5)", "drop(1.5, 1)", "drop(5, -1)", "drop(5, 1.1.1)"]


@pytest.mark.parametrize("text", NONE)
def test_what_is_no_schedule(text):
    with pytest.raises(InputError) as error:
        Schedule.parse(text)
    assert "constant, cosine or drop" in error.value.instead


@settings(deadline=None, max_examples=30)  # torch's schedulers load much when they are first used
@given(st.integers(1, 400))
def test_cosine_is_torchs(total):
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=total)
    for t in range(total):
        assert Schedule("cosine").factor(t, total) == pytest.approx(opt.param_groups[0]["lr"], abs=1e-12)
        opt.step()
        theirs.step()


@settings(deadline=None)
@given(st.integers(1, 50), st.floats(0, 10), st.integers(1, 100))
def test_a_drop_is_torchs(steps, value, total):
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.MultiStepLR(opt, [steps], value)
    for t in range(total):
        assert Schedule("drop", steps, value).factor(t, total) == opt.param_groups[0]["lr"]
        opt.step()
        theirs.step()


def test_a_drop_comes_in_proportion():
    assert str(Schedule.parse("drop(54687, 0.1)").scaled(0.5)) == "drop(27344, 0.1)"
    assert str(Schedule.parse("drop(1,0.1)").scaled(0.001)) == "drop(1, 0.1)"
    assert Schedule("cosine").scaled(0.5) == Schedule("cosine")


def plan_of(stack, schedule, **changes):
    return replace(PLAN, task="calm", stack=stack, schedule=schedule, epochs=3, **changes)


def trained(plan):
    """A trainer that has done its work, and how much of the work its final loss is of."""
    trainer = Trainer(plan, Exact(), DATA64)
    trainer.run(FinalLoss(trainer.batches * plan.epochs, trainer.total))
    return trainer


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        ("cosine", lambda opt: torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=30)),
        ("drop(13, 0.1)", lambda opt: torch.optim.lr_scheduler.MultiStepLR(opt, [13], 0.1)),
    ],
)
def test_training_is_a_loop_with_torchs_optimizer_and_scheduler(schedule, theirs):
    torch.manual_seed(0)
    model = Exact().model()
    opt = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler, source = theirs(opt), Batches(Exact(), DATA64)
    for epoch in range(3):
        for i, chosen in enumerate(source.order(0, epoch).split(PLAN.batch_size)):
            inputs, targets = source.training(chosen, 0, epoch, i)
            opt.zero_grad()
            Exact().losses(model(inputs), targets).mean().backward()
            opt.step()
            scheduler.step()
    trainer = trained(plan_of("AdamW(0.01)", schedule))
    assert trainer.steps == 30
    for ours, expected in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    constant = trained(plan_of("AdamW(0.01)", "constant"))
    assert not torch.allclose(next(constant.model.parameters()), next(model.parameters()), rtol=1e-3)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("schedule", ["cosine", "drop(7, 0.1)"])
@pytest.mark.parametrize("stack", ["AdamW(α)", "Adam(α) / SGD(1e-3, clip)"])
def test_side_by_side_as_alone(stack, schedule):
    plans = [plan_of(stack.replace("α", repr(rate)), schedule, seed=seed) for rate in (0.01, 0.1) for seed in (0, 1)]
    block = Block(plans, Exact(), DATA64)
    found = dict(block.run())
    for r, plan in enumerate(plans):
        alone = trained(plan)
        for together, own in zip(block.params, alone.model.parameters(), strict=True):
            torch.testing.assert_close(together[r], own.detach(), rtol=1e-9, atol=1e-9)
        assert found[r]["schedule"] == schedule
        assert found[r]["test_error"] == alone.epochs[-1].test_error


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["cosine", "drop(14, 0.1)"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, schedule):
    train_toy(tmp_path / "whole", schedule=schedule)
    for stop in (4, 14, 25):
        train_toy(tmp_path / f"at-{stop}", schedule=schedule, stop_at=stop)
        train_toy(tmp_path / f"at-{stop}", schedule=schedule, resume=True)
        assert_same_run(tmp_path / "whole", tmp_path / f"at-{stop}")


def test_what_a_run_cannot_be_resumed_with(tmp_path):
    train_toy(tmp_path / "a", schedule="cosine", stop_at=4)
    before = contents(tmp_path)
    for changes, message in (({"schedule": "constant"}, "another schedule"), ({"epochs": 5}, "ends with the epochs")):
        with pytest.raises(InputError, match=message):
            train_toy(tmp_path / "a", resume=True, **{"schedule": "cosine", **changes})
    assert contents(tmp_path) == before
    train_toy(tmp_path / "b", schedule="drop(5, 0.5)", epochs=1)
    assert train_toy(tmp_path / "b", schedule="drop(5, 0.5)", epochs=2, resume=True)["steps"] == 20


def test_plans_of_earlier_versions_have_none():
    saved = PLAN.as_dict()
    del saved["schedule"]
    assert Plan.of(saved) == PLAN
    plan = SweepPlan("toy", ["SGD(α)"], {"α": [1.0]}, [0], 1, "cpu", 32, 1)
    before = plan.as_dict()
    del before["schedule"]
    assert SweepPlan.of(before) == plan
    with pytest.raises(ValueError, match="schedule"):
        Plan.of({**saved, "schedule": 3})


def test_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, remarks = command("train", "toy", "--schedule", "drop(3,0.5)", "--epochs", 1, "--out", "a")
    assert (code, "drop(3, 0.5)" in remarks) == (0, True)
    assert json.loads((tmp_path / "a" / "plan.json").read_text())["schedule"] == "drop(3, 0.5)"
    assert "toy · drop(3, 0.5) · seed 0" in ok("inspect", "a")
    assert "for more, ask for --epochs 2" in ok("train", "toy", "--out", "a", "--resume")
    assert command("train", "toy", "--schedule", "cosine", "--epochs", 1, "--out", "d")[0] == 0
    assert "for more" not in ok("train", "toy", "--out", "d", "--resume")
    arguments = ("sweep", "calm", "--stack", "Adam(α)", "--grid", "α=0.01,0.1", "--epochs", 1, "--jobs", 1)
    assert command(*arguments, "--schedule", "cosine", "--out", "b")[0] == 0
    rows = json.loads((tmp_path / "b" / "results.json").read_text())
    assert {row["schedule"] for row in rows} == {"cosine"}
    assert {row["together"] for row in rows} == {2}
    code, _, remarks = command("sweep", "calm", "--out", "b", "--resume", "--schedule", "constant")
    assert (code, "another schedule" in remarks) == (2, True)
    before = contents(tmp_path)
    for verb in (("train", "toy"), arguments):
        code, _, remarks = command(*verb, "--schedule", "drop(3,", "--out", "c")
        assert (code, "is no schedule" in remarks) == (2, True)
    assert contents(tmp_path) == before


def test_runs_of_two_schedules_are_two_groups(tmp_path):
    for schedule in ("constant", "cosine"):
        train_toy(tmp_path / schedule, schedule=schedule, epochs=1)
    assert "cosine" in ok("compare", tmp_path / "constant", tmp_path / "cosine")


def test_the_toy_has_dropout():
    assert any(isinstance(module, torch.nn.Dropout) for module in Toy().model())
