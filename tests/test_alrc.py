"""ALRC: against Algorithm 1 written out, its learned n against central differences, in every kind of loop, misused."""

from __future__ import annotations

import copy
import inspect
import itertools
import math

import pytest
import torch
from battery import EPS, RULES, assert_close, assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from test_optimizer import seen, written
from torch import nn, optim

import hyperstack as hs
from hyperstack import HyperOptimizer, InputError, RunError
from hyperstack.rule import Option
from hyperstack.wrapper import WRAPPERS

STEPS = 30
SHAPES = {
    "[B]": lambda e: e.mean(1),
    "[B, 1]": lambda e: e.mean(1, keepdim=True),
    "[B, 3, 4]": lambda e: e.view(-1, 3, 4),
    "[]": lambda e: e.mean(),
}


def parameters(dtype=torch.float64):
    random = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(s, generator=random, dtype=torch.float64).to(dtype)) for s in ((5, 12), (12,))]


def batch(t, dtype=torch.float64):
    """Every fifth is a spike."""
    random = torch.Generator().manual_seed(100 + t)
    x, y = (torch.randn(s, generator=random, dtype=torch.float64) for s in ((4, 5), (4, 12)))
    scale = torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64)[:, None] * (2.5 if t % 5 == 3 else 1.0)
    return x.to(dtype), (y * scale).to(dtype)


def losses_of(params, t, shape="[B]", power=4):
    p, q = params
    x, y = batch(t, p.dtype)
    return SHAPES[shape](((x @ p / 3 + q - y) / 2) ** power)


def tower_of(opt):
    return next(iter(opt.towers()))[1]


def loss_cells(opt):
    """What the optimizer knows of the losses, copied."""
    tower = tower_of(opt)
    found = tower.climb.layout.unpack(tower.cells)
    return {k.removeprefix("0.loss."): float(x) for k, x in found.items() if k.startswith("0.loss.")}


def train(params, opt, steps, shape="[B]", call=HyperOptimizer.backward):
    for t in steps:
        opt.zero_grad()
        call(opt, losses_of(params, t, shape))
        opt.step()


# ---- Algorithm 1


class Algorithm1:
    """The paper's Algorithm 1, on Python floats; autograd only differentiates what it says."""

    def __init__(self, n=3.0, decay1=0.999, decay2=0.999, mean0=None, square0=None, overestimate=3.0, **flags):
        self.n, self.decays, self.means, self.overestimate = n, (decay1, decay2), [mean0, square0], overestimate
        self.flags, self.limited, self.raised = flags, 0, 0

    def __call__(self, losses):
        flags = self.flags
        before, after, shift = (flags.get(name, 0.0) for name in ("huber_before", "huber_after", "shift"))
        if losses.dim() > 1:
            losses = losses.flatten() if "summands" in flags else losses.flatten(1).mean(1)
        each = [self.huber(loss, before) + shift for loss in losses.reshape(-1).unbind()]
        values = [float(loss.detach()) for loss in each]
        if self.means[0] is None:
            self.means = [
                self.overestimate * sum(values) / len(values),
                self.overestimate**2 * sum(v * v for v in values) / len(values),
            ]
        sigma = math.sqrt(max(0.0, self.means[1] - self.means[0] ** 2))
        highest, lowest = self.means[0] + self.n * sigma, self.means[0] - self.n * sigma
        results, dynamic = [], []
        for loss, value in zip(each, values, strict=True):
            constant = 1.0
            if value > highest:
                constant, self.limited = highest / value, self.limited + 1
            elif "below" in flags and 0 < value < lowest:
                constant, self.raised = lowest / value, self.raised + 1
            dynamic.append(constant * value)
            results.append(self.huber(constant * loss - shift, after))
        tracked = dynamic if "track_limited" in flags else values
        moments = (sum(tracked) / len(tracked), sum(v * v for v in tracked) / len(tracked))
        self.means = [d * m + (1 - d) * x for d, m, x in zip(self.decays, self.means, moments, strict=True)]
        return sum(results) / len(results)

    def huber(self, loss, h):
        return torch.minimum(loss, torch.sqrt(h * loss.clamp(min=h))) if h else loss


