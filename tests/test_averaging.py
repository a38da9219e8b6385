"""Hypergradients at the averages: against central differences, unrolled derivatives, and slow loops written out."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from battery import (
    EPS,
    RULES,
    SMALL,
    Document,
    apply,
    asked,
    assert_close,
    clip_cumulatively,
    ends,
    gradients,
    interior,
    number,
    option_choices,
    start,
    tensors,
)
from torch import optim

import hyperstack as hs
from hyperstack import buffers
from hyperstack.averaging import AveragingTower, make_tower

EVERY = 4
PLACE = hs.average(0.8, EVERY, 3.0)
OFF = hs.SGD(0.0, at=PLACE)
WITH_OPTIONS = [pytest.param(rule, o, id=f"{n}-{o}") for n, rule in RULES.items() for o in option_choices(rule)]
by_options = pytest.mark.parametrize(("rule", "options"), WITH_OPTIONS)
by_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


# ---- the slow way


def test_windows_grow_with_the_steps():
    assert ends(60, 10, 10) == [*range(1, 21), *range(22, 31, 2), 33, 36, 39, 42, 46, 50, 55, 60]
    assert ends(160, 10, 10)[33:] == [66, 72, 79, 86, 94, 103, 113, 123, 133, 143, 153]
    assert ends(60, 10, 10, first=10) == ends(60, 10, 0) == [10, 20, 30, 40, 50, 60]


def averages(stack, raws, grads, schedule, held=None):
    """Before each step the weights; after it the weights, their averages, and by how much the bound made it shorter.

    Tensor by tensor, by the rule's own formulas. `raws`: the primary level's raw hyperparameters, which stay; `held`:
    what this returned of other ones, whose weights are what the rule reads, and whose bound is the one that holds.
    """
    rule, resolved = stack[0], stack.resolve()[0]
    values = {n: r.bijection.to_value(raws[n]) if r.learned else number(r.value) for n, r in resolved.items()}
    weights = tensors(shapes=SMALL)
    means, states, place = [w.clone() for w in weights], [start(rule, w) for w in weights], stack[1].at
    clocks, memories = [0] * len(weights), [[{"t": 0, "theta": 0.0} for _ in rule.clip] for _ in weights]
    found = []
    for t, gs in enumerate(grads):
        before = [w.clone() for w in weights]
        for i, g in enumerate(gs):
            if g is None:
                continue
            for memory in memories[i]:
                g = clip_cumulatively(g, memory)
            clocks[i] += 1
            mine = SimpleNamespace(**{n: v[i] if v.dim() else v for n, v in values.items()})
            mine.lr = mine.lr * schedule(t)
            p = before[i] if held is None else held[t][0][i]
            delta, states[i] = apply(rule, g, states[i], mine, number(clocks[i]), p)
            weights[i] = weights[i] + delta
        largest = place.bound * min(1.0, (t + 1) / 100)
        share = held[t][3] if held else shorter(before, weights, largest)
        weights = [b + share * (w - b) for b, w in zip(before, weights, strict=True)]
        values["lr"] = values["lr"] * share
        a = min(place.decay, (t + 1) / (t + 1 + place.warmup))
        means = [a * m + (1 - a) * w for m, w in zip(means, weights, strict=True)]
        found.append((before, weights, means, share))
    return found


def shorter(before, after, bound):
    """The share of an update that changes the weights, as one vector, by at most `bound` of their norm; 0: any."""
    change = math.hypot(*(float((a - b).norm()) for a, b in zip(after, before, strict=True)))
    size = max(math.hypot(*(float(b.norm()) for b in before)), 0.005 * math.sqrt(sum(b.numel() for b in before)))
    return min(1.0, bound * size / change) if bound and change else 1.0


def displacements(found, i):
    """What the average moved up to each measurement since the one before, of one tensor."""
    marks = [tensors(shapes=SMALL)[i], *(found[t - 1][2][i] for t in ends(len(found), EVERY, 3))]
    return [b - a for a, b in itertools.pairwise(marks)]


def differences(stack, raws, grads, probes, schedule, own=False):
    """Central differences of ḡ·(θ̄_t - θ̄_τ) by each learned hyperparameter, and how far they may be off.

    The quotient with step h is off by a third of its difference from that with 2h, and by the rounding of every number
    on the way. `own`: whether the rule reads the shifted weights; else the term that is dropped is left out here too.
    """
    base, h = averages(stack, raws, grads, schedule), EPS ** (1 / 3)
    size = sum(float((g.abs() * (1 + w.abs())).sum()) for gs in probes for g, w in zip(gs, base[-1][1], strict=True))
    found = {}
    for name, raw in raws.items():
        numbers = torch.zeros(len(probes), max(1, raw.numel()), dtype=torch.float64)
        errors = torch.zeros_like(numbers)
        for entry in range(raw.numel()):

            def products(times, name=name, raw=raw, entry=entry):
                unit = torch.zeros_like(raw)
                unit.view(-1)[entry] = times * h
                moved = averages(stack, {**raws, name: raw + unit}, grads, schedule, None if own else base)
                each = [displacements(moved, i) for i in range(len(SMALL))]
                return torch.stack(
                    [sum((g * d[k]).sum() for g, d in zip(gs, each, strict=True)) for k, gs in enumerate(probes)]
                )

            near, far = ((products(k) - products(-k)) / (2 * k * h) for k in (1, 2))
            numbers[:, entry] = near
            errors[:, entry] = (far - near).abs() + 10 * EPS * size * len(grads) / h + 1e-6 * near.abs()
        found[name] = numbers, errors
    return found


def measured(stack, grads, probes, schedule):
    """The hypergradients that a tower receives, one row a measurement, and its raw hyperparameters."""
    params = tensors(shapes=SMALL)
    tower = make_tower(stack, params)
    assert isinstance(tower, AveragingTower)
    raws = {name: x.clone() for name, x in tower.raw().items()}
    rows, waiting, marks = [], iter(probes), ends(len(grads), EVERY, 3)
    for t, gs in enumerate([*grads, gradients(1, shapes=SMALL)[0]]):
        assert tower.due == (t in marks)
        if tower.due:
            tower.measure(params, next(waiting))
        tower.step(params, gs, schedule(t))
        if t in marks:
            rows.append({name: tower.hypergradients()[f"0.{name}"].reshape(-1) for name in raws})
    assert next(waiting, None) is None
    return {name: torch.stack([row[name] for row in rows]) for name in raws}, raws


def check(stack, steps=2 * EVERY, schedule=lambda t: 1.0, grads=None, own=False):
    """The hypergradients that stand out from the error of central differences, and those off by more, in any window."""
    grads = gradients(steps, shapes=SMALL) if grads is None else grads
    probes = gradients(len(ends(len(grads), EVERY, 3)), shapes=SMALL, seed=50)
    found, raws = measured(stack, grads, probes, schedule)
    wanted = differences(stack, raws, grads, probes, schedule, own)
    assert set(wanted) == {name for name, r in stack.resolve()[0].items() if r.learned}
    off = {n: (found[n] - numbers).abs() > errors for n, (numbers, errors) in wanted.items()}
    alive = {n for n, (_, errors) in wanted.items() if (found[n].abs() > 100 * errors).any()}
    return alive, {n for n, wrong in off.items() if wrong.any()}


# ---- central differences, where losses are linear: gradients are given in advance


@pytest.mark.sampled(81)
@by_options
def test_hypergradients_are_the_derivatives_of_what_the_average_moved(rule, options):
    """Every learned hyperparameter of every rule, in every window; what the rule reads of the weights is held."""
    alive, wrong = check(asked(rule, **options) / OFF, steps=3 * EVERY)
    assert not wrong
    assert "lr" in alive


@pytest.mark.sampled(5)
@by_rule
def test_the_logarithm_of_a_rate_has_what_the_average_moved(rule):
    """Without a derivative, where nothing else is learned."""
    stack = rule(hs.log(0.02), **{n: hs.fixed(h.default) for n, h in rule.hyperparameters.items() if n != "lr"}) / OFF
    tower = make_tower(stack, tensors(shapes=SMALL))
    assert (tower.window.rate, tower.window.traced) == ("lr", [])
    alive, wrong = check(stack)
    assert not wrong
    assert alive == {"lr"}


VARIED = {
    "one number a tensor": hs.Adam(
        hs.per_tensor(hs.log(0.02)), beta1=hs.per_tensor(0.7), beta2=hs.per_tensor(0.8), eps=hs.learned(0.1)
    ),
    "one rate a tensor, learned as it is": hs.SGD(hs.per_tensor(0.1), momentum=hs.per_tensor(hs.learned(0.6))),
    "clipped": hs.Adam(hs.log(0.02), clip=True, beta2=0.8, amsgrad=True),
    "nesterov": hs.SGD(0.1, nesterov=True, momentum=hs.learned(0.7), clip=True),
    "ratios of tensors": hs.LAMBC(hs.log(0.02), trust_max=hs.learned(0.8), deviations=0.1, beta1=0.8, beta2=0.7),
    "decay": hs.AdamW(hs.log(0.02), beta2=0.8, weight_decay=hs.learned(0.3), amsgrad=True),
}
by_variation = pytest.mark.parametrize("level", VARIED.values(), ids=VARIED)


@pytest.mark.slow
@pytest.mark.sampled(3)
@by_variation
def test_variations(level):
    """With a schedule, and gradients that come and go: a tensor without one stays, while its average goes on."""
    grads = gradients(3 * EVERY, shapes=SMALL)
    for t, i in [(1, 0), (4, 1), (5, 1), (6, 1), (7, 1), (9, 2)]:
        grads[t][i] = None
    alive, wrong = check(level / OFF, schedule=lambda t: (1.0, 0.5, 2.0)[t % 3], grads=grads)
    assert not wrong
    assert alive == {name for name, r in level.resolve().items() if r.learned} - {"eps"} | (alive & {"eps"})


def test_a_rule_whose_state_knows_of_its_rate(monkeypatch):
    """Its updates are in proportion to the rate, but a shift of the rate in all steps moves more than that."""
    monkeypatch.setattr(hs.SGD, "registry", {})

    class Remembers(hs.SGD):
        def init(self, like):
            return {"last": torch.zeros_like(like)}

        def coefficients(self, h, t):
            return {"lr": h.lr}

        def update(self, g, s, c, p):
            return -c.lr * (g + s["last"]), {"last": c.lr * g}

    alive, wrong = check(Remembers(hs.log(0.3)) / OFF)
    assert not wrong
    assert alive == {"lr"}


@pytest.mark.parametrize("text", ["SGD(fixed(0.1))", "Adam(fixed(0.1), beta1=fixed(0.9), beta2=fixed(0.99))"])
def test_where_nothing_is_learned_the_average_is_kept_all_the_same(text):
    params, alone = tensors(), tensors()
    tower, other = make_tower(hs.parse(text) / OFF, params), make_tower(hs.parse(text), alone)
    means = tensors()
    for t, gs in enumerate(gradients(6)):
        if tower.due:
            tower.measure(params, gs)
        tower.step(params, gs)
        other.step(alone, gs)
        a = PLACE.kept(t + 1)
        means = [a * m + (1 - a) * p for m, p in zip(means, params, strict=True)]
    assert_close(params, alone, 1e-14)
    assert_close([x for _, x in sorted(tower.averages(), key=lambda pair: pair[0])], means, 1e-13)


def test_an_update_that_the_bound_made_shorter():
    """It counts as one at a rate that is smaller by as much; the bound itself is held."""
    bounded = hs.SGD(0.0, at=replace(PLACE, bound=0.1))
    level = hs.SGD(hs.log(0.02), momentum=hs.learned(0.8))
    grads = [[3.0**t * g for g in each] for t, each in enumerate(gradients(8, shapes=SMALL))]
    tower = make_tower(level / bounded, tensors(shapes=SMALL))
    shares = [share for *_, share in averages(level / bounded, tower.raw(), grads, lambda t: 1.0)]
    assert sum(share < 0.9 for share in shares) > 1
    alive, wrong = check(level / bounded, grads=grads)
    assert not wrong
    assert alive == {"lr", "momentum"}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("level", "reads"),
    [(hs.Adam(hs.log(0.02)), False), (hs.LAMBC(hs.log(0.02)), True), (hs.SGD(hs.log(0.2), weight_decay=0.3), True)],
    ids=str,
)
def test_what_is_dropped_is_that_weights_are_read_elsewhere(level, reads):
    """Where the slow way reads the shifted weights, it differs exactly where the rule reads any."""
    _, wrong = check(level / OFF, own=True)
    assert ("lr" in wrong) == reads


@pytest.mark.slow
@pytest.mark.sampled(2)
@pytest.mark.parametrize("size", [30, 4])
def test_windows_in_blocks_of_any_size(size, monkeypatch):
    """A tensor that is cut, and several that lie together."""
    shapes = ((9, 40), (5,), (), (30,), (5, 6), (2, 3))
    found = []
    for block in (buffers.BLOCK, size):
        monkeypatch.setattr(buffers, "BLOCK", block)
        params, rows = (
            [p.t().contiguous().t() if p.dim() == 2 and len(p) == 5 else p for p in tensors(shapes=shapes)],
            [],
        )
        tower = make_tower(hs.Adam(hs.log(0.02), weight_decay=0.1) / hs.SGD(1.0, clip=[hs.cosine()], at=PLACE), params)
        for gs in gradients(2 * EVERY + 2, shapes=shapes):
            if tower.due:
                tower.measure(params, gs)
            tower.step(params, gs)
            rows += tower.hypergradients().values()
        found.append(
            [
                *params,
                *rows,
                *tower.hyperparameters().values(),
                *(x.clone() for _, x in sorted(tower.averages(), key=lambda pair: pair[0])),
            ]
        )
    assert_close(found[1], found[0], 1e-11, 1e-15)


# ---- an unrolled derivative, where losses are curved


def start_of_quadratic():
    return torch.randn(6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def unrolled(rule, curvature, raw, steps, decay):
    """ĝ of log lr after `steps`, by autograd through everything: the weights, their average, and every gradient.

    The losses are curvature/2 θᵀHθ - b_t·θ, so that the gradients are curvature·Hθ - b_t.
    """
    theta, generator = start_of_quadratic(), torch.Generator().manual_seed(4)
    h = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    h = curvature * (h @ h.t()) / 6
    mean, m, v, rows = theta, torch.zeros_like(theta), torch.zeros_like(theta), []
    for t in range(1, steps + 1):
        g = h @ theta - torch.randn(6, generator=generator, dtype=torch.float64) - 0.5
        rows.append(g.detach())
        if rule == "SGD":
            m = 0.9 * m + g
            u = -raw.exp() * m
        else:
            m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
            u = -raw.exp() * (m / (1 - 0.9**t)) / ((v / (1 - 0.99**t)).sqrt() + 1e-8)
        theta = theta + u
        mean = decay * mean + (1 - decay) * theta
    probe = h @ mean.detach() - 0.5
    return (probe * mean).sum(), rows, probe


TEXTS = {
    "SGD": "SGD(log({}), momentum=fixed(0.9))",
    "Adam": "Adam(log({}), beta1=fixed(0.9), beta2=fixed(0.99))",
}


@pytest.mark.parametrize(("rule", "rate"), [("SGD", 0.01), ("Adam", 0.02)])
def test_the_neglected_term_vanishes_with_the_curvature(rule, rate):
    """What is dropped, as a change of the cosine, over a window of 10 steps from the start with decay 0.9.

    It is of the order of ηλ times the window, η the rate and λ the eigenvalues of the Hessian: here 0.02 to 0.1 at
    eigenvalues of about 1 (run with -s), half as much with half the curvature, and nothing for linear losses.
    """
    left = []
    for curvature in (1.0, 0.5, 0.25, 0.125, 0.0625):
        raw = torch.tensor(math.log(rate), dtype=torch.float64, requires_grad=True)
        value, rows, probe = unrolled(rule, curvature, raw, 10, 0.9)
        (whole,) = torch.autograd.grad(value, raw)
        params = [start_of_quadratic()]
        place = hs.average(0.9, every=10, warmup=0)
        tower = make_tower(hs.parse(TEXTS[rule].format(rate)) / hs.SGD(0.0, at=place), params)
        for g in [*rows, rows[0]]:
            if tower.due:
                tower.measure(params, [probe])
            tower.step(params, [g])
        d = tower.climb.layout.unpack(tower.cells)["0.displacement"]
        left.append(float((tower.hypergradients()["0.lr"] - whole) / (probe.norm() * d)))
    print(f"{rule}: change of the cosine by what is dropped: " + ", ".join(f"{x:.4f}" for x in left))
    assert 0.02 < abs(left[0]) < 0.1
    ratios = [large / small for large, small in itertools.pairwise(left)]
    assert all(1.5 < ratio < 2.6 for ratio in ratios)
    assert 1.9 < ratios[-1] < 2.1


# ---- slow loops written out


def drawn(t):
    """The batch of step t, and the loss by it."""
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(100 + t), dtype=torch.float64)

    def loss(weights):
        hidden = torch.tanh(x @ weights[0] + weights[1])
        return ((hidden @ weights[2] - x[:, 0]) ** 2).mean()

    return loss


def initial(size=0.3):
    return [size * p for p in tensors(shapes=((6, 5), (5,), (5,)))]


def gradient_of(loss, weights):
    leaves = [w.detach().clone().requires_grad_() for w in weights]
    return torch.autograd.grad(loss(leaves), leaves)


def ours(text, steps, size=0.3):
    """Weights, averages and hyperparameters after each step of the optimizer."""
    weights = [torch.nn.Parameter(w) for w in initial(size)]
    opt, rows = hs.HyperOptimizer(weights, text), []
    for t in range(steps):

        def closure(t=t):
            opt.zero_grad()
            value = drawn(t)(weights)
            value.backward()
            return value

        opt.step(closure)
        with opt.averaged():
            means = [w.detach().clone() for w in weights]
        rows.append(([w.detach().clone() for w in weights], means, opt.hyperparameters()))
    return rows


def change(pairs):
    """The cosine between two lists of tensors."""
    pairs = list(pairs)
    return (
        sum((g * d).sum() for g, d in pairs)
        / (sum((g * g).sum() for g, _ in pairs) * sum((d * d).sum() for _, d in pairs)).sqrt()
    )


def counted(pairs, deviations=300.0):
    """What the cosine between two lists of tensors counts."""
    pairs = list(pairs)
    products = torch.cat([(g * d).flatten() for g, d in pairs])
    cosine, score = change(pairs), products.sum() / (deviations * products.norm())
    return max(cosine, score, key=abs).clamp(-1, 1)


def theirs(
    make,
    turn,
    rate,
    steps,
    every=100,
    decay=0.99,
    warmup=10,
    first=1,
    kappa=1.0,
    bound=0.0,
    deviations=300.0,
    above=0.0,
    size=0.3,
):
    """The loop, with an optimizer of others. `turn(optimizer, rate)` sets its rate."""
    weights = [torch.nn.Parameter(w) for w in initial(size)]
    opt, log_rate, rows = make(weights), math.log(rate), []
    means = [w.detach().clone() for w in weights]
    anchors, last, began = means, None, 0
    for t in range(steps):
        if t in ends(steps, every, warmup, first):
            pairs = list(
                zip(gradient_of(drawn(t), means), (m - a for m, a in zip(means, anchors, strict=True)), strict=True)
            )
            weighed = counted(pairs, deviations) * math.sqrt((t - began) / 10)
            received = sum((g * d).sum() for g, d in pairs)
            if last is not None:
                kappa = kappa - above * float(received * -last)
            log_rate, last, anchors, began = log_rate - kappa * float(weighed), weighed, means, t
        turn(opt, math.exp(log_rate))
        before = [w.detach().clone() for w in weights]
        for w, g in zip(weights, gradient_of(drawn(t), weights), strict=True):
            w.grad = g
        opt.step()
        share = shorter(before, [w.detach() for w in weights], bound * min(1.0, (t + 1) / 100))
        log_rate += math.log(share)
        with torch.no_grad():
            for w, b in zip(weights, before, strict=True):
                w.copy_(b + share * (w - b))
        a = min(decay, (t + 1) / (t + 1 + warmup))
        means = [a * m + (1 - a) * w.detach() for m, w in zip(means, weights, strict=True)]
        rows.append(
            ([w.detach().clone() for w in weights], means, {"0.lr": number(math.exp(log_rate)), "1.lr": number(kappa)})
        )
    return rows


def set_group(opt, rate):
    opt.param_groups[0]["lr"] = rate


def set_attribute(opt, rate):
    opt.lr = rate


PRIMARIES = {
    "Adam(1e-3)": (optim.Adam, set_group, 1e-3),
    "Adam(1.0)": (optim.Adam, set_group, 1.0),
    "SGD(1e-3, momentum=0.9)": (lambda p: optim.SGD(p, 0.1, momentum=0.9), set_group, 1e-3),
    "RMSProp(1e-3)": (optim.RMSprop, set_group, 1e-3),
    "AdaGrad(1e-2)": (optim.Adagrad, set_group, 1e-2),
    "AdamW(1e-3, weight_decay=0.1)": (lambda p: optim.AdamW(p, weight_decay=0.1), set_group, 1e-3),
    "LAMBC(1e-3, trust_max=0.5)": (lambda p: Document(p, high=0.5), set_attribute, 1e-3),
}


@pytest.mark.sampled(9)
@pytest.mark.parametrize("text", PRIMARIES)
def test_auto_is_the_loop_written_out(text):
    """60 steps in float64, from a rate that the bound makes smaller too."""
    make, turn, rate = PRIMARIES[text]
    compare(ours(f"auto({text})", 60), theirs(make, turn, rate, 60, bound=0.1))


def compare(found, wanted, rtol=1e-12):
    for (weights, means, values), (their_weights, their_means, their_values) in zip(found, wanted, strict=True):
        assert_close(weights, their_weights, rtol)
        assert_close(means, their_means, rtol)
        assert_close({k: values[k] for k in their_values}, their_values, rtol)
    rates = {float(row[2]["0.lr"]) for row in wanted}
    assert len(rates) >= len(wanted) // 10


def test_a_bound_holds_to_the_end():
    found = theirs(optim.Adam, set_group, 1e-2, 120, bound=1e-3)
    compare(ours("auto(Adam(1e-2), bound=1e-3)", 120), found, 1e-11)  # twice the steps, each with two sums in the log
    rates = [float(row[2]["0.lr"]) for row in found]
    lowered = [t for t in range(100, 120) if rates[t] < rates[t - 1] and t not in ends(120, 100, 10)]
    assert lowered  # by the bound alone


@pytest.mark.parametrize("rate", [1e-6, 1e-3, 1.0])
@pytest.mark.parametrize("size", [1e-6, 1e-4])
def test_weights_that_start_at_0_or_near_it_are_bounded_as_those_of_a_usual_size(size, rate):
    found = theirs(optim.Adam, set_group, rate, 60, bound=0.1, size=size)
    compare(ours(f"auto(Adam({rate}))", 60, size), found)
    first = [float(row[2]["0.lr"]) for row in found][:3]
    assert first[0] == pytest.approx(min(rate, 5e-6), rel=0.1)  # Adam's first step is the rate, for each weight
    assert min(first) > 1e-7


@pytest.mark.parametrize("rate", [1e-6, 1e-3, 1.0])
def test_weights_of_0_are_bounded_too(rate):
    weights = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
    opt = hs.HyperOptimizer([weights], f"auto(Adam({rate}))")
    opt.step(lambda: (weights - 1).square().sum().backward())
    rate = min(rate, 0.001 * 0.005)
    assert_close([weights, opt.hyperparameters()["0.lr"]], [torch.full((4,), rate), torch.tensor(rate)], 1e-7)  # eps


@pytest.mark.parametrize("text", ["SGD", "SGD(0.1)", "SGD(momentum=0.9)", "Adam", "AdamW(1)"])
def test_a_rate_that_outgrows_where_gradients_vanish_is_caught(text):
    """Least squares without noise: a cosine has no size, and raises the rate until steps are unstable."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    opt, losses = hs.HyperOptimizer(model.parameters(), f"auto({text})"), []
    for _ in range(500):
        x = torch.randn(32, 4)

        def closure(x=x):
            opt.zero_grad()
            loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
            loss.backward()
            return loss

        losses.append(opt.step(closure).item())
    assert min(losses) < 1e-4
    assert max(losses[100:]) < 0.25  # a tenth of a norm of 2 for each of the steps that it takes to turn
    with opt.averaged():
        assert closure().item() < 1e-3


