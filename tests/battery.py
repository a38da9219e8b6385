"""What the tests of rules and towers share: the table of oracles, generic data, and a slow tower to compare with.

`ORACLES` is kept by hand: a new rule adds its line there, and the tests check that it did. So is `FLAT`, which they
check too.
"""

from __future__ import annotations

import functools
import io
import itertools
import math
from types import SimpleNamespace

import torch
from torch import optim

import hyperstack as hs
from hyperstack.numerics import Segments

EPS = torch.finfo(torch.float64).eps


def ends(steps, every, warmup, first=1):
    """After which of so many steps a window ends: each is as long as a share of the steps before it."""
    found = [0]
    while found[-1] <= steps:
        found.append(found[-1] + min(every, max(first, int(found[-1] / warmup) if warmup else every)))
    return found[1:-1]


class Written(optim.Optimizer):
    """An oracle written out: `formula(g, state)` is what to subtract from a parameter.

    `weight_decay` λ adds λp to the gradient, or where `decoupled` subtracts lr λ p.
    """

    def __init__(self, params, formula, weight_decay=0.0, decoupled=0.0):
        super().__init__(params, {})
        self.formula, self.weight_decay, self.decoupled = formula, weight_decay, decoupled

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            p -= self.formula(p.grad + self.weight_decay * p, self.state[p]) + self.decoupled * p


class NAdam(optim.NAdam):
    """torch's, with its running product in float64 and not in the default dtype."""

    def step(self):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            super().step()
        finally:
            torch.set_default_dtype(before)


def published_adam(g, s, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, ams=False):
    t = s["t"] = s.get("t", 0) + 1
    m = s["m"] = beta1 * s.get("m", torch.zeros_like(g)) + (1 - beta1) * g
    v = s["v"] = beta2 * s.get("v", torch.full_like(g, eps)) + (1 - beta2) * g**2
    s["n"] = torch.where(v > s["n"], v, s["n"]) if "n" in s else v
    return lr * (m / (1 - beta1**t)) / (((s["n"] if ams else v) / (1 - beta2**t)) ** 0.5 + eps)


def published_adagrad(g, s, lr=1e-2, eps=1e-10):
    total = s["G"] = s.get("G", torch.full_like(g, 0.1)) + g**2
    return lr * g / (total + eps) ** 0.5


def published_rmsprop(g, s, lr=1e-2, gamma=0.99, eps=1e-8):
    v = s["s"] = gamma * s.get("s", torch.zeros_like(g)) + (1 - gamma) * g**2
    return lr * g / (v + eps) ** 0.5


def published_yogi(g, s, lr=1e-2, beta1=0.9, beta2=0.999, eps=1e-3, start=1e-6):
    """Algorithm 2, one number after another."""
    m, v = s.get("m", torch.zeros_like(g)), s.get("v", torch.full_like(g, start))
    change = torch.empty_like(g)
    for a, b, x, d in zip(m.view(-1), v.view(-1), g.reshape(-1), change.view(-1), strict=True):
        a.copy_(beta1 * a + (1 - beta1) * x)
        b.copy_(b - (1 - beta2) * x**2 if b > x**2 else b + (1 - beta2) * x**2)
        d.copy_(lr * a / (b**0.5 + eps))
    s["m"], s["v"] = m, v
    return change


def corrected_yogi(g, s, lr=1e-2, beta1=0.9, beta2=0.999, eps=1e-3, start=1e-6):
    """As it is commonly implemented: the rate and ε scaled so that published_yogi's step is the corrected one."""
    t = s["t"] = s.get("t", 0) + 1
    root = (1 - beta2**t) ** 0.5
    return published_yogi(g, s, lr * root / (1 - beta1**t), beta1, beta2, eps * root, start)


def authors_adabound(g, s, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, final_lr=0.1, gamma=1e-3, ams=False):
    t = s["t"] = s.get("t", 0) + 1
    m = s["m"] = beta1 * s.get("m", torch.zeros_like(g)) + (1 - beta1) * g
    v = s["v"] = beta2 * s.get("v", torch.zeros_like(g)) + (1 - beta2) * g**2
    s["n"] = torch.where(v > s["n"], v, s["n"]) if "n" in s else v
    rate = lr * (1 - beta2**t) ** 0.5 / (1 - beta1**t) / ((s["n"] if ams else v) ** 0.5 + eps)
    return rate.clamp(final_lr * (1 - 1 / (gamma * t + 1)), final_lr * (1 + 1 / (gamma * t))) * m