GIVEN = {"mean0": 0.6, "square0": 0.8}
CASES = [
    {},
    {"n": 0.5},
    {"n": 0.1, "overestimate": 9.0, "decay1": 0.7, "decay2": 0.8},
    {"n": 0.5, **GIVEN},
    {"n": 0.5, **GIVEN, "track_limited": True, "decay1": 0.9, "decay2": 0.95},
    {"n": 0.05, **GIVEN, "below": True},
    {"n": 0.3, **GIVEN, "summands": True},
    {"n": 0.3, "mean0": 2.6, "square0": 7.0, "shift": 2.0, "overestimate": 9.0},
    {"n": 0.3, **GIVEN, "huber_before": 0.3},
    {"n": 0.3, **GIVEN, "huber_after": 0.2},
    {"n": 0.1, "mean0": 2.6, "square0": 7.0, "shift": 2.0, "huber_before": 0.4, "huber_after": 0.3, "below": True,
     "track_limited": True, "decay1": 0.9, "decay2": 0.9},
]  # fmt: skip
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case) or "defaults")


def wrapped(case, base="SGD(0.01)", above=""):
    arguments = [k if v is True else f"{k}={v}" for k, v in sorted(case.items(), key=lambda kv: kv[1] is not True)]
    return f"ALRC({', '.join([base, *arguments])}){above}"


def test_the_cases_leave_no_default_untouched():
    assert list(WRAPPERS) == ["ALRC"]
    for name, wrapper in WRAPPERS.items():
        for key, declared in {**wrapper.options, **wrapper.hyperparameters}.items():
            assert any(case.get(key, declared.default) != declared.default for case in CASES), (name, key)


@pytest.mark.slow
@by_case
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("base", "oracle"),
    [
        ("SGD(0.01, momentum=0.5)", lambda ps: optim.SGD(ps, 0.01, momentum=0.5)),
        ("Adam(0.02)", lambda ps: optim.Adam(ps, 0.02)),
    ],
    ids=["SGD", "Adam"],
)
def test_a_run_as_algorithm_1(case, shape, base, oracle):
    """Rounding: some hundred operations a step, each off by EPS of numbers of size 1."""
    ours, theirs = parameters(), parameters()
    opt, other, reference = HyperOptimizer(ours, wrapped(case, base)), oracle(theirs), Algorithm1(**case)
    for t in range(STEPS):
        opt.zero_grad()
        other.zero_grad()
        loss, expected = opt.loss(losses_of(ours, t, shape)), reference(losses_of(theirs, t, shape))
        assert_close([loss], [expected], 1e-10)
        loss.backward()
        expected.backward()
        opt.step()
        other.step()
    assert_close(list(ours), list(theirs), 1e-10)
    cells = loss_cells(opt)
    assert [cells["mean"], cells["square"]] == pytest.approx(reference.means, rel=1e-10)
    if case:
        assert reference.limited > 0, "nothing was limited"
        assert ("below" in case) == (reference.raised > 0) or shape == "[]"


def test_the_bound_and_the_share_that_is_limited_are_known():
    params = parameters()
    opt = HyperOptimizer(params, wrapped({"n": 1.0, **GIVEN, "shift": 0.5, "square0": 2.0}))
    tower = tower_of(opt)
    losses = torch.tensor([0.1, 0.5, 5.0, 9.0], dtype=torch.float64, requires_grad=True)
    bound = 0.6 + math.sqrt(2.0 - 0.36) - 0.5
    found = opt.loss(losses)
    cells = loss_cells(opt)
    assert cells["bound"] == pytest.approx(bound, rel=1e-14)
    assert cells["share"] == 0.5
    assert found.item() == pytest.approx((0.1 + 0.5 + 2 * bound) / 4, rel=1e-14)
    assert tower.limit(losses, heard=False).weights.tolist()[:2] == [1.0, 1.0]


# ---- without spikes


@pytest.mark.sampled(13)
@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.sampled_from(list(SHAPES)), st.sampled_from(["", " / SGD(1e-4, clip)", " / Adam(1e-4) / SGD(1e-6)"]))
def test_without_spikes_it_is_the_base_bit_for_bit(rule, shape, above):
    ours, theirs = parameters(torch.float32), parameters(torch.float32)
    one, other = HyperOptimizer(ours, f"ALRC({rule}, n=fixed(1e3)){above}"), HyperOptimizer(theirs, f"{rule}{above}")
    train(ours, one, range(5), shape)
    train(theirs, other, range(5), shape)
    assert loss_cells(one)["share"] == 0
    assert_same([p.detach() for p in ours], [p.detach() for p in theirs])
    for read in (HyperOptimizer.hyperparameters, HyperOptimizer.hypergradients):
        found = read(one)
        assert float(found.pop("0.n")) in (1e3, 0.0)
        assert_same(found, read(other))


