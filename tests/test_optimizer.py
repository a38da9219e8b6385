"""`HyperOptimizer` as an ordinary `torch.optim.Optimizer`: in loops, with schedulers, in checkpoints, and misused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from battery import RULES, assert_close, assert_same, gradients, tensors, written
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn, optim
from torch.optim import lr_scheduler as schedulers

import hyperstack as hs
from hyperstack import HyperOptimizer, InputError, RunError

FIXED = "Adam(fixed(0.02), beta1=fixed(0.8), beta2=fixed(0.95)) / SGD(0.1, clip)"
ALONE = "Adam(0.02, beta1=0.8, beta2=0.95)"
LEARNING = "Adam(0.02, clip, beta1=0.8, beta2=0.95) / SGD(1e-3, clip, momentum=0.5)"


def adam(params, **more):
    return optim.Adam(params, **{"lr": 0.02, "betas": (0.8, 0.95), **more})


def parameters(dtype=torch.float64):
    return [nn.Parameter(p) for p in tensors(dtype)]


def give(params, grads):
    """Set the gradients: new tensors, as backward would."""
    for p, g in zip(params, grads, strict=True):
        p.grad = None if g is None else g.to(p.dtype).clone()


def seen(opt, params=None):
    """All that a user sees of an optimizer, copied."""
    read = [opt.hyperparameters(), opt.hypergradients(), opt.clip_factors(), opt.nonfinite_counts(), opt.state_dict()]
    params = [p for group in opt.param_groups for p in group["params"]] if params is None else params
    return copy.deepcopy([*read, [p.detach() for p in params]])


def network(dtype=torch.float64):
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def batches(n, dtype=torch.float64):
    random = torch.Generator().manual_seed(9)
    return [tuple(torch.randn(8, k, generator=random).to(dtype) for k in (4, 3)) for _ in range(n)]


def squares(model, batch):
    x, y = batch
    return ((model(x) - y) ** 2).mean()


def train(model, opt, data, after=lambda loss: None):
    for batch in data:
        opt.zero_grad()
        loss = squares(model, batch)
        loss.backward()
        opt.step()
        after(loss)
    return model


# ---- an ordinary loop


@pytest.mark.parametrize("text", [ALONE, FIXED])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_an_ordinary_loop_as_adam(text, set_to_none):
    ours, theirs = network(), network()
    for model, opt in ((ours, HyperOptimizer(ours.parameters(), text)), (theirs, adam(theirs.parameters()))):
        for batch in batches(10):
            opt.zero_grad(set_to_none=set_to_none)
            squares(model, batch).backward()
            opt.step()
    assert_close(list(ours.parameters()), list(theirs.parameters()), 1e-12)


def test_gradients_accumulate():
    whole, parts = network(), network()
    one, other = (HyperOptimizer(m.parameters(), LEARNING) for m in (whole, parts))
    for x, y in batches(6):
        one.zero_grad()
        squares(whole, (x, y)).backward()
        one.step()
        other.zero_grad()
        for half in (slice(0, 4), slice(4, 8)):
            (squares(parts, (x[half], y[half])) / 2).backward()
        other.step()
    assert_close(list(parts.parameters()), list(whole.parameters()), 1e-10)
    assert_close(other.hyperparameters(), one.hyperparameters(), 1e-10)
    assert one.hyperparameters()["0.lr"] != 0.02


def test_a_closure_is_called_once_with_gradients_and_its_loss_returned():
    plain, closed = network(), network()
    one, other = (HyperOptimizer(m.parameters(), LEARNING) for m in (plain, closed))
    losses, calls = [], []
    train(plain, one, batches(5), lambda loss: losses.append(loss.detach()))
    for batch, expected in zip(batches(5), losses, strict=True):

        def closure(batch=batch):
            calls.append(torch.is_grad_enabled())
            other.zero_grad()
            loss = squares(closed, batch)
            loss.backward()
            return loss

        assert torch.equal(other.step(closure).detach(), expected)
    assert calls == [True] * 5
    assert_same(seen(other), seen(one))
    assert one.step() is None


def test_hooks_run_around_a_step():
    params = parameters()
    opt, calls = HyperOptimizer(params, LEARNING), []
    opt.register_step_pre_hook(lambda *_: calls.append(("before", params[0].detach().clone())))
    opt.register_step_post_hook(lambda *_: calls.append(("after", params[0].detach().clone())))
    give(params, gradients(1)[0])
    opt.step()
    assert [name for name, _ in calls] == ["before", "after"]
    assert torch.equal(calls[0][1], tensors()[0])
    assert torch.equal(calls[1][1], params[0])
    assert not torch.equal(params[0], tensors()[0])


def test_backward_takes_the_mean_of_losses_of_any_shape():
    for shape in ((), (7,), (3, 2)):
        p = nn.Parameter(tensors(shapes=(shape,))[0])
        opt = HyperOptimizer([p], "SGD")
        losses = p**2
        assert torch.equal(opt.loss(losses), losses.mean())
        opt.backward(losses)
        assert_close([p.grad], [2 * p / max(1, p.numel())], 1e-14)


def test_a_step_leaves_gradients_and_other_tensors_alone():
    params, grads = parameters(), gradients(3)
    opt = HyperOptimizer(params, LEARNING)
    pointers = [p.data_ptr() for p in params]
    for gs in grads:
        give(params, gs)
        opt.step()
        assert_same([p.grad for p in params], gs)
    assert [p.data_ptr() for p in params] == pointers
    assert all(p.is_leaf and p.requires_grad and p.grad_fn is None for p in params)


def test_a_step_without_any_gradient_is_no_step():
    params = parameters()
    opt = HyperOptimizer(params, LEARNING)
    for gs in [None, *gradients(3)]:
        if gs:
            give(params, gs)
            opt.step()
        before = seen(opt)
        opt.zero_grad()
        opt.step()
        assert_same(seen(opt), before)


def test_results_are_copies():
    params = parameters()
    opt = HyperOptimizer(params, LEARNING)
    for gs in gradients(3):
        give(params, gs)
        opt.step()
    before = seen(opt)
    for read in (opt.hyperparameters, opt.hypergradients, opt.clip_factors, opt.nonfinite_counts):
        for value in read().values():
            assert not value.requires_grad
            value.fill_(77.0)
    assert_same(seen(opt), before)


# ---- which parameters


def test_frozen_parameters_stay():
    ours, theirs = network(), network()
    for model in (ours, theirs):
        model[0].requires_grad_(False)
    train(ours, HyperOptimizer(ours.parameters(), FIXED), batches(6))
    train(theirs, adam(theirs.parameters()), batches(6))
    assert_same([p.detach() for p in ours[0].parameters()], [p.detach() for p in network()[0].parameters()])
    assert_close(list(ours.parameters()), list(theirs.parameters()), 1e-12)
    assert not ours[0].weight.requires_grad


def test_tied_parameters_move_together():
    def tied():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 3)).double()
        model[2].weight = model[0].weight
        return model

    ours, theirs = tied(), tied()
    train(ours, HyperOptimizer(ours.parameters(), FIXED), batches(6))
    train(theirs, adam(theirs.parameters()), batches(6))
    assert ours[2].weight is ours[0].weight
    assert_close(list(ours.parameters()), list(theirs.parameters()), 1e-12)


@pytest.mark.slow
@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=20, max_size=20), st.sampled_from([ALONE, FIXED])
)
def test_parameters_without_a_gradient_are_skipped_as_by_adam(present, text):
    """Such a parameter, its state and its step count stay where they are."""
    ours, theirs = parameters(), parameters()
    one, other = HyperOptimizer(ours, text), adam(theirs)
    for row, gs in zip(present, gradients(20), strict=True):
        for params, opt in ((ours, one), (theirs, other)):
            give(params, [g if here else None for g, here in zip(gs, row, strict=True)])
            opt.step()
    assert_close([p.detach() for p in ours], [p.detach() for p in theirs], 1e-12)
    for p, q in zip(ours, theirs, strict=True):
        assert float(one.state[p].get("step", 0.0)) == float(other.state[q].get("step", 0.0))


def test_a_gradient_of_zeros_is_a_gradient():
    ours, theirs = parameters(), parameters()
    one, other = HyperOptimizer(ours, FIXED), adam(theirs)
    for t, gs in enumerate(gradients(6)):
        for params, opt in ((ours, one), (theirs, other)):
            give(params, [torch.zeros_like(g) if (t + i) % 3 == 0 else g for i, g in enumerate(gs)])
            opt.step()
    assert_close([p.detach() for p in ours], [p.detach() for p in theirs], 1e-12)


def test_groups_have_towers_of_their_own():
    """Two groups in one optimizer are two optimizers."""
    together, apart = parameters(), parameters()
    stacks = [LEARNING, "SGD(0.1) / SGD(0.01)"]
    opt = HyperOptimizer([{"params": together[:2]}, {"params": together[2:], "stack": stacks[1]}], stacks[0])
    opt.param_groups[1]["lr"] = 0.5
    others = [HyperOptimizer(ps, s) for ps, s in zip((apart[:2], apart[2:]), stacks, strict=True)]
    others[1].param_groups[0]["lr"] = 0.5
    for gs in gradients(6):
        give(together, gs)
        give(apart, gs)
        for o in (opt, *others):
            o.step()
    assert_same([p.detach() for p in together], [p.detach() for p in apart])
    for read in (HyperOptimizer.hyperparameters, HyperOptimizer.hypergradients, HyperOptimizer.clip_factors):
        second = {f"group1.{k}": v for k, v in read(others[1]).items()}
        assert_same(read(opt), {**read(others[0]), **second})


def test_a_group_added_in_mid_run_leaves_the_others_undisturbed():
    grads, params, alone = gradients(8), parameters(), parameters()
    opt, other = HyperOptimizer(params[:2], LEARNING), HyperOptimizer(alone[:2], LEARNING)
    late = HyperOptimizer(alone[2:], "SGD(0.1) / SGD(0.01)")
    for t, gs in enumerate(grads):
        if t == 4:
            opt.add_param_group({"params": params[2:], "stack": hs.SGD(0.1) / hs.SGD(0.01)})
        give(params, gs)
        give(alone, gs)
        opt.step()
        other.step()
        if t >= 4:
            late.step()
    assert_same([p.detach() for p in params], [p.detach() for p in alone])
    assert_same(
        opt.hyperparameters(),
        {**other.hyperparameters(), **{f"group1.{k}": v for k, v in late.hyperparameters().items()}},
    )
    assert opt.param_groups[1]["lr"] == 1.0


def test_a_group_without_parameters_is_allowed():
    params = parameters()
    opt = HyperOptimizer([{"params": params}, {"params": []}], LEARNING)
    give(params, gradients(1)[0])
    opt.step()
    opt.load_state_dict(opt.state_dict())
    assert not torch.equal(params[0], tensors()[0])


def test_generators_and_named_parameters():
    model = network()
    named = HyperOptimizer(model.named_parameters(), LEARNING)
    assert named.param_groups[0]["param_names"] == [name for name, _ in model.named_parameters()]
    groups = [{"params": (p for p in network()[k].parameters())} for k in (0, 2)]
    assert [len(g["params"]) for g in HyperOptimizer(groups, LEARNING).param_groups] == [2, 2]
    train(model, named, batches(3))
    plain = network()
    train(plain, HyperOptimizer((p for p in plain.parameters()), LEARNING), batches(3))
    assert_same([p.detach() for p in model.parameters()], [p.detach() for p in plain.parameters()])
    loaded = HyperOptimizer(model.named_parameters(), LEARNING)
    loaded.load_state_dict(named.state_dict())
    assert_same(seen(loaded), seen(named))


def test_a_text_a_stack_a_level_and_a_class_mean_the_same():
    def trained(stack):
        model = network()
        opt = HyperOptimizer(model.parameters(), stack)
        return seen(opt, list(train(model, opt, batches(3)).parameters()))

    assert_same(trained("Adam / SGD(1e-3, clip)"), trained(hs.Adam / hs.SGD(1e-3, clip=True)))
    assert_same(trained("Adam"), trained(hs.Adam))
    assert_same(trained("Adam"), trained(hs.Adam()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    """Each step rounds only the parameter: p <- round(p + Δ), Δ as float32 has it."""
    half, full, expected = parameters(dtype), parameters(torch.float32), [p.to(dtype) for p in tensors()]
    opt, other = HyperOptimizer(half, LEARNING), HyperOptimizer(full, LEARNING)
    for gs in gradients(6):
        gs = [g.to(dtype) for g in gs]
        give(half, gs)
        give(full, gs)
        before = [p.detach().clone() for p in full]
        opt.step()
        other.step()
        moved = [p.detach() - b for p, b in zip(full, before, strict=True)]
        expected = [(e.float() + m).to(dtype) for e, m in zip(expected, moved, strict=True)]
        one_unit = torch.finfo(dtype).eps
        assert_close([p.detach() for p in half], expected, one_unit)
    assert all(p.dtype == dtype for p in half)
    assert {x.dtype for p in half for k, x in opt.state[p].items() if k != "step"} == {torch.float32}
    assert_close(opt.hyperparameters(), other.hyperparameters(), 1e-6)
    assert opt.hyperparameters()["0.lr"] != 0.02


def test_a_model_converted_in_mid_run_goes_on():
    """Parameters may change dtype under the optimizer: their state follows, the hyperparameters stay."""
    model, same = network(torch.float32), network(torch.float32)
    opt, other = HyperOptimizer(model.parameters(), LEARNING), HyperOptimizer(same.parameters(), LEARNING)
    train(model, opt, batches(4, torch.float32))
    train(same, other, batches(4, torch.float32))
    before = opt.hyperparameters()
    model.double()
    assert_same(opt.hyperparameters(), before)
    train(model, opt, batches(4))
    train(same, other, batches(4, torch.float32))
    assert {p.dtype for p in model.parameters()} == {opt.state[p]["exp_avg"].dtype for p in model.parameters()}
    assert_close(list(model.parameters()), list(same.parameters()), 1e-5)
    assert_close(opt.hyperparameters(), other.hyperparameters(), 1e-5)
    assert_close(opt.hypergradients(), other.hypergradients(), 1e-4, 1e-6)


def test_state_shows_each_parameters_part():
    """`state[p]` reads as torch.optim.Adam's does."""
    ours, theirs = parameters(), parameters()
    one, other = HyperOptimizer(ours, ALONE), adam(theirs)
    for gs in gradients(3):
        give(ours, gs)
        give(theirs, gs)
        one.step()
        other.step()
    for p, q in zip(ours, theirs, strict=True):
        for name in ("exp_avg", "exp_avg_sq", "step"):
            assert_close([one.state[p][name]], [other.state[q][name]], 1e-12)


