"""safe_sqrt against sqrt and its analytic derivative; Segments against a loop over the tensors."""

import math

import pytest
import torch

from hyperstack.numerics import Segments, safe_sqrt

DTYPES = [torch.float32, torch.float64]

SHAPES = {
    "nothing": [],
    "one scalar": [()],
    "scalars": [(), (1,), (1, 1)],
    "vector": [(5,)],
    "mixed": [(3, 4), (), (7,), (1,), (2, 1, 3)],
    "with an empty tensor": [(2, 2), (0,), (3,), (4, 0)],
}

# One empty tensor beside one of two elements: as many elements as tensors, and still no scalars.
AS_MANY = pytest.param([(0,), (2,)], id="as many elements as tensors")


def spread(dtype, low, high, count=2001):
    """Values evenly spread in logarithm over the powers of 10 from `low` to `high`, unrounded mantissas."""
    return torch.logspace(low, high, count, dtype=torch.float64).mul(1 + math.pi / 1000).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_safe_sqrt_is_sqrt_bit_for_bit(dtype):
    info = torch.finfo(dtype)
    x = torch.cat(
        [spread(dtype, -20, math.floor(math.log10(info.max)) - 1), torch.tensor([1e-20, 1.0, 4.0], dtype=dtype)]
    )
    assert torch.equal(safe_sqrt(x), x.sqrt())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_safe_sqrt_is_exact_as_soon_as_tiny_is_less_than_half_a_rounding_unit(dtype):
    info = torch.finfo(dtype)
    least = 4 * info.tiny / info.eps  # from here on, ulp(x) / 2 >= eps * x / 4 >= tiny
    x = spread(dtype, math.ceil(math.log10(least)), 0)
    assert torch.equal(safe_sqrt(x), x.sqrt())
    # Below that it errs by sqrt(1 + tiny/x) - 1 <= tiny/2x relatively: by no more than a factor sqrt(2) at x = tiny.
    x = spread(dtype, math.ceil(math.log10(info.tiny)), math.ceil(math.log10(least)))
    error = (safe_sqrt(x) / x.sqrt()).double() - 1
    assert (error.abs() <= info.tiny / (2 * x.double()) + 4 * info.eps).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_safe_sqrt_has_a_finite_derivative_at_0(dtype):
    tiny = torch.finfo(dtype).tiny
    x = torch.zeros(3, dtype=dtype, requires_grad=True)
    value = safe_sqrt(x)
    assert torch.equal(value, torch.full_like(value, tiny).sqrt())
    cotangent = torch.tensor([0.0, 1.0, -2.0], dtype=dtype)
    (slope,) = torch.autograd.grad(value, x, cotangent)
    torch.testing.assert_close(slope, cotangent * 0.5 / tiny**0.5, rtol=4 * torch.finfo(dtype).eps, atol=0)
    assert slope[0] == 0  # where sqrt itself gives NaN
    assert torch.autograd.grad(x.sqrt(), x, cotangent)[0][0].isnan()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_safe_sqrt_has_the_analytic_derivative_elsewhere(dtype):
    x = spread(dtype, -20, 20).requires_grad_()
    (slope,) = torch.autograd.grad(safe_sqrt(x).sum(), x)
    torch.testing.assert_close(slope, 0.5 / x.detach().sqrt(), rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_safe_sqrt_of_what_is_no_root(dtype):
    x = torch.tensor([-1.0, math.nan, math.inf], dtype=dtype)
    assert torch.equal(safe_sqrt(x).isnan(), torch.tensor([True, True, False]))
    assert safe_sqrt(x)[2] == math.inf


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shapes", [*(pytest.param(v, id=k) for k, v in SHAPES.items()), AS_MANY])
def test_segments_against_a_loop(shapes, dtype):
    parts = [torch.randn(shape, dtype=dtype) for shape in shapes]
    flat = torch.cat([part.flatten() for part in parts]) if parts else torch.zeros(0, dtype=dtype)
    segments = Segments(shapes)
    assert (len(segments), segments.total) == (len(shapes), flat.numel())
    assert segments.sizes == [part.numel() for part in parts]
    assert segments.shapes == tuple(shapes)
    assert segments.all_scalar == all(part.numel() == 1 for part in parts)

    norms = [math.sqrt(math.fsum(x * x for x in part.flatten().tolist())) for part in parts]
    found = segments.norm(flat)
    assert (found.dtype, found.shape) == (dtype, (len(shapes),))
    bound = max([4, *segments.sizes]) * torch.finfo(dtype).eps  # of a sum of so many squares
    torch.testing.assert_close(found.double(), torch.tensor(norms, dtype=torch.float64), rtol=bound, atol=0)

    numbers = torch.randn(len(shapes), dtype=dtype)
    expected = [torch.full((part.numel(),), x, dtype=dtype) for x, part in zip(numbers, parts, strict=True)]
    assert torch.equal(segments.expand(numbers), torch.cat(expected) if expected else flat)


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_segments_on_the_meta_device(shapes):
    segments = Segments(shapes, "meta")
    flat, numbers = (torch.empty(n, device="meta") for n in (segments.total, len(shapes)))
    for found, count in ((segments.norm(flat), len(shapes)), (segments.expand(numbers), segments.total)):
        assert (found.device.type, found.shape) == ("meta", (count,))


def test_segments_tell_where_a_number_is_not_finite():
    flat = torch.tensor([1.0, math.nan, 3.0, math.inf, 4.0, 3.0])
    assert torch.equal(Segments([(2,), (2,), (2,)]).norm(flat).isfinite(), torch.tensor([False, False, True]))


def test_segments_accept_any_sequence_as_a_shape():
    assert Segments([[2, 3], torch.Size([4])]).shapes == ((2, 3), (4,))
