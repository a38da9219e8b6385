"""Every registered rule: parity with its oracle, and its hypergradients against central differences."""

from __future__ import annotations

import itertools
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from battery import (
    CASES,
    FLAT,
    ORACLES,
    RULES,
    SMALL,
    Reference,
    apply,
    asked,
    assert_close,
    assert_same,
    authors_adabound,
    calm,
    central_differences,
    gradients,
    interior,
    like,
    option_choices,
    start,
    tensors,
)

import hyperstack as hs
from hyperstack import buffers
from hyperstack.engine import Tower
from hyperstack.numerics import Segments

STEPS = 12
WITH_OPTIONS = [pytest.param(rule, o, id=f"{n}-{o}") for n, rule in RULES.items() for o in option_choices(rule)]
by_case = pytest.mark.parametrize("case", CASES, ids=[text for text, _ in CASES])
by_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
by_options = pytest.mark.parametrize(("rule", "options"), WITH_OPTIONS)


def run(tower, params, grads, schedule=1.0):
    for gs in grads:
        tower.step(params, gs, schedule)
    return params


# ---- the table


def test_every_rule_has_an_oracle():
    assert set(ORACLES) == set(RULES)
    assert all(hs.parse(text)[0].__class__ is RULES[name] for name, cases in ORACLES.items() for text, *_ in cases)


@by_rule
def test_every_option_and_hyperparameter_of_a_rule_has_a_case_away_from_its_default(rule):
    levels = [hs.parse(text)[0] for text, *_ in ORACLES[rule.__name__]]
    moved = {k for level in levels for k, r in level.resolve().items() if r.value != rule.hyperparameters[k].default}
    chosen = {k for level in levels for k in level.chosen}
    assert moved == set(rule.hyperparameters)
    assert chosen == set(rule.options)


# ---- parity


def beside(text, other):
    """A stack and another optimizer through the same gradients."""
    ours, theirs = tensors(), [p.requires_grad_() for p in tensors()]
    tower, other = Tower(hs.parse(text), ours), other(theirs)
    for gs in gradients(STEPS):
        tower.step(ours, gs)
        for p, g in zip(theirs, gs, strict=True):
            p.grad = g.clone()
        other.step()
        assert_close(ours, theirs, 1e-12)


@pytest.mark.sampled(63)
@by_case
@pytest.mark.parametrize("upper", ["", " / SGD(0.0)"], ids=["alone", "measured"])
def test_parity(case, upper):
    """As torch.optim, or as the published formulas: alone, and under a level that measures but does not move it."""
    beside(case[0] + upper, case[1])