@pytest.mark.sampled(5)
@pytest.mark.parametrize("rule", RULES)
def test_without_spikes_n_has_no_hypergradient(rule):
    """The others' sums run in another order, where there is n to learn."""
    ours, theirs = parameters(), parameters()
    one, other = HyperOptimizer(ours, f"ALRC({rule}, n=1e3) / SGD(1e-4)"), HyperOptimizer(theirs, f"{rule} / SGD(1e-4)")
    train(ours, one, range(5))
    train(theirs, other, range(5))
    assert float(one.hypergradients()["0.n"]) == 0
    values = one.hyperparameters()
    assert float(values.pop("0.n")) == pytest.approx(1e3, rel=1e-14)
    assert_close(values, other.hyperparameters(), 1e-12)
    assert_close(list(ours), list(theirs), 1e-12)


# ---- n's hypergradient

NUDGED = 3  # a spike


def one_call(opt, params, t, shape):
    opt.backward(losses_of(params, t, shape))


def accumulated(opt, params, t, shape):
    """Two batches of unequal weight, through both ways in."""
    opt.backward(losses_of(params, t, shape), weight=0.75)
    opt.loss(losses_of(params, t + 50, shape), weight=0.25).backward()


def together(opt, params, t, shape):
    """Two batches, and one pass backward."""
    parts = [opt.loss(losses_of(params, t + more, shape), weight) for more, weight in ((0, 0.75), (50, 0.25))]
    sum(parts).backward()


def scaled(opt, params, t, shape):
    """As AMP does: the loss times 1024, and the gradients divided by it before the step."""
    (1024 * opt.loss(losses_of(params, t, shape))).backward()
    for p in params:
        p.grad /= 1024


def run_to(text, shape, nudge, way, groups=1, **options):
    """The parameters after step NUDGED, which was made with `nudge` added to the raw n, and the optimizer."""
    params = parameters()
    stacks = [text, text] if isinstance(text, str) else text
    parts = [params] if groups == 1 else [params[:1], params[1:]]
    groups = [{"params": ps, "stack": s} for ps, s in zip(parts, stacks, strict=False)]
    opt = HyperOptimizer(groups, stacks[0], **options)
    for t in range(NUDGED + 1):
        opt.zero_grad()
        if t == NUDGED:
            tower_of(opt).raw()["n"].add_(nudge)
        way(opt, params, t, shape)
        opt.step()
    return params, opt


def check_n(text, shape="[B]", way=one_call, **options):
    """The hypergradient of n in step NUDGED + 1 is d<g, θ>/draw n, θ being what step NUDGED has left.

    A quotient with step h is off by h² f'''/6, a third of its difference from that with step 2h, and by rounding.
    """
    params, opt = run_to(text, shape, 0.0, way, **options)
    opt.zero_grad()
    way(opt, params, NUDGED + 1, shape)
    cotangents = [p.grad.clone() for p in params]
    size = sum(float((g * p.detach()).abs().sum()) for g, p in zip(cotangents, params, strict=True))
    opt.step()
    keys = [key for key in opt.hypergradients() if key.endswith("0.n")]
    found = {float(opt.hypergradients()[key]) for key in keys}
    h = EPS ** (1 / 3)

    def along(nudge):
        moved, _ = run_to(text, shape, nudge, way, **options)
        return sum(float((g * p.detach()).sum()) for g, p in zip(cotangents, moved, strict=True))

    near, far = ((along(times * h) - along(-times * h)) / (2 * times * h) for times in (1, 2))
    error = abs(far - near) + 100 * EPS * size / h + 1e-8 * abs(near)
    assert abs(near) > 100 * error, f"no such test: {near} is not known better than {error}"
    assert len(found) == 1, "groups do not agree"
    assert found.pop() == pytest.approx(near, rel=0, abs=error)


LEARNED = {"n": "learned(0.3)", **GIVEN, "decay1": 0.99, "decay2": 0.99}
STILL = " / SGD(0.0)"


@pytest.mark.sampled(19)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("n", "base"),
    [
        ("0.3", "SGD(0.01, momentum=0.5)"),
        ("lin(0.3)", "SGD(0.01)"),
        ("square(0.3)", "Adam(0.02)"),
        ("learned(log(0.3))", "Adam(0.02)"),
    ],
)
def test_the_hypergradient_of_n(shape, n, base):
    text = wrapped({**LEARNED, "n": n}, base, STILL)
    if shape == "[]":
        text = text.replace("mean0=0.6, square0=0.8", "mean0=0.2, square0=0.06")  # so that this batch is above it
    check_n(text, shape)