# ---- schedulers

SCHEDULERS = {
    "LambdaLR": lambda o, lr: schedulers.LambdaLR(o, lambda t: 1 / (1 + t)),
    "MultiplicativeLR": lambda o, lr: schedulers.MultiplicativeLR(o, lambda t: 0.9 + 0.01 * t),
    "StepLR": lambda o, lr: schedulers.StepLR(o, 3, 0.5),
    "CosineAnnealingLR": lambda o, lr: schedulers.CosineAnnealingLR(o, 8, eta_min=0.1 * lr),
    "OneCycleLR": lambda o, lr: schedulers.OneCycleLR(o, max_lr=3 * lr, total_steps=12, cycle_momentum=False),
    "ReduceLROnPlateau": lambda o, lr: schedulers.ReduceLROnPlateau(o, factor=0.5, patience=1, eps=1e-12),
    "SequentialLR": lambda o, lr: schedulers.SequentialLR(
        o, [schedulers.ConstantLR(o, 0.3, 4), schedulers.ExponentialLR(o, 0.8)], milestones=[5]
    ),
}  # fmt: skip


def scheduled(params, opt, lr, name, steps=12):
    scheduler, factors = SCHEDULERS[name](opt, lr), []
    for t, gs in enumerate(gradients(steps)):
        give(params, gs)
        opt.step()
        factors.append(float(opt.param_groups[0]["lr"]) / lr)
        scheduler.step(*([[3.0, 2.0, 1.0][t % 3]] if name == "ReduceLROnPlateau" else []))
    return factors