def published_lion(g, s, lr=1e-4, beta1=0.9, beta2=0.99):
    m = s.get("m", torch.zeros_like(g))
    s["m"] = beta2 * m + (1 - beta2) * g
    return lr * (beta1 * m + (1 - beta1) * g).sign()


class Document(optim.Optimizer):
    """Algorithm 1 of Fong et al. 2020, line by line, its bias correction with the power t that it leaves out.

    `eps_inside` is line 12 as printed; `whole` takes the norm of r + λw in line 13, as in You et al. 2020; `phi` clamps
    the norm of w; `low` and `high` are the bounds of equation 3, None where c = False. `deviations` and `gamma` are the
    two ways of section 5: ALRC's running moments of each layer's ratio, and AdaBound's schedule.
    """

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, decay=0.0, eps_inside=False, whole=False,
                 phi=None, low=0.0, high=None, deviations=None, keep=0.999, gamma=None):  # fmt: skip
        super().__init__(params, {})
        self.lr, self.betas, self.eps, self.decay = lr, betas, eps, decay
        self.eps_inside, self.whole, self.phi, self.keep = eps_inside, whole, phi, keep
        self.low, self.high, self.deviations, self.gamma = low, high, deviations, gamma

    @torch.no_grad()
    def step(self):
        for w in self.param_groups[0]["params"]:
            s, g, (beta1, beta2) = self.state[w], w.grad, self.betas
            t = s["t"] = s.get("t", 0) + 1
            s["m"] = beta1 * s.get("m", torch.zeros_like(w)) + (1 - beta1) * g
            s["v"] = beta2 * s.get("v", torch.zeros_like(w)) + (1 - beta2) * g**2
            m, v = s["m"] / (1 - beta1**t), s["v"] / (1 - beta2**t)
            r = m / (v + self.eps) ** 0.5 if self.eps_inside else m / (v**0.5 + self.eps)
            w -= self.lr * self.trust(w, r + self.decay * w if self.whole else r, s) * (r + self.decay * w)

    def trust(self, w, r, s):
        above, below = float((w**2).sum()) ** 0.5, float((r**2).sum()) ** 0.5
        if self.phi:
            above = min(max(above, self.phi[0]), self.phi[1])
        ratio = above / below if above and below else 1.0
        if self.high is None:
            return ratio
        low, high = self.low, self.high
        if self.deviations is not None:
            if s["t"] == 1:
                s["mean"], s["square"] = 3 * ratio, 9 * ratio**2
            high *= s["mean"] + self.deviations * max(s["square"] - s["mean"] ** 2, 0.0) ** 0.5
            s["mean"] = self.keep * s["mean"] + (1 - self.keep) * ratio
            s["square"] = self.keep * s["square"] + (1 - self.keep) * ratio**2
        if self.gamma is not None:
            low = max(low, high * (1 - 1 / (self.gamma * s["t"] + 1)))
            high = high * (1 + 1 / (self.gamma * s["t"]))
        return min(max(ratio, low), high)


def like(oracle, **arguments):
    """What makes an oracle of given parameters: a class of torch.optim, or a formula."""
    if isinstance(oracle, type):
        return functools.partial(oracle, **arguments)
    decay = {k: arguments.pop(k) for k in ("weight_decay", "decoupled") if k in arguments}
    formula = functools.partial(oracle, **arguments)
    return lambda params: Written(params, formula, **decay)


MIXED = {"centered": True, "momentum": 0.9, "weight_decay": 2}
AMS = {"lr": 0.02, "amsgrad": True}
AMSW = {**AMS, "betas": (0.9, 0.6), "weight_decay": 2}
AWAY = {"lr": 0.02, "weight_decay": 2, "decoupled_weight_decay": True}
RIGID = {"lr": 0.02, "momentum_decay": 0.0}
FAST = {"lr": 0.02, "betas": (0.8, 0.6), "eps": 0.01}
QUICK = {"lr": 0.1, "beta1": 0.8, "beta2": 0.6, "eps": 0.01}

