"""`shared`: hyperparameters that param groups have in common; and `fixed_after`: those that stay after some steps."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from battery import assert_close, assert_same, gradients
from test_optimizer import give, parameters, presence, seen, written
from torch import nn

import hyperstack as hs
from hyperstack import HyperOptimizer, InputError

ALL = [
    "SGD(shared(0.05)) / SGD(0.01)",
    "SGD(shared(log(0.05)), momentum=shared(0.5)) / SGD(0.01, clip, momentum=0.5)",
    "Adam(shared(0.02), clip, beta1=shared(0.8), beta2=shared(0.95)) / SGD(1e-3, clip) / SGD(1e-5)",
    "Adam(shared(0.02), beta1=shared(lin(0.8)), beta2=fixed(0.95)) / Adam(1e-3) / SGD(1e-5, clip)",
    "RMSProp(shared(0.02), alpha=shared(0.9)) / SGD(1e-3, clip=[norm(0.1)])",
]
by_stack = pytest.mark.parametrize("text", ALL)


def grouped(params, text, *cuts, others=None, **more):
    """Groups of the parameters up to each cut."""
    edges = [0, *cuts, len(params)]
    groups = [{"params": params[a:b]} for a, b in itertools.pairwise(edges)]
    for group, stack in zip(groups[1:], others or [], strict=False):
        group["stack"] = stack
    return HyperOptimizer(groups, text, **more)


def by_group(found):
    """Readings without their prefix, one dict a group."""
    groups = {}
    for key, value in found.items():
        prefix, _, rest = key.partition(".")
        name, rest = (prefix, rest) if prefix.startswith("group") else ("group0", key)
        groups.setdefault(name, {})[rest] = value
    return list(groups.values())


def all_there(t, gs):
    return gs


def one_of_them(t, gs):
    """The first group, tensors 0 and 1, has nothing in some steps, the second in others."""
    return [None if t % 4 == (1 if i < 2 else 2) else g for i, g in enumerate(gs)]


@pytest.mark.slow
@by_stack
@pytest.mark.parametrize("missing", [all_there, presence, one_of_them])
@pytest.mark.parametrize("cuts", [(2,), (1, 3)])
def test_groups_that_share_everything_are_one_group(text, missing, cuts):
    """But for the order of sums."""
    whole, parts = parameters(), parameters()
    one, other = HyperOptimizer(whole, text), grouped(parts, text, *cuts)
    for t, gs in enumerate(gradients(12)):
        for params, opt in ((whole, one), (parts, other)):
            give(params, missing(t, gs))
            opt.step()
        assert_close([p.detach() for p in parts], [p.detach() for p in whole], 1e-10)
        for found in by_group(other.hyperparameters()):
            primary = {k: v for k, v in found.items() if k.startswith("0.")}
            assert_close(primary, {k: one.hyperparameters()[k] for k in primary}, 1e-10)
        first = by_group(other.hyperparameters())[0]
        assert_close(first, one.hyperparameters(), 1e-10)
        for found in by_group(other.hypergradients()):
            primary = {k: v for k, v in found.items() if k.startswith("0.")}
            assert_close(primary, {k: one.hypergradients()[k] for k in primary}, 1e-8, 1e-12)
    assert (
        abs(float(one.hyperparameters()["0.lr"]) - float(HyperOptimizer(whole, text).hyperparameters()["0.lr"])) > 1e-6
    )


def test_hypergradients_are_the_sum_of_the_groups():
    """In the second step everything is where it is without sharing, but the sum."""
    params, apart = parameters(), parameters()
    opt, other = grouped(params, "SGD(shared(0.05)) / SGD(0.01)", 2), grouped(apart, "SGD(0.05) / SGD(0.01)", 2)
    for gs in gradients(2):
        for ps, o in ((params, opt), (apart, other)):
            give(ps, gs)
            o.step()
    found = opt.hypergradients()
    parts = [other.hypergradients()[key] for key in ("0.lr", "group1.0.lr")]
    assert all(float(part) != 0 for part in parts)
    assert_close([found["0.lr"], found["group1.0.lr"]], [sum(parts)] * 2, 1e-12)


def test_the_first_value_counts():
    params = parameters()
    opt = grouped(params, "SGD(shared(0.05)) / SGD(0.01)", 2, others=["SGD(shared(0.5)) / SGD(1.0)"])
    give(params, gradients(1)[0])
    opt.step()
    values = opt.hyperparameters()
    assert float(values["0.lr"]) == float(values["group1.0.lr"]) == 0.05
    assert_close(
        [p.detach() for p in params],
        [p.detach() - 0.05 * g for p, g in zip(parameters(), gradients(1)[0], strict=True)],
        1e-14,
    )


def test_groups_that_share_the_rate_alone():
    """Their momenta are their own; with a learned rate held still they are as apart."""
    text = "SGD(shared(0.05), momentum=0.5) / SGD(0.01)"
    params = parameters()
    opt = grouped(params, text, 2, others=["SGD(shared(0.05), momentum=0.8) / SGD(0.02)"])
    for gs in gradients(8):
        give(params, gs)
        opt.step()
        first, second = by_group(opt.hyperparameters())
        assert torch.equal(first["0.lr"], second["0.lr"])
        one, other = by_group(opt.hypergradients())
        assert torch.equal(one["0.lr"], other["0.lr"])
    assert abs(float(first["0.lr"]) - 0.05) > 1e-4
    assert abs(float(first["0.momentum"]) - 0.5) > 1e-5
    assert abs(float(second["0.momentum"]) - 0.8) > 1e-5
    assert float(one["0.momentum"]) != float(other["0.momentum"])


def test_a_shared_rate_by_hand():
    """SGD over SGD: the hypergradient of the rate is -<g, g'> over all groups, and each group's momentum keeps out."""
    params, rate = parameters(), 0.05
    opt = grouped(params, "SGD(shared(0.05)) / SGD(0.01)", 1, others=["SGD(shared(0.05)) / Adam"])
    expected, before = [p.detach().clone() for p in params], None
    for gs in gradients(6):
        give(params, gs)
        opt.step()
        if before:
            rate += 0.01 * sum(float((a * b).sum()) for a, b in zip(before, gs, strict=True))
        expected = [p - rate * g for p, g in zip(expected, gs, strict=True)]
        before = gs
        assert float(opt.hyperparameters()["0.lr"]) == pytest.approx(rate, rel=1e-12)
    assert_close([p.detach() for p in params], expected, 1e-12)


@pytest.mark.sampled(19)
@by_stack
@pytest.mark.parametrize("at", [1, 2, 5])
def test_saved_and_loaded_in_mid_run(text, at):
    params, grads = parameters(), gradients(9)
    opt = grouped(params, text, 2)
    for t, gs in enumerate(grads[:at]):
        give(params, one_of_them(t, gs))
        opt.step()
    loaded = [nn.Parameter(p.detach().clone()) for p in params]
    other = grouped(loaded, text, 2)
    other.load_state_dict(written(opt.state_dict()))
    twins, third = copy.deepcopy((params, opt))
    for t, gs in enumerate(grads[at:], at):
        for ps, o in ((params, opt), (loaded, other), (twins, third)):
            give(ps, one_of_them(t, gs))
            o.step()
    assert_same(seen(other), seen(opt))
    assert_same(seen(third), seen(opt))


@pytest.mark.sampled(5)
@by_stack
def test_where_kernels_are_compiled(text, monkeypatch):
    """The programs of the kernels, run as they are."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    found = []
    for compiled in (False, True):
        params = parameters()
        opt = grouped(params, text, 2, compile=compiled)
        for t, gs in enumerate(gradients(8)):
            give(params, one_of_them(t, gs))
            opt.step()
        found.append([*(p.detach() for p in params), *opt.hyperparameters().values()])
    assert_close(found[1], found[0], 1e-11)