OPTIONS = [
    {**LEARNED, "track_limited": True},
    {**LEARNED, "n": 0.05, "below": True},
    {**LEARNED, "huber_before": 0.3},
    {**LEARNED, "huber_after": 0.2},
    {**LEARNED, "mean0": 2.6, "square0": 7.0, "shift": 2.0},
    {**LEARNED, "mean0": 0.0, "square0": 0.0, "overestimate": 1.0},
    {"n": 0.1, "mean0": 2.6, "square0": 7.0, "shift": 2.0, "huber_before": 0.4, "huber_after": 0.3, "below": True,
     "track_limited": True, "decay1": 0.9, "decay2": 0.9},
]  # fmt: skip


@pytest.mark.sampled(15)
@pytest.mark.parametrize(
    "case", OPTIONS, ids=lambda case: "-".join(key for key in case if key not in LEARNED) or "estimated"
)
@pytest.mark.parametrize("more", [{}, {"summands": True}], ids=["examples", "summands"])
def test_the_hypergradient_of_n_with_options(case, more):
    check_n(wrapped({**case, **more}, "Adam(0.02)", STILL), "[B, 3, 4]")


CLIPS = {
    "value": "value(0.01)",
    "norm": "norm(0.05)",
    "cumulative": "cumulative",
    "adaptive": "adaptive(n=0.1, decay=0.5)",
    "percentile": "percentile(p=30, window=8)",
    "agc": "agc(ratio=0.001)",
    "centralize": "centralize",
    "normalize": "normalize",
}


def test_there_is_a_case_for_each_transform_of_a_primary_level():
    assert set(CLIPS) == {name for name, transform in hs.TRANSFORMS.items() if not transform.reads_slope}


@pytest.mark.sampled(21)
@pytest.mark.parametrize("clip", [*CLIPS.values(), "norm(0.05, per='tensor'), centralize", "cumulative, normalize"])
@pytest.mark.parametrize("shape", ["[B]", "[]"])
def test_the_hypergradient_of_n_through_gradient_transforms(clip, shape):
    """Some of the losses are below the bound: if all are above, n scales the whole gradient, as with a single one."""
    given = {**LEARNED, "mean0": 0.2, "square0": 0.06} if shape == "[]" else {**LEARNED, "n": 2.0}
    text = wrapped(given, f"SGD(0.01, momentum=0.5, clip=[{clip}])", STILL)
    if shape == "[]" and ("norm" in clip or "agc" in clip):
        # A single loss scales the whole gradient, which these undo.
        _, opt = run_to(text, shape, 0.0, one_call)
        train([p for g in opt.param_groups for p in g["params"]], opt, [NUDGED + 1], shape)
        assert abs(float(opt.hypergradients()["0.n"])) < 1e-12
        return
    check_n(text, shape)


@pytest.mark.sampled(13)
@pytest.mark.parametrize("way", [accumulated, together, scaled])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_hypergradient_of_n_in_other_loops(way, shape):
    given = {**LEARNED, "mean0": 0.2, "square0": 0.06} if shape == "[]" else LEARNED
    check_n(wrapped(given, "Adam(0.02)", STILL), shape, way)


@pytest.mark.sampled(7)
@pytest.mark.parametrize("shape", ["[B]", "[]"])
@pytest.mark.parametrize("other", ["SGD(0.01, momentum=0.5)", "SGD(0.005, clip)"])
def test_the_hypergradient_of_n_with_two_groups(shape, other):
    given = {**LEARNED, "mean0": 0.2, "square0": 0.06} if shape == "[]" else LEARNED
    check_n([wrapped(given, base, STILL) for base in ("SGD(0.01, momentum=0.5)", other)], shape, groups=2)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("clip", ["", ", clip"])