# rule: (a level as text, its oracle), one line a case
ORACLES = {
    "SGD": [
        ("SGD(0.1)", like(optim.SGD, lr=0.1)),
        ("SGD", like(optim.SGD)),
        ("SGD(0.1, momentum=0.9)", like(optim.SGD, lr=0.1, momentum=0.9)),
        ("SGD(0.1, momentum=0.9, dampening=0.3)", like(optim.SGD, lr=0.1, momentum=0.9, dampening=0.3)),
        ("SGD(0.1, nesterov, momentum=0.8)", like(optim.SGD, lr=0.1, momentum=0.8, nesterov=True)),
        ("SGD(0.1, weight_decay=0.2)", like(optim.SGD, lr=0.1, weight_decay=0.2)),
        ("SGD(nesterov, momentum=0.8, weight_decay=2)", like(optim.SGD, momentum=0.8, weight_decay=2, nesterov=True)),
    ],
    "Adam": [
        ("Adam", like(optim.Adam)),
        ("Adam(0.02, beta1=0.8, beta2=0.95, eps=1e-3)", like(optim.Adam, lr=0.02, betas=(0.8, 0.95), eps=1e-3)),
        ("Adam(0.02, beta1=0.0, beta2=0.5)", like(optim.Adam, lr=0.02, betas=(0.0, 0.5))),
        ("Adam(0.02, amsgrad, beta2=0.6)", like(optim.Adam, lr=0.02, betas=(0.9, 0.6), amsgrad=True)),
        ("Adam(0.02, weight_decay=0.2)", like(optim.Adam, lr=0.02, weight_decay=0.2)),
        ("Adam(0.02, decoupled_weight_decay, weight_decay=0.2)", like(optim.AdamW, lr=0.02, weight_decay=0.2)),
        ("Adam(amsgrad, decoupled_weight_decay, weight_decay=2)", like(optim.AdamW, weight_decay=2, amsgrad=True)),
        ("Adam(0.02, v0=1e-8)", like(published_adam, lr=0.02)),
        ("Adam(0.02, beta1=0.7, beta2=0.9, v0=1e-8)", like(published_adam, lr=0.02, beta1=0.7, beta2=0.9)),
    ],
    "AdaGrad": [
        ("AdaGrad", like(optim.Adagrad)),
        ("AdaGrad(0.1, lr_decay=0.3)", like(optim.Adagrad, lr=0.1, lr_decay=0.3)),
        ("AdaGrad(0.1, initial=0.5, eps=1e-3)", like(optim.Adagrad, lr=0.1, initial_accumulator_value=0.5, eps=1e-3)),
        ("AdaGrad(0.1, weight_decay=0.2)", like(optim.Adagrad, lr=0.1, weight_decay=0.2)),
        ("AdaGrad(0.1, eps_inside, initial=0.1)", like(published_adagrad, lr=0.1)),
    ],
    "RMSProp": [
        ("RMSProp", like(optim.RMSprop)),
        ("RMSProp(0.02, alpha=0.8, eps=1e-3)", like(optim.RMSprop, lr=0.02, alpha=0.8, eps=1e-3)),
        ("RMSProp(0.02, centered)", like(optim.RMSprop, lr=0.02, centered=True)),
        ("RMSProp(0.02, momentum=0.9)", like(optim.RMSprop, lr=0.02, momentum=0.9)),
        ("RMSProp(centered, momentum=0.9, weight_decay=2)", like(optim.RMSprop, **MIXED)),
        ("RMSProp(square(0.02), eps_inside, alpha=0.9)", like(published_rmsprop, lr=0.02, gamma=0.9)),
    ],
    "AdamW": [
        ("AdamW", like(optim.AdamW)),
        ("AdamW(0.02, beta1=0.8, beta2=0.9, eps=1e-3)", like(optim.AdamW, lr=0.02, betas=(0.8, 0.9), eps=1e-3)),
        ("AdamW(0.02, amsgrad, beta2=0.6, weight_decay=2)", like(optim.AdamW, **AMSW)),
        ("AdamW(0.02, v0=1e-8, weight_decay=0.5)", like(published_adam, lr=0.02, decoupled=0.02 * 0.5)),
    ],
    "AMSGrad": [
        ("AMSGrad", like(optim.Adam, amsgrad=True)),
        ("AMSGrad(0.02, beta1=0.8, beta2=0.6, eps=0.1)", like(optim.Adam, **AMS, betas=(0.8, 0.6), eps=0.1)),
        ("AMSGrad(0.02, weight_decay=0.2)", like(optim.Adam, **AMS, weight_decay=0.2)),
        ("AMSGrad(0.02, decoupled_weight_decay, weight_decay=2)", like(optim.AdamW, **AMS, weight_decay=2)),
        ("AMSGrad(0.02, v0=1e-8)", like(published_adam, lr=0.02, ams=True)),
    ],
    "NAdam": [
        ("NAdam", like(NAdam)),
        ("NAdam(0.02, beta1=0.8, beta2=0.9, eps=1e-3)", like(NAdam, lr=0.02, betas=(0.8, 0.9), eps=1e-3)),
        ("NAdam(0.02, momentum_decay=0.7)", like(NAdam, lr=0.02, momentum_decay=0.7)),
        ("NAdam(0.02, beta1=0.0, momentum_decay=0.0)", like(NAdam, **RIGID, betas=(0.0, 0.999))),
        ("NAdam(0.02, beta1=0.99, momentum_decay=0.0)", like(NAdam, **RIGID, betas=(0.99, 0.999))),
        ("NAdam(0.02, weight_decay=0.2)", like(NAdam, lr=0.02, weight_decay=0.2)),
        ("NAdam(0.02, decoupled_weight_decay, weight_decay=2)", like(NAdam, **AWAY)),
    ],
    "RAdam": [
        ("RAdam", like(optim.RAdam)),
        ("RAdam(0.02, beta1=0.8, beta2=0.9, eps=1e-3)", like(optim.RAdam, lr=0.02, betas=(0.8, 0.9), eps=1e-3)),
        ("RAdam(0.02, beta2=0.7)", like(optim.RAdam, lr=0.02, betas=(0.9, 0.7))),
        ("RAdam(0.02, weight_decay=0.2)", like(optim.RAdam, lr=0.02, weight_decay=0.2)),
        ("RAdam(0.02, decoupled_weight_decay, weight_decay=2)", like(optim.RAdam, **AWAY)),
    ],
    "Yogi": [
        ("Yogi", like(published_yogi)),
        ("Yogi(0.1, beta1=0.8, beta2=0.6, eps=0.01, v0=0.003)", like(published_yogi, **QUICK, start=0.003)),
        ("Yogi(0.1, weight_decay=0.2)", like(published_yogi, lr=0.1, weight_decay=0.2)),
        ("Yogi(0.1, v0=0.0)", like(published_yogi, lr=0.1, start=0.0)),
        ("Yogi(bias_correction)", like(corrected_yogi)),
        ("Yogi(0.1, bias_correction, beta1=0.8, beta2=0.6, eps=0.01)", like(corrected_yogi, **QUICK)),
    ],
    "AdaBound": [
        ("AdaBound", like(authors_adabound)),
        ("AdaBound(0.1, beta1=0.8, beta2=0.6, eps=0.01)", like(authors_adabound, **QUICK, final_lr=10)),
        ("AdaBound(0.1, final_ratio=10, gamma=0.1)", like(authors_adabound, lr=0.1, final_lr=1, gamma=0.1)),
        ("AdaBound(0.1, final_ratio=0)", like(authors_adabound, lr=0.1, final_lr=0)),
        ("AdaBound(0.1, amsbound, beta2=0.6)", like(authors_adabound, lr=0.1, final_lr=10, beta2=0.6, ams=True)),
        ("AdaBound(weight_decay=0.2)", like(authors_adabound, weight_decay=0.2)),
        ("AdaBound(decoupled_weight_decay, weight_decay=2)", like(authors_adabound, decoupled=0.002)),
    ],
    "LAMB": [
        ("LAMB", like(Document)),
        ("LAMB(0.02, beta1=0.8, beta2=0.6, eps=0.01)", like(Document, **FAST)),
        ("LAMB(0.02, eps_inside, beta1=0.8, beta2=0.6, eps=0.01)", like(Document, **FAST, eps_inside=True)),
        ("LAMB(0.02, weight_decay=0.2)", like(Document, lr=0.02, decay=0.2)),
        ("LAMB(0.02, decay_in_ratio, weight_decay=2)", like(Document, lr=0.02, decay=2, whole=True)),
        ("LAMB(0.02, phi_max=1.5)", like(Document, lr=0.02, phi=(0, 1.5))),
        ("LAMB(0.02, phi_min=1.5, phi_max=3)", like(Document, lr=0.02, phi=(1.5, 3))),
    ],
    "LAMBC": [
        ("LAMBC", like(Document, high=1)),
        ("LAMBC(0.02, beta1=0.8, beta2=0.6, eps=0.01)", like(Document, **FAST, high=1)),
        ("LAMBC(0.02, trust_min=0.9, trust_max=1.2)", like(Document, lr=0.02, low=0.9, high=1.2)),
        ("LAMBC(0.02, decay_in_ratio, weight_decay=2)", like(Document, lr=0.02, decay=2, whole=True, high=1)),
        ("LAMBC(0.02, eps_inside, phi_min=1.5, phi_max=3.0, eps=0.1)",
         like(Document, lr=0.02, eps_inside=True, eps=0.1, phi=(1.5, 3), high=1)),
        ("LAMBC(0.02, deviations=0.1, trust_decay=0.3)", like(Document, lr=0.02, high=1, deviations=0.1, keep=0.3)),
        ("LAMBC(0.02, deviations=3, trust_max=0.1)", like(Document, lr=0.02, high=0.1, deviations=3)),
        ("LAMBC(0.02, bound_gamma=0.5)", like(Document, lr=0.02, high=1, gamma=0.5)),
        ("LAMBC(0.02, bound_gamma=0.5, trust_min=0.6, weight_decay=0.2)",
         like(Document, lr=0.02, low=0.6, high=1, gamma=0.5, decay=0.2)),
        ("LAMBC(0.02, bound_gamma=2, deviations=0.1, trust_decay=0.3)",
         like(Document, lr=0.02, high=1, deviations=0.1, keep=0.3, gamma=2)),
    ],
    "Lion": [
        ("Lion", like(published_lion)),
        ("Lion(0.02, beta1=0.5, beta2=0.7)", like(published_lion, lr=0.02, beta1=0.5, beta2=0.7)),
        ("Lion(0.02, weight_decay=0.2)", like(published_lion, lr=0.02, decoupled=0.004)),
    ],
}  # fmt: skip
# The hyperparameters of which the one-step hypergradient is always 0.
FLAT = {"Lion": ("beta1", "beta2"), "LAMBC": ("trust_decay",)}
CASES = [case for cases in ORACLES.values() for case in cases]


