"""Gradient transforms; cumulative-average clipping against its algorithm, transcribed in plain Python."""

import math
from dataclasses import MISSING, fields

import pytest
import torch

from hyperstack.errors import InputError
from hyperstack.numerics import Segments
from hyperstack.transforms import TRANSFORMS, Context, Cumulative, Transform

SHAPES = {
    "tensors": [(3, 4), (1,), (), (7,), (2, 1, 5)],
    "hyperparameters": [(), (), (), ()],
}
STEPS = 80


class Slow:
    """One tensor's clip as the publication writes it: lists of floats, one number after another."""

    def __init__(self, skip_zeros):
        self.skip_zeros, self.t, self.average = skip_zeros, 0, 0.0

    def __call__(self, g):
        n = math.sqrt(math.fsum(x * x for x in g)) if all(map(math.isfinite, g)) else math.nan
        if math.isnan(n) or (self.skip_zeros and self.t == 0 and n == 0):
            return g, 1.0
        self.t += 1
        threshold = n if self.t == 1 else ((self.t - 1) * self.average + n) / self.t
        factor = min(1.0, threshold / n) if n else 1.0
        clipped = [x * factor for x in g]
        norm = math.sqrt(math.fsum(x * x for x in clipped))
        self.average = threshold if self.t == 1 else ((self.t - 1) * self.average + norm) / self.t
        return clipped, factor


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
            if broken and (t + 3 * i) % 17 == 9:
                part[t % len(part)] = (math.nan, math.inf, -math.inf)[t % 3]
        yield torch.cat(parts)


def same(found, expected, rtol):
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=0, equal_nan=True)


def instances():
    """One of each transform, its numbers 1 where it needs one, and each of its flags turned."""
    for cls in TRANSFORMS.values():
        needed = {f.name: 1.0 for f in fields(cls) if f.default is MISSING}
        flags = [f for f in fields(cls) if isinstance(f.default, bool)]
        yield cls(**needed)
        yield from (cls(**needed, **{f.name: not f.default}) for f in flags)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("skip_zeros", [False, True], ids=["every step counts", "skip_zeros"])
def test_cumulative_against_its_transcription(skip_zeros, shapes, dtype):
    # Each step adds a few rounding errors and those of a sum of squares; an average only shrinks the older ones.
    rtol = 1e-12 if dtype == torch.float64 else STEPS * (8 + 12) * torch.finfo(dtype).eps
    transform, segments = Cumulative(skip_zeros=skip_zeros), Segments(shapes)
    slow = [Slow(skip_zeros) for _ in shapes]
    state = transform.init(segments, torch.zeros(segments.total, dtype=dtype))
    clipped_at_all = torch.zeros(len(shapes), dtype=torch.bool)
    for gradient in gradients(shapes, dtype):
        after, state, factor = transform(gradient, state, Context(segments))
        expected = [clip(part.tolist()) for clip, part in zip(slow, gradient.split(segments.sizes), strict=True)]
        same(after, [x for part, _ in expected for x in part], rtol)
        same(factor, [f for _, f in expected], rtol)
        same(state["average"], [clip.average for clip in slow], rtol)
        same(state["steps"], [clip.t for clip in slow], 0)
        clipped_at_all |= factor < 1
    assert clipped_at_all.all()
    assert all(STEPS / 2 < clip.t < STEPS for clip in slow)  # some were left out, most counted


