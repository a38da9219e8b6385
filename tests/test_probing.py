"""The loop of a stack that measures at averages: the closure, averaged weights in place and back, checkpoints."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from battery import assert_close, assert_same, gradients, tensors, written
from torch import nn
from torch.optim import lr_scheduler as schedulers

from hyperstack import HyperOptimizer, InputError, RunError, buffers

EVERY = 3
AUTO = f"auto(Adam(0.01), every={EVERY}, first={EVERY}, decay=0.8, warmup=2)"
PLACE = f"at=average(0.8, every={EVERY}, first={EVERY}, warmup=2, bound=0.05)"
BETAS = f"Adam(log(0.01), clip, weight_decay=0.1) / SGD(0.1, clip=[cosine], {PLACE})"
MOMENTUM = f"SGD(log(0.01), nesterov, momentum=learned(0.5)) / Adam(0.01, {PLACE}) / SGD(1e-3)"
SPREAD = f"LAMBC(per_tensor(log(0.01)), deviations=0.1) / SGD(0.1, momentum=0.5, {PLACE})"
LIVE = "Adam(0.02, clip) / SGD(1e-3, clip, momentum=0.5)"
STACKS = {"auto": AUTO, "betas": BETAS, "momentum": MOMENTUM, "one a tensor": SPREAD}
by_text = pytest.mark.parametrize(
    "text", [pytest.param(t, id=name, marks=[] if name == "auto" else pytest.mark.slow) for name, t in STACKS.items()]
)


def parameters(dtype=torch.float64):
    return [nn.Parameter(p) for p in tensors(dtype)]


def given(params, grads, calls=None):
    """A closure that sets gradients, whatever the weights are: new tensors, as backward would."""

    def closure():
        if calls is not None:
            calls.append([p.detach().clone() for p in params])
        for p, g in zip(params, grads, strict=True):
            p.grad = None if g is None else g.to(p.dtype).clone()

    return closure


def seen(opt):
    """All that a user sees of an optimizer, copied."""
    read = [opt.hyperparameters(), opt.hypergradients(), opt.clip_factors(), opt.nonfinite_counts(), opt.state_dict()]
    return copy.deepcopy([*read, [p.detach() for group in opt.param_groups for p in group["params"]]])


def network(dtype=torch.float64, batch_norm=False):
    torch.manual_seed(5)
    between = [nn.BatchNorm1d(6)] if batch_norm else []
    return nn.Sequential(nn.Linear(4, 6), *between, nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def batches(n, dtype=torch.float64):
    random = torch.Generator().manual_seed(9)
    return [tuple(torch.randn(8, k, generator=random).to(dtype) for k in (4, 3)) for _ in range(n)]


def squares(model, batch):
    return (model(batch[0]) - batch[1]) ** 2


def closing(model, opt, batch, calls=None):
    """The closure of an ordinary loop."""

    def closure():
        if calls is not None:
            calls.append([p.detach().clone() for p in model.parameters()])
        opt.zero_grad()
        loss = squares(model, batch).mean()
        loss.backward()
        return loss

    return closure


def train(model, opt, data):
    return [opt.step(closing(model, opt, batch)).detach() for batch in data]


# ---- the closure


@by_text
def test_a_step_without_a_closure_is_refused_before_anything_has_changed(text):
    model = network()
    opt = HyperOptimizer(model.parameters(), text)
    for data in ([], batches(4)):
        train(model, opt, data)
        opt.zero_grad()
        squares(model, batches(1)[0]).mean().backward()
        before = seen(opt)
        with pytest.raises(RunError, match=r"needs a closure[\s\S]*write opt.step\(closure\)"):
            opt.step()
        assert_same(seen(opt), before)


@by_text
def test_the_closure_is_called_twice_where_a_window_ends_and_first_at_the_averages(text):
    model, data = network(), batches(3 * EVERY + 2)
    opt = HyperOptimizer(model.parameters(), text)
    for t, batch in enumerate(data, 1):
        calls, live = [], [p.detach().clone() for p in model.parameters()]
        with opt.averaged():
            means = [p.detach().clone() for p in model.parameters()]
        rate = opt.hyperparameters()["0.lr"]
        loss = opt.step(closing(model, opt, batch, calls))
        measuring = t in (EVERY + 1, 2 * EVERY + 1, 3 * EVERY + 1)
        assert_same(calls, [means, live] if measuring else [live])
        twin = network()
        twin.load_state_dict(dict(zip(dict(model.named_parameters()), live, strict=True)))
        assert torch.equal(loss, squares(twin, batch).mean())
        if t > EVERY:
            assert (opt.hyperparameters()["0.lr"] != rate).all() == measuring
    assert not torch.equal(means[0], live[0])


def test_a_closure_that_computes_no_gradients_is_refused_where_a_window_ends():
    """Gradients from outside are those of the live weights: nothing would ever be measured, and nothing learned."""
    model = network()
    opt = HyperOptimizer(model.parameters(), AUTO)
    for t, batch in enumerate(batches(EVERY + 1), 1):
        opt.zero_grad()
        loss = squares(model, batch).mean()
        loss.backward()
        before = seen(opt)
        if t <= EVERY:
            opt.step(lambda loss=loss: loss)
    with pytest.raises(RunError, match=r"computes no gradients[\s\S]*loss.backward\(\)"):
        opt.step(lambda: loss)
    assert_same(seen(opt), before)
    train(model, opt, batches(1))


def test_a_measurement_without_gradients_waits_where_the_closure_cleared_them():
    """As after an overflow: at the averages alone, and at the live weights, too."""
    model = network()
    opt = HyperOptimizer(model.parameters(), AUTO)
    train(model, opt, batches(EVERY))
    for overflows in ([True, True], [True, False]):
        batch, turns, rate = batches(1)[0], iter(overflows), opt.hyperparameters()["0.lr"]

        def closure(turns=turns, batch=batch):
            opt.zero_grad()
            loss = squares(model, batch).mean()
            loss.backward()
            if next(turns):
                opt.zero_grad()
            return loss

        opt.step(closure)
        assert opt.hyperparameters()["0.lr"] == rate
    train(model, opt, batches(1))  # the window of one step more
    assert opt.hyperparameters()["0.lr"] != rate


@pytest.mark.parametrize("layers", [1, 3])
def test_a_loss_from_outside_of_the_closure_is_refused_where_a_window_ends(layers):
    model = network()[:layers]
    opt = HyperOptimizer(model.parameters(), AUTO)

    def step(batch):
        loss = model(batch[0]).square().mean()

        def closure():
            opt.zero_grad()
            loss.backward()
            return loss

        opt.step(closure)

    for batch in batches(EVERY):
        step(batch)
    weights = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RunError, match="was computed outside of it"):
        step(batches(1)[0])
    assert_same([p.detach() for p in model.parameters()], weights)


def test_what_else_a_closure_raises_is_its_own():
    model = network()
    opt = HyperOptimizer(model.parameters(), AUTO)

    def broken():
        raise RuntimeError("modified by somebody")

    with pytest.raises(RuntimeError, match="modified by somebody") as error:
        opt.step(broken)
    assert not isinstance(error.value, RunError)


def test_a_step_is_not_captured(monkeypatch):
    """A graph would replay the same step again and again, with a measurement or without."""
    model = network()
    opt = HyperOptimizer(model.parameters(), AUTO)
    before = seen(opt)
    for name in ("is_initialized", "is_current_stream_capturing"):
        monkeypatch.setattr(torch.cuda, name, lambda: True)
    with pytest.raises(RunError, match="cannot be captured in a CUDA graph"):
        train(model, opt, batches(1))
    monkeypatch.undo()
    assert_same(seen(opt), before)


def test_the_gradients_are_those_of_the_live_weights_and_the_same_tensors():
    """What the probe leaves in p.grad is gone, whether gradients are set to None, to zero, or not at all."""
    for set_to_none in (True, False):
        model, data = network(), batches(2 * EVERY + 1)
        opt = HyperOptimizer(model.parameters(), AUTO)
        for batch in data:
            opt.zero_grad(set_to_none)
            before, objects = [p.detach().clone() for p in model.parameters()], [p.grad for p in model.parameters()]

            def closure(model=model, batch=batch):
                loss = squares(model, batch).mean()
                loss.backward()
                return loss

            opt.step(closure)
            twin = network()
            twin.load_state_dict(dict(zip(dict(model.named_parameters()), before, strict=True)))
            squares(twin, batch).mean().backward()
            assert_same([p.grad for p in model.parameters()], [p.grad for p in twin.parameters()])
            if not set_to_none and objects[0] is not None:
                assert all(p.grad is g for p, g in zip(model.parameters(), objects, strict=True))


@by_text
def test_a_closure_that_raises_while_measuring_leaves_everything_as_it_was(text):
    """Weights and gradients, bit for bit; and then the run goes on as if nothing had happened."""
    params, alone = parameters(), parameters()
    opt, other = HyperOptimizer(params, text), HyperOptimizer(alone, text)
    for t, gs in enumerate(gradients(2 * EVERY + 3)):
        for at in (1, 2):
            calls, before = [], seen(opt)
            held = [p.grad for p in params]

            def closure(gs=gs, at=at, calls=calls):
                given(params, [g + 7 for g in gs], calls)()
                if len(calls) == at:
                    raise KeyError("broken")

            if at == 1 or (t and t % EVERY == 0):
                with pytest.raises(KeyError, match="broken"):
                    opt.step(closure)
                assert_same(seen(opt), before)
                if at == 1 and t and t % EVERY == 0:
                    assert all(p.grad is g for p, g in zip(params, held, strict=True))
        opt.step(given(params, gs))
        other.step(given(alone, gs))
        assert_same(seen(opt), seen(other))


def test_a_sparse_gradient_in_the_probe_is_refused_and_changes_nothing():
    params = [nn.Parameter(torch.ones(4, 3, dtype=torch.float64))]
    opt = HyperOptimizer(params, AUTO)
    for _ in range(EVERY):
        opt.step(given(params, [torch.ones_like(params[0])]))
    before = seen(opt)
    sparse = torch.sparse_coo_tensor([[1]], torch.ones(1, 3, dtype=torch.float64), (4, 3), check_invariants=True)
    with pytest.raises(RunError, match="sparse"):
        opt.step(given(params, [sparse]))
    params[0].grad = None
    assert_same(seen(opt), before)


# ---- averages in place


@by_text
def test_averaged_weights_come_and_go_bit_for_bit(text):
    model = network()
    opt = HyperOptimizer(model.parameters(), text)
    means = [p.detach().clone() for p in model.parameters()]
    for t, batch in enumerate(batches(EVERY + 2), 1):
        train(model, opt, [batch])
        live, state = [p.detach().clone() for p in model.parameters()], copy.deepcopy(opt.state_dict())
        a = min(0.8, t / (t + 2))
        means = [a * m + (1 - a) * p for m, p in zip(means, live, strict=True)]
        for _ in range(2):
            with opt.averaged():
                inside = [p.detach().clone() for p in model.parameters()]
                assert_close(inside, means, 1e-13)
                with opt.averaged():
                    assert_same([p.detach() for p in model.parameters()], inside)
                assert_same([p.detach() for p in model.parameters()], inside)
            assert_same([p.detach() for p in model.parameters()], live)
            opt.eval()
            opt.eval()
            with opt.averaged():
                assert_same([p.detach() for p in model.parameters()], inside)
            assert_same([p.detach() for p in model.parameters()], inside)
            opt.train()
            opt.train()
            assert_same([p.detach() for p in model.parameters()], live)
        with pytest.raises(KeyError, match="broken"), opt.averaged():
            raise KeyError("broken")
        assert_same([[p.detach() for p in model.parameters()], opt.state_dict()], [live, state])


@by_text
@pytest.mark.parametrize("steps", [0, EVERY])
def test_a_step_from_the_averages_is_refused(text, steps):
    model = network()
    opt = HyperOptimizer(model.parameters(), text)
    train(model, opt, batches(steps))
    before = seen(opt)
    opt.eval()
    with pytest.raises(RunError, match=r"averaged weights are in place[\s\S]*opt.train\(\)"):
        train(model, opt, batches(1))
    opt.train()
    with pytest.raises(RunError, match="averaged weights are in place"), opt.averaged():
        train(model, opt, batches(1))
    opt.zero_grad()
    assert_same(seen(opt), before)
    train(model, opt, batches(1))


@pytest.mark.parametrize("text", [LIVE, "Adam"])
def test_a_stack_that_keeps_no_average_evaluates_as_it_is(text):
    """Its closure is called once, and nobody needs one."""
    model, plain = network(), network()
    opt, other = HyperOptimizer(model.parameters(), text), HyperOptimizer(plain.parameters(), text)
    for batch in batches(12):
        calls = []
        opt.eval()
        with opt.averaged():
            opt.step(closing(model, opt, batch, calls))
        opt.train()
        closing(plain, other, batch)()
        other.step()
        assert len(calls) == 1
    assert_same(seen(opt), seen(other))


# ---- checkpoints


def presence(t, gs):
    """Some gradients are missing in some steps, in some steps all are, and the second comes in late."""
    return [None if (t + 2 * i) % 5 == 0 or t == 5 or (i == 1 and t < 4) else g for i, g in enumerate(gs)]


def resumed(text, at, steps=11, dtype=torch.float64, missing=presence, make=HyperOptimizer, device="cpu"):
    """A straight run, and one that was saved and loaded before step `at`."""
    grads = [missing(t, gs) for t, gs in enumerate(gradients(steps, dtype, device=device))]
    params = [nn.Parameter(p) for p in tensors(dtype, device=device)]
    opt = make(params, text)
    for t, gs in enumerate(grads):
        if t == at:
            loaded = [nn.Parameter(p.detach().clone()) for p in params]
            other = make(loaded, text)
            other.load_state_dict(written(opt.state_dict()))
            assert_same(seen(other), seen(opt))
        opt.param_groups[0]["lr"] = 1.0 if t % 4 < 2 else 0.5
        opt.step(given(params, gs))
    for t, gs in enumerate(grads[at:], at):
        other.param_groups[0]["lr"] = 1.0 if t % 4 < 2 else 0.5
        other.step(given(loaded, gs))
    return seen(other), seen(opt)


@pytest.mark.sampled(9)
@pytest.mark.parametrize("at", [0, 1, EVERY - 1, EVERY, EVERY + 1, EVERY + 2, 2 * EVERY + 1])
@by_text
def test_saved_and_loaded_anywhere_in_a_window_equals_the_straight_run(text, at):
    """In its middle, at its edge, right before a measurement; with gradients that come and go."""
    assert_same(*resumed(text, at))
    assert_same(*resumed(text, at, missing=lambda t, gs: gs))
    assert_same(*resumed(text.replace(f"first={EVERY}", "first=1"), at))


@pytest.mark.slow
@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_saved_and_loaded_in_other_dtypes(dtype):
    assert_same(*resumed(AUTO, EVERY + 1, dtype=dtype))
    found, _ = resumed(BETAS, 2 * EVERY, dtype=dtype)
    assert all(torch.isfinite(p).all() for p in found[-1])
    states = [x for bucket in found[4]["state"]["towers"][0]["buckets"] for x in bucket["flats"].values()]
    assert {x.dtype for x in states} == {torch.float32}


@pytest.mark.slow
def test_saved_and_loaded_in_blocks(monkeypatch):
    monkeypatch.setattr(buffers, "BLOCK", 64)
    assert_same(*resumed(BETAS, EVERY + 1, missing=lambda t, gs: gs))


def mixed(params, stack):
    """Groups of several stacks: two that measure at averages of their own, and one that does not."""
    groups = [{"params": params[:1]}, {"params": params[1:2], "stack": LIVE}, {"params": params[2:], "stack": MOMENTUM}]
    return HyperOptimizer(groups, stack)


@pytest.mark.slow
@pytest.mark.parametrize("at", [EVERY, EVERY - 1, 2 * EVERY])
def test_saved_and_loaded_with_groups_of_several_stacks(at):
    assert_same(*resumed(AUTO, at, make=mixed))


def test_groups_measure_apart():
    """Two groups are two optimizers, where gradients do not depend on the weights; one without averages stays live."""
    params, apart = parameters(), parameters()
    opt = mixed(params, AUTO)
    others = [
        HyperOptimizer(ps, s) for ps, s in zip((apart[:1], apart[1:2], apart[2:]), (AUTO, LIVE, MOMENTUM), strict=True)
    ]
    for gs in gradients(2 * EVERY + 2):
        opt.step(given(params, gs))
        for other, mine in zip(others, (slice(0, 1), slice(1, 2), slice(2, 4)), strict=True):
            other.step(given(apart[mine], gs[mine]))
        live = params[1].detach().clone()
        with opt.averaged():
            assert torch.equal(params[1], live)
            assert not torch.equal(params[0], apart[0])
    assert_same([p.detach() for p in params], [p.detach() for p in apart])


def test_a_state_that_was_saved_at_the_averages_brings_the_live_weights():
    for steps in (0, EVERY + 1):
        model, data = network(), batches(2 * EVERY + 2)
        opt = HyperOptimizer(model.parameters(), AUTO)
        train(model, opt, data[:steps])
        live = [p.detach().clone() for p in model.parameters()]
        opt.eval()
        saved = written({"model": model.state_dict(), "opt": opt.state_dict()})
        twin = network()
        other = HyperOptimizer(twin.parameters(), AUTO)
        twin.load_state_dict(saved["model"])
        other.load_state_dict(saved["opt"])
        with pytest.raises(RunError, match="averaged weights are in place"):
            train(twin, other, data[:1])
        for m, o in ((model, opt), (twin, other)):
            o.train()
            assert_same([p.detach() for p in m.parameters()], live)
            train(m, o, data[steps:])
        assert_same(seen(other), seen(opt))


def test_a_state_that_was_saved_at_the_live_weights_ends_an_evaluation():
    model = network()
    opt = HyperOptimizer(model.parameters(), AUTO)
    train(model, opt, batches(EVERY + 1))
    saved = copy.deepcopy({"model": model.state_dict(), "opt": opt.state_dict()})
    before = seen(opt)
    opt.eval()
    model.load_state_dict(saved["model"])
    opt.load_state_dict(saved["opt"])
    opt.train()
    assert_same(seen(opt), before)


@pytest.mark.parametrize("evaluating", [False, True])
def test_a_state_that_is_loaded_at_the_averages_alone_leaves_the_live_weights(evaluating):
    """Where no model's state was loaded with it, the weights are still averages, and give way to the live ones."""
    model = network()
    opt = HyperOptimizer(model.parameters(), AUTO)
    train(model, opt, batches(EVERY + 1))
    saved, before = copy.deepcopy(opt.state_dict()), seen(opt)
    if evaluating:
        opt.eval()
        opt.load_state_dict(saved)
        opt.train()
    else:
        with opt.averaged():
            opt.load_state_dict(saved)
    assert_same(seen(opt), before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
@pytest.mark.sampled(2)
@pytest.mark.parametrize("evaluating", [False, True])
def test_a_copy_goes_on_by_itself(duplicate, evaluating):
    model, data = network(), batches(2 * EVERY + 3)
    opt = HyperOptimizer(model.parameters(), BETAS)
    train(model, opt, data[: EVERY + 1])
    if evaluating:
        opt.eval()
    twin, other = duplicate((model, opt))
    assert other.param_groups[0]["params"][0] is next(twin.parameters())
    for m, o in ((model, opt), (twin, other)):
        o.train()
        train(m, o, data[EVERY + 1 :])
    assert_same(seen(other), seen(opt))


def test_a_refused_group_leaves_no_trace():
    params = parameters()
    opt = HyperOptimizer(params[:2], LIVE)
    for stack in (f"SGD(0.1) / SGD({PLACE})", f"SGD(shared(log(0.1))) / SGD({PLACE})"):
        with pytest.raises(InputError, match=r"bound=0\.05 needs|between param groups"):
            opt.add_param_group({"params": params[2:], "stack": stack})
        assert len(opt.param_groups) == 1
        opt.step(given(params, gradients(1)[0]))


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [True, False])
def test_a_state_goes_on_with_kernels_and_without(compiled, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    params, loaded, grads = parameters(), parameters(), gradients(3 * EVERY)
    opt, other = (HyperOptimizer(ps, BETAS, compile=c) for ps, c in ((params, not compiled), (loaded, compiled)))
    for gs in grads[: EVERY + 1]:
        opt.step(given(params, gs))
    with torch.no_grad():
        for p, q in zip(loaded, params, strict=True):
            p.copy_(q)
    other.load_state_dict(written(opt.state_dict()))
    for gs in grads[EVERY + 1 :]:
        opt.step(given(params, gs))
        other.step(given(loaded, gs))
    assert other.param_groups[0]["compile"] == compiled
    assert_close([p.detach() for p in loaded], [p.detach() for p in params], 1e-11)
    assert_close(other.hyperparameters(), opt.hyperparameters(), 1e-11)


# ---- what changes in mid-run


@pytest.mark.slow
def test_parameters_of_another_dtype_in_mid_run():
    """The average, the window and what is carried along follow them."""
    for text in (AUTO, BETAS):
        model, same, data = network(torch.float32), network(torch.float32), batches(3 * EVERY, torch.float32)
        opt, other = HyperOptimizer(model.parameters(), text), HyperOptimizer(same.parameters(), text)
        train(model, opt, data[: EVERY + 1])
        train(same, other, data[: EVERY + 1])
        model.double()
        train(model, opt, [(x.double(), y.double()) for x, y in data[EVERY + 1 :]])
        train(same, other, data[EVERY + 1 :])
        assert_close(list(model.parameters()), list(same.parameters()), 1e-4)
        assert_close(opt.hyperparameters(), other.hyperparameters(), 1e-4)


@by_text
def test_a_step_without_any_gradient_is_no_step_of_a_window(text):
    params, alone = parameters(), parameters()
    opt, other = HyperOptimizer(params, text), HyperOptimizer(alone, text)
    for gs in gradients(2 * EVERY + 2):
        opt.step(given(params, [None] * 4))
        opt.step(given(params, gs))
        other.step(given(alone, gs))
    assert_same(seen(opt)[0], seen(other)[0])
    assert_same([p.detach() for p in params], [p.detach() for p in alone])


@pytest.mark.slow
def test_a_frozen_layer_joins_later():
    """Its average starts where it is."""
    model = network()
    opt = HyperOptimizer(model.parameters(), BETAS)
    model[0].requires_grad_(False)
    frozen = model[0].weight.detach().clone()
    train(model, opt, batches(EVERY + 1))
    with opt.averaged():
        assert torch.equal(model[0].weight, frozen)
    model[0].requires_grad_(True)
    train(model, opt, batches(EVERY + 1))
    with opt.averaged():
        assert not torch.equal(model[0].weight, frozen)
    assert not torch.equal(model[0].weight, frozen)


def test_a_probe_that_is_not_finite_changes_no_hyperparameter_and_is_counted():
    params = parameters()
    opt = HyperOptimizer(params, AUTO)
    for t, gs in enumerate(gradients(2 * EVERY + 1)):
        before, calls = opt.hyperparameters(), []

        def closure(gs=gs, t=t, calls=calls):
            given(params, gs, calls)()
            if t == EVERY and len(calls) == 1:
                params[1].grad[0] = float("nan")

        opt.step(closure)
        if t == EVERY:
            assert_same(opt.hyperparameters(), before)
    assert int(opt.nonfinite_counts()["0.lr"]) == 1
    assert opt.hyperparameters()["0.lr"] != before["0.lr"]
    assert all(torch.isfinite(p).all() for p in params)


def test_schedulers_compose():
    """Their factor multiplies the rate that is found; the rate found is of the steps as they are."""
    model, data = network(), batches(3 * EVERY)
    opt = HyperOptimizer(model.parameters(), AUTO)
    scheduler, rates = schedulers.CosineAnnealingLR(opt, len(data)), []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in data:
            train(model, opt, [batch])
            scheduler.step()
            rates.append(float(opt.hyperparameters()["0.lr"]))
    assert opt.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
    assert rates[-1] > 1.5 * rates[0]


# ---- buffers


def statistics(model):
    """The buffers of a model, copied."""
    return {name: x.clone() for name, x in model.named_buffers()}


class Drifting(nn.Module):
    """Puts a new tensor in the place of its buffer at each call."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("nothing", None)

    def forward(self, x):
        self.mean = 0.9 * self.mean + x.detach().mean()
        return x - self.mean


class Wrapped(nn.Module):
    """As DistributedDataParallel: a module around another."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


def with_statistics():
    torch.manual_seed(5)
    inner = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6, momentum=None), Drifting())
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), inner, nn.Tanh(), nn.Linear(6, 3)).double()