# Those that come with hyperstack; other tests may register toys.
RULES = {name: rule for name, rule in hs.RULES.items() if rule.__module__.startswith("hyperstack.")}
PAIRS = list(itertools.product(RULES, repeat=2))


# Where bounds cut some trust ratios of generic tensors and leave others, and a mean follows within a few steps.
INSIDE = {hs.LAMBC.trust_min: 0.8, hs.LAMBC.trust_max: 1.2, hs.LAMBC.trust_decay: 0.3}
AWAY_FROM = {hs.LAMB.phi_max: 1.5, hs.LAMBC.bound_gamma: 0.3}


def option_choices(rule):
    """Every combination of a rule's options: flags off and on, numbers at their default and away from it.

    Of more than four options, at most two are away from their defaults.
    """
    away = {n: AWAY_FROM.get(o, o.default + 0.1) for n, o in rule.options.items()}
    away.update({n: not o.default for n, o in rule.options.items() if isinstance(o.default, bool)})
    counts = range(len(away) + 1 if len(away) <= 4 else 3)
    chosen = [names for count in counts for names in itertools.combinations(away, count)]
    return [{n: away[n] if n in names else o.default for n, o in rule.options.items()} for names in chosen]


def interior(hyperparameter):
    """A value well inside a hyperparameter's domain, where no scale is extreme.

    A domain without end counts as one up to 1, or up to a tenth of a default that is larger.
    """
    if hyperparameter in INSIDE:
        return INSIDE[hyperparameter]
    low, high = hyperparameter.domain.low, hyperparameter.domain.high
    low = low if math.isfinite(low) else 0.0
    return low + 0.3 * ((high if math.isfinite(high) else max(1.0, hyperparameter.default / 10)) - low)


