"""The tower: against the published implementation, against a slow tower, on the meta device, and its edges."""

from __future__ import annotations

import ast
import functools
import gc
from pathlib import Path

import pytest
import torch
from battery import (
    PAIRS,
    RULES,
    SHAPES,
    SMALL,
    Reference,
    asked,
    assert_close,
    assert_same,
    calm,
    gradients,
    interior,
    number,
    tensors,
)
from gradient_descent_the_ultimate_optimizer import gdtuo
from hypothesis import given, settings
from hypothesis import strategies as st

import hyperstack as hs
from hyperstack import buffers, tape
from hyperstack.engine import Tower
from hyperstack.tape import host

NAMES = list(RULES)
TRIPLES = [(a, *(NAMES[(i + k) % len(NAMES)] for k in (1, 2))) for i, a in enumerate(NAMES)] + [
    (a, a, a) for a in NAMES
]


def sparsely(pairs):
    """All pairs, of which each rule with itself and with the next one, both ways, are for the fast tier."""
    near = {(a, b) for i, a in enumerate(NAMES) for b in (NAMES[i - 1], a, NAMES[(i + 1) % len(NAMES)])}
    return [pytest.param(*p, id="-".join(p), marks=() if p in near else pytest.mark.slow) for p in pairs]


by_pair = pytest.mark.parametrize(("lower", "upper"), sparsely(PAIRS))


def dot(a, b):
    return sum((x * y).sum() for x, y in zip(a, b, strict=True))


# ---- closed form


def test_sgd_over_sgd_has_the_closed_form():
    """dL/dlr = -g_t·g_{t-1}, and lr follows it by gradient descent."""
    params, grads = tensors(), gradients(6)
    start, tower = [p.clone() for p in params], Tower(hs.parse("SGD(0.1) / SGD(0.01)"), params)
    rate, moved = 0.1, [torch.zeros_like(p) for p in params]
    for t, gs in enumerate(grads):
        tower.step(params, gs)
        slope = -dot(gs, grads[t - 1]) if t else number(0)
        rate = rate - 0.01 * slope
        moved = [m - rate * g for m, g in zip(moved, gs, strict=True)]
        assert_close([tower.hypergradients()["0.lr"]], [slope], 1e-14)
        assert_close([tower.hyperparameters()["0.lr"]], [torch.as_tensor(rate)], 1e-14)
    assert_close(params, [s + m for s, m in zip(start, moved, strict=True)], 1e-13)
    assert abs(float(rate) - 0.1) > 0.01


def test_the_schedule_factor_multiplies_the_rate():
    """θ moves by -f_t lr_t g_t, so that dL/dlr = -f_{t-1} g_t·g_{t-1}."""
    params, grads, factors = tensors(), gradients(5), [1.0, 0.5, 2.0, 0.0, 1.5]
    tower, before = Tower(hs.parse("SGD(0.1) / SGD(0.01)"), params), 1.0
    for t, (gs, factor) in enumerate(zip(grads, factors, strict=True)):
        start = [p.clone() for p in params]
        tower.step(params, gs, factor)
        rate = tower.hyperparameters()["0.lr"]
        assert_close([p - s for p, s in zip(params, start, strict=True)], [-factor * rate * g for g in gs], 1e-12)
        if t:
            assert_close([tower.hypergradients()["0.lr"]], [-before * dot(gs, grads[t - 1])], 1e-14)
        before = factor


# ---- the published implementation


@pytest.fixture
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def reading(optimizer):
    """The hyperparameters of a gdtuo optimizer and those above it, in natural units, under our keys."""
    found, k = {}, 0
    while not isinstance(optimizer, gdtuo.NoOpOptimizer):
        raw, kind = optimizer.parameters, type(optimizer)
        if kind is gdtuo.SGD:
            mine = {"lr": raw["alpha"], **({"momentum": raw["mu"]} if optimizer.mu else {})}
        elif kind is gdtuo.Adam:
            mine = {"lr": raw["alpha"], **{k: kind.clamp(raw[k]) for k in ("beta1", "beta2")}}
        elif kind is gdtuo.RMSProp:
            mine = {"lr": raw["alpha"] ** 2, "alpha": kind.clamp(raw["gamma"])}
        else:
            mine = {"lr": raw["alpha"]}
        found |= {f"{k}.{name}": value.detach() for name, value in mine.items()}
        optimizer, k = optimizer.optimizer, k + 1
    return found