@pytest.mark.sampled(3)
@pytest.mark.parametrize("text", [ALONE, FIXED])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_multiply_the_rate(name, text):
    ours, theirs = parameters(), parameters()
    factors = scheduled(ours, HyperOptimizer(ours, text), 1.0, name)
    assert scheduled(theirs, adam(theirs), 0.02, name) == pytest.approx(factors, rel=1e-12)
    assert len(set(factors)) > 2
    assert_close([p.detach() for p in ours], [p.detach() for p in theirs], 1e-12)


@pytest.mark.parametrize("name", ["LambdaLR", "OneCycleLR", "ReduceLROnPlateau"])
def test_a_schedule_factor_that_is_a_tensor(name):
    """Schedulers change it in place; the hypergradient still belongs to the factor that the step was made with."""
    plain, held = parameters(), parameters()
    one, other = HyperOptimizer(plain, LEARNING), HyperOptimizer(held, LEARNING)
    other.param_groups[0]["lr"] = torch.tensor(1.0, dtype=torch.float64)
    assert scheduled(plain, one, 1.0, name) == pytest.approx(scheduled(held, other, 1.0, name), rel=1e-12)
    assert_close([p.detach() for p in held], [p.detach() for p in plain], 1e-12)
    assert_close(other.hypergradients(), one.hypergradients(), 1e-12)
    assert_close(other.hyperparameters(), one.hyperparameters(), 1e-12)