def unspoiled(wrap, steps=2 * EVERY + 2):
    """A run, and what BatchNorm would have seen without probes: each batch once, at the live weights."""
    model, twin, data = with_statistics(), with_statistics(), batches(steps)
    called = wrap(model)
    opt = HyperOptimizer(model.parameters(), AUTO)
    for batch in data:
        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        twin.load_state_dict({**twin.state_dict(), **weights})
        twin(batch[0])

        def closure(batch=batch):
            opt.zero_grad()
            loss = ((called(batch[0]) - batch[1]) ** 2).mean()
            loss.backward()
            return loss

        opt.step(closure)
        assert_close(statistics(model), statistics(twin), 1e-12)
        assert int(model[1].num_batches_tracked) == int(twin[1].num_batches_tracked)
    return model


WRAPPINGS = {"plain": lambda model: model, "wrapped": Wrapped, "twice": lambda model: Wrapped(Wrapped(model))}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_the_probe_leaves_running_statistics_alone(wrap):
    unspoiled(wrap)


def test_two_models_in_one_closure():
    models, data = [with_statistics(), with_statistics()], batches(2 * EVERY + 2)
    opt = HyperOptimizer([p for model in models for p in model.parameters()], AUTO)
    for t, batch in enumerate(data):
        calls = []

        def closure(batch=batch, calls=calls):
            calls.append([statistics(model) for model in models])
            opt.zero_grad()
            loss = sum(((model(batch[0]) - batch[1]) ** 2).mean() for model in models)
            loss.backward()

        opt.step(closure)
        assert len(calls) == 1 + (t in (EVERY, 2 * EVERY))
        assert_same(calls[-1], calls[0])
        assert all(int(model[1].num_batches_tracked) == t + 1 for model in models)