@pytest.mark.parametrize("first", [1, 2, 7, 9])
def test_auto_without_a_bound_and_other_numbers(first):
    text = f"auto(Adam(1e-2), rate=0.5, decay=0.9, every=7, warmup=3, first={first}, bound=0)"
    numbers = {"kappa": 0.5, "decay": 0.9, "every": 7, "warmup": 3, "first": first}
    compare(ours(text, 60), theirs(optim.Adam, set_group, 1e-2, 60, **numbers))


def test_a_small_cosine_counts_by_its_deviations():
    """By so few of them all count as 1, by more some for more than they are, and by 0 each as it is."""
    rates = set()
    for deviations in (0.1, 4.0, 0.0):
        found = ours(f"auto(Adam(1e-2), deviations={deviations})", 60)
        given = {"bound": 0.1, "deviations": deviations or math.inf}
        compare(found, theirs(optim.Adam, set_group, 1e-2, 60, **given))
        rates.add(float(found[-1][2]["0.lr"]))
    assert len(rates) == 3


def test_three_levels_over_averages():
    """The rate of level 1 is learned from what it did last time: κ <- κ + κ' (ḡ·d) c, c what the one before counted."""
    found = ours("auto(Adam(1e-2)) / SGD(3.0)", 60)
    compare(found, theirs(optim.Adam, set_group, 1e-2, 60, bound=0.1, above=3.0))
    assert abs(float(found[-1][2]["1.lr"]) - 1) > 1e-3


