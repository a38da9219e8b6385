"""A run in words: each rule says what is so, where it is so, and noise says nothing."""

import numpy as np
import pytest
import torch

import hyperstack as hs
from hyperstack.reports.evidence import BLOCKS, RISEN, key_above, loss_rise
from hyperstack.reports.leveltext import clips, per_tensor
from hyperstack.reports.reading import SURE, Remark, reading
from hyperstack.reports.text import number
from hyperstack.telemetry.record import Record

N = 400


def record(n=N, names=("lr",), **columns):
    """Noise of two levels: a value that wanders a little, a hypergradient without a preferred sign; no clipping."""
    draw = np.random.default_rng(3)
    found = {"step": np.arange(1.0, n + 1), "loss": 1 + 0.1 * draw.standard_normal(n)}
    for key in (*(f"0.{name}" for name in names), "1.lr"):
        walk = 1 + 0.002 * np.cumsum(draw.standard_normal(n)) / np.sqrt(n) * 5
        found |= {f"{key}.value": 0.5 * walk, f"{key}.grad": draw.standard_normal(n), f"{key}.clip": np.ones(n)}
    found["1.lr.value"] = np.full(n, 0.004)
    found |= columns
    return Record({name: np.asarray(values, float) for name, values in found.items()})


def of(found, key, part=""):
    return [remark for remark in found if remark.key == key and part in remark.sentence]


def rising(n=N, at=200, by=1.0):
    loss = record(n).columns["loss"].copy()
    loss[at:] += by * np.linspace(0, 1, n - at)
    return loss


@pytest.mark.sampled(3)
@pytest.mark.parametrize("seed", range(200))
def test_noise_and_random_walks_are_not_remarkable(seed):
    draw = np.random.default_rng(seed)
    n = int(draw.integers(20, 2000))
    walk = 0.1 * np.exp(np.cumsum(0.2 / np.sqrt(n) * draw.standard_normal(n)))
    noise = {f"0.{k}.grad": draw.standard_normal(n) for k in ("lr", "beta1")}
    found = reading(record(n, ("lr", "beta1"), **{"0.lr.value": walk, "loss": 2 + draw.standard_normal(n)}, **noise))
    assert not [remark for remark in found if "not settled" not in remark.sentence]


def test_a_run_that_diverged():
    loss = np.linspace(1, 9, N)
    grad = record().columns["0.lr.grad"].copy()
    loss[300:], grad[301:] = np.nan, np.nan
    value = np.linspace(0.1, 4, N)
    found = reading(record(loss=loss, **{"0.lr.grad": grad, "0.lr.value": value}))
    assert [remark.key for remark in found] == ["loss"]  # what came after is no news
    text = found[0].sentence
    assert f"the last finite loss was {number(loss[299])}, at step 300" in text
    assert f"0.lr had gone from 0.1 to {number(value[299])}" in text
    assert "1.lr = 0.004 is too high, try a tenth, 0.0004" in text
    slow = reading(record(loss=loss, **{"0.lr.grad": grad, "0.lr.value": np.linspace(0.1, 0.9, N)}))
    assert "start with a lower learning rate" in slow[0].sentence
    untold = reading(record(loss=np.full(N, np.nan)))  # as in a loop that does not tell its loss
    assert not untold
    none = reading(record(loss=np.full(N, np.nan), **{"0.lr.grad": np.full(N, np.nan)}))
    assert none == [Remark(3, "loss", "diverged; no finite loss was recorded")]


@pytest.mark.parametrize(("share", "fires"), [(0.49, False), (0.5, False), (0.51, True)])
def test_clipped_in_most_steps_and_the_loss_rose(share, fires):
    clip = np.where(np.arange(N) < share * N, 0.3, 1.0)
    loss = rising()
    found = reading(record(loss=loss, **{"0.lr.clip": clip}))
    said = of(found, "1.lr", "clipped 0.lr in")
    assert bool(said) is fires
    assert not of(reading(record(**{"0.lr.clip": clip})), "1.lr")  # the loss did not rise
    if fires:
        blocks = loss.reshape(BLOCKS, -1).mean(axis=1)
        low = int(blocks.argmin())
        assert said[0].severity == 3
        assert said[0].sentence == (
            f"clipped 0.lr in 51 % of steps and the loss rose after step {(low + 1) * N // BLOCKS}, from "
            f"{number(blocks[low])} to {number(blocks[-1])}: 1.lr = 0.004 is too high; try a tenth, 0.0004"
        )