def test_the_hypergradient_of_n_where_kernels_are_compiled(clip, monkeypatch):
    """The programs of the kernels, run as they are."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    check_n(wrapped(LEARNED, f"Adam(0.02{clip})", STILL), compile=True)
    found = []
    for compiled in (False, True):
        params = parameters()
        opt = HyperOptimizer(params, wrapped(LEARNED, f"Adam(0.02{clip})", " / SGD(0.1) / SGD(0.1)"), compile=compiled)
        train(params, opt, range(8))
        found.append([*(p.detach() for p in params), *opt.hyperparameters().values()])
    assert_close(found[1], found[0], 1e-11)


def test_n_is_learned():
    params = parameters()
    opt = HyperOptimizer(params, wrapped(LEARNED, "Adam(0.02)", " / SGD(10.0)"))
    train(params, opt, range(20))
    assert abs(float(opt.hyperparameters()["0.n"]) - 0.3) > 0.003
    assert float(opt.hyperparameters()["0.n"]) > 0


# ---- loops


def test_the_scalar_to_differentiate_has_the_gradients_of_backward():
    ours, theirs = parameters(), parameters()
    one, other = (HyperOptimizer(ps, wrapped(LEARNED, above=" / SGD(1e-3)")) for ps in (ours, theirs))
    train(ours, one, range(6))
    train(theirs, other, range(6), call=lambda opt, losses: opt.loss(losses).backward())
    assert loss_cells(one)["share"] > 0
    assert_same(seen(other), seen(one))
    assert_same([p.grad for p in theirs], [p.grad for p in ours])


def evaluated(opt, params):
    with torch.no_grad():
        return opt.loss(losses_of(params, 3))


@pytest.mark.parametrize("look", [evaluated, lambda opt, params: opt.loss(losses_of(params, 3).detach())])
def test_evaluation_leaves_the_running_means_alone(look):
    params = parameters()
    opt = HyperOptimizer(params, wrapped({"n": 0.3, **GIVEN}))
    train(params, opt, range(3))
    before = seen(opt)
    value = look(opt, params)
    assert not value.requires_grad
    assert value < losses_of(params, 3).mean()
    assert_same(seen(opt), before)
    with pytest.raises(RunError):  # it was no call for a step either
        opt.step()


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_losses_that_are_not_finite_leave_the_running_means_alone(bad):
    params = parameters()
    opt = HyperOptimizer(params, wrapped({"n": 0.3, **GIVEN}, above=" / SGD(1e-3)"))
    for t in range(4):
        train(params, opt, [t])
        before = loss_cells(opt)
        opt.loss(losses_of(params, t) * torch.tensor([1.0, bad, 1.0, 1.0]))
        opt.zero_grad()
        after = loss_cells(opt)
        for name in ("mean", "square", "steps"):
            assert after[name] == before[name]
        assert math.isfinite(after["bound"])
    first = HyperOptimizer(parameters(), wrapped({}))
    first.loss(losses_of(params, 0) * bad)
    assert loss_cells(first)["steps"] == 0
    first.loss(losses_of(params, 0))
    mean = losses_of(params, 0).mean().item()
    assert loss_cells(first)["mean"] == pytest.approx(mean * (0.999 * 3 + 0.001), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_losses(dtype):
    """The means are kept in full: a square of 300, 90000, is no float16."""
    losses = torch.tensor([1.0, 300.0], dtype=dtype, requires_grad=True)
    opt = HyperOptimizer([nn.Parameter(torch.ones(2))], "ALRC(SGD(0.1), n=1.0, mean0=10.0, square0=200.0)")
    found = opt.loss(losses)
    cells = loss_cells(opt)
    assert found.dtype == dtype
    assert cells["bound"] == pytest.approx(20.0, rel=1e-12)
    assert cells["square"] == pytest.approx(0.999 * 200 + 0.001 * 45000.5, rel=1e-12)
    found.backward()
    assert losses.grad.dtype == dtype
    assert losses.grad.tolist() == pytest.approx([0.5, 0.5 * 20 / 300], rel=2 * torch.finfo(dtype).eps)
    assert found.item() == pytest.approx(10.5, rel=8 * torch.finfo(dtype).eps)  # of terms up to 300 x 20/300


def test_under_autocast():
    """What is computed in bfloat16 is off by about 1 %; the limit is not."""
    found = []
    for lower in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 12))
        opt = HyperOptimizer(model.parameters(), wrapped({**LEARNED, "n": 0.1}, "SGD(0.01)", " / SGD(1e-3)"))
        for t in range(5):
            x, y = batch(t, torch.float32)
            opt.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=lower):
                losses = ((model(x) - y) ** 4 / 16).mean(1)
                opt.backward(losses)
            opt.step()
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        found.append([*(p.detach() for p in model.parameters()), *opt.hypergradients().values()])
    assert all(torch.isfinite(x).all() for x in found[1])
    assert_close(found[1][:4], found[0][:4], 0.02)
    assert float(found[0][-2]) != 0


def test_a_loop_that_goes_round_the_optimizer_is_told_so():
    params = parameters()
    opt = HyperOptimizer(params, wrapped(LEARNED, above=" / SGD(1e-3)"))
    for t in range(3):
        opt.zero_grad()
        losses_of(params, t).mean().backward()
        before = seen(opt)
        with pytest.raises(RunError, match=r"(?s)never reached.*opt\.backward\(losses\).*opt\.loss\(losses\)"):
            opt.step()
        assert_same(seen(opt), before)
        train(params, opt, [t])


def test_each_step_wants_a_call():
    params = parameters()
    opt = HyperOptimizer(params, wrapped(LEARNED, above=" / SGD(1e-3)"))
    train(params, opt, range(2))
    with pytest.raises(RunError, match="never reached"):
        opt.step()
    opt.zero_grad()
    before = seen(opt)
    opt.step()  # without gradients there is nothing to complain of
    assert_same(seen(opt), before)


def test_a_closure_may_call_backward():
    ours, theirs = parameters(), parameters()
    one, other = (HyperOptimizer(ps, wrapped(LEARNED, above=" / SGD(1e-3)")) for ps in (ours, theirs))
    train(ours, one, range(5))
    for t in range(5):

        def closure(t=t):
            other.zero_grad()
            other.backward(losses_of(theirs, t))

        other.step(closure)
    assert_same(seen(other), seen(one))


@pytest.mark.parametrize("shape", ["[B]", "[]"])
def test_zero_grad_forgets(shape):
    """A batch that was given up leaves its mark on the running means, but not on n's hypergradient."""
    found = []
    for given_up in (False, True):
        params = parameters()
        opt = HyperOptimizer(params, wrapped({**LEARNED, "decay1": 0.0, "decay2": 0.0}, above=" / SGD(0.0)"))
        train(params, opt, range(2), shape)
        if given_up:
            memory = tower_of(opt).cells.clone()
            opt.backward(losses_of(params, 1, shape))
            opt.zero_grad()
            tower_of(opt).cells.copy_(memory)
        train(params, opt, range(2, 8), shape)
        found.append(seen(opt))
    assert_same(found[1], found[0])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("shape", ["[B]", "[]"])
