"""Gradient transforms against their sources, transcribed in plain Python; and what all of them have to keep to."""

import io
import math
import re
from dataclasses import MISSING, fields, replace

import numpy as np
import pytest
import torch
from battery import assert_close, assert_same

import hyperstack as hs
from hyperstack import buffers
from hyperstack.engine import Tower
from hyperstack.errors import InputError
from hyperstack.numerics import Segments, spread_bound
from hyperstack.transforms import TRANSFORMS, Context, Cumulative, Percentile, Transform

SHAPES = {
    "tensors": [(3, 4), (1,), (), (7,), (2, 1, 5)],
    "hyperparameters": [(), (), (), ()],
    "without elements": [(2, 3), (0,), (0, 4), (4, 0)],
}
STEPS = 50


def norm_of(numbers):
    return math.sqrt(math.fsum(x * x for x in numbers)) if all(map(math.isfinite, numbers)) else math.nan


class SlowNorm:
    """From one norm after another to the factor; `condition`: what the last one made of a rounding error."""

    condition = 1.0

    def __init__(self, c):
        self.c = c

    def __call__(self, n):
        return self.c / n if n > self.c else 1.0


class SlowNormalize(SlowNorm):
    def __init__(self): ...

    def __call__(self, n):
        return 1 / n if n > 0 else 1.0


class SlowCumulative(SlowNorm):
    def __init__(self, skip_zeros=False):
        self.skip_zeros, self.t, self.average = skip_zeros, 0, 0.0

    def __call__(self, n):
        if math.isnan(n) or (self.skip_zeros and self.t == 0 and n == 0):
            return 1.0
        self.t += 1
        threshold = n if self.t == 1 else ((self.t - 1) * self.average + n) / self.t
        factor = min(1.0, threshold / n) if n else 1.0
        self.average = threshold if self.t == 1 else ((self.t - 1) * self.average + n * factor) / self.t
        return factor


class SlowAdaptive(SlowNorm):
    def __init__(self, n=3.0, decay=0.999):
        self.n, self.decay, self.mean, self.square = n, decay, None, None

    def __call__(self, n):
        if math.isnan(n) or (self.mean is None and n == 0):
            return 1.0
        if self.mean is None:
            self.mean, self.square = 3 * n, (3 * n) ** 2
            return 1.0
        variance = max(0.0, self.square - self.mean**2)
        self.condition = self.square / variance if variance else 1.0
        limit = self.mean + self.n * math.sqrt(variance)
        self.mean = self.decay * self.mean + (1 - self.decay) * n
        self.square = self.decay * self.square + (1 - self.decay) * n**2
        return limit / n if n > limit else 1.0


class SlowPercentile(SlowNorm):
    def __init__(self, p=10.0, window=128):
        self.p, self.window, self.known = p, window, []

    def __call__(self, n):
        if math.isnan(n) or n == 0:
            return 1.0
        self.known.append(n)
        known = self.known[-self.window :]
        limit = float(np.percentile(known, self.p))
        self.condition = 1 + max(known) / limit  # by how much a percentile is off that is looked up a little aside
        return limit / n if n > limit else 1.0


def gradients(shapes, dtype=torch.float64, broken=True):
    """`STEPS` flat gradients: zero at first, then noise, spikes, zeros and numbers that are not finite."""
    segments = Segments(shapes)
    for t in range(STEPS):
        parts = [torch.randn(n, dtype=dtype) * 10 ** float(torch.randn(())) for n in segments.sizes]
        for i, part in enumerate(parts):
            if t <= i or (t + i) % 11 == 0:  # the first gradient that is not zero comes at another step for each
                part.zero_()
            elif (t * (i + 1)) % 13 == 5:
                part.mul_(1e6)
            if broken and len(part) and (t + 3 * i) % 17 == 9:
                part[t % len(part)] = (math.nan, math.inf, -math.inf)[t % 3]
        yield torch.cat(parts)


def same(found, expected, rtol):
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=0, equal_nan=True)