def asked(rule, wish=lambda value: value, **arguments):
    """A level of which every hyperparameter that is not flat is asked to be learned, at interior values."""
    flat = FLAT.get(rule.__name__, ())
    settings = {k: (hs.fixed if k in flat else hs.learned)(wish(interior(h))) for k, h in rule.hyperparameters.items()}
    return rule(**{**settings, **arguments})


def calm(name, *above):
    """What to fix under a level whose steps are as long for small gradients, also where one is 0 but for rounding.

    That is what Adam's betas have at first.
    """
    declared = RULES[name].hyperparameters if {"Lion", "LAMB", "LAMBC"} & set(above) else {}
    return {k: hs.fixed(interior(h)) for k, h in declared.items() if h.bijection == "logit"}


SHAPES = ((9, 40), (5,), (), (2, 1, 3))
SMALL = ((3, 4), (5,), (), (2, 1, 3))


def tensors(dtype=torch.float64, shapes=SHAPES, seed=1, device="cpu"):
    """Generic parameters."""
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=random, dtype=torch.float64).to(device, dtype) for s in shapes]


def gradients(steps, dtype=torch.float64, shapes=SHAPES, seed=2, device="cpu"):
    """`steps` lists of gradients of a norm of about 2 that share a direction, so that hypergradients add up."""
    scale = 1.6 / max(1, sum(torch.Size(s).numel() for s in shapes)) ** 0.5
    drift = tensors(torch.float64, shapes, seed)
    noise = [tensors(torch.float64, shapes, seed + 100 + t) for t in range(steps)]
    return [[(scale * (d + n)).to(device, dtype) for d, n in zip(drift, ns, strict=True)] for ns in noise]