def test_a_factor_of_zero_keeps_the_parameters():
    params = parameters()
    opt = HyperOptimizer(params, LEARNING)
    opt.param_groups[0]["lr"] = 0.0
    for gs in gradients(3):
        give(params, gs)
        opt.step()
    assert_same([p.detach() for p in params], tensors())
    assert not opt.hypergradients()["0.lr"].any()


# ---- checkpoints

TALL = "Adam(log(0.02), clip, amsgrad, weight_decay=0.1) / RMSProp(1e-3, clip, momentum=0.5) / SGD(1e-3, momentum=0.3)"
SAVED = [
    "SGD", LEARNING, TALL, FIXED,
    "SGD(per_tensor(0.1), momentum=per_tensor(0.5)) / Adam(1e-3, clip)",
    "AdaGrad(0.05, clip=[cumulative(skip_zeros)], lr_decay=0.1) / SGD(1e-3, clip=[cumulative(skip_zeros), cumulative])",
    *(f"{a} / {b}" for i, a in enumerate(RULES) for b in (a, list(RULES)[i - 1])),
]  # fmt: skip


def presence(t, gs):
    """Some gradients are missing in some steps, and in some steps all are."""
    return [None if (t + 2 * i) % 5 == 0 or t == 5 else g for i, g in enumerate(gs)]