def away(f):
    """A value of a field that is not its default."""
    if f.name == "names":
        return "[02]"
    if isinstance(f.default, bool):
        return not f.default
    domain = f.metadata["domain"]
    if isinstance(domain, tuple):
        return next(choice for choice in domain if choice != f.default)
    return next(x for x in (2, 0.5) if x in domain and x != f.default)


def instances():
    """Each transform as it comes, its numbers 1 where it needs one, and with every option away from its default."""
    for cls in TRANSFORMS.values():
        needed = {f.name: 1.0 for f in fields(cls) if f.default is MISSING}
        others = {f.name: away(f) for f in fields(cls)}
        yield cls(**needed)
        yield cls(**others)


every_transform = pytest.mark.parametrize("transform", [*instances()], ids=str)
every_shape = pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def context(shapes, dtype=torch.float64):
    """With generic parameters, and slopes that make nothing longer."""
    segments = Segments(shapes)
    return Context(segments, torch.randn(segments.total, dtype=dtype), 1 + torch.rand(segments.total, dtype=dtype))


def start(transform, around):
    return transform.init(around.segments, torch.zeros_like(around.params))


FACTORS = [
    ("norm", lambda: SlowNorm(1.0), {"c": 1.0}),
    ("norm", lambda: SlowNorm(20.0), {"c": 20.0}),
    ("normalize", SlowNormalize, {}),
    ("cumulative", SlowCumulative, {}),
    ("cumulative", lambda: SlowCumulative(True), {"skip_zeros": True}),
    ("adaptive", SlowAdaptive, {}),
    ("adaptive", lambda: SlowAdaptive(0.5, 0.9), {"n": 0.5, "decay": 0.9}),
    ("percentile", SlowPercentile, {}),
    ("percentile", lambda: SlowPercentile(50, 128), {"p": 50}),
    ("percentile", lambda: SlowPercentile(75, 6), {"p": 75, "window": 6}),
    ("percentile", lambda: SlowPercentile(10, 1), {"window": 1}),
]