def network():
    torch.manual_seed(7)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))


def tanh_loss(model, batch):
    x, y = batch
    return ((model(x) - y) ** 2).mean()


PUBLISHED = {
    "SGD(0.1) / SGD(0.05)": lambda g: g.SGD(0.1, optimizer=g.SGD(0.05)),
    "SGD(0.1) / SGD(0.05) / SGD(0.05)": lambda g: g.SGD(0.1, optimizer=g.SGD(0.05, optimizer=g.SGD(0.05))),
    "SGD(0.1) / SGD(0.05) / SGD(0.02) / SGD(0.1)": lambda g: g.SGD(
        0.1, optimizer=g.SGD(0.05, optimizer=g.SGD(0.02, optimizer=g.SGD(0.1)))
    ),
    "SGD(0.02, momentum=0.9) / SGD(0.01)": lambda g: g.SGD(0.02, 0.9, g.SGD(0.01)),
    "SGD(0.02, momentum=0.9) / SGD(0.01, momentum=0.5)": lambda g: g.SGD(0.02, 0.9, g.SGD(0.01, 0.5)),
    "Adam(0.01, v0=1e-8) / SGD(1e-2)": lambda g: g.Adam(0.01, optimizer=g.SGD(1e-2)),
    "Adam(0.01, v0=1e-8) / Adam(0.01, v0=1e-8)": lambda g: g.Adam(0.01, optimizer=g.Adam(0.01)),
    "Adam(0.01, beta1=0.8, beta2=0.9, v0=1e-8) / Adam(0.01, beta1=0.8, beta2=0.9, v0=1e-8) / SGD(1e-3)": lambda g: (
        g.Adam(0.01, 0.8, 0.9, optimizer=g.Adam(0.01, 0.8, 0.9, optimizer=g.SGD(1e-3)))
    ),
    "AdaGrad(0.05, eps_inside, initial=0.1) / SGD(0.01)": lambda g: g.AdaGrad(0.05, g.SGD(0.01)),
    "AdaGrad(0.05, eps_inside, initial=0.1) / AdaGrad(0.01, eps_inside, initial=0.1)": lambda g: g.AdaGrad(
        0.05, g.AdaGrad(0.01)
    ),
    "RMSProp(square(0.01), alpha=0.9, eps_inside=True) / SGD(1e-3)": lambda g: g.RMSProp(0.01, 0.9, g.SGD(1e-3)),
    "RMSProp(square(0.01), eps_inside) / RMSProp(square(1e-3), alpha=0.8, eps_inside=True) / SGD(1e-3)": lambda g: (
        g.RMSProp(0.01, optimizer=g.RMSProp(0.001, 0.8, g.SGD(1e-3)))
    ),
}


@pytest.mark.sampled(15)
@pytest.mark.usefixtures("float64_by_default")
@pytest.mark.parametrize("text", PUBLISHED)
def test_the_trajectory_of_the_published_implementation(text):
    """50 steps: every parameter and every hyperparameter, at each step."""
    generator = torch.Generator().manual_seed(3)
    batches = [[torch.randn(16, n, generator=generator) for n in (4, 2)] for _ in range(5)]
    theirs = gdtuo.ModuleWrapper(network(), optimizer=PUBLISHED[text](gdtuo))
    theirs.initialize()
    model = network()
    ours = hs.HyperOptimizer(model.parameters(), text, nonfinite="propagate")
    first = reading(theirs.optimizer)
    for t in range(50):
        batch = batches[t % 5]
        theirs.begin()
        loss = tanh_loss(theirs.module, batch)
        theirs.zero_grad()
        loss.backward()
        theirs.step()
        ours.zero_grad()
        tanh_loss(model, batch).backward()
        ours.step()
        assert_close(dict(model.named_parameters()), theirs.parameters, 1e-9)
        known = reading(theirs.optimizer)
        assert_close({k: v for k, v in ours.hyperparameters().items() if k in known}, known, 1e-9)
    moved = {key: abs(float(known[key] / first[key]) - 1) for key in known if int(key[0]) < text.count("/")}
    assert moved["0.lr"] > 1e-2
    assert min(moved.values()) > 1e-7, moved


# ---- the slow tower