def test_zero_grad_may_stand_between_loss_and_backward(shape):
    """Also where a step was left out before."""
    found = []
    for between, left_out in itertools.product((False, True), repeat=2):
        params = parameters()
        opt = HyperOptimizer(params, wrapped({**LEARNED, "decay1": 0.0, "decay2": 0.0}, above=" / SGD(0.1)"))
        for t in range(8):
            if left_out and t == 4:
                memory = tower_of(opt).cells.clone()
                opt.loss(losses_of(params, 0, shape)).backward()
                tower_of(opt).cells.copy_(memory)
            if not between:
                opt.zero_grad()
            loss = opt.loss(losses_of(params, t, shape))
            if between:
                opt.zero_grad()
            loss.backward()
            opt.step()
        found.append(seen(opt))
    assert any(bool(p.detach().any()) for p in params)
    for other in found[1:]:
        assert_same(other, found[0])


def test_a_gradient_that_is_missing_has_no_tangent():
    """A parameter on which the losses do not depend, and one that is frozen."""
    params = [*parameters(), nn.Parameter(torch.ones(3, dtype=torch.float64)), nn.Parameter(torch.ones(2))]
    params[3].requires_grad_(False)
    alone = parameters()
    one = HyperOptimizer(params, wrapped(LEARNED, "Adam(0.02)", " / SGD(0.1)"))
    other = HyperOptimizer(alone, wrapped(LEARNED, "Adam(0.02)", " / SGD(0.1)"))
    train(params[:2], one, range(6))
    train(alone, other, range(6))
    assert_same([p.detach() for p in params[:2]], [p.detach() for p in alone])
    assert_same(one.hypergradients(), other.hypergradients())
    assert float(one.hypergradients()["0.n"]) != 0


# ---- checkpoints and moves

RICH = "ALRC(Adam(0.02, clip), track_limited, n=0.3, mean0=0.6, square0=0.8) / SGD(0.1, clip, momentum=0.5) / SGD(1e-3)"
ESTIMATED = "ALRC(SGD(0.01, momentum=0.5), n=0.3, overestimate=1.0) / SGD(0.1)"


@pytest.mark.sampled(9)
@pytest.mark.parametrize("text", [RICH, ESTIMATED])
@pytest.mark.parametrize("at", [0, 1, 4, 8])
def test_saved_and_loaded_in_mid_run_goes_on_bit_for_bit(text, at):
    params = parameters()
    opt = HyperOptimizer(params, text)
    train(params, opt, range(at))
    loaded = [nn.Parameter(p.detach().clone()) for p in params]
    other = HyperOptimizer(loaded, text)
    other.load_state_dict(written(opt.state_dict()))
    assert_same(seen(other), seen(opt))
    twins, third = copy.deepcopy((params, opt))
    for ps, o in ((params, opt), (loaded, other), (twins, third)):
        train(ps, o, range(at, 10))
    assert_same(seen(other), seen(opt))
    assert_same(seen(third), seen(opt))
    assert loss_cells(opt) == loss_cells(other) == loss_cells(third)