@pytest.mark.sampled(39)
@every_dtype
@every_shape
@pytest.mark.parametrize("per", ["tensor", "level"])
@pytest.mark.parametrize(("name", "oracle", "options"), FACTORS, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_what_multiplies_against_its_transcription(name, oracle, options, per, shapes, dtype):
    """Each step adds a few rounding errors and those of a sum of squares; averages only shrink the older ones."""
    transform, around = TRANSFORMS[name](**options, per=per), context(shapes, dtype)
    sizes, state, seen = around.segments.sizes, start(transform, around), []
    slow = [oracle() for _ in (shapes if per == "tensor" else [0])]
    for gradient in gradients(shapes, dtype):
        after, state, factor = transform(gradient, state, around)
        parts = [part.tolist() for part in gradient.split(sizes)]
        groups = parts if per == "tensor" else [[x for part in parts for x in part]]
        found = [clip(norm_of(group)) for clip, group in zip(slow, groups, strict=True)]
        expected = found if per == "tensor" else found * len(shapes)
        rtol = STEPS * 20 * torch.finfo(dtype).eps * max(clip.condition for clip in slow)
        same(factor, expected, rtol)
        same(after, [x * f for part, f in zip(parts, expected, strict=True) for x in part], rtol)
        seen.append(factor)
    busy = torch.stack(seen)[:, [i for i, size in enumerate(sizes) if size]]
    assert (busy == 1).any(0).all()
    assert (busy < 1).any(0).all() != (options.get("window") == 1)  # the only norm known is the norm itself
    if name == "cumulative":
        same(state["average"], [clip.average for clip in slow] * (len(shapes) // len(slow)), rtol)
        same(state["steps"], [clip.t for clip in slow] * (len(shapes) // len(slow)), 0)
        assert all(clip.t < STEPS for clip, size in zip(slow, sizes, strict=False) if size)  # some were left out


@every_dtype
@every_shape
def test_value_as_torch_does(shapes, dtype):
    transform, around = hs.value(0.3), context(shapes, dtype)
    for gradient in gradients(shapes, dtype):
        parameter = torch.nn.Parameter(torch.zeros_like(gradient))
        parameter.grad = gradient.clone()
        torch.nn.utils.clip_grad_value_([parameter], 0.3)
        after, _, factor = transform(gradient, {}, around)
        assert_same(after, parameter.grad)
        for part, short, f in zip(*(x.split(around.segments.sizes) for x in (gradient, after)), factor, strict=True):
            before, now = float(part.norm()), float(short.norm())
            expected = now / before if math.isfinite(now) and before > 0 else 1.0
            assert float(f) == pytest.approx(expected, rel=20 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("c", [0.1, 2.0, 1e3])
def test_norm_as_torch_does(c):
    """torch divides by the norm + 1e-6, also where it is below c, if by less than that."""
    transform, around = hs.norm(c), context(SHAPES["tensors"])
    clipped = 0
    for gradient in gradients(SHAPES["tensors"], broken=False):
        parameters = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in SHAPES["tensors"]]
        for parameter, part in zip(parameters, around.segments.tensors(gradient.clone()), strict=True):
            parameter.grad = part
        total = float(torch.nn.utils.clip_grad_norm_(parameters, c))
        after, _, factor = transform(gradient, {}, around)
        theirs = torch.cat([parameter.grad.reshape(-1) for parameter in parameters])
        short = total / (total + 1e-6) if total > c else 1.0
        torch.testing.assert_close(after * short, theirs, rtol=1e-14, atol=0)
        assert (factor == factor[0]).all()
        clipped += bool(factor[0] < 1)
    assert 0 < clipped < STEPS


UNITS = [*SHAPES["tensors"], (5, 1), (1, 1), (0, 4), (4, 0), (2, 2, 2, 2)]


def units_of(x):
    """The rows of a tensor as lists of numbers; of one without rows, all of it."""
    return [row.reshape(-1).tolist() for row in x] if x.dim() > 1 else [x.reshape(-1).tolist()]


@pytest.mark.sampled(5)
@every_dtype
@pytest.mark.parametrize("shapes", [UNITS, [(), (1, 1), ()]], ids=["tensors", "numbers"])
@pytest.mark.parametrize(("ratio", "eps"), [(0.01, 1e-3), (0.5, 2.0)])
def test_agc_against_its_transcription(ratio, eps, shapes, dtype):
    transform, around = hs.agc(ratio=ratio, eps=eps), context(shapes, dtype)
    around.params[-1] *= 1e-9
    rtol = 100 * torch.finfo(dtype).eps
    changed = passed = 0
    for gradient in gradients(shapes, dtype):
        expected = []
        pairs = zip(*(around.segments.tensors(x) for x in (gradient, around.params)), strict=True)
        for g, w in ((g, w) for gs, ws in pairs for g, w in zip(units_of(gs), units_of(ws), strict=True)):
            n, limit = norm_of(g), ratio * max(norm_of(w), eps)
            factor = limit / n if n > limit else 1.0
            changed, passed = changed + (factor < 1), passed + (factor == 1)
            expected += [x * factor for x in g]
        after, _, factor = transform(gradient, {}, around)
        same(after, expected, rtol)
        assert_norms_tell(factor, gradient, after, around, rtol)
    assert changed > 0 < passed


@pytest.mark.sampled(3)
@every_dtype
@pytest.mark.parametrize("shapes", [UNITS, [(), (1, 1), ()]], ids=["tensors", "numbers"])
def test_centralize_against_its_transcription(shapes, dtype):
    transform, around = hs.centralize(), context(shapes, dtype)
    eps, turned = torch.finfo(dtype).eps, 0
    for gradient in gradients(shapes, dtype):
        after, _, factor = transform(gradient, {}, around)
        for whole, found in zip(*(around.segments.tensors(x) for x in (gradient, after)), strict=True):
            for g, got in zip(units_of(whole), units_of(found), strict=True):
                centred = whole.dim() > 1 and len(g) > 1 and all(map(math.isfinite, g))
                mean = math.fsum(g) / len(g) if centred else 0.0
                expected = torch.tensor([x - mean for x in g], dtype=dtype)
                atol = 20 * eps * max(map(abs, g)) if centred else 0.0
                torch.testing.assert_close(torch.tensor(got, dtype=dtype), expected, rtol=0, atol=atol, equal_nan=True)
                turned += mean != 0
        assert_norms_tell(factor, gradient, after, around, 100 * eps)
    assert (turned > 0) == (shapes is UNITS)


def assert_norms_tell(factor, before, after, around, rtol):
    """The factor of what is no multiplication: the ratio of norms."""
    for f, x, y in zip(factor, *(v.split(around.segments.sizes) for v in (before, after)), strict=True):
        n = norm_of(x.tolist())
        assert float(f) == (pytest.approx(norm_of(y.tolist()) / n, rel=rtol) if n > 0 else 1.0)


def test_cumulative_on_a_steady_gradient_after_one_zero_step():
    """Counted, the zero step halves a steady gradient for ever; not counted, nothing is clipped at all."""
    segments, steady = Segments([(3,), ()]), torch.tensor([3.0, 0.0, -4.0, 0.25], dtype=torch.float64)
    for skip_zeros, expected in ((False, 0.5), (True, 1.0)):
        transform = Cumulative(skip_zeros=skip_zeros)
        _, state, factor = transform(0 * steady, transform.init(segments, steady), Context(segments))
        assert factor.tolist() == [1.0, 1.0]
        for _ in range(60):
            after, state, factor = transform(steady, state, Context(segments))
            same(factor, [expected] * 2, 1e-13)
            same(after, (expected * steady).tolist(), 1e-13)


@pytest.mark.sampled(11)
@every_transform
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_leaves_no_trace(bad, transform):
    around = context([(2,), (3,), ()])
    good = list(gradients([(2,), (3,), ()], broken=False))[3:]
    broken = good[0].clone()
    broken[[0, 3, 5]] = bad
    straight = interrupted = start(transform, around)
    for i, gradient in enumerate(good):
        if i % 4 == 0:
            passed, after, factor = transform(broken, interrupted, around)
            assert_same(after, interrupted)
            if transform.name != "value" or math.isnan(bad):
                assert_same(passed[[0, 3, 5]], broken[[0, 3, 5]])
                assert (factor == 1).all()
            if transform.name not in ("value", "cosine"):
                assert_same(passed, broken)
            interrupted = after
        one, straight, _ = transform(gradient, straight, around)
        other, interrupted, _ = transform(gradient, interrupted, around)
        assert_same([one, straight], [other, interrupted])


@pytest.mark.sampled(15)
@every_shape
@every_transform
def test_what_a_transform_preserves(transform, shapes):
    """Of finite gradients: none is made longer, but by normalize; signs are kept, and what `preserves` says."""
    around, eps = context(shapes), torch.finfo(torch.float64).eps
    state = start(transform, around)
    for gradient in gradients(shapes, broken=False):
        after, state, factor = transform(gradient, state, around)
        before, now = around.segments.norm(gradient), around.segments.norm(after)
        assert torch.isfinite(after).all()
        torch.testing.assert_close(now, factor * before, rtol=40 * eps, atol=0)
        if transform.name != "normalize":
            assert (factor <= 1 + 40 * eps).all()
            assert (now <= before * (1 + 40 * eps)).all()
        if transform.name != "centralize":
            assert torch.equal(after.sign(), gradient.sign())
        if transform.name in {name for name, *_ in FACTORS}:
            torch.testing.assert_close(after, gradient * around.segments.expand(factor), rtol=4 * eps, atol=0)
        if getattr(transform, "per", None) == "level":
            chosen = list(around.segments.matching(transform.names))
            assert (factor[chosen] == factor[chosen][:1]).all()


@pytest.mark.parametrize("per", ["tensor", "level"])
def test_norms_afterwards(per):
    around = context(SHAPES["tensors"])

    def norms(x):
        each = [float(part.norm()) for part in x.split(around.segments.sizes)]
        return each if per == "tensor" else [math.hypot(*each)]

    for gradient in gradients(SHAPES["tensors"], broken=False):
        unit, short, before = (
            norms(x) for x in (hs.normalize(per)(gradient, {}, around)[0], hs.norm(2, per)(gradient, {}, around)[0],
                               gradient)
        )  # fmt: skip
        assert unit == pytest.approx([float(n > 0) for n in before], rel=1e-14)
        assert short == pytest.approx([min(n, 2.0) for n in before], rel=1e-14)


def test_a_bound_of_standard_deviations():
    mean, square = torch.tensor([2.0, 2.0, 0.5, 0.5]), torch.tensor([4.0, 13.0, 0.25, 0.0])
    assert spread_bound(mean, square, 3.0)[1].tolist() == [2.0, 11.0, 0.5, 0.5]  # rounding may leave a square too small


def test_adaptive_lets_the_first_norms_pass_limits_a_spike_and_follows_a_lasting_rise():
    transform, around = hs.adaptive(n=2, decay=0.9), context([(2,)])
    state, unit = start(transform, around), torch.tensor([0.6, -0.8], dtype=torch.float64)
    for _ in range(200):
        _, state, factor = transform(unit, state, around)
        assert factor == 1
    same(state["mean"], [1.0], 1e-8)  # 2 * 0.9^200 above 1
    after, rising, _ = transform(100 * unit, state, around)
    assert 1 <= after.norm() < 1.01
    factors = []
    for _ in range(50):
        _, rising, factor = transform(100 * unit, rising, around)
        factors.append(float(factor))
    assert factors[0] < 1
    assert factors[-1] == 1


def test_adaptive_clips_a_norm_whose_square_is_infinite_and_forgets_it():
    transform, around = hs.adaptive(), context([(1,)], torch.float32)
    state = start(transform, around)
    _, early, factor = transform(torch.tensor([1e25]), state, around)
    assert_same([early, factor], [state, torch.ones(1)])
    _, state, _ = transform(torch.tensor([1.0]), state, around)
    after, late, _ = transform(torch.tensor([1e25]), state, around)
    assert_same([late, after], [state, torch.tensor([3.0])])


@pytest.mark.sampled(7)
@every_shape
@every_transform
def test_a_pattern_of_names_leaves_the_others_alone(transform, shapes):
    """Tensors 0 and 2 are transformed as if there were no others."""
    around, chosen = context(shapes), tuple(i for i in (0, 2) if i < len(shapes))
    some, rest = replace(transform, names="[02]"), [i for i in range(len(shapes)) if i not in chosen]
    everywhere = replace(transform, names="*")
    state, alone = start(some, around), start(everywhere, around.part(chosen))
    untouched = {name: x[rest] for name, x in state.items()}
    take = around.segments.take
    for gradient in gradients(shapes):
        after, state, factor = some(gradient, state, around)
        found, alone, factors = everywhere(take(gradient, chosen), alone, around.part(chosen))
        assert_same([take(after, chosen), factor[list(chosen)]], [found, factors])
        assert_same({name: x[list(chosen)] for name, x in state.items()}, alone)
        assert_same({name: x[rest] for name, x in state.items()}, untouched)
        assert_same([take(after, (i,)) for i in rest], [take(gradient, (i,)) for i in rest])
        assert (factor[rest] == 1).all()


@pytest.mark.sampled(15)
@every_dtype
@every_shape
@every_transform
def test_every_transform_is_pure_and_grows_nothing(transform, shapes, dtype):
    around = context(shapes, dtype)
    state, params = start(transform, around), around.params.clone()
    layout = {k: (v.shape, v.dtype) for k, v in state.items()}
    assert all(shape[0] == len(shapes) for shape, _ in layout.values())
    assert len({v.data_ptr() for v in state.values()}) == len(state)
    for gradient in gradients(shapes, dtype):
        before, copies = gradient.clone(), {k: v.clone() for k, v in state.items()}
        versions = [v._version for v in (gradient, *state.values())]
        after, new, factor = transform(gradient, state, around)
        assert_same([gradient, state, around.params], [before, copies, params])
        assert versions == [v._version for v in (gradient, *state.values())]
        assert (after.shape, after.dtype) == (gradient.shape, dtype)
        assert (factor.shape, factor.dtype) == ((len(shapes),), dtype)
        assert {k: (v.shape, v.dtype) for k, v in new.items()} == layout
        state = new


@every_shape
@every_transform
def test_every_transform_runs_without_a_look_at_a_value(transform, shapes):
    segments = Segments(shapes, "meta")
    gradient = torch.empty(segments.total, device="meta")
    state = transform.init(segments, gradient)
    for _ in range(2):
        after, state, factor = transform(gradient, state, Context(segments, gradient))
        assert all(t.device.type == "meta" for t in (after, factor, *state.values()))
        assert (after.shape, factor.shape) == (gradient.shape, (len(shapes),))


# ---- in a tower


def stack_of(*transforms):
    """Three levels, each with these transforms; patterns of names are kept to what matches on every level."""
    clip = [replace(t, names="*" if t.names == "*" else "[02l]*") for t in transforms]
    low = [t for t in clip if not t.reads_slope]
    primary = hs.Adam(hs.lin(0.01), beta1=hs.fixed(0.9), beta2=hs.fixed(0.99), weight_decay=hs.learned(0.1), clip=low)
    return primary / hs.SGD(hs.lin(1e-5), clip=clip) / hs.SGD(1e-8, clip=clip)


TOWER_SHAPES = [(3, 5), (40, 6), (), (7,), (0,), (150,), (6, 40)]


def weights():
    """The last but one is transposed in memory, so that it lies in a bucket of its own."""
    random = torch.Generator().manual_seed(5)
    made = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in TOWER_SHAPES]
    made[-2:-2] = [torch.randn(6, 60, generator=random, dtype=torch.float64).t()]
    return made


def slopes(params, t):
    """Now and then some parameters have no gradient."""
    grads = [torch.cos(3.0 * p * (t + 1)) + 0.2 for p in params]
    return [None if t in (3, 4) and i in (1, 2) else g for i, g in enumerate(grads)]


def climb(stack, fused=False, steps=7):
    params = weights()
    tower = Tower(stack, params, fused=fused)
    for t in range(steps):
        tower.step(params, slopes(weights(), t))  # of the start: nothing magnifies rounding errors
    read = tower.hyperparameters(), tower.hypergradients(), tower.clip_factors()
    return [*params, *(x for found in read for x in found.values())]


@pytest.mark.sampled(21)
@every_transform
def test_every_transform_on_every_level_makes_finite_steps(transform):
    found = climb(stack_of(transform))
    assert all(torch.isfinite(x).all() for x in found)
    assert not torch.equal(found[0], weights()[0])
    assert float(found[len(weights())]) != 0.01  # the learned rate


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@every_transform
def test_blocks_and_kernels_change_nothing(transform, monkeypatch):
    """A transform sees all tensors at once, however the work on them is cut up."""
    whole = climb(stack_of(transform))
    monkeypatch.setattr(buffers, "BLOCK", 160)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    for fused in (False, True):
        assert_close(climb(stack_of(transform), fused), whole, 1e-9)


@pytest.mark.sampled(21)
@every_transform
def test_on_an_upper_level_it_does_what_it_does_alone(transform):
    """There it is recorded, and replayed."""
    if transform.reads_slope:
        pytest.skip("has tests of its own, for it looks at the update below")
    names = "*" if transform.names == "*" else "[lm]*"
    transform = replace(transform, names=names)
    primary = hs.SGD(hs.lin(0.1), momentum=hs.learned(hs.lin(0.5)), weight_decay=hs.learned(hs.lin(0.01)))
    params = weights()
    tower = Tower(primary / hs.SGD(1e-9, clip=[transform]), params)
    keys = ["0.lr", "0.momentum", "0.weight_decay"]
    segments = Segments([()] * 3, names=[key[2:] for key in keys])
    state, acted = transform.init(segments, torch.zeros(3, dtype=torch.float64)), False
    for t in range(12):
        raw = torch.stack([tower.hyperparameters()[key] for key in keys])
        tower.step(params, [None if g is None else g * (1e3 if t == 8 else 1.0) for g in slopes(params, t)])
        received = torch.stack([tower.hypergradients()[key] for key in keys])
        moved, state, factor = transform(received, state, Context(segments, raw))
        torch.testing.assert_close(torch.stack([tower.clip_factors()[key] for key in keys]), factor, rtol=1e-12, atol=0)
        after = torch.stack([tower.hyperparameters()[key] for key in keys])
        torch.testing.assert_close(after, raw - 1e-9 * moved, rtol=1e-12, atol=0)
        acted |= bool((factor != 1).any())
    assert acted == (transform.name != "centralize")


def test_transforms_are_chained_in_order():
    params = weights()
    bound = {"clip": [hs.centralize(), hs.norm(0.5, "tensor"), hs.value(0.05)]}
    tower, expected = Tower(hs.Stack([hs.SGD(0.1, **bound)]), params), weights()
    for t in range(3):
        for p, g in zip(expected, slopes(expected, t), strict=True):
            if p.dim() > 1:
                g = g - g.mean(1, keepdim=True)
            n = float(g.norm())
            p -= 0.1 * (g * min(1.0, 0.5 / n) if n else g).clamp(-0.05, 0.05)
        tower.step(params, slopes(params, t))
        for got, wanted in zip(params, expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("fused", [False, True])
def test_the_norm_of_a_level_is_of_all_that_has_a_gradient(fused, monkeypatch):
    """However tensors lie in memory, and whenever their gradients first came: in whatever bucket they are."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    params, plain = weights(), [torch.nn.Parameter(p) for p in weights()]
    tower, oracle = Tower(hs.parse("SGD(0.1, clip=[norm(0.5)])"), params, fused=fused), torch.optim.SGD(plain, 0.1)
    for t in range(6):
        for p, g in zip(plain, slopes([p.detach() for p in plain], t), strict=True):
            p.grad = g
        total = float(torch.nn.utils.get_total_norm([p.grad for p in plain if p.grad is not None]))
        assert total > 0.5
        for p in plain:
            p.grad = None if p.grad is None else p.grad * (0.5 / total)
        oracle.step()
        tower.step(params, slopes(params, t))
        assert_close(params, plain, 1e-12)
    assert len(tower.buckets) > 1


@pytest.mark.sampled(19)
@every_transform
def test_saved_and_loaded_in_mid_run(transform):
    def made(params):
        return hs.HyperOptimizer([(str(i), p) for i, p in enumerate(params)], stack_of(transform, hs.cumulative()))

    def step(opt, params, t):
        for p, g in zip(params, slopes([p.detach() for p in params], t), strict=True):
            p.grad = g
        opt.step()

    params = [torch.nn.Parameter(p) for p in weights()]
    opt = made(params)
    for t in range(4):
        step(opt, params, t)
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    loaded = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = made(loaded)
    other.load_state_dict(torch.load(file, weights_only=True))
    for t in range(4, 9):
        step(opt, params, t)
        step(other, loaded, t)
    assert_same([*loaded, other.state_dict()], [*params, opt.state_dict()])


# ---- as values, and as text


@every_transform
def test_every_transform_is_a_value(transform):
    again = type(transform)(**{f.name: getattr(transform, f.name) for f in fields(transform)})
    assert again == transform
    assert hash(again) == hash(transform)
    assert str(again) == str(transform)
    assert hs.parse(f"SGD / SGD(clip=[{transform}])")[1].clip == (transform,)
    assert TRANSFORMS[transform.name] is type(transform) is getattr(hs, transform.name)
    for f in fields(transform):
        with pytest.raises(AttributeError):
            setattr(transform, f.name, f.default)


def test_numbers_are_kept_in_one_form():
    made = hs.percentile(p=np.float64(5), window=16.0)
    assert str(made) == "percentile(p=5.0, window=16)"
    assert made == Percentile(p=5, window=16)
    assert str(hs.norm(1)) == "norm(1.0)"


WRONG_VALUES = {
    "norm(0)": "norm's c is 0: give a number in (0, inf)",
    "norm(-1.5)": "norm's c is -1.5: give a number in (0, inf)",
    "norm(1e999)": "norm's c is inf: give a number in (0, inf)",
    "norm(1, per='layer')": 'norm\'s per is \'layer\': write per="tensor" or per="level"',
    "norm(1, names=' ')": 'norm: names is empty: write a pattern such as names="*.weight"',
    "value(0)": "value's c is 0: give a number in (0, inf)",
    "cumulative(per='')": 'cumulative\'s per is \'\': write per="tensor" or per="level"',
    "adaptive(n=0)": "adaptive's n is 0: give a number in (0, inf)",
    "adaptive(n=-3)": "adaptive's n is -3: give a number in (0, inf)",
    "adaptive(decay=1)": "adaptive's decay is 1: give a number in (0, 1)",
    "adaptive(decay=0)": "adaptive's decay is 0: give a number in (0, 1)",
    "percentile(p=0)": "percentile's p is 0: give a number in (0, 100]",
    "percentile(p=100.5)": "percentile's p is 100.5: give a number in (0, 100]",
    "percentile(window=0)": "percentile's window is 0: give a whole number in [1, inf)",
    "percentile(window=2.5)": "percentile's window is 2.5: give a whole number in [1, inf)",
    "agc(ratio=0)": "agc's ratio is 0: give a number in (0, inf)",
    "agc(eps=-1)": "agc's eps is -1: give a number in (0, inf)",
    "normalize(per='unit')": 'normalize\'s per is \'unit\': write per="tensor" or per="level"',
}
WRONG_FORMS = {
    "norm": "norm needs c",
    "norm()": "norm needs c",
    "value(names='lr')": "value needs c",
    "norm(True)": "norm's c is a number, not True",
    "norm(1, per=2)": "norm's per is a text: write per='level'",
    "norm(1, 2)": "only c is given by position: write name=value",
    "norm(1, perr='level')": "norm has no 'perr': did you mean per?",
    "agc(0.1)": "nothing is given by position: write name=value",
    "centralize(c=1)": "centralize has no 'c': choose one of names",
}


WRONG = {**WRONG_VALUES, **WRONG_FORMS}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_arguments_in_a_text(text):
    whole = f"Adam / SGD(clip=[cumulative, {text}])"
    with pytest.raises(hs.StackError) as error:
        hs.parse(whole)
    ((start, end, message),) = error.value.mistakes
    assert message == WRONG[text]
    assert whole[start:end] in text
    assert "^" * (end - start) in str(error.value)


@pytest.mark.parametrize("text", WRONG_VALUES)
def test_wrong_arguments_in_python(text):
    with pytest.raises(InputError, match=re.escape(WRONG[text].partition(": ")[0])):
        eval(text.replace("1e999", "float('inf')"), {name: getattr(hs, name) for name in TRANSFORMS} | {"float": float})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("1",), "norm's c is '1'\ngive a number in (0, inf)"),
        ((True,), "norm's c is True\ngive a number in (0, inf)"),
        ((math.nan,), "norm's c is nan\ngive a number in (0, inf)"),
        ((1, None), 'norm\'s per is None\nwrite per="tensor" or per="level"'),
    ],
)
def test_wrong_types_in_python(arguments, message):
    with pytest.raises(InputError) as error:
        hs.norm(*arguments)
    assert str(error.value) == message
    with pytest.raises(InputError, match="names is 3, which is no text"):
        hs.norm(1, names=3)
    with pytest.raises(InputError, match="cumulative's skip_zeros is a flag, not 1"):
        hs.cumulative(1)
    with pytest.raises(InputError, match=re.escape("norm needs its arguments\nwrite norm(...)")):
        hs.SGD(clip=[hs.norm])


def test_a_second_transform_of_one_name_is_refused():
    known = dict(TRANSFORMS)
    with pytest.raises(InputError, match=r"cumulative is taken by hyperstack\.transforms\.clipping\.Cumulative"):

        class Other(Transform):
            name = "cumulative"

    assert known == TRANSFORMS