def natural(h):
    """A rate, learned as its logarithm, and two betas, as values of (tanh(h) + 1) / 2."""
    return h[0].exp(), (h[1].tanh() + 1) / 2, (h[2].tanh() + 1) / 2


def adam(h, state, g, t):
    """Adam's update and its moments, by the raw hyperparameters."""
    rate, beta1, beta2 = natural(h)
    m, v = beta1 * state[0] + (1 - beta1) * g, beta2 * state[1] + (1 - beta2) * g**2
    return -rate * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + 1e-8), torch.stack([m, v])


@pytest.mark.slow
def test_betas_are_learned_by_what_is_carried_along():
    """Tangents of the weights' distance to their average and of the moments, by torch.autograd.functional.jvp."""
    kappa, decay, warmup, every = 0.3, 0.9, 5, 6
    text = f"Adam(log(0.003)) / SGD({kappa}, clip=[cosine], at=average({decay}, every={every}, warmup={warmup}))"
    weights, sizes = initial(), [w.numel() for w in initial()]
    shapes = [w.shape for w in weights]

    def flat(xs):
        return torch.cat([x.reshape(-1) for x in xs])

    def parts(x):
        return [p.view(s) for p, s in zip(x.split(sizes), shapes, strict=True)]

    h = torch.stack([number(0.003).log(), number(0.8).atanh(), number(0.998).atanh()])
    theta, rows = flat(weights), []
    mean, state = theta.clone(), torch.zeros(2, len(theta), dtype=torch.float64)
    ahead, moved, carried = (torch.zeros(3, *x.shape, dtype=torch.float64) for x in (theta, theta, state))
    anchor, began = mean, 0
    for t in range(60):
        if t in ends(60, every, warmup):
            probe = flat(gradient_of(drawn(t), parts(mean)))
            lost = [bool(d.norm() < 100 * EPS * (mean - anchor).norm()) for d in moved]
            assert lost == [False, t == 1, t == 1]  # the betas do nothing at Adam's first step
            cosines = [number(0.0) if gone else counted([(probe, d)]) for d, gone in zip(moved, lost, strict=True)]
            h, anchor = h - kappa * math.sqrt((t - began) / 10) * torch.stack(cosines), mean
            moved, began = torch.zeros_like(moved), t
        g, a = flat(gradient_of(drawn(t), parts(theta))), min(decay, (t + 1) / (t + 1 + warmup))
        for k in range(3):
            shift = torch.eye(3, dtype=torch.float64)[k]

            def step(raw, s, g=g, t=t):
                return adam(raw, s, g, t + 1)

            (_, after), (tangent, carried[k]) = torch.autograd.functional.jvp(step, (h, state), (shift, carried[k]))
            ahead[k] = ahead[k] + tangent
            moved[k] = moved[k] + (1 - a) * ahead[k]
            ahead[k] = a * ahead[k]
        theta = theta + step(h, state)[0]
        state, mean = after, a * mean + (1 - a) * theta
        values = dict(zip(("0.lr", "0.beta1", "0.beta2"), natural(h), strict=True))
        rows.append((parts(theta), parts(mean), values))
    found = ours(text, 60)
    compare(found, rows, 1e-10)
    assert abs(float(found[-1][2]["0.beta1"]) - 0.9) > 1e-3