@pytest.mark.parametrize("skip_zeros", [False, True])
def test_cumulative_shortens_and_never_turns(skip_zeros):
    transform, segments = Cumulative(skip_zeros=skip_zeros), Segments(SHAPES["tensors"])
    state = transform.init(segments, torch.zeros(segments.total, dtype=torch.float64))
    for gradient in gradients(SHAPES["tensors"], broken=False):
        after, state, factor = transform(gradient, state, Context(segments))
        norm, expanded = segments.norm(gradient), segments.expand(factor)
        assert ((factor > 0) & (factor <= 1)).all()
        assert torch.equal(factor[norm == 0], torch.ones_like(factor[norm == 0]))
        torch.testing.assert_close(segments.norm(after), factor * norm, rtol=1e-14, atol=0)
        torch.testing.assert_close(after, gradient * expanded, rtol=1e-15, atol=0)


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


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("skip_zeros", [False, True])
def test_a_number_that_is_not_finite_leaves_no_trace_in_the_average(bad, skip_zeros):
    transform, segments = Cumulative(skip_zeros=skip_zeros), Segments([(2,), (3,)])
    good = list(gradients([(2,), (3,)], broken=False))[3:]
    broken = good[0].clone()
    broken[0] = bad
    straight = interrupted = transform.init(segments, good[0])
    for i, gradient in enumerate(good):
        if i % 4 == 0:
            kept = interrupted["average"][1].item(), interrupted["steps"][1].item()
            passed, interrupted, factor = transform(broken, interrupted, Context(segments))
            assert torch.equal(passed[:2], broken[:2]) or passed[0].isnan()
            assert factor[0] == 1
            interrupted["average"][1], interrupted["steps"][1] = kept  # the other tensor did count it
        _, straight, one = transform(gradient, straight, Context(segments))
        _, interrupted, other = transform(gradient, interrupted, Context(segments))
        assert torch.equal(one, other)
        assert all(torch.equal(straight[k], interrupted[k]) for k in straight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("transform", [*instances()], ids=str)
def test_every_transform_is_pure_and_grows_nothing(transform, shapes, dtype):
    segments = Segments(shapes)
    state = transform.init(segments, torch.zeros(segments.total, dtype=dtype))
    layout = {k: (v.shape, v.dtype) for k, v in state.items()}
    assert all(shape == (len(shapes),) for shape, _ in layout.values())
    assert len({v.data_ptr() for v in state.values()}) == len(state)
    for gradient in gradients(shapes, dtype):
        before, copies = gradient.clone(), {k: v.clone() for k, v in state.items()}
        versions = [v._version for v in (gradient, *state.values())]
        after, new, factor = transform(gradient, state, Context(segments))
        assert torch.equal(gradient.nan_to_num(nan=7.0), before.nan_to_num(nan=7.0))
        assert all(torch.equal(state[k], copies[k]) for k in state)
        assert versions == [v._version for v in (gradient, *state.values())]
        assert (after.shape, after.dtype) == (gradient.shape, dtype)
        assert (factor.shape, factor.dtype) == ((len(shapes),), dtype)
        assert {k: (v.shape, v.dtype) for k, v in new.items()} == layout
        state = new


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("transform", [*instances()], ids=str)
def test_every_transform_runs_without_a_look_at_a_value(transform, shapes):
    segments = Segments(shapes, "meta")
    gradient = torch.empty(segments.total, device="meta")
    state = transform.init(segments, gradient)
    for _ in range(2):
        after, state, factor = transform(gradient, state, Context(segments))
        assert all(t.device.type == "meta" for t in (after, factor, *state.values()))
        assert (after.shape, factor.shape) == (gradient.shape, (len(shapes),))


@pytest.mark.parametrize("transform", [*instances()], ids=str)
def test_every_transform_is_a_value(transform):
    again = type(transform)(**{f.name: getattr(transform, f.name) for f in fields(transform)})
    assert again == transform
    assert hash(again) == hash(transform)
    assert str(again) == str(transform)
    assert TRANSFORMS[transform.name] is type(transform)
    for f in fields(transform):
        with pytest.raises(AttributeError):
            setattr(transform, f.name, f.default)


def test_a_second_transform_of_one_name_is_refused():
    known = dict(TRANSFORMS)
    with pytest.raises(InputError, match=r"cumulative is taken by hyperstack\.transforms\.clipping\.Cumulative"):

        class Other(Transform):
            name = "cumulative"

    assert known == TRANSFORMS