def follow(stack, steps=7, nonfinite="skip", schedule=lambda t: 1.0, grads=None, rtol=1e-10, params=None):
    """A tower and the slow one side by side, everything compared at each step."""
    params = tensors() if params is None else params
    grads = gradients(steps) if grads is None else grads
    tower, slow = Tower(stack, params, nonfinite), Reference(stack, params, nonfinite)
    for t, gs in enumerate(grads):
        tower.step(params, gs, schedule(t))
        slow.step(gs, schedule(t))
        assert_close(params, list(slow.moved[0].values()), rtol)
        ours, theirs = tower.hyperparameters(), slow.hyperparameters()
        assert_close(ours, {k: theirs[k] for k in ours}, rtol)
        found, factors, counts = tower.hypergradients(), tower.clip_factors(), tower.nonfinite_counts()
        every = {f"{k}.{name}": h for k, level in enumerate(slow.hypergradients) for name, h in level.items()}
        wanted = {key: h for key, h in every.items() if torch.isfinite(h).all()}
        assert {key for key in every if torch.isfinite(found[key]).all()} == set(wanted)
        assert_close({key: found[key] for key in wanted}, wanted, 1e3 * rtol, 1e-13)
        large = {key: f for key, f in slow.factors.items() if (found[key].abs() > 1e-9).any()}
        assert_close({key: factors[key] for key in large}, large, 1e3 * rtol)
        assert {key: int(counts[key]) for key in slow.skipped} == slow.skipped
    return tower


@pytest.mark.sampled(37)
@by_pair
def test_two_clipped_levels_as_the_slow_tower(lower, upper):
    stack = asked(RULES[lower], clip=True, **calm(lower, upper)) / asked(RULES[upper], lr=hs.learned(0.01), clip=True)
    follow(stack, schedule=lambda t: 1.0 if t < 2 else 0.5)


@pytest.mark.parametrize("names", TRIPLES, ids="-".join)
@pytest.mark.slow
def test_three_clipped_levels_as_the_slow_tower(names):
    per_tensor = {"lr": hs.learned(hs.per_tensor(0.1))}
    first, second, third = (RULES[name] for name in names)
    calmed = calm(names[0], *names[1:]), calm(names[1], names[2])
    lower, upper = asked(first, clip=True, **per_tensor, **calmed[0]), {"lr": hs.learned(0.01), **calmed[1]}
    follow(lower / asked(second, clip=True, **upper) / asked(third, lr=hs.learned(1e-3), clip=True))


def test_four_levels_and_both_ways_to_count_as_the_slow_tower():
    late = [hs.cumulative(skip_zeros=True)]
    level = functools.partial(asked, hs.SGD)
    follow(
        level(clip=late)
        / level(lr=hs.learned(0.01), clip=[*late, hs.cumulative()])
        / hs.Adam(1e-3, clip=late)
        / hs.SGD(1e-5, clip=True)
    )


def test_clipping_by_its_definition():
    """The factor is min(1, θ/n), t counts from the first step, and without it the rate moves further."""
    params, grads = tensors(), gradients(6)
    tower = Tower(hs.parse("SGD(0.1) / SGD(0.01, clip)"), params)
    memory, factors = (0, 0.0), []
    for gs in grads:
        tower.step(params, gs)
        n, (t, average) = float(tower.hypergradients()["0.lr"].abs()), memory
        factor = min(1.0, (t * average + n) / (t + 1) / n) if n else 1.0
        memory = t + 1, (t * average + factor * n) / (t + 1)
        factors.append(factor)
        assert_close([tower.clip_factors()["0.lr"]], [number(factor)], 1e-12)
    assert factors[:2] == [1.0, pytest.approx(0.5)]


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=4, max_size=8))
@pytest.mark.slow
def test_parameters_that_come_and_go_as_the_slow_tower(present):
    """A parameter without a gradient in a step stays, with its state and its clock, and adds no hypergradient."""
    grads = [[g if here else None for g, here in zip(gs, row, strict=True)]
             for gs, row in zip(gradients(len(present), shapes=SMALL), present, strict=True)]  # fmt: skip
    stack = hs.Adam(hs.per_tensor(0.1), weight_decay=0.1, clip=True) / hs.SGD(0.01, momentum=0.5, clip=True)
    follow(stack / hs.SGD(1e-3), params=tensors(shapes=SMALL), grads=grads)