def resumed(text, at, steps=9, missing=presence, spoiled=None, carry=written):
    """What a straight run and one that was saved and loaded at step `at` come to."""
    grads = [missing(t, gs) for t, gs in enumerate(gradients(steps))]
    if spoiled is not None:
        grads[spoiled][-1] = torch.full_like(gradients(1)[0][-1], float("inf"))
    params = parameters()
    opt = HyperOptimizer(params, text)
    for t, gs in enumerate(grads):
        if t == at:
            loaded = [nn.Parameter(p.detach().clone()) for p in params]
            state = carry(opt.state_dict())
            other = HyperOptimizer(loaded, text)
            other.load_state_dict(state)
            assert_same(seen(other), seen(opt))
        opt.param_groups[0]["lr"] = 1.0 if t % 4 < 2 else 0.5
        give(params, gs)
        opt.step()
    for t, gs in enumerate(grads[at:], at):
        other.param_groups[0]["lr"] = 1.0 if t % 4 < 2 else 0.5
        give(loaded, gs)
        other.step()
    return seen(other), seen(opt)


def all_there(t, gs):
    return gs


@pytest.mark.sampled(25)
@pytest.mark.parametrize("text", SAVED)
def test_saved_and_loaded_in_mid_run_equals_the_straight_run(text):
    assert_same(*resumed(text, 3, 6, all_there))


@pytest.mark.parametrize("at", [0, 1, 5, 8])
@pytest.mark.slow
def test_saved_at_any_step(at):
    assert_same(*resumed(LEARNING, at))


def test_counts_of_what_was_not_finite_are_saved():
    loaded, straight = resumed("SGD(0.1) / SGD(1e-3, clip)", 6, missing=all_there, spoiled=4)
    assert int(straight[3]["0.lr"]) >= 1
    assert_same(loaded, straight)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    st.sampled_from(SAVED),
    st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=7, max_size=7),
    st.integers(0, 6),
)
@pytest.mark.slow
def test_saved_with_gradients_that_come_and_go(text, present, at):
    def missing(t, gs):
        return [g if here else None for g, here in zip(gs, present[t], strict=True)]

    assert_same(*resumed(text, at, 7, missing))


@pytest.mark.parametrize("rate", [1e-4, torch.tensor(0.5)])
def test_a_rate_in_a_param_group_is_refused(rate):
    """It would be taken for a factor of schedulers, and the group would hardly move."""
    params = parameters()
    opt = HyperOptimizer([{"params": params[:1], "lr": 1.0}], LEARNING)
    for add in (opt.add_param_group, lambda group: HyperOptimizer([group], LEARNING)):
        with pytest.raises(InputError, match="is the factor that schedulers set") as error:
            add({"params": params[1:], "lr": rate})
        assert "give the group its own stack" in str(error.value)
    assert len(opt.param_groups) == 1


def test_hooks_may_make_a_state_of_ours():
    """Each is called once, as by torch's optimizers, before anything is refused."""
    params, calls = parameters(), []
    opt = HyperOptimizer(params, LEARNING)
    give(params, gradients(1)[0])
    opt.step()
    kept = {"inner": opt.state_dict()}
    other = HyperOptimizer(params, LEARNING)
    other.register_load_state_dict_pre_hook(lambda o, state: calls.append(o))
    other.register_load_state_dict_pre_hook(lambda o, state: state["inner"])
    other.load_state_dict(kept)
    assert calls == [other]
    assert_same(seen(other), seen(opt))
    with pytest.raises(KeyError, match="inner"):
        other.load_state_dict(opt.state_dict())
    assert len(calls) == 2


@pytest.mark.parametrize("wrong", [{}, {"model": {}}, {"param_groups": None}, {"weight": torch.ones(2)}])
def test_what_is_no_state_at_all(wrong):
    with pytest.raises(InputError, match="not a state of HyperOptimizer"):
        HyperOptimizer(parameters(), LEARNING).load_state_dict(wrong)