@pytest.mark.parametrize(("steps", "last"), [(1, 0), (2, 1), (8, 6), (9, 7), (10, 7), (11, 8)])
def test_fixed_after_counts_steps_and_not_measurements(steps, last):
    """Those with a number up to `steps` learn: measurements are made in steps 2, 3, 4, 5, 6, 7, 9, 11, ..."""
    level = hs.SGD(hs.fixed_after(hs.log(0.01), steps), momentum=hs.learned(0.5))
    params = tensors(shapes=SMALL)
    tower = make_tower(level / hs.SGD(0.1, clip=[hs.cosine()], at=PLACE), params)
    rates = []
    for gs in gradients(4 * EVERY, shapes=SMALL):
        if tower.due:
            tower.measure(params, gs)
        tower.step(params, gs)
        rates.append(float(tower.hyperparameters()["0.lr"]))
    assert len(set(rates)) == 1 + last
    assert rates[-1] == rates[[0, *ends(4 * EVERY, EVERY, 3)][last]]


# ---- no wait for the device


def each_measuring(rule):
    """A stack that carries along everything that a rule can learn, one number a tensor; and one without."""
    spread = {name: hs.learned(hs.per_tensor(interior(h))) for name, h in rule.hyperparameters.items()}
    return [
        asked(rule, **spread, clip=True) / hs.SGD(1e-3, clip=[hs.cosine()], at=PLACE) / hs.SGD(1e-3),
        hs.auto(rule, every=2),
    ]