@pytest.mark.sampled(51)
@by_case
def test_parity_in_float32(case):
    """Each of 12 steps rounds the state and the direction a few times: 100 ulp cover them."""
    ours, theirs = tensors(torch.float32), [p.requires_grad_() for p in tensors(torch.float32)]
    tower, other = Tower(hs.parse(case[0]), ours), case[1](theirs)
    for gs in gradients(STEPS, torch.float32):
        tower.step(ours, gs)
        for p, g in zip(theirs, gs, strict=True):
            p.grad = g.clone()
        other.step()
    assert all(p.dtype == torch.float32 for p in ours)
    assert_close(ours, theirs, 100 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("clips", [False, True], ids=["LAMB", "LAMBC"])
@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_lamb_as_timm_has_it(clips, decay):
    """There: 1-β^t, ε behind the root, the norm of r + λw, bounded by 1 with trust_clip. Off: its clip of all gradients
    together. Without decay it takes no ratio, unless always_adapt.
    """
    lamb = pytest.importorskip("timm.optim.lamb", reason="needs timm", exc_type=ImportError)
    text = f"{'LAMBC' if clips else 'LAMB'}(0.02, decay_in_ratio, weight_decay={decay})"
    options = {"max_grad_norm": None, "trust_clip": clips, "always_adapt": True}
    beside(text, lambda params: lamb.Lamb(params, lr=0.02, weight_decay=decay, **options))


def test_lamb_as_pytorch_optimizer_has_it():
    """There: no bias correction, but with adam_debias=False one of lr by 1-β1^t, φ = min(., 10), ε in the ratio too.
    Without ε the length of r drops out, and with it the correction.
    """
    package = pytest.importorskip("pytorch_optimizer", reason="needs pytorch_optimizer", exc_type=ImportError)
    beside("LAMB(0.02, phi_max=10, eps=0)", lambda params: package.Lamb(params, lr=0.02, eps=0, adam_debias=True))


def test_a_lamb_without_length_is_adam():
    """A tensor of zeros has ratio 1, in its first step; and a step of zeros moves nothing."""
    zeros = [torch.zeros(3, 4, dtype=torch.float64) for _ in range(2)]
    g = gradients(1, shapes=((3, 4),))[0]
    Tower(hs.parse("LAMB(0.1, eps=1e-8)"), zeros[:1]).step(zeros[:1], g)
    Tower(hs.parse("Adam(0.1)"), zeros[1:]).step(zeros[1:], g)
    assert_close(zeros[:1], zeros[1:], 1e-12)
    assert zeros[0].any()
    params = tensors(shapes=((3, 4),))
    Tower(hs.parse("LAMBC / SGD(1)"), params).step(params, [torch.zeros(3, 4, dtype=torch.float64)])
    assert_same(params, tensors(shapes=((3, 4),)))


@pytest.mark.parametrize("text", ["LAMBC(0.02, trust_min=0.9, trust_max=1.1)", "LAMBC(0.02, deviations=0.1)"])
def test_the_ratio_that_was_applied_is_shown(text):
    params = [torch.nn.Parameter(p) for p in tensors(shapes=SMALL)]
    opt, before = hs.HyperOptimizer(params, text), tensors(shapes=SMALL)
    for p, g in zip(params, gradients(1, shapes=SMALL)[0], strict=True):
        p.grad = g
    opt.step()
    ratios = [opt.state[p]["trust_ratio"] for p in params]
    for p, old, ratio in zip(params, before, ratios, strict=True):
        # at t = 1, r is g / (|g| + ε)
        r = p.grad / (p.grad.abs() + 1e-6)
        assert_close([p.detach() - old], [-0.02 * ratio * r], 1e-12)
        assert ratio.shape == ()
    assert len({float(r) for r in ratios}) > 1


def test_bounds_that_cross_are_refused():
    with pytest.raises(hs.InputError, match="trust_min is above its trust_max"):
        hs.LAMBC(trust_min=2)
    with pytest.raises(hs.InputError, match="phi_min 3 is above phi_max 2"):
        hs.LAMB(phi_min=3, phi_max=2)
    assert hs.LAMB(phi_min=3).phi_min == 3
    with pytest.raises(hs.StackError, match="trust_min is above") as error:
        hs.parse("Adam / LAMBC(trust_min=2)")
    assert len(error.value.mistakes) == 1
    assert hs.parse("LAMBC(trust_min=μ)").bind(μ=0.5)
    with pytest.raises(hs.InputError, match="trust_min is above"):
        hs.parse("LAMBC(trust_min=μ)").bind(μ=1.5)


def test_a_level_above_learns_the_bound():
    """Where clipped steps and gradients point the same way, a larger bound is better, and it grows."""
    params = [torch.nn.Parameter(torch.full((4,), 50.0)), torch.nn.Parameter(torch.full((2, 2), -30.0))]
    opt = hs.HyperOptimizer(params, "LAMBC(1e-2, trust_max=per_tensor(1.0)) / SGD(1e-3)")
    for _ in range(10):
        opt.zero_grad()
        sum((p**2).sum() for p in params).backward()
        opt.step()
    assert (opt.hyperparameters()["0.trust_max"] > 1.1).all()


@pytest.mark.sampled(11)
@pytest.mark.parametrize("block", [4, 60, 400])
@pytest.mark.parametrize("text", ["LAMBC(0.02, trust_max=learned(per_tensor(1.0)))", "LAMBC(0.02, deviations=0.1)"])
def test_ratios_of_whole_tensors_in_blocks_of_any_size(text, block, monkeypatch):
    """A tensor is never cut, and tensors of one size share a program but no number."""
    shapes = ((9, 40), (5,), (), (30,), (5, 6), (3, 10), (5,))
    found = []
    for size in (buffers.BLOCK, block):
        monkeypatch.setattr(buffers, "BLOCK", size)
        params = tensors(shapes=shapes)
        tower = Tower(hs.parse(text + " / SGD(1e-3, clip)"), params)
        run(tower, params, gradients(5, shapes=shapes))
        found.append([*params, *tower.hyperparameters().values(), *tower.hypergradients().values()])
    assert_close(found[1], found[0], 1e-12, 1e-15)


@pytest.mark.parametrize("case", [c for c in CASES if c[0] in ("Adam", "RMSProp")], ids=["Adam", "RMSProp"])
def test_parity_where_a_square_overflows(case):
    ours, theirs = tensors(torch.float32), [p.requires_grad_() for p in tensors(torch.float32)]
    tower, other = Tower(hs.parse(case[0]), ours), case[1](theirs)
    for t, gs in enumerate(gradients(4, torch.float32)):
        gs[0][1, 2] = 1e20 if t == 1 else 0.1
        tower.step(ours, gs)
        for p, g in zip(theirs, gs, strict=True):
            p.grad = g.clone()
        other.step()
    assert_close(ours, theirs, 100 * torch.finfo(torch.float32).eps)


@pytest.mark.gpu
@by_case
def test_parity_with_the_cpu(case):
    stack = hs.parse(case[0] + " / SGD(1e-4, clip)")
    here, there = tensors(), tensors(device="cuda")
    cpu, gpu = Tower(stack, here), Tower(stack, there)
    run(cpu, here, gradients(STEPS))
    run(gpu, there, gradients(STEPS, device="cuda"))
    assert_close(there, here, 1e-11)
    assert_close(gpu.hyperparameters(), cpu.hyperparameters(), 1e-11)
    assert_close(gpu.hypergradients(), cpu.hypergradients(), 1e-10)


# ---- the pure functions


@pytest.mark.sampled(3)
@by_options
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_update_is_pure_and_keeps_shape_and_dtype(rule, options, dtype):
    level = asked(rule, **options)
    h = SimpleNamespace(**{k: torch.tensor(interior(p), dtype=torch.float64) for k, p in rule.hyperparameters.items()})
    g, p = tensors(dtype, ((3, 5),), 3) + tensors(dtype, ((3, 5),), 4)
    state, declared = start(level, p), deepcopy(start(level, p))
    for t in (1.0, 2.0, 3.0):
        before = deepcopy([state, g, p, vars(h)])
        delta, after = apply(level, g, state, h, torch.tensor(t, dtype=torch.float64), p)
        assert_same([state, g, p, vars(h)], before)
        assert (delta.shape, delta.dtype) == (p.shape, dtype)
        described = [{k: (x.shape, x.dtype) for k, x in s.items()} for s in (after, declared)]
        assert described[0] == described[1]
        assert all(torch.isfinite(x).all() for x in [delta, *after.values()])
        kept = {x.data_ptr() for x in [g, p, *state.values()]}
        assert kept.isdisjoint({x.data_ptr() for x in [delta, *after.values()]})
        state = after


def somewhere(level, like, *more):
    """A state of positive numbers, the entries of one number a tensor after the others."""
    names = [*level.init(like), *level.init_layers(like.new_zeros(1))]
    return {k: x.abs() + 1 for k, x in zip(names, more, strict=False)}


@by_options
def test_an_update_is_elementwise(rule, options):
    """On a part of the elements the rule does what it does on all: so work may go block by block.

    Where it looks at whole tensors, on some of the tensors it does what it does on all.
    """
    level = asked(rule, **options)
    h = SimpleNamespace(**{k: torch.tensor(interior(p), dtype=torch.float64) for k, p in rule.hyperparameters.items()})
    g, p, *rest = tensors(shapes=((11,),) * 7)
    c = SimpleNamespace(**level.coefficients(h, torch.tensor(2.0, dtype=torch.float64)))
    state, of_layers = somewhere(level, p, *rest), level.init_layers(p[:1])
    sizes, some = [(2,), (1,), (5,), (0,), (3,)], slice(1, 4)  # of the tensors; of their elements, 2 to 8
    if rule.per_layer:
        state = {k: x[:5] if k in of_layers else x for k, x in state.items()}
    found = []
    for part, layers in ((slice(0, 11), slice(0, 5)), (slice(2, 8), some)):
        c.layers = Segments(sizes[layers])
        mine = {k: x[layers] if k in of_layers else x[part] for k, x in state.items()}
        found.append(level.update(g[part], mine, c, p[part] if level.reads_params else None))
    (delta, after), wanted = found[0], found[1]
    assert_same(list(wanted), [delta[2:8], {k: x[some] if k in of_layers else x[2:8] for k, x in after.items()}])


# ---- hypergradients


AT = (2, 4, 9)  # of which the last is behind RAdam's switch


def check_hypergradients(stack, steps, at, schedule=1.0, flat=()):
    """Every hypergradient of a tower in the steps `at`, against central differences of its last update.

    But for the `flat` each must at least once, in one of its entries, stand out from the error of the differences.
    """
    params, grads = tensors(shapes=SMALL), gradients(steps, shapes=SMALL)
    tower, slow = Tower(stack, params), Reference(stack, params)
    alive: dict[str, torch.Tensor] = {}
    for t, gs in enumerate(grads):
        if t in at:
            wanted = {
                f"{k}.{name}": central_differences(slow, gs, k, name)
                for k, raws in enumerate(slow.moved[1:])
                for name in raws
            }
        tower.step(params, gs, schedule)
        slow.step(gs, schedule)
        if t in at:
            found = tower.hypergradients()
            for key, (numbers, errors) in wanted.items():
                assert found[key].shape == numbers.shape, key
                assert bool(((found[key] - numbers).abs() <= errors).all()), (key, found[key], numbers, errors)
                alive[key] = alive.get(key, False) | (found[key].abs() > 100 * errors)
    lost = {key for key, entries in alive.items() if not entries.any()}
    assert lost == set(flat), "these hypergradients are lost in the error of the differences"
    return tower


@pytest.mark.sampled(131)
@by_options
def test_hypergradients_are_the_derivatives_of_the_last_update(rule, options):
    stack = asked(rule, **options) / hs.SGD(1e-4)
    tower = check_hypergradients(stack, 10, AT)
    flat = FLAT.get(rule.__name__, ())
    assert set(tower.hypergradients()) >= {f"0.{name}" for name in rule.hyperparameters if name not in flat}


@pytest.mark.slow
@by_rule
def test_hypergradients_chain_through_three_levels(rule):
    lower = asked(hs.SGD, momentum=hs.learned(hs.per_tensor(0.4)), lr=hs.learned(hs.per_tensor(0.1)))
    stack = lower / asked(rule, lr=hs.learned(0.02)) / asked(rule, lr=hs.learned(1e-3))
    # The length of r drops out of LAMB's steps, and a single number has nothing else but its sign.
    check_hypergradients(stack, 10, AT, 0.3, flat=("2.beta2",) if rule is hs.LAMB else ())


@pytest.mark.slow
@by_rule
def test_hypergradients_of_one_number_a_tensor(rule):
    upper = asked(rule, hs.per_tensor, lr=hs.learned(hs.per_tensor(0.02)))
    calmed = calm(rule.__name__, rule.__name__)
    check_hypergradients(asked(rule, hs.per_tensor, **calmed) / upper / hs.SGD(1e-3), 10, AT[1:], 0.7)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("bijection", [hs.lin, hs.log, hs.square, hs.logit])
def test_hypergradients_are_those_of_the_raw_tensor(bijection):
    level = hs.Adam(bijection(0.2), beta1=bijection(0.6), beta2=bijection(0.7), eps=hs.learned(bijection(0.3)))
    check_hypergradients(level / level / hs.SGD(1e-3), 5, (4,))


@pytest.mark.slow
def test_hypergradients_around_the_switch_of_radam():
    """It is between the fifth update and the sixth; before it β2 has no part in the step."""
    tower = check_hypergradients(hs.RAdam(eps=hs.learned(1e-8)) / hs.SGD(1e-9), 5, (3, 4), flat=("0.beta2", "0.eps"))
    assert float(tower.hypergradients()["0.beta2"]) == 0
    for steps in (6, 7, 8):
        check_hypergradients(hs.RAdam / hs.SGD(1e-9), steps, (steps - 1,), flat=("0.beta2",) if steps == 6 else ())


@pytest.mark.parametrize("decay", [0.0, 1e-6, 4e-3, 0.3, 20.0])
def test_the_product_of_nadam_is_that_of_all_steps(decay):
    """Against the loop that the closed form stands for."""
    h = SimpleNamespace(lr=1.0, beta1=torch.tensor(0.9999, dtype=torch.float64), beta2=torch.tensor(0.0), eps=0.0)
    h.momentum_decay = torch.tensor(decay, dtype=torch.float64)
    product, factors = 1.0, [0.9999 * (1 - 0.96 ** (t * decay) / 2) for t in range(1, 100_002)]
    for t, (mu, ahead) in enumerate(itertools.pairwise(factors), 1):
        product *= mu
        if t in (1, 2, 10, 1000, 100_000):
            found = hs.NAdam().rates(h, torch.tensor(float(t), dtype=torch.float64))
            assert float(found["fresh"]) == pytest.approx((mu - 1) / (1 - product), rel=1e-12)
            assert float(found["kept"]) == pytest.approx(-ahead / (1 - product * ahead), rel=1e-12)


def test_hypergradients_of_nadam_where_the_product_moves_slowly():
    check_hypergradients(hs.NAdam(0.1, momentum_decay=hs.learned(4e-3)) / hs.SGD(1e-9), 10, AT)


def test_a_schedule_scales_both_ends_of_adabound():
    """As in the authors' code, where the final rate follows the schedule of the other."""
    ours, theirs = tensors(), [p.requires_grad_() for p in tensors()]
    tower = Tower(hs.parse("AdaBound(0.1, gamma=0.1) / SGD(0)"), ours)
    other = like(authors_adabound, lr=0.03, final_lr=3, gamma=0.1)(theirs)
    for gs in gradients(STEPS):
        tower.step(ours, gs, 0.3)
        for p, g in zip(theirs, gs, strict=True):
            p.grad = g.clone()
        other.step()
    assert_close(ours, theirs, 1e-12)


def levels_that_start_anywhere(rule):
    """Every level of a rule's table with everything learned that can be: at defaults, at edges, and away from both."""
    for text, *_ in [*ORACLES[rule.__name__], (rule.__name__,)]:
        level = hs.parse(text)[0]
        wish = {}
        for name, r in level.resolve().items():
            learned = r.learned or rule.hyperparameters[name].bijection == "lin"
            wish[name] = hs.learned(level.settings.get(name, r.value)) if learned else hs.fixed(r.value)
        yield rule(**{**wish, **level.chosen})


LEVELS = {str(level): level for rule in RULES.values() for level in levels_that_start_anywhere(rule)}


@pytest.mark.sampled(35)
@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
def test_gradients_that_are_exactly_zero_leave_everything_finite(level):
    """All are 0 in the first two steps, some in the next three, in one step all, and then some again."""
    params, grads = tensors(torch.float32), gradients(8, torch.float32)
    tower = Tower(level / hs.SGD(1e-30) / hs.SGD(1e-30), params)
    for t, gs in enumerate(grads):
        for i, g in enumerate(gs):
            if t in (0, 1, 5):
                g.zero_()
            elif g.dim():
                g.view(-1)[(t + i) % 2 :: 2] = 0
                g.view(-1)[0] = 0
        tower.step(params, gs)
        for value in [*params, *tower.hypergradients().values(), *tower.hyperparameters().values()]:
            assert torch.isfinite(value).all()
        if t in (0, 1, 5):
            assert not any(g.any() for g in tower.hypergradients().values())
    assert not any(n.any() for n in tower.nonfinite_counts().values())
    assert all(tower.hypergradients()[f"0.{name}"].any() for name, r in level.resolve().items() if name == "lr")


ALIVE = [rule() for rule in RULES.values()] + [
    asked(rule, **o) for rule in RULES.values() for o in option_choices(rule)
]


@pytest.mark.sampled(45)
@pytest.mark.parametrize("level", ALIVE, ids=str)
def test_no_learned_hyperparameter_is_dead(level):
    """Over twelve steps each hypergradient differs from 0 at least once; what cannot must be declared fixed."""
    params = tensors(shapes=SMALL)
    tower, alive = Tower(level / hs.SGD(1e-9), params), set()
    for gs in gradients(12, shapes=SMALL):
        tower.step(params, gs)
        alive |= {key for key, g in tower.hypergradients().items() if g.all()}
    assert alive >= {f"0.{name}" for name, r in level.resolve().items() if r.learned}


@pytest.mark.parametrize(("rule", "name"), [(RULES[rule], name) for rule in FLAT for name in FLAT[rule]])
def test_what_is_always_0_is_declared_fixed_and_is_0(rule, name):
    assert not rule.hyperparameters[name].learnable
    stack = asked(rule, **{name: hs.learned(interior(rule.hyperparameters[name]))}) / hs.SGD(1e-4)
    params, grads = tensors(shapes=SMALL), gradients(6, shapes=SMALL)
    tower, slow = Tower(stack, params), Reference(stack, params)
    for t, gs in enumerate(grads):
        difference = float(central_differences(slow, gs, 0, name)[0]) if t else 0.0
        tower.step(params, gs)
        slow.step(gs)
        assert float(tower.hypergradients()[f"0.{name}"]) == difference == 0


@by_rule
def test_what_is_not_asked_for_at_an_edge_is_fixed(rule):
    for name, h in rule.hyperparameters.items():
        at_edge = h.default in (h.domain.low, h.domain.high)
        assert rule().resolve()[name].learned == (h.learnable and not at_edge), name
        assert rule(**{name: hs.learned(interior(h))}).resolve()[name].learned
        assert not rule(**{name: hs.fixed(interior(h))}).resolve()[name].learned


def test_the_bound_on_a_difference_is_tight():
    """A hypergradient wrong by a millionth part of itself or more is noticed."""
    params, grads = tensors(), gradients(4)
    slow = Reference(asked(hs.Adam) / hs.SGD(1e-4), params)
    for gs in grads[:3]:
        slow.step(gs)
    numbers, errors = central_differences(slow, grads[3], 0, "beta1")
    assert 0 < float(errors) < 1e-5 * abs(float(numbers))