def test_what_was_heard_before_loading_is_forgotten():
    params = parameters()
    opt = HyperOptimizer(params, RICH)
    train(params, opt, range(3))
    state = written(opt.state_dict())
    opt.zero_grad()
    opt.backward(losses_of(params, 3))
    opt.load_state_dict(state)
    with pytest.raises(RunError, match="never reached"):
        opt.step()


@pytest.mark.parametrize(
    "foreign",
    ["Adam(0.02, clip) / SGD(0.1)", "ALRC(Adam(0.02, clip), n=4.0) / SGD(0.1)", "ALRC(Adam(0.02), n=3.0) / SGD(0.1)",
     "ALRC(Adam(0.02, clip), below, n=3.0) / SGD(0.1)"],
)  # fmt: skip
def test_a_state_of_another_wrapper_is_refused(foreign):
    opt = HyperOptimizer(parameters(), "ALRC(Adam(0.02, clip), n=3.0) / SGD(0.1)")
    before = seen(opt)
    with pytest.raises(InputError, match="another stack"):
        opt.load_state_dict(HyperOptimizer(parameters(), foreign).state_dict())
    assert_same(seen(opt), before)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("shape", ["[B]", "[]"])
def test_a_model_converted_in_mid_run_goes_on(shape):
    """As the same in single precision throughout, to single's rounding."""
    params, same = parameters(torch.float32), parameters(torch.float32)
    opt, other = (HyperOptimizer(ps, RICH) for ps in (params, same))
    train(params, opt, range(5), shape)
    train(same, other, range(5), shape)
    before = loss_cells(opt)
    for p in params:
        p.data = p.data.double()
        p.grad = None
    assert loss_cells(opt) == before
    train(params, opt, range(5, 10), shape)
    train(same, other, range(5, 10), shape)
    assert opt.state[params[0]]["exp_avg"].dtype == torch.float64
    assert_close([p.detach() for p in params], [p.detach() for p in same], 1e-4)
    assert_close(opt.hyperparameters(), other.hyperparameters(), 1e-4)
    assert loss_cells(opt) == pytest.approx(loss_cells(other), rel=1e-4)


# ---- groups


def in_two_groups(first, second):
    params = parameters()
    groups = [{"params": [p], "stack": s} for p, s in zip(params, (first, second), strict=True)]
    return params, HyperOptimizer(groups, first)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("ALRC(SGD)", "SGD"),
        ("Adam / SGD", "ALRC(Adam) / SGD"),
        ("ALRC(SGD, below)", "ALRC(SGD)"),
        ("ALRC(SGD, decay1=0.9)", "ALRC(SGD, decay1=0.99)"),
    ],
)
def test_the_loss_is_limited_alike_for_all_groups(first, second):
    with pytest.raises(InputError, match="limited for one param group"):
        in_two_groups(first, second)
    opt = HyperOptimizer(parameters()[:1], first)
    with pytest.raises(InputError, match="limited for one param group"):
        opt.add_param_group({"params": parameters()[1:], "stack": second})
    assert len(opt.param_groups) == 1


def test_two_groups_limit_the_loss_once():
    """Bases of their own, one pair of running means, one n: as a single group, where the bases are alike."""
    text = wrapped({**LEARNED, "n": 0.3}, "SGD(fixed(0.01))", " / SGD(0.1)")
    alone = parameters()
    one = HyperOptimizer(alone, text)
    params, opt = in_two_groups(text, text)
    for t in range(10):
        train(alone, one, [t])
        train(params, opt, [t])
    assert loss_cells(opt) == pytest.approx(loss_cells(one), rel=1e-12)
    assert_close([p.detach() for p in params], [p.detach() for p in alone], 1e-12)
    for read in (HyperOptimizer.hyperparameters, HyperOptimizer.hypergradients):
        for key in ("0.n", "group1.0.n"):
            assert float(read(opt)[key]) == pytest.approx(float(read(one)["0.n"]), rel=1e-10)
    assert abs(float(one.hyperparameters()["0.n"]) - 0.3) > 1e-6


# ---- mistakes