def test_saved_with_several_groups_and_a_tensor_for_a_factor():
    def made(params):
        made = HyperOptimizer([{"params": params[:1]}, {"params": params[1:], "stack": TALL}], LEARNING)
        made.param_groups[0]["lr"] = torch.tensor(0.5)
        return made

    params = parameters()
    opt, grads = made(params), gradients(8)
    for gs in grads[:4]:
        give(params, gs)
        opt.step()
    loaded = [nn.Parameter(p.detach().clone()) for p in params]
    other = made(loaded)
    other.load_state_dict(written(opt.state_dict()))
    for gs in grads[4:]:
        for ps, o in ((params, opt), (loaded, other)):
            give(ps, gs)
            o.step()
            o.param_groups[0]["lr"].mul_(0.9)
    assert_same(seen(other), seen(opt))


def test_loading_copies():
    """Two optimizers loaded from one state, and the one it came from, go their own ways."""
    params = parameters()
    opt, grads = HyperOptimizer(params, TALL), gradients(6)
    for gs in grads[:4]:
        give(params, gs)
        opt.step()
    state = opt.state_dict()
    frozen = copy.deepcopy(state)
    others = []
    for _ in range(2):
        copies = [nn.Parameter(p.detach().clone()) for p in params]
        others.append((copies, HyperOptimizer(copies, TALL)))
        others[-1][1].load_state_dict(state)
    for i, (copies, other) in enumerate(others):
        give(copies, grads[4 + i])
        other.step()
    assert_same(opt.state_dict(), frozen)
    assert_same(state, frozen)
    give(params, grads[4])
    opt.step()
    assert_same(seen(others[0][1]), seen(opt))


def test_a_state_holds_only_tensors_and_plain_values():
    params = parameters()
    opt = HyperOptimizer(params, TALL)
    give(params, gradients(1)[0])
    opt.step()

    def plain(x):
        if isinstance(x, dict):
            return all(isinstance(k, (str, int)) and plain(v) for k, v in x.items())
        return (
            all(map(plain, x))
            if isinstance(x, (list, tuple))
            else x is None or type(x) in (bool, int, float, str, torch.Tensor)
        )

    assert plain(opt.state_dict())