def some_steps(tower, params, grads, missing=()):
    schedule = torch.tensor(0.5, device=params[0].device)
    for t, gs in enumerate(grads):
        gs = [gs[0], None, *gs[2:]] if t in missing else gs
        if tower.due:
            tower.measure(params, gs)
        tower.step(params, gs, schedule)
        assert all(x.device == params[0].device for _, x in tower.averages())


@pytest.mark.slow
@pytest.mark.sampled(13)
@by_rule
def test_no_step_of_a_window_looks_at_a_value(rule):
    """On the meta device there are none."""
    for stack in each_measuring(rule):
        params = tensors(torch.float32, SMALL, device="meta")
        tower = make_tower(stack, params)
        some_steps(tower, params, gradients(6, torch.float32, SMALL, device="meta"), missing=(3,))
        for read in (AveragingTower.hyperparameters, AveragingTower.hypergradients, AveragingTower.nonfinite_counts):
            assert all(x.device.type == "meta" for x in read(tower).values())


@pytest.mark.gpu
@by_rule
def test_no_step_of_a_window_waits_for_the_gpu(rule):
    for stack in each_measuring(rule):
        params, grads = tensors(torch.float32, device="cuda"), gradients(20, torch.float32, device="cuda")
        tower = make_tower(stack, params)
        some_steps(tower, params, grads[:11])
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            some_steps(tower, params, grads[11:])
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@by_rule
def test_windows_on_the_gpu_are_those_of_the_cpu(rule):
    for stack in each_measuring(rule):
        found = []
        for device in ("cpu", "cuda"):
            params = tensors(shapes=SMALL, device=device)
            tower = make_tower(stack, params)
            some_steps(tower, params, gradients(9, shapes=SMALL, device=device))
            found.append(
                [
                    *params,
                    *tower.hyperparameters().values(),
                    *(x for _, x in sorted(tower.averages(), key=lambda pair: pair[0])),
                ]
            )
        assert_close(found[1], found[0], 1e-10)