MISTAKES = {
    "n is 0": (lambda: hs.ALRC(hs.Adam, n=0), "ALRC(Adam, n=0)", r"outside \(0, inf\)"),
    "n is negative": (lambda: hs.ALRC(n=-1), "ALRC(n=-1)", r"outside \(0, inf\)"),
    "above the primary level": (lambda: hs.Adam / hs.ALRC(hs.SGD), "Adam / ALRC(SGD)", "level 1, which no loss"),
    "around itself": (lambda: hs.ALRC(hs.ALRC(hs.Adam)), "ALRC(ALRC(Adam))", "wraps a rule, not ALRC"),
    "a clip of its own": (lambda: hs.ALRC(hs.Adam, clip=True), "ALRC(Adam, clip)", "belongs to the level in ALRC"),
    "clip=": (lambda: hs.ALRC(clip=hs.norm(1.0)), "ALRC(Adam, clip=[norm(1)])", "belongs to the level in ALRC"),
    "the base's rate": (lambda: hs.ALRC(hs.Adam, lr=0.1), "ALRC(Adam, lr=0.1)", "belongs to the level in ALRC"),
    "the base's option": (lambda: hs.ALRC(nesterov=True), "ALRC(Adam, nesterov=True)", "belongs to the level in ALRC"),
    "a rate in the base's place": (lambda: hs.ALRC(0.1), "ALRC(0.1)", "wraps a rule, not 0.1|a rule was expected"),
    "decay1": (lambda: hs.ALRC(decay1=1), "ALRC(decay1=1)", "decay1 is 1"),
    "decay2": (lambda: hs.ALRC(decay2=1.5), "ALRC(decay2=1.5)", "decay2 is 1.5"),
    "no variance": (lambda: hs.ALRC(mean0=2, square0=3), "ALRC(mean0=2, square0=3)", "no mean and mean square"),
    "one mean": (lambda: hs.ALRC(mean0=2), "ALRC(mean0=2)", "no mean and mean square"),
    "one n a tensor": (lambda: hs.ALRC(n=hs.per_tensor(3)), "ALRC(n=per_tensor(3))", "ALRC's n is one number"),
    "an unknown name": (lambda: hs.ALRC(belwo=True), "ALRC(Adam, belwo)", "did you mean below"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes(kind):
    python, text, message = MISTAKES[kind]
    with pytest.raises(InputError, match=message):
        python()
    with pytest.raises(InputError, match=message) as error:
        hs.parse(text)
    assert isinstance(error.value, hs.StackError)
    (mistake,) = error.value.mistakes
    assert 0 <= mistake[0] < mistake[1] <= len(text)
    assert "^" in str(error.value)


def test_text_and_python_agree():
    made = hs.ALRC(hs.Adam(1e-3, clip=True), n=hs.fixed(2), below=True, decay1=0.9) / hs.SGD(1e-5)
    assert hs.parse("ALRC(Adam(0.001, clip), below, n=fixed(2), decay1=0.9) / SGD(1e-5)") == made
    assert hs.parse(str(made)) == made
    assert hs.parse("ALRC") == hs.Stack.of(hs.ALRC) == hs.Stack.of(hs.ALRC(hs.Adam))
    assert hs.ALRC(hs.Adam) != hs.ALRC(hs.SGD)
    assert hs.ALRC(n=2) != hs.ALRC(n=3)
    assert hs.parse("ALRC(SGD(α), n=β) / SGD(α)").bind(α=0.1, β=2) == hs.parse("ALRC(SGD(0.1), n=2) / SGD(0.1)")


def test_every_option_says_what_it_is():
    for wrapper in WRAPPERS.values():
        assert inspect.getdoc(wrapper)
        assert all(isinstance(option, Option) and option.doc for option in wrapper.options.values())


# ---- devices


@pytest.mark.sampled(27)
@by_case
@pytest.mark.parametrize("shape", SHAPES)
def test_limiting_looks_at_no_value(case, shape):
    """On the meta device there are none."""
    params = [nn.Parameter(torch.empty(s, device="meta")) for s in ((5, 12), (12,))]
    opt = HyperOptimizer(params, wrapped(case, above=" / SGD(1e-3)"))
    for _ in range(2):
        losses = SHAPES[shape]((torch.empty(4, 5, device="meta") @ params[0] + params[1]) ** 4)
        found = tower_of(opt).limit(losses, heard=True)
        assert found.weights.shape == found.offsets.shape == found.slopes["n"].shape == losses.shape
        opt.zero_grad()
        opt.backward(losses)
        opt.step()
    assert opt.hypergradients()["0.n"].device.type == "meta"


def test_huberize():
    losses = torch.tensor([0.0, 0.5, 2.0, 8.0], dtype=torch.float64, requires_grad=True)
    found = hs.huberize(losses, 2.0)
    assert_close([found], [torch.tensor([0.0, 0.5, 2.0, 4.0], dtype=torch.float64)], EPS)
    (slopes,) = torch.autograd.grad(found.sum(), losses)
    assert_close([slopes], [torch.tensor([1.0, 1.0, 1.0, 0.25], dtype=torch.float64)], EPS)
    assert torch.equal(hs.huberize(losses), torch.minimum(losses, losses.detach().sqrt()))
    assert hs.huberize(losses, 0.0) is losses