def test_saving_and_loading_leave_no_second_copy_behind():
    """`state` holds what belongs to parameters and nothing else, before and after."""
    opt = after_three_steps()
    other = HyperOptimizer(parameters(), LEARNING)
    other.load_state_dict(opt.state_dict())
    for each in (opt, other, copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert set(each.state) == set(each.param_groups[0]["params"])


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("steps", [0, 3])
def test_a_copy_of_a_model_with_its_optimizer_goes_on_by_itself(duplicate, steps):
    model = network()
    opt = HyperOptimizer(model.parameters(), TALL)
    train(model, opt, batches(steps))
    twin, other = duplicate((model, opt))
    assert other.param_groups[0]["params"][0] is next(twin.parameters())
    before = seen(other)
    train(model, opt, batches(3))
    assert_same(seen(other), before)
    train(twin, other, batches(3))
    assert_same(seen(other), seen(opt))


def test_a_state_of_a_scheduler_is_saved_beside():
    """The usual checkpoint: model, optimizer and scheduler."""
    params = parameters()
    opt = HyperOptimizer(params, LEARNING)
    scheduler = schedulers.StepLR(opt, 2, 0.5)
    for gs in gradients(5):
        give(params, gs)
        opt.step()
        scheduler.step()
    loaded = [nn.Parameter(p.detach().clone()) for p in params]
    other = HyperOptimizer(loaded, LEARNING)
    second = schedulers.StepLR(other, 2, 0.5)
    other.load_state_dict(written(opt.state_dict()))
    second.load_state_dict(written(scheduler.state_dict()))
    for gs in gradients(5):
        for ps, o, s in ((params, opt, scheduler), (loaded, other, second)):
            give(ps, gs)
            o.step()
            s.step()
    assert opt.param_groups[0]["lr"] == 1 / 32
    assert_same(seen(other), seen(opt))


# ---- mistakes


def after_three_steps(text=LEARNING, params=None):
    params = parameters() if params is None else params
    opt = HyperOptimizer(params, text)
    for _ in range(3):
        give(params, [torch.full_like(p, 0.1) for p in params])
        opt.step()
    return opt


def other_shapes(*shapes):
    return after_three_steps(params=[nn.Parameter(p) for p in tensors(shapes=shapes)])


def state_of_adam():
    params = parameters()
    opt = adam(params)
    give(params, gradients(1)[0])
    opt.step()
    return opt.state_dict()


def with_another_group():
    opt = after_three_steps()
    opt.add_param_group({"params": parameters()[:1]})
    return opt.state_dict()


FOREIGN = {
    "another stack": lambda: after_three_steps("Adam / SGD(1e-5)").state_dict(),
    "a lower stack": lambda: after_three_steps("Adam").state_dict(),
    "torch.optim.Adam": state_of_adam,
    "nothing": dict,
    "no towers": lambda: {**after_three_steps().state_dict(), "state": {}},
    "more tensors": lambda: other_shapes((3, 4), (5,), (), (2, 1, 3), (2,)).state_dict(),
    "fewer tensors": lambda: other_shapes((3, 4), (5,), ()).state_dict(),
    "larger tensors": lambda: other_shapes((3, 4), (6,), (), (2, 1, 3)).state_dict(),
    "transposed tensors": lambda: other_shapes((4, 3), (5,), (), (2, 1, 3)).state_dict(),
    "tensors in another order": lambda: other_shapes((5,), (3, 4), (), (2, 1, 3)).state_dict(),
    "more groups": with_another_group,
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_state_is_refused_and_changes_nothing(kind):
    opt, state = after_three_steps(), FOREIGN[kind]()
    before, kept = seen(opt), copy.deepcopy(state)
    with pytest.raises(InputError, match="state"):
        opt.load_state_dict(state)
    assert_same([seen(opt), state], [before, kept])


UNTRAINABLE = {
    "complex": nn.Parameter(torch.zeros(2, dtype=torch.complex64)),
    "int": nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False),
    "bool": nn.Parameter(torch.zeros(2, dtype=torch.bool), requires_grad=False),
}


@pytest.mark.parametrize("kind", UNTRAINABLE)
def test_parameters_that_are_not_real_numbers_are_refused(kind):
    with pytest.raises(InputError, match=kind):
        HyperOptimizer([*parameters(), UNTRAINABLE[kind]], LEARNING)
    opt = after_three_steps()
    before = seen(opt)
    with pytest.raises(InputError, match=kind):
        opt.add_param_group({"params": [UNTRAINABLE[kind]]})
    assert len(opt.param_groups) == 1
    assert_same(seen(opt), before)


def test_a_sparse_gradient_is_refused_and_changes_nothing():
    params = [*parameters(), nn.Parameter(torch.ones(4, 3, dtype=torch.float64))]
    opt = after_three_steps(params=params)
    before = seen(opt)
    give(params[:-1], gradients(1)[0])
    params[-1].grad = torch.sparse_coo_tensor(
        [[1]], torch.ones(1, 3, dtype=torch.float64), (4, 3), check_invariants=True
    )
    with pytest.raises(RunError, match="sparse"):
        opt.step()
    assert_same(seen(opt), before)


@pytest.mark.parametrize(
    ("stack", "words"),
    [
        ("Adam / SGD(α)", "α"),
        (hs.SGD(hs.free("rate")), "rate"),
        ("Adam / Sgd", "SGD"),
        ("", "empty"),
        (3, "no level"),
        (None, "no level"),
    ],
    ids=str,
)
def test_a_stack_that_cannot_be_used_is_refused(stack, words):
    with pytest.raises(InputError, match=words):
        HyperOptimizer(parameters(), stack)
    opt = after_three_steps()
    before = seen(opt)
    with pytest.raises(InputError, match=words):
        opt.add_param_group({"params": parameters(), "stack": stack})
    assert_same(seen(opt), before)
    assert len(opt.param_groups) == 1


@pytest.mark.parametrize("key", ["weight_decay", "betas", "momentum"])
def test_an_unknown_key_of_a_group_is_refused(key):
    with pytest.raises(InputError, match=key):
        HyperOptimizer([{"params": parameters(), key: 0.1}], LEARNING)
    opt = after_three_steps()
    before = seen(opt)
    with pytest.raises(InputError, match=key):
        opt.add_param_group({"params": parameters(), key: 0.1})
    assert_same(seen(opt), before)


@pytest.mark.parametrize("key", ["weight_decay", "betas", "momentum", "eps"])
def test_a_hyperparameter_that_is_written_into_a_group_is_refused(key):
    """As one does with torch's optimizers; it would be without any effect. Keys of schedulers are let be."""
    opt = after_three_steps()
    opt.param_groups[0]["swa_lr"] = 0.1
    opt.step()
    opt.param_groups[0][key] = 0.1
    before = seen(opt)
    with pytest.raises(RunError, match=rf"'{key}' was written into a param group[\s\S]*del group\['{key}'\]"):
        opt.step()
    assert_same(seen(opt), before)
    del opt.param_groups[0][key]
    opt.step()


@pytest.mark.parametrize(("key", "value"), [("stack", "SGD(0.1)"), ("nonfinite", "propagate"), ("compile", True)])
def test_what_a_tower_is_made_of_is_not_written_into_a_group(key, value):
    """It would be without any effect."""
    for opt in (after_three_steps(), copy.deepcopy(after_three_steps())):
        was = opt.param_groups[0][key]
        opt.param_groups[0][key] = value
        before = seen(opt)
        with pytest.raises(RunError, match=rf"'{key}' of a param group was changed") as error:
            opt.step()
        assert error.value.why == f"  then: {was}\n  now:  {value}"
        assert_same(seen(opt), before)
        opt.param_groups[0][key] = was
        opt.step()


def test_other_mistakes_raise_what_torch_raises():
    p = nn.Parameter(torch.ones(2))
    for make in (optim.Adam, lambda ps: HyperOptimizer(ps, LEARNING)):
        with pytest.raises(ValueError, match="non-leaf"):
            make([p * 2])
        with pytest.raises(ValueError, match="empty"):
            make([])
        with pytest.raises(TypeError):
            make(p)
        with pytest.raises(TypeError):
            make([1.0])
        opt = make([p])
        with pytest.raises(ValueError, match="more than one"):
            opt.add_param_group({"params": [p]})
        with pytest.raises(TypeError):
            opt.add_param_group([p])
    with pytest.raises(InputError, match="nonfinite"):
        HyperOptimizer([p], LEARNING, nonfinite="ignore")
    with pytest.raises(InputError, match="nonfinite"):
        HyperOptimizer([{"params": [p], "nonfinite": "ignore"}], LEARNING)


def test_repr_names_the_stack_and_the_size():
    opt = HyperOptimizer(
        [{"params": parameters()[:1]}, {"params": parameters()[1:2], "stack": "SGD(0.1)"}], "Adam / SGD(1e-05)"
    )
    assert repr(opt) == "HyperOptimizer(Adam / SGD(1e-05), SGD(0.1); 365 parameters in 2 groups)"


# ---- beside other parts of torch


def test_a_grad_scaler_skips_and_scales():
    """Scaled by a power of two and back: bit for bit the plain run, without the step that overflowed."""
    plain, scaled = network(torch.float32), network(torch.float32)
    one, other = (HyperOptimizer(m.parameters(), LEARNING) for m in (plain, scaled))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for t, batch in enumerate(batches(6, torch.float32)):
        other.zero_grad()
        loss = squares(scaled, batch)
        before = seen(other)
        scaler.scale(loss * float("inf") if t == 3 else loss).backward()
        scaler.step(other)
        scaler.update()
        if t == 3:
            assert_same(seen(other), before)
            continue
        one.zero_grad()
        squares(plain, batch).backward()
        one.step()
    assert scaler.get_scale() == 2.0**9
    assert_same(seen(other), seen(one))


@pytest.mark.slow
def test_a_compiled_model_trains_as_the_plain_one():
    plain, model = network(), network()
    compiled = torch.compile(model, backend="eager")
    one, other = HyperOptimizer(plain.parameters(), LEARNING), HyperOptimizer(compiled.parameters(), LEARNING)
    train(plain, one, batches(3))
    train(compiled, other, batches(3))
    assert_close(list(model.parameters()), list(plain.parameters()), 1e-12)
    assert_close(other.hyperparameters(), one.hyperparameters(), 1e-12)


def test_data_assigned_by_the_user_is_respected():
    """Parameters stay where the user put them, also after `.data =` and `load_state_dict`."""
    a, b = network(), network()
    one, other = HyperOptimizer(a.parameters(), LEARNING), HyperOptimizer(b.parameters(), LEARNING)
    train(a, one, batches(2))
    train(b, other, batches(2))
    with torch.no_grad():
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            p.data = torch.full_like(p, 0.3)
            q.fill_(0.3)
    train(a, one, batches(2))
    train(b, other, batches(2))
    assert_same([p.detach() for p in a.parameters()], [p.detach() for p in b.parameters()])
    a.load_state_dict(network().state_dict())
    b.load_state_dict(network().state_dict())
    train(a, one, batches(2))
    train(b, other, batches(2))
    assert_same(seen(one), seen(other))


@pytest.mark.gpu
def test_it_trains_on_the_gpu_as_on_the_cpu():
    here, there = network(), network().cuda()
    one, other = HyperOptimizer(here.parameters(), LEARNING), HyperOptimizer(there.parameters(), LEARNING)
    train(here, one, batches(6))
    train(there, other, [(x.cuda(), y.cuda()) for x, y in batches(6)])
    assert all(v.is_cuda for v in other.hyperparameters().values())
    assert_close(list(there.parameters()), list(here.parameters()), 1e-9)
    assert_close(other.hyperparameters(), one.hyperparameters(), 1e-9)