def test_parameters_of_other_dtypes_share():
    whole, parts = parameters(), parameters()
    parts[2:] = [nn.Parameter(p.float()) for p in parts[2:]]
    text = "SGD(shared(0.05)) / SGD(0.01)"
    one, other = HyperOptimizer(whole, text), grouped(parts, text, 2)
    for gs in gradients(8):
        for params, opt in ((whole, one), (parts, other)):
            give(params, gs)
            opt.step()
    assert_close([p.detach() for p in parts], [p.detach() for p in whole], 1e-6)
    assert torch.equal(other.hyperparameters()["0.lr"], other.hyperparameters()["group1.0.lr"])


def test_a_hypergradient_that_is_not_finite_is_left_out_for_all():
    params, grads = parameters(), gradients(6)
    opt = grouped(params, "SGD(shared(0.05)) / SGD(0.01)", 2)
    for t, gs in enumerate(grads):
        give(params, gs if t != 3 else [*gs[:3], torch.full_like(gs[3], float("nan"))])
        before = opt.hyperparameters()
        opt.step()
        after = opt.hyperparameters()
        if t in (3, 4):  # a gradient that is NaN spoils the sum of this step, and its record that of the next
            assert_same(after, before)
    assert int(opt.nonfinite_counts()["0.lr"]) >= 2
    assert torch.equal(after["0.lr"], after["group1.0.lr"])
    assert torch.isfinite(after["0.lr"])


def test_on_the_meta_device():
    params = [nn.Parameter(p.detach().to("meta")) for p in parameters()]
    opt = grouped(params, ALL[2], 2)
    for _ in range(3):
        for p in params:
            p.grad = torch.empty_like(p)
        opt.step()
    assert opt.hypergradients()["group1.0.lr"].device.type == "meta"


def test_a_group_alone_may_share_with_itself():
    alone, shared = parameters(), parameters()
    one, other = (
        HyperOptimizer(alone, "Adam(0.02) / SGD(1e-3)"),
        HyperOptimizer(shared, "Adam(shared(0.02)) / SGD(1e-3)"),
    )
    for gs in gradients(6):
        for params, opt in ((alone, one), (shared, other)):
            give(params, gs)
            opt.step()
    assert_same([p.detach() for p in shared], [p.detach() for p in alone])
    assert_same(other.hyperparameters(), one.hyperparameters())