def test_a_rise_is_one_that_the_standard_errors_do_not_explain():
    noise = np.tile([-1.0, 1.0], N // BLOCKS // 2)  # the same in each block
    error = noise.std(ddof=1) / np.sqrt(len(noise))
    for factor, fires in ((0.99, False), (1.01, True)):
        blocks = np.tile(noise, BLOCKS).reshape(BLOCKS, -1) + 5
        blocks[:3] += 9
        blocks[7] -= factor * RISEN * np.sqrt(2) * error
        rise = loss_rise(Record({"step": np.arange(1.0, N + 1), "loss": blocks.ravel()}))
        assert (rise is not None) is fires
        if rise:
            assert (rise.step, rise.before, rise.after) == (8 * N // BLOCKS, blocks[7].mean(), blocks[-1].mean())
    assert loss_rise(record(199, loss=np.linspace(0, 9, 199))) is None  # too few steps a block


def test_a_loss_that_explodes_is_seen_though_its_standard_error_does_too():
    steps = np.arange(1.0, N + 1)
    for loss in (np.exp(0.1 * steps), np.where(steps > 0.94 * N, np.exp(steps - 0.94 * N), 1 + 0.1 * np.sin(steps))):
        rise = loss_rise(Record({"step": steps, "loss": loss}))
        assert rise is not None
        assert rise.after == loss[-N // BLOCKS :].mean()
        assert reading(record(loss=loss))[0].sentence.startswith("rose after step")


def test_a_loss_that_rose_without_clipping():
    found = reading(record(loss=rising(), **{"0.lr.value": np.linspace(0.1, 0.4, N)}))
    assert found[0].key == "loss"
    assert "0.lr went from 0.1 up to 0.4: 1.lr = 0.004 is too high; try a tenth, 0.0004, or clip" in found[0].sentence
    still = reading(record(loss=rising(), **{"0.lr.value": np.linspace(0.1, 0.15, N)}))
    assert "too high" not in still[0].sentence


def test_a_rate_below_0():
    values = np.linspace(0.1, -0.05, N)
    found = of(reading(record(**{"0.lr.value": values})), "0.lr")
    step = int(np.flatnonzero(values < 0)[0]) + 1
    assert found == [
        Remark(3, "0.lr", f"went below 0 at step {step} (least -0.05): learn it as log, lr=log(0.1), which cannot")
    ]
    assert not of(reading(record(**{"0.lr.value": np.linspace(0.1, 0, N)})), "0.lr", "below 0")


def test_a_decay_that_saturates():
    far = 0.1 * np.ones(N)
    far[250:] = 0.00099
    found = of(reading(record(names=("beta1",), **{"0.beta1.value": 1 - far})), "0.beta1", "saturated")
    assert [remark.severity for remark in found] == [2]
    assert "near 1 from step 251 (first 0.9, last 0.99901): fixed(0.9)" in found[0].sentence
    assert "1.lr = 0.004" in found[0].sentence
    near_0 = reading(record(names=("beta1",), **{"0.beta1.value": far}))
    assert "near 0 from step 251" in of(near_0, "0.beta1", "saturated")[0].sentence
    back = far.copy()
    back[-1] = 0.0011
    assert not of(reading(record(names=("beta1",), **{"0.beta1.value": 1 - back})), "0.beta1", "saturated")
    near = np.where(np.arange(N) < 250, 0.001, 0.00011)  # as beta2 starts: a tenth is 0.0001
    assert not of(reading(record(names=("beta2",), **{"0.beta2.value": 1 - near})), "0.beta2", "saturated")
    nearer = np.where(np.arange(N) < 250, 0.001, 0.00009)
    assert of(reading(record(names=("beta2",), **{"0.beta2.value": 1 - nearer})), "0.beta2", "saturated")
    assert not of(reading(record(**{"0.lr.value": far})), "0.lr", "saturated")  # a rate has no such edge


def test_a_hypergradient_that_alternates():
    pairs = N // 2 - 1
    limit = pairs / 2 + SURE * np.sqrt(pairs / 4)
    for flips, fires in ((int(limit), False), (int(limit) + 1, True)):
        signs = np.ones(N)
        signs[N // 2 + 1 :] = np.cumprod(np.where(np.arange(pairs) < flips, -1.0, 1.0))
        value = 0.1 + 0.01 * np.cos(np.arange(N))
        found = of(reading(record(**{"0.lr.grad": signs, "0.lr.value": value})), "0.lr", "changed sign")
        assert bool(found) is fires
        if fires:
            assert f"changed sign in {100 * flips / pairs:.0f} % of the last {pairs} steps" in found[0].sentence
    fixed = reading(record(**{"0.lr.grad": (-1.0) ** np.arange(N), "0.lr.value": np.full(N, 0.1)}))
    assert not of(fixed, "0.lr", "changed sign")  # it does not overshoot that does not move
    top = reading(record(**{"1.lr.grad": (-1.0) ** np.arange(N)}))
    assert not of(top, "1.lr")


def test_what_hardly_moved():
    for change, fires in ((0.00099, True), (0.00101, False)):
        values = np.linspace(0.1, 0.1 * (1 + change), N)
        found = of(reading(record(**{"0.lr.value": values})), "0.lr", "moved by")
        assert bool(found) is fires
        if fires:
            assert "moved by 0.099 % at most in 400 steps: lr=fixed(0.1)" in found[0].sentence
    decay = 1 - np.linspace(0.001, 0.00099, N)  # for a decay the distance from 1 counts
    assert not of(reading(record(names=("beta2",), **{"0.beta2.value": decay})), "0.beta2")
    still = {"0.lr.value": np.full(N, 0.1)}
    assert of(reading(record(**still, **{"0.lr.clip": np.full(N, 0.2)})), "0.lr", "moved by 0 %")
    assert not of(reading(record(**still, **{"0.lr.clip": np.full(N, 0.05)})), "0.lr")  # the clip holds it
    both = reading(record(names=("lr", "eps"), **still, **{"0.eps.value": np.full(N, 1e-8)}))
    assert [remark.key for remark in both] == ["0.lr, 0.eps"]


def test_what_is_still_moving():
    for change, fires in ((0.099, False), (0.102, True)):
        values = np.full(N, 0.1)
        values[359:] = np.linspace(0.1, 0.1 * (1 + change), 41)
        found = of(reading(record(**{"0.lr.value": values})), "0.lr", "not settled")
        assert bool(found) is fires
        if fires:
            assert f"the last 40 steps took it from 0.1 to {number(values[-1])}" in found[0].sentence
    assert not of(reading(record(loss=rising(), **{"0.lr.value": values})), "0.lr", "not settled")


def test_hypergradients_that_are_not_finite():
    grad = record().columns["0.lr.grad"].copy()
    grad[[70, 90, 91]] = np.nan, np.inf, -np.inf
    found = reading(record(**{"0.lr.grad": grad}))
    assert found == [
        Remark(2, "0.lr", "its hypergradient was not finite in 3 steps, the first of them step 71; they were skipped")
    ]


def test_hypergradients_that_are_0_throughout():
    flat = {"0.lr.grad": np.zeros(N), "0.lr.value": np.full(N, 0.1)}
    found = reading(record(**flat))
    assert [(remark.severity, remark.key) for remark in found] == [(1, "0.lr")]
    assert "0 in all 400 steps" in found[0].sentence
    assert "lr=fixed(0.1)" in found[0].sentence
    once = np.zeros(N)
    once[7] = 1e-30
    assert not of(reading(record(**{**flat, "0.lr.grad": once})), "0.lr", "0 in all")


def test_tensors_that_are_clipped_in_most_steps():
    clip = np.where(np.arange(N) < 300, 0.25, 1.0)
    half = np.where(np.arange(N) < 200, 0.25, 1.0)
    found = reading(record(**{"@a.norm": np.ones(N), "@a.clip": clip, "@b.norm": np.ones(N), "@b.clip": half}))
    assert [(remark.key, remark.severity) for remark in found] == [("a", 1)]
    assert "clipped in 75 % of steps, to 25 % on average:" in found[0].sentence
    more = reading(record(**{"@a.clip": clip, "@b.clip": np.where(np.arange(N) < 210, 0.5, 1)}))
    assert "and 1 more in over 50 %" in more[0].sentence
    assert not reading(record(**{"@b.clip": half}))


def test_the_most_severe_comes_first():
    far = np.where(np.arange(N) < 250, 0.1, 0.00001)
    grad = record().columns["0.lr.grad"].copy()
    grad[3] = np.inf
    found = reading(
        record(
            names=("eps", "beta1", "lr"),
            **{"0.eps.value": np.full(N, 1e-8), "0.beta1.value": far, "0.lr.value": np.linspace(0.1, -0.1, N)},
            **{"0.lr.grad": grad},
        )
    )
    severities = [remark.severity for remark in found]
    assert severities == sorted(severities, reverse=True)
    assert {*severities} == {1, 2, 3}


def test_few_steps_prove_nothing():
    for n in (0, 1, 2, 19):
        assert reading(record(n, ("lr", "beta1"))) == []


def test_everything_may_be_out_of_bounds():
    for x in (np.nan, np.inf, -np.inf, 1e308, -1e308, 0.0):
        columns = record(N, ("lr", "beta1")).columns
        for remark in reading(Record({**{name: np.full(N, x) for name in columns}, "step": columns["step"]})):
            assert "nan" not in remark.sentence


def test_of_a_run_that_diverges(tmp_path):
    model = torch.nn.Linear(3, 1)
    opt = hs.HyperOptimizer(model.parameters(), "SGD(0.1) / SGD(100)")
    with hs.record(opt, tmp_path / "run") as recording:
        for _ in range(60):
            opt.zero_grad()
            loss = model(torch.randn(8, 3)).square().mean()
            loss.backward()
            recording.loss(loss)
            opt.step()
    run = hs.load_run(tmp_path / "run")
    known = np.flatnonzero(np.isfinite(run["loss"]))
    found = reading(run)
    assert run.state == "diverged"
    assert f"the last finite loss was {number(run['loss'][known[-1]])}, at step {known[-1] + 1}" in found[0].sentence
    assert not reading(run, run.record.between(1, 1))


def test_a_rate_above_that_is_fixed_teaches_all_the_same(tmp_path):
    model = torch.nn.Linear(3, 1)
    opt = hs.HyperOptimizer(model.parameters(), "SGD(0.1) / SGD(fixed(1e-9))")
    with hs.record(opt, tmp_path / "run"):
        for _ in range(40):
            opt.zero_grad()
            model(torch.randn(8, 3)).square().mean().backward()
            opt.step()
    assert [remark.key for remark in reading(hs.load_run(tmp_path / "run"))] == ["0.lr"]


def test_the_key_above():
    assert [key_above(key) for key in ("0.beta1", "group1.2.lr")] == ["1.lr", "group1.3.lr"]


@pytest.mark.parametrize(
    ("text", "clipped", "spread"),
    [
        ("Adam", False, set()),
        ("SGD(1e-5, clip)", True, set()),
        ("SGD(0.1, clip=[norm(1.0, per='tensor')])", True, set()),
        ("SGD(per_tensor(log(0.1)), momentum=learned(0.5))", False, {"lr"}),
        ("Adam(beta1=per_tensor(0.9))", False, {"beta1"}),
        ("ALRC(Adam(per_tensor(0.01), clip), n=3.0)", True, {"lr"}),
        ("not ( a level", False, set()),
    ],
)
def test_what_the_text_of_a_level_says(text, clipped, spread):
    assert (clips(text), per_tensor(text)) == (clipped, spread)
    if text.startswith(("SGD", "Adam", "ALRC")):
        text = str(hs.parse(text)[0])
        assert (clips(text), per_tensor(text)) == (clipped, spread)