def assert_close(got, wanted, rtol, atol=0.0):
    """Whole arrays, finite, equal to `rtol` of the largest entry of each, or `atol`."""
    pairs = ((k, got[k], wanted[k]) for k in wanted) if isinstance(wanted, dict) else enumerate_pairs(got, wanted)
    assert len(got) == len(wanted)
    for key, a, b in pairs:
        a, b = a.detach().double().cpu(), b.detach().double().cpu()
        assert a.shape == b.shape, (key, a.shape, b.shape)
        assert torch.isfinite(b).all(), (key, b)
        error, bound = (a - b).abs(), atol + (rtol * b.abs().max() if b.numel() else 0.0)
        assert bool((error <= bound).all()), f"{key}: off by {error.max():.3g} > {bound:.3g}: {a} != {b}"


def enumerate_pairs(got, wanted):
    return ((i, a, b) for i, (a, b) in enumerate(zip(got, wanted, strict=True)))


def flatten(value, key=""):
    """The leaves of nested dicts and lists, by path."""
    if isinstance(value, dict):
        return {k: v for name, x in value.items() for k, v in flatten(x, f"{key}.{name}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, x in enumerate(value) for k, v in flatten(x, f"{key}[{i}]").items()}
    return {key: value}


def assert_same(got, wanted):
    """Bit for bit, NaN equal to NaN."""
    got, wanted = flatten(got), flatten(wanted)
    assert got.keys() == wanted.keys(), got.keys() ^ wanted.keys()
    for key, b in wanted.items():
        a = got[key]
        if isinstance(b, torch.Tensor):
            assert a.dtype == b.dtype, key
            assert torch.equal(torch.nan_to_num(a, 7.25), torch.nan_to_num(b, 7.25)), f"{key}: {a} != {b}"
        else:
            assert a == b, f"{key}: {a} != {b}"


def written(state):
    """Through a file, read back as a stranger's would be."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def number(x):
    return torch.tensor(float(x), dtype=torch.float64)


def clip_cumulatively(g, memory, skip_zeros=False):
    """Section 3 of the design, word for word, on one tensor; `memory` holds t and θ' and is changed."""
    n = float(torch.linalg.vector_norm(g))
    if skip_zeros and memory["t"] == 0 and n == 0:
        return g
    t = memory["t"] = memory["t"] + 1
    theta = n if t == 1 else ((t - 1) * memory["theta"] + n) / t
    clipped = g if n == 0 else g * min(1.0, theta / n)
    n = float(torch.linalg.vector_norm(clipped))
    memory["theta"] = theta if t == 1 else ((t - 1) * memory["theta"] + n) / t
    return clipped


def start(rule, p):
    """The state of one tensor before its first update, one number a tensor included."""
    return {**rule.init(p), **rule.init_layers(p.new_zeros(1))}


def apply(rule, g, state, h, t, p):
    """One update of one tensor by a rule's own pure functions: what it adds to `p`, and the state after."""
    c = SimpleNamespace(**{n: x.to(g.dtype) for n, x in rule.coefficients(h, t).items()})
    if rule.per_layer:
        c.layers = Segments([tuple(p.shape)], p.device)
        flat = {n: x.reshape(-1) for n, x in state.items()}
        delta, after = rule.update(g.reshape(-1), flat, c, p.reshape(-1))
        return delta.view(p.shape), {n: x.view(state[n].shape) for n, x in after.items()}
    return rule.update(g, state, c, p if rule.reads_params else None)


class Reference:
    """The tower of the design, slow and obvious: one tensor at a time, and one autograd graph through a whole step.

    `moved[0]` holds the parameters, `moved[k]` the raw hyperparameters of level k-1, all connected by the last
    step; `slots[k][key]` holds what level k keeps for the tensor `key` that it updates.
    """

    def __init__(self, stack, params, nonfinite="skip"):
        self.rules, self.resolved, self.nonfinite = list(stack), stack.resolve(), nonfinite
        self.moved = [dict(enumerate(p.detach().clone() for p in params))]
        for resolved in self.resolved:
            shape = {False: (), True: (len(self.moved[-1]),)}
            learned = {k: r for k, r in resolved.items() if r.learned}
            self.moved.append(
                {k: number(r.bijection.to_raw(r.value)).expand(shape[r.per_tensor]) for k, r in learned.items()}
            )
        self.slots = [
            {
                key: {"t": 0, "state": start(r, x), "clip": [{"t": 0, "theta": 0.0} for _ in r.clip]}
                for key, x in m.items()
            }
            for r, m in zip(self.rules, self.moved, strict=False)
        ]
        self.updated, self.skipped = (
            set(),
            {f"{k - 1}.{n}": 0 for k in range(1, len(self.moved)) for n in self.moved[k]},
        )
        self.factors = {key: number(1) for key in self.skipped}
        self.hypergradients = [{name: torch.zeros_like(x) for name, x in m.items()} for m in self.moved[1:]]

    def values(self, k, raws, schedule=1.0):
        """The hyperparameters of level k in natural units."""
        found = {}
        for name, r in self.resolved[k].items():
            found[name] = r.bijection.to_value(raws[name]) if r.learned else number(r.value)
        found["lr"] = found["lr"] * (schedule if k == 0 else 1.0)
        return found

    def hyperparameters(self):
        found = {f"{k}.{n}": v for k in range(len(self.rules)) for n, v in self.values(k, self.moved[k + 1]).items()}
        return {key: v.detach() for key, v in found.items()}

    def step(self, grads, schedule=1.0):
        if all(g is None for g in grads):
            return
        grads = {i: g for i, g in enumerate(grads) if g is not None}
        self.hypergradients = self.pull(grads)
        received = [grads, *self.hypergradients[:-1]]
        self.start = [{key: x.detach() for key, x in m.items()} for m in self.moved]
        self.start_states = [{key: slot["state"] for key, slot in slots.items()} for slots in self.slots]
        self.schedule = schedule
        self.ready = [self.accept(k, given) for k, given in enumerate(received)]
        self.moved, states = self.descend()
        for slots, new in zip(self.slots, states, strict=True):
            for key, state in new.items():
                slots[key]["state"] = {n: x.detach() for n, x in state.items()}
        self.updated = set(grads)

    def pull(self, grads):
        """The gradient of every raw hyperparameter, by backpropagation through the whole last step."""
        hit = [i for i in grads if i in self.updated and self.moved[0][i].requires_grad]
        sources = [x for m in self.moved[1:] for x in m.values()]
        if not hit or not sources:
            return [{n: torch.zeros_like(x) for n, x in m.items()} for m in self.moved[1:]]
        outputs, weights = [self.moved[0][i] for i in hit], [grads[i] for i in hit]
        found = iter(torch.autograd.grad(outputs, sources, weights, retain_graph=True, materialize_grads=True))
        return [{n: next(found) for n in m} for m in self.moved[1:]]

    def accept(self, k, given):
        """The clipped gradients that level k goes by, and a tick of the clock of each tensor that has one."""
        ready = {}
        for key, g in given.items():
            if k and not torch.isfinite(g).all():
                self.skipped[f"{k - 1}.{key}"] += 1
                self.factors[f"{k - 1}.{key}"] = number(1)
                if self.nonfinite == "skip":
                    continue
            slot, before = self.slots[k][key], torch.linalg.vector_norm(g)
            for transform, memory in zip(self.rules[k].clip, slot["clip"], strict=True):
                g = clip_cumulatively(g, memory, transform.skip_zeros)
            slot["t"] += 1
            ready[key] = g
            if k:
                self.factors[f"{k - 1}.{key}"] = torch.linalg.vector_norm(g) / before if before else number(1)
        return ready

    def descend(self, nudges=None):
        """The last step again, from where it started: what it moved, connected, and the states after it.

        `nudges` adds to raw hyperparameters where the step uses them: {(level, name): tensor}.
        """
        start = self.start
        moved, states = [start[-1]], []
        for k in reversed(range(len(self.rules))):
            nudged = {n: x + nudges[k, n] if (k, n) in (nudges or {}) else x for n, x in moved[0].items()}
            moved[0] = {n: x if x.requires_grad else x.detach().requires_grad_() for n, x in nudged.items()}
            h = self.values(k, moved[0], self.schedule)
            new, after = dict(start[k]), {}
            for position, (key, x) in enumerate(start[k].items()):
                if key in self.ready[k]:
                    mine = SimpleNamespace(**{n: v[position] if v.dim() else v for n, v in h.items()})
                    t = number(self.slots[k][key]["t"])
                    g, s, p = self.ready[k][key], self.start_states[k][key], x
                    delta, after[key] = apply(self.rules[k], g, s, mine, t, p)
                    new[key] = x + delta
            moved, states = [new, *moved], [after, *states]
        return moved, states

    def follow(self, cotangents, nudges):
        """<g, what the last step added to the parameters>, had these raw hyperparameters been others."""
        with torch.no_grad():
            moved, _ = self.descend(nudges)
        start = self.start[0]
        return sum(float((g * (moved[0][i] - start[i])).sum()) for i, g in enumerate(cotangents) if g is not None)


def central_differences(reference, cotangents, level, name):
    """d<g, Δθ>/draw of each entry of a raw hyperparameter in the last step, and how far off that may be.

    With step h = eps^(1/3) the quotient is off by h² f'''/6, a third of its difference from the quotient with step 2h,
    and by the rounding of every number on the way, 10 eps of it times its own derivative.
    """
    raw, h = reference.start[level + 1][name], EPS ** (1 / 3)
    slopes = [dict(enumerate(cotangents)), *reference.pull(dict(enumerate(cotangents)))]
    size = sum(
        float((slopes[k][key] * x.detach()).abs().sum()) for k, m in enumerate(reference.moved) for key, x in m.items()
    )
    found, errors = torch.zeros_like(raw), torch.zeros_like(raw)
    for i in range(raw.numel()):
        unit = torch.zeros_like(raw)
        unit.view(-1)[i] = h

        def quotient(times, unit=unit):
            up, down = (reference.follow(cotangents, {(level, name): sign * times * unit}) for sign in (1, -1))
            return (up - down) / (2 * times * h)

        near, far = quotient(1), quotient(2)
        found.view(-1)[i] = near
        errors.view(-1)[i] = abs(far - near) + 10 * EPS * size / h + 1e-6 * abs(near)
    return found, errors