@pytest.mark.parametrize("text", ["Adam / SGD(shared(1e-5))", "Adam / SGD(1e-5, momentum=shared(0.5)) / SGD"])
def test_sharing_above_the_primary_level_is_refused(text):
    with pytest.raises(InputError, match="shared has no meaning above the primary level"):
        hs.parse(text)


@pytest.mark.parametrize(
    "text", ["SGD(shared(per_tensor(0.1)))", "SGD(per_tensor(shared(0.1)))", "SGD(shared(shared(0.1)))"]
)
def test_sharing_twice_is_refused(text):
    with pytest.raises(InputError, match="twice"):
        hs.parse(text)


@pytest.mark.parametrize(("first", "second"), [("SGD(shared(0.1))", "Adam(shared(0.1)) / SGD"), ("ALRC / SGD", "ALRC")])
def test_groups_that_share_have_all_a_level_above_or_none(first, second):
    opt = HyperOptimizer(parameters()[:2], first)
    with pytest.raises(InputError, match="only some have a level above"):
        opt.add_param_group({"params": parameters()[2:], "stack": second})
    assert len(opt.param_groups) == 1
    grouped(parameters(), first, 2)
    grouped(parameters(), second, 2)


# ---- fixed_after

BASE = "SGD({}, momentum=0.5) / SGD(0.01, momentum=0.3) / SGD(1e-3)"


def trace(text, steps=10, at=None):
    """What is seen after each step, `at`: saved and loaded there."""
    params, found = parameters(), []
    opt = HyperOptimizer(params, text)
    for t, gs in enumerate(gradients(steps)):
        if t == at:
            state = written(opt.state_dict())
            params = [nn.Parameter(p.detach().clone()) for p in params]
            opt = HyperOptimizer(params, text)
            opt.load_state_dict(state)
        give(params, gs)
        opt.step()
        found.append(([p.detach().clone() for p in params], opt.hyperparameters(), opt.hypergradients()))
    return found


@pytest.mark.parametrize("bijection", ["{}", "log({})"])
def test_learned_for_some_steps_and_then_constant(bijection):
    value = bijection.format("0.05")
    free = trace(BASE.format(value))
    ending = trace(BASE.format(f"fixed_after({value}, 4)"))
    assert_same(ending[:4], free[:4])
    kept = ending[3][1]["0.lr"]
    assert float(kept) != 0.05
    assert all(torch.equal(values["0.lr"], kept) for _, values, _ in ending[3:])
    assert not torch.equal(free[4][1]["0.lr"], kept)
    momenta = [values["0.momentum"] for _, values, _ in ending]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(momenta[1:])), "the others stay too"


def test_what_stays_has_no_part_in_the_levels_above():
    """Level 1 then moves nothing but the rate, so after the last move its rate has no hypergradient."""
    text = "SGD(fixed_after(0.05, 4)) / SGD(0.01) / SGD(1e-3)"
    found = trace(text)
    uppers = [float(gradient["1.lr"]) for *_, gradient in found]
    assert all(uppers[2:5]), "until the step after the last move, there is one"
    assert not any(uppers[5:])
    assert len({float(values["1.lr"]) for _, values, _ in found[5:]}) == 1
    assert all(float(gradient["0.lr"]) != 0 for *_, gradient in found[1:]), "what it would receive is still seen"


@pytest.mark.sampled(4)
@pytest.mark.parametrize("at", [2, 3, 4, 5, 8])
def test_resumed_on_both_sides_of_the_end(at):
    text = BASE.format("fixed_after(log(0.05), 4)")
    assert_same(trace(text, at=at), trace(text))


def test_one_number_a_tensor_may_stay_after_some_steps():
    found = trace("SGD(fixed_after(per_tensor(0.05), 4)) / SGD(0.01)")
    assert not torch.equal(found[2][1]["0.lr"], found[3][1]["0.lr"])
    assert all(torch.equal(values["0.lr"], found[3][1]["0.lr"]) for _, values, _ in found[3:])


def test_what_is_shared_may_stay_after_some_steps():
    params, found = parameters(), []
    opt = grouped(params, "SGD(fixed_after(shared(0.05), 4)) / SGD(0.01)", 2)
    for gs in gradients(8):
        give(params, gs)
        opt.step()
        values = opt.hyperparameters()
        assert torch.equal(values["0.lr"], values["group1.0.lr"])
        found.append(float(values["0.lr"]))
    assert len(set(found[:4])) == 4  # the first hypergradient is 0
    assert len(set(found[3:])) == 1


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_a_number_of_steps_is_a_whole_number_from_one(steps):
    with pytest.raises(InputError, match="number of steps"):
        hs.fixed_after(1e-3, steps)
    with pytest.raises(InputError, match="number of steps"):
        hs.parse(f"SGD(fixed_after(0.1, {steps}))")