def taken(stack, grads, nonfinite="skip"):
    params = tensors(shapes=SMALL)
    tower = Tower(stack, params, nonfinite)
    for gs in grads:
        tower.step(params, gs, 0.5)
    return [
        *params,
        *tower.hyperparameters().values(),
        *tower.hypergradients().values(),
        *tower.clip_factors().values(),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("names", TRIPLES[: len(NAMES)], ids="-".join)
def test_numbers_in_host_memory_are_computed_as_torch_does(names, monkeypatch):
    """Programs on a handful of numbers run as Python floats, unless there is no room for them."""
    grads = gradients(5, shapes=SMALL)
    grads[2][1] = None
    first = asked(RULES[names[0]], lr=hs.learned(hs.log(0.1)), clip=True, **calm(names[0], *names[1:]))
    second = asked(RULES[names[1]], lr=hs.learned(0.1), clip=True, **calm(names[1], names[2]))
    stack = first / second / layers(*names[2:])
    as_floats = taken(stack, grads)
    monkeypatch.setattr(host, "WORTH_IT", 0)
    assert_close(as_floats, taken(stack, grads), 1e-11, 1e-13)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("nonfinite", ["skip", "propagate"])
@pytest.mark.parametrize("upper", ["SGD(1e-150, clip, momentum=0.5)", "Adam(log(1e-3), clip)", "RMSProp(square(1e-3))"])
def test_infinite_numbers_in_host_memory_are_as_in_torch(upper, nonfinite, monkeypatch):
    stack, grads = MOMENTUM / hs.parse(upper), overflowing(shapes=SMALL)
    as_floats = taken(stack, grads, nonfinite)
    assert all(torch.isfinite(x).all() for x in as_floats[:4]) == (nonfinite == "skip")
    monkeypatch.setattr(host, "WORTH_IT", 0)
    for a, b in zip(as_floats, taken(stack, grads, nonfinite), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=0, equal_nan=True)


# ---- every pair, on the device that has no values


def layers(*names, **per_level):
    """A stack of rules with everything learned and every level clipped."""
    return hs.Stack(
        asked(RULES[name], lr=hs.learned(10.0 ** -(k + 1)), clip=True, **per_level) for k, name in enumerate(names)
    )


@pytest.mark.sampled(13)
@by_pair
def test_every_pair_makes_finite_steps(lower, upper):
    """As they come, in float32; what they do with everything learned and clipped is compared above."""
    stack, params = RULES[lower] / RULES[upper], tensors(torch.float32)
    start, tower = [p.clone() for p in params], Tower(stack, params)
    for gs in gradients(5, torch.float32):  # an odd number: steps of one length do not cancel
        tower.step(params, gs)
    read = [*tower.hyperparameters().values(), *tower.hypergradients().values(), *tower.clip_factors().values()]
    assert all(torch.isfinite(x).all() for x in [*params, *read])
    assert not any(n.any() for n in tower.nonfinite_counts().values())
    assert all((p != s).all() for p, s in zip(params, start, strict=True))
    assert float(tower.hyperparameters()["0.lr"]) != stack.resolve()[0]["lr"].value


def one_a_tensor(name):
    """A level that has one number a tensor of every hyperparameter, all learned."""
    rule = RULES[name]
    return rule(**{k: hs.learned(hs.per_tensor(interior(h))) for k, h in rule.hyperparameters.items()}, clip=True)


TALL = [*(layers(*names) for names in TRIPLES), *(one_a_tensor(a) / one_a_tensor(a) for a in NAMES)]
TALL_IDS = ["-".join(names) for names in TRIPLES] + [f"one-a-tensor-{name}" for name in NAMES]
by_stack = pytest.mark.parametrize(
    "stack",
    [pytest.param(layers(*p.values), id=p.id, marks=p.marks) for p in sparsely(PAIRS)]
    + [pytest.param(stack, id=name) for stack, name in zip(TALL, TALL_IDS, strict=True)],
)


def take_steps(stack, device, nonfinite="skip", missing=()):
    """Three steps with a schedule that is a tensor; at the steps `missing` one gradient is not there."""
    params, schedule = tensors(torch.float32, ((2, 3), ()), device=device), torch.tensor(0.5, device=device)
    tower = Tower(stack, params, nonfinite)
    for t, gs in enumerate(gradients(3, torch.float32, ((2, 3), ()), device=device)):
        tower.step(params, [gs[0], None] if t in missing else gs, schedule)
    return tower


@pytest.mark.slow
@by_stack
def test_every_stack_on_the_meta_device(stack):
    """There are no values there: waiting for one, or a branch on one, raises; and so does mixing devices."""
    tower, same = take_steps(stack, "meta"), Tower(stack, tensors(torch.float32, ((2, 3), ())))
    for read in (Tower.hyperparameters, Tower.hypergradients, Tower.clip_factors, Tower.nonfinite_counts):
        assert all(x.device.type == "meta" for x in read(tower).values())
        assert {k: x.shape for k, x in read(tower).items()} == {k: x.shape for k, x in read(same).items()}


@pytest.mark.sampled(19)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_that_are_missing_and_no_guard_on_the_meta_device(name):
    tower = take_steps(one_a_tensor(name) / one_a_tensor(name), "meta", "propagate", missing=(1,))
    assert all(x.device.type == "meta" for x in tower.hypergradients().values())


@pytest.mark.sampled(29)
@pytest.mark.parametrize("names", TRIPLES, ids="-".join)
def test_the_climb_runs_on_python_floats(names, monkeypatch):
    """Every operation that the rules use on hyperparameters is known there; without one, steps take far longer."""
    made, compile_for_host = [], tape.compile_for_host
    monkeypatch.setattr(tape, "compile_for_host", lambda program: made.append(compile_for_host(program)) or made[-1])
    take_steps(layers(*names), "cpu")
    assert sum(program is not None for program in made) == 1, "the parameters are float32, which is for torch"


def test_the_meta_device_notices_a_wait():
    with pytest.raises((RuntimeError, NotImplementedError)):
        float(tensors(device="meta")[0].sum())


@pytest.mark.gpu
@by_stack
def test_no_step_waits_for_the_gpu(stack):
    params, grads = tensors(torch.float32, device="cuda"), gradients(4, torch.float32, device="cuda")
    schedule, tower = torch.tensor(0.5, device="cuda"), Tower(stack, params)
    tower.step(params, grads[0], schedule)
    tower.step(params, grads[1], schedule)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for gs in grads[2:]:
            tower.step(params, gs, schedule)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- edges


MANY = [
    "SGD",
    "SGD(0.1, momentum=0.9) / Adam(clip=True) / SGD(0.1)",
    *(f"{a} / {b}" for a, b in zip(NAMES, NAMES[1:] + NAMES[:1], strict=True)),
]
MANY = [text.replace("AdamW", "AdamW(weight_decay=0)") for text in MANY]  # decay needs no gradient
by_text = pytest.mark.parametrize("text", MANY)


@pytest.mark.sampled(5)
@by_text
def test_the_first_step_changes_no_hyperparameter(text):
    params = tensors()
    tower = Tower(hs.parse(text), params)
    before = tower.hyperparameters()
    tower.step(params, gradients(1)[0])
    assert_same(tower.hyperparameters(), before)
    assert all(not g.any() for g in tower.hypergradients().values())
    assert not torch.equal(params[0], tensors()[0])


@pytest.mark.sampled(7)
@by_text
def test_gradients_that_are_all_zero_move_nothing(text):
    params = tensors()
    tower = Tower(hs.parse(text), params)
    before = tower.hyperparameters()
    for _ in range(3):
        tower.step(params, [torch.zeros_like(p) for p in params])
    assert_same([tower.hyperparameters(), params], [before, tensors()])


@pytest.mark.sampled(7)
@by_text
def test_a_step_without_any_gradient_is_no_step(text):
    """Also in mid-run: what follows is as if it had not been called."""
    a, b = tensors(), tensors()
    one, other = (Tower(hs.parse(text), p) for p in (a, b))
    for gs in gradients(4):
        one.step(a, gs)
        other.step(b, gs)
        other.step(b, [None] * len(b), 3.0)
        assert_same(
            [b, other.hyperparameters(), other.hypergradients()], [a, one.hyperparameters(), one.hypergradients()]
        )


@pytest.mark.slow
def test_nothing_grows_with_the_steps():
    """Whatever gradients are missing, as in a mixture of experts or with layers dropped at random."""
    shapes = [(2,)] * 10
    params, grads = tensors(shapes=shapes), gradients(1, shapes=shapes)[0]
    tower, random = Tower(hs.parse("Adam(0.01) / SGD(1e-3, clip)"), params), torch.Generator().manual_seed(0)

    def objects_after(steps):
        for _ in range(steps):
            present = torch.rand(10, generator=random) < 0.5
            tower.step(params, [g if here else None for g, here in zip(grads, present.tolist(), strict=True)])
        gc.collect()
        return len(gc.get_objects())

    first = objects_after(40)
    assert objects_after(20) - first < 20 * 5


def overflowing(steps=8, at=3, shapes=SHAPES):
    """Gradients so large at `at` and `at` + 1 that their product overflows, but no square of a hypergradient does."""
    grads = gradients(steps, shapes=shapes)
    for t, gs in enumerate(grads):
        for g in gs:
            g *= 1.0 if t < at else {0: 1e150, 1: 1e160, 3: 1e-6}.get(t - at, 1e-15)
    return grads


MOMENTUM = hs.SGD(hs.log(1e-12), momentum=0.5)


@pytest.mark.parametrize(
    "upper",
    ["SGD(1e-150)", "SGD(1e-150, clip, momentum=0.5)", "Adam(1e-3, clip)", "AdaGrad(clip=True) / SGD(1e-300, clip)"],
)
def test_a_hyperparameter_whose_hypergradient_is_not_finite_sits_out(upper):
    """At step `at` + 1 lr's g·b overflows, momentum's lr g·b' does not: lr keeps value, state and clip state."""
    stack, at = MOMENTUM / hs.parse(upper), 3
    params, grads = tensors(), overflowing(at=at)
    tower = Tower(stack, params)
    for gs in grads[: at + 2]:
        before = tower.hyperparameters()
        tower.step(params, gs)
    after, found = tower.hyperparameters(), tower.hypergradients()
    assert not torch.isfinite(found["0.lr"])
    assert torch.isfinite(found["0.momentum"])
    assert torch.equal(after["0.lr"], before["0.lr"])
    assert not torch.equal(after["0.momentum"], before["0.momentum"])
    counts = tower.nonfinite_counts()
    assert (int(counts["0.lr"]), int(counts["0.momentum"])) == (1, 0)


@pytest.mark.parametrize(
    "upper", ["SGD(1e-170)", "SGD(1e-170, clip, momentum=0.5)", "Adam(1e-3, clip) / SGD(1e-300, clip)"]
)
def test_a_hypergradient_that_is_not_finite_as_in_the_slow_tower(upper):
    """What follows shows the states and the clip states that were left alone."""
    tower = follow(MOMENTUM / hs.parse(upper), grads=overflowing())
    assert int(tower.nonfinite_counts()["0.lr"]) == 1


def test_a_hypergradient_that_is_not_finite_is_let_through_where_asked():
    params = tensors()
    tower = Tower(MOMENTUM / hs.SGD(1e-170), params, "propagate")
    for gs in overflowing()[:5]:
        tower.step(params, gs)
    assert not torch.isfinite(tower.hyperparameters()["0.lr"])
    assert torch.isfinite(tower.hyperparameters()["0.momentum"])
    assert int(tower.nonfinite_counts()["0.lr"]) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_tensor_of_many_with_a_gradient_that_is_not_finite(bad):
    """It spoils its own tensor, as in torch.optim; every hyperparameter waits, and learning goes on after it."""
    params, grads = tensors(), gradients(8)
    grads[3][1].view(-1)[2] = bad
    tower = Tower(hs.parse("SGD(0.1, momentum=0.5) / SGD(1e-3, clip) / SGD(1e-3, clip)"), params)
    values = []
    for t, gs in enumerate(grads):
        tower.step(params, gs if t <= 3 else [gs[0], None, *gs[2:]])
        values.append(tower.hyperparameters())
    assert_same(values[3], values[2])
    assert all(torch.isfinite(v) for v in values[-1].values())
    assert values[-1]["0.lr"] != values[3]["0.lr"]
    assert int(tower.nonfinite_counts()["0.lr"]) == 1
    assert not torch.isfinite(params[1]).all()
    assert all(torch.isfinite(p).all() for p in (params[0], *params[2:]))


# ---- blocks and layouts


def layouts(big):
    """Tensors of many sizes and layouts: scalar, empty, odd, larger than a block, transposed, channels last."""
    random = torch.Generator().manual_seed(11)
    made = [torch.randn(s, generator=random).double() for s in ((), (1,), (0,), (7,), (3, 5), (big,), (2, 0, 3))]
    made += [torch.randn(9, 6, generator=random).double().t(), torch.randn(4, 11, generator=random).double()[:, ::2]]
    return [*made, torch.randn(2, 3, 4, 5, generator=random).double().to(memory_format=torch.channels_last)]


LONG = hs.Adam(hs.per_tensor(0.05), weight_decay=0.1, clip=True) / hs.RMSProp(1e-3, eps=0.1, clip=True) / hs.SGD(1e-6)


def in_blocks_of(size, monkeypatch, big, steps=4, contiguous=False):
    """What comes of a few steps, and the largest number of elements that the primary rule was given at once."""
    sizes, update = [], hs.Adam.update
    monkeypatch.setattr(
        hs.Adam, "update", lambda self, g, s, c, p: (sizes.append(g.numel()), update(self, g, s, c, p))[1]
    )
    monkeypatch.setattr(buffers, "BLOCK", size)
    params = [p.clone(memory_format=torch.contiguous_format) if contiguous else p.clone() for p in layouts(big)]
    tower = Tower(LONG, params)
    for t in range(steps):
        grads = [torch.cos(3.0 * p * (t + 1)) + 0.2 for p in layouts(big)]
        tower.step(params, grads if t != 2 else [None, *grads[1:3], None, *grads[4:]])
    monkeypatch.undo()
    return [*params, *tower.hyperparameters().values(), *tower.hypergradients().values()], max(sizes)


@pytest.mark.parametrize("size", [7, 64])
@pytest.mark.slow
def test_results_do_not_depend_on_the_size_of_blocks(size, monkeypatch):
    whole, most = in_blocks_of(1 << 20, monkeypatch, 200)
    assert most > 240
    cut, most = in_blocks_of(size, monkeypatch, 200)
    assert most < 240, "a tensor that can be split was not"
    assert_close(cut, whole, 1e-12)


@pytest.mark.slow
def test_a_tensor_larger_than_a_block(monkeypatch):
    big = buffers.BLOCK + 3
    cut, most = in_blocks_of(buffers.BLOCK, monkeypatch, big, 3)
    assert most < big
    assert_close(cut, in_blocks_of(1 << 30, monkeypatch, big, 3)[0], 1e-11)  # sums of as many terms, that cancel


@pytest.mark.slow
def test_the_layout_of_a_tensor_does_not_matter(monkeypatch):
    (strided, _), (plain, _) = (in_blocks_of(64, monkeypatch, 40, contiguous=c) for c in (False, True))
    assert not all(p.is_contiguous() for p in strided)
    assert_close(strided, plain, 1e-12)


def test_layouts_as_the_slow_tower():
    params = [p.clone() for p in layouts(40)]
    grads = [[torch.cos(3.0 * p * (t + 1)) + 0.2 for p in params] for t in range(4)]
    follow(LONG, grads=grads, params=params)
    of_other_strides = [[g.t().contiguous().t() if g.dim() == 2 else g for g in gs] for gs in grads]
    follow(LONG, grads=of_other_strides, params=[p.clone() for p in layouts(40)])


def test_tensors_without_elements():
    """They are passed over; alone, they leave every hyperparameter where it is."""
    for shapes in ([(0,)], [(0, 3), (2,), (0,)]):
        params = tensors(shapes=shapes)
        tower = follow(
            hs.SGD(hs.per_tensor(0.1)) / hs.SGD(0.01, clip=True), params=params, grads=gradients(4, shapes=shapes)
        )
        assert [p.shape for p in params] == [torch.Size(s) for s in shapes]
        assert torch.equal(tower.hyperparameters()["0.lr"] == 0.1, torch.tensor([0 in s for s in shapes]))


def test_tensors_of_several_dtypes_in_one_tower():
    """float32 and float64 side by side: each computed in its own dtype, one learned rate for both."""
    kinds = (torch.float64, torch.float32, torch.float64, torch.float32)
    params = [p.to(d) for p, d in zip(tensors(), kinds, strict=True)]
    grads = [[g.to(d) for g, d in zip(gs, kinds, strict=True)] for gs in gradients(6)]
    same, exact = [p.double() for p in params], [[g.double() for g in gs] for gs in grads]
    stack = hs.parse("Adam(0.05) / SGD(1e-3)")
    mixed, pure = Tower(stack, params), Tower(stack, same)
    for gs, es in zip(grads, exact, strict=True):
        mixed.step(params, gs)
        pure.step(same, es)
    assert [p.dtype for p in params] == list(kinds)
    assert_close(params, same, 1e-5)
    assert_close(mixed.hyperparameters(), pure.hyperparameters(), 1e-5)


def test_a_saved_tower_is_a_copy_and_goes_on_bit_for_bit():
    grads, stack = gradients(9), hs.parse("Adam(0.05, clip) / SGD(1e-3, clip, momentum=0.5) / SGD(1e-4, clip)")
    params = tensors()
    tower = Tower(stack, params)
    for t, gs in enumerate(grads[:5]):
        tower.step(params, gs if t != 2 else [gs[0], None, *gs[2:]], 0.5)
    copied = [p.clone() for p in params]
    other = Tower(stack, copied)
    other.restore(tower.export(), copied)
    held = [copied, other.hyperparameters(), other.hypergradients(), other.clip_factors()]
    for gs in grads[5:]:
        tower.step(params, gs)
    assert_same([copied, other.hyperparameters(), other.hypergradients(), other.clip_factors()], held)
    for gs in grads[5:]:
        other.step(copied, gs)
    assert_same(
        [copied, other.hyperparameters(), other.hypergradients()],
        [params, tower.hyperparameters(), tower.hypergradients()],
    )
    assert_same(other.export(), tower.export())


def test_a_tower_in_use_takes_over_another_whole():
    grads, stack = gradients(8), hs.parse("Adam(0.05, clip) / SGD(1e-3, clip)")
    params, others = tensors(), tensors()
    tower, other = Tower(stack, params), Tower(stack, others)
    for gs in grads[:4]:
        tower.step(params, gs)
    for gs in grads[4:]:
        other.step(others, [gs[0], None, *gs[2:]], 0.3)
    other.restore(tower.export(), params)
    copied = [p.clone() for p in params]
    for t, gs in enumerate(grads[4:]):
        some = [gs[0], None, *gs[2:]] if t < 2 else gs
        tower.step(params, some)
        other.step(copied, some)
    assert_same([copied, other.export()], [params, tower.export()])


# ---- the house


HOME = Path(hs.__file__).parent
BASE = "version errors memory devices numerics hyperparameter choices measuring transforms rule wrapper rules recipe"
ENGINE = (
    "layout tape derivatives level buffers gradients climb primary engine window averaging losses sharing parts"
    " together"
)
REST = (
    "schedule dsl admission probing optimizer rivals telemetry reports loop tasks batches training sweep experiments"
    " api"
)
LAYERS = {name: i for i, name in enumerate(f"{BASE} {ENGINE} {REST}".split())}
MAY_USE_AUTOGRAD = {*ENGINE.split(), "probing", "optimizer", "rivals", "training", "sweep"}
AUTOGRAD = {"autograd", "backward", "requires_grad_", "enable_grad", "set_grad_enabled", "retain_grad", "grad_fn"}


def sources(folder=HOME):
    return {path: ast.parse(path.read_text()) for path in sorted(folder.rglob("*.py"))}


def layer(path):
    return path.relative_to(HOME).parts[0].removesuffix(".py")


def imported(tree, package):
    """The modules below `package` that a file imports, also inside functions and for type checking."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [node.module] if node.module != package else [f"{package}.{alias.name}" for alias in node.names]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name for name in names if name.split(".")[0] == package)


def test_imports_go_strictly_down():
    for path, tree in sources().items():
        mine = layer(path)
        if mine == "__init__":
            continue
        assert mine in LAYERS, f"say where {mine} stands in BASE or ENGINE"
        for name in imported(tree, "hyperstack"):
            theirs = name.split(".")[1]
            assert theirs in LAYERS, f"say where {theirs} stands in BASE or ENGINE"
            down = LAYERS[theirs] < LAYERS[mine] or (theirs == mine and path.parent != HOME)
            assert down, f"{path.relative_to(HOME)} imports {name}"


def test_only_the_command_line_knows_the_command_line():
    assert not [p for p, tree in sources().items() for _ in imported(tree, "hyperstack_cli")]


def test_only_the_engine_touches_autograd():
    found = {}
    for path, tree in sources().items():
        used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)} & AUTOGRAD
        used |= {
            a.name for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names
        } & AUTOGRAD
        if used:
            found.setdefault(layer(path), set()).update(used)
    assert set(found) <= MAY_USE_AUTOGRAD, found
    assert "primary" in found, "the list of names that this test looks for is out of date"