def test_buffers_come_back_where_the_probe_raises():
    model, data = with_statistics(), batches(EVERY + 1)
    opt = HyperOptimizer(model.parameters(), AUTO)
    train(model, opt, data[:EVERY])
    before = statistics(model)

    def closure():
        model(data[EVERY][0])
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        opt.step(closure)
    assert_same(statistics(model), before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_keeps_its_statistics_and_is_compiled_once():
    """The hook of the probe is not a reason to compile again."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    unspoiled(lambda model: torch.compile(model, backend="aot_eager"), steps=EVERY)
    alone = counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
    counters.clear()
    unspoiled(lambda model: torch.compile(model, backend="aot_eager"), steps=4 * EVERY)
    assert counters["stats"]["unique_graphs"] == alone > 0


# ---- what the closure owns


def followed(closures, text=AUTO, steps=2 * EVERY + 2, rtol=1e-10):
    """Two loops that should come to the same: `closures(model, opt, batch)` makes the closure of each."""
    runs = []
    for made in closures:
        model = network()
        opt = HyperOptimizer(model.parameters(), text)
        for batch in batches(steps):
            opt.step(made(model, opt, batch))
        runs.append((list(model.parameters()), opt.hyperparameters()))
    (weights, values), (others, other_values) = runs
    assert_close(others, weights, rtol)
    assert_close(other_values, values, rtol)
    assert not (values["0.lr"] == 0.01).all()


def test_gradients_accumulate_in_the_closure():
    def parts(model, opt, batch):
        def closure():
            opt.zero_grad()
            total = 0.0
            for half in (slice(0, 4), slice(4, 8)):
                loss = squares(model, (batch[0][half], batch[1][half])).mean() / 2
                loss.backward()
                total += loss.detach()
            return total

        return closure

    followed([closing, parts])


def test_gradients_that_are_averaged_between_processes():
    """As DistributedDataParallel does: each process its part of the batch, and then the mean of all gradients."""

    def reduced(model, opt, batch):
        def closure():
            each = []
            for rank in (slice(0, 4), slice(4, 8)):
                opt.zero_grad()
                squares(model, (batch[0][rank], batch[1][rank])).mean().backward()
                each.append([p.grad for p in model.parameters()])
            for p, *grads in zip(model.parameters(), *each, strict=True):
                p.grad = sum(grads) / len(grads)

        return closure

    followed([closing, reduced])


@pytest.mark.parametrize("enabled", [True, False])
def test_scaled_losses(enabled):
    """A GradScaler belongs in the closure as a whole, `update` included: it may be called twice a step."""
    made = {}

    def scaled(model, opt, batch):
        scaler = made.setdefault(
            id(opt), torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=5, enabled=enabled)
        )

        def closure():
            opt.zero_grad()
            loss = squares(model, batch).mean()
            scaler.scale(loss).backward()
            if enabled:
                scaler.unscale_(opt)
                scale = scaler.get_scale()
                scaler.update()
                if scaler.get_scale() < scale:
                    opt.zero_grad()
            return loss

        return closure

    followed([closing, scaled])


def test_a_scaled_loss_that_overflows_makes_no_step():
    """Neither a step nor a measurement; both are made up for with the next batch."""
    model, data = network(torch.float32), batches(3 * EVERY, torch.float32)
    opt, scaler = HyperOptimizer(model.parameters(), AUTO), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    moved = []
    for t, batch in enumerate(data):

        def closure(batch=batch, t=t):
            opt.zero_grad()
            loss = squares(model, batch).mean() * (1e38 if t in (EVERY, EVERY + 1) else 1.0)
            scaler.scale(loss).backward()
            scaler.unscale_(opt)
            scale = scaler.get_scale()
            scaler.update()
            if scaler.get_scale() < scale:
                opt.zero_grad()
            return loss

        before, rate = [p.detach().clone() for p in model.parameters()], opt.hyperparameters()["0.lr"]
        opt.step(closure)
        moved.append(any(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)))
        assert (opt.hyperparameters()["0.lr"] != rate) == (t in (EVERY + 2, 2 * EVERY + 2)) or t < EVERY
    assert moved == [t not in (EVERY, EVERY + 1) for t in range(3 * EVERY)]
    assert int(opt.nonfinite_counts()["0.lr"]) == 0


def test_autocast_belongs_in_the_closure():
    """In bfloat16 the loop comes to what it comes to in float32, up to the rounding of products."""
    ends = []
    for enabled in (False, True):
        model = network(torch.float32)
        opt = HyperOptimizer(model.parameters(), AUTO)
        for batch in batches(2 * EVERY + 2, torch.float32):

            def closure(model=model, opt=opt, batch=batch, enabled=enabled):
                opt.zero_grad()
                with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                    outputs = model(batch[0])
                assert outputs.dtype == (torch.bfloat16 if enabled else torch.float32)
                loss = ((outputs.float() - batch[1]) ** 2).mean()
                loss.backward()
                return loss

            opt.step(closure)
        ends.append((list(model.parameters()), opt.hyperparameters()["0.lr"]))
    assert_close(ends[1][0], ends[0][0], 0.1)
    assert ends[1][1] == pytest.approx(float(ends[0][1]), rel=0.1)
    assert ends[1][1] != ends[0][1]


def test_losses_that_are_limited():
    """Under ALRC the probe looks at limited losses, and leaves their running means alone."""
    text = AUTO.replace("Adam(0.01)", "ALRC(Adam(0.01), n=fixed(3))")
    model, data = network(), batches(2 * EVERY + 2)
    opt = HyperOptimizer(model.parameters(), text)
    for t, batch in enumerate(data):
        calls = []

        def closure(batch=batch, calls=calls):
            opt.zero_grad()
            losses = squares(model, batch).mean(1)
            calls.append(opt.state_dict()["state"]["towers"][0]["cells"].clone())
            opt.backward(losses)
            return losses.mean()

        tower = next(opt.towers())[1]
        names = [name for name in tower.climb.layout.shapes if name.startswith("0.loss.")]
        assert names
        before = {name: tower.climb.layout.unpack(tower.cells)[name].clone() for name in names}
        opt.step(closure)
        assert len(calls) == 1 + (t in (EVERY, 2 * EVERY))
        if len(calls) == 2:
            assert_same(tower.climb.layout.unpack(calls[1])["0.raw"], tower.climb.layout.unpack(calls[0])["0.raw"])
            found = tower.climb.layout.unpack(calls[1])
            assert_same({name: found[name] for name in names}, before)
    assert opt.hyperparameters()["0.lr"] != 0.01