# ---- kernels


@pytest.fixture
def uncompiled(monkeypatch):
    """The programs of the kernels, run as they are, on blocks that are small."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(buffers, "BLOCK", 64)


def in_kernels(stack, *fused, steps=8):
    """What comes of some steps, the tower handing over to one of the next kind in `fused` every third step."""
    params, kinds = tensors(), itertools.cycle(fused)
    tower = make_tower(stack, params, fused=next(kinds))
    for t, gs in enumerate(gradients(steps)):
        if t and t % 3 == 0 and len(fused) > 1:
            saved, tower = tower.export(), make_tower(stack, params, fused=next(kinds))
            tower.restore(saved, params)
        gs = [gs[0], None, *gs[2:]] if t in (2, 5) else gs
        if tower.due:
            tower.measure(params, gs)
        tower.step(params, gs, 0.5)
    means = [x.clone() for _, x in sorted(tower.averages(), key=lambda pair: pair[0])]
    return [*params, *means, *tower.hyperparameters().values(), *tower.hypergradients().values()]


@pytest.mark.slow
@by_rule
def test_windows_in_kernels(rule, uncompiled):
    for stack in each_measuring(rule):
        eager = in_kernels(stack, False)
        assert_close(in_kernels(stack, True), eager, 1e-11, 1e-12)
        assert_close(in_kernels(stack, True, False), eager, 1e-11, 1e-12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("text", ["auto(Adam)", "Adam(log(0.01)) / SGD(0.1, clip=[cosine], at=average(0.9, every=4))"])
def test_windows_in_compiled_kernels(text):
    stack = hs.parse(text)
    assert_close(in_kernels(stack, True), in_kernels(stack, False), 1e-10, 1e-12)
    assert_close(in_kernels(stack, True, False), in_kernels(stack, False), 1e-10, 1e-12)
