"""The tape: a recorded function gives what the function gives, with fewer operations, or is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperstack.errors import RunError
from hyperstack.tape import Tapes, host
from hyperstack.tape.peephole import shorten
from hyperstack.tape.record import record
from hyperstack.tape.replay import compile_for_torch
from hyperstack.tape.scratch import Scratch

aten = torch.ops.aten


def tape_of(function):
    return Tapes().small((), function)


def vectors(count, size=7, dtype=torch.float64):
    random = torch.Generator().manual_seed(count)
    return {f"x{i}": torch.rand(size, generator=random).to(dtype) + 0.5 for i in range(count)}


def gradient(x):
    """A function with its derivative by two numbers in it, as the pull of a rule has."""
    with torch.enable_grad():
        a, b = (torch.tensor(v, dtype=x["x0"].dtype, requires_grad=True) for v in (0.3, 0.7))
        y = -a * (torch.lerp(x["x0"], x["x1"], b) / (torch.sqrt(x["x1"] * b) + 1e-3))
        found = torch.autograd.grad(y, [a, b], x["x2"])
    return {"y": y.detach(), "a": found[0], "b": found[1]}


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_recorded_gradient_is_the_gradient(size):
    tape = tape_of(gradient)
    for inputs in (vectors(3, size), {k: v * 1.7 for k, v in vectors(3, size).items()}):
        for _ in range(2):
            got, expected = tape(inputs), gradient(inputs)
            assert list(got) == list(expected)
            for name in expected:
                torch.testing.assert_close(got[name], expected[name], rtol=1e-13 * max(1, size**0.5), atol=0)


def test_what_remains_of_a_recorded_gradient():
    """Sums of products are dot products, and factors wait until there is a number: fewer passes over the vectors."""
    program, _ = record(gradient, vectors(3, 1000))
    short = shorten(program)
    large = [n for n in short.nodes if program.specs and short.spec(n.out).numel() > 1]
    before = [n for n in program.nodes if program.spec(n.out).numel() > 1]
    assert len(large) < 0.6 * len(before)
    functions = [n.function for n in short.nodes]
    assert aten.dot.default in functions
    assert aten.neg.default not in [n.function for n in large]


def test_nothing_is_computed_twice_and_nothing_for_nothing():
    def wasteful(x):
        unused = torch.exp(x["x0"]) + 1  # noqa: F841
        return {"y": torch.tanh(x["x0"]) + torch.tanh(x["x0"])}

    program, _ = record(wasteful, vectors(1))
    functions = [n.function for n in shorten(program).nodes]
    assert functions.count(aten.tanh.default) == 1
    assert aten.exp.default not in functions


def test_inputs_and_constants_as_results():
    constant = torch.arange(3.0)
    tape = tape_of(lambda x: {"same": x["x0"], "constant": constant, "both": x["x0"], "sum": x["x0"] + x["x1"]})
    inputs = vectors(2, 3, torch.float32)
    for _ in range(2):
        got = tape(inputs)
        assert torch.equal(got["same"], inputs["x0"])
        assert torch.equal(got["both"], inputs["x0"])
        assert torch.equal(got["constant"], constant)
        assert torch.equal(got["sum"], inputs["x0"] + inputs["x1"])


def test_one_tensor_under_two_names():
    one, two = vectors(1)["x0"], vectors(2)["x1"]
    tape = tape_of(lambda x: {"y": x["a"] - x["b"]})
    assert torch.equal(tape({"a": one, "b": one})["y"], one - one)
    assert torch.equal(tape({"a": one, "b": two})["y"], one - two)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: {"y": x["x0"] * float(x["x0"].sum())},
        lambda x: {"y": x["x0"] if x["x0"].sum() > 0 else -x["x0"]},
        lambda x: {"y": x["x0"].mul_(2)},
        lambda x: {"y": x["x0"].clone().copy_(x["x0"]).add(x["x0"].zero_())},
    ],
    ids=["a number", "a branch", "in place", "zeroed"],
)
def test_what_cannot_be_repeated_is_refused(function):
    inputs = vectors(1)
    before = inputs["x0"].clone()
    with pytest.raises(RunError):
        tape_of(function)(inputs)
    assert torch.equal(inputs["x0"], before)


def test_early_and_late():
    """What does not need the late input is done before it, and what was left behind is enough for the rest."""
    tape, inputs = Tapes().split((), gradient, "x2"), vectors(3)
    late = inputs.pop("x2")
    early, left = tape.early(inputs, late)
    assert list(early) == ["y"]
    ended = tape.finish(left, late)
    expected = gradient({**inputs, "x2": late})
    for name, value in {**early, **ended}.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-13, atol=0)
    doubled = tape.finish(left, 2 * late)
    torch.testing.assert_close(doubled["a"], 2 * expected["a"], rtol=1e-13, atol=0)


EDGES = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-300, 1e300, -1e300, math.inf, -math.inf, math.nan, 710.0, -745.0]
FUNCTIONS = {
    "div": lambda a, b: a / b,
    "pow": lambda a, b: a**b,
    "square": lambda a, b: a**2 + b**3,
    "lerp": lambda a, b: torch.lerp(a, b, torch.tensor(0.3, dtype=a.dtype)),
    "minimum": lambda a, b: torch.minimum(a, b),
    "maximum": lambda a, b: torch.maximum(a, b),
    "clamp": lambda a, b: a.clamp(min=1) + b,
    "clamp on both sides": lambda a, b: a.clamp(-0.5, 1.5) + b,
    "exp": lambda a, b: torch.exp(a) - b,
    "sqrt": lambda a, b: torch.sqrt(a) * b,
    "rsqrt": lambda a, b: torch.rsqrt(a) * b,
    "log": lambda a, b: torch.log(a) * b,
    "tanh": lambda a, b: torch.tanh(a) * b,
    "sigmoid": lambda a, b: torch.sigmoid(a) * b,
    "where": lambda a, b: torch.where(a > b, a, -b),
    "isfinite": lambda a, b: torch.where(torch.isfinite(a), b, 0.0),
    "sign": lambda a, b: torch.sign(a) + b,
    "compare": lambda a, b: torch.where((a >= 0) & ~(b < 1), a, b),
    "reciprocal": lambda a, b: a.reciprocal() + b,
    "abs": lambda a, b: a.abs() - (1 - b),
    "masked_fill": lambda a, b: a.masked_fill(b > 0, 2) - b,
    "sum": lambda a, b: torch.stack([a, b]).sum(0) - torch.stack([-a, b]).sum(0, keepdim=True)[0],
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_python_floats_do_as_torch_does_at_the_edges(name):
    a, b = (torch.tensor(x, dtype=torch.float64) for x in zip(*[(a, b) for a in EDGES for b in EDGES], strict=True))
    for x, y in zip(a.split(5), b.split(5), strict=True):  # few elements an operation, so that floats are worth it
        program, _ = record(lambda t: {"y": FUNCTIONS[name](t["a"], t["b"])}, {"a": x, "b": y})
        replay = host.compile_for_host(shorten(program))
        assert replay is not None
        got, expected = replay(x, y)[0], FUNCTIONS[name](x, y)
        # torch multiplies and adds in one rounding, which shows where the sum cancels.
        cancelled = (
            4e-16 * max(abs(v) for v in [0.0, *x.tolist(), *y.tolist()] if math.isfinite(v)) if name == "lerp" else 0.0
        )
        torch.testing.assert_close(got, expected, rtol=4e-16, atol=cancelled, equal_nan=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(allow_subnormal=False, width=64), min_size=6, max_size=6), st.sampled_from(sorted(FUNCTIONS)))
def test_python_floats_do_as_torch_does(numbers, name):
    a, b = torch.tensor(numbers, dtype=torch.float64).split(3)
    program, _ = record(lambda t: {"y": FUNCTIONS[name](t["a"], t["b"])}, {"a": a, "b": b})
    program = shorten(program)
    floats, torchs = host.compile_for_host(program), compile_for_torch(program, Scratch())
    cancelled = 4e-16 * max(abs(v) for v in [1e-280, *numbers] if math.isfinite(v)) if name == "lerp" else 1e-300
    torch.testing.assert_close(floats(a, b)[0], torchs(a, b)[0], rtol=1e-14, atol=cancelled, equal_nan=True)


def test_moves_cost_nothing_on_floats():
    def moving(x):
        a, b = x["x0"].split([2, 3])
        return {
            "y": torch.cat([b, a.view(2, 1).expand(2, 2).reshape(-1)]),
            "z": torch.stack(list(x["x0"].unbind()))[1:],
        }

    inputs = vectors(1, 5)
    program, _ = record(moving, inputs)
    replay = host.compile_for_host(shorten(program))
    for got, expected in zip(replay(inputs["x0"]), moving(inputs).values(), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (lambda x: {"y": x["x0"] + 1}, vectors(1, 1000)),
        (lambda x: {"y": x["x0"] * 3}, vectors(1, 3, torch.float32)),
        (lambda x: {"y": torch.special.gammaln(x["x0"])}, vectors(1, 3)),
    ],
    ids=["large", "narrow", "unknown"],
)
def test_what_floats_are_not_for_is_left_to_torch(function, inputs):
    program, _ = record(function, inputs)
    assert host.compile_for_host(shorten(program)) is None
    assert torch.equal(tape_of(function)(inputs)["y"], function(inputs)["y"])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: {"y": torch.tanh(x["x0"]) * x["c"][1], "sum": (x["x0"] * x["c"][0]).sum()},
        lambda x: {"y": torch.ones(len(x["x0"]), dtype=x["x0"].dtype) + x["x0"], "sum": x["c"].sum()},
        lambda x: {"y": torch.cat(list(x["x0"].split([9, len(x["x0"]) - 9]))[::-1]), "sum": x["c"].sum()},
    ],
    ids=["elementwise", "a length", "a part of it"],
)
def test_a_kernel_recorded_with_few_elements_takes_all_of_them(function, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda replay, **options: replay)
    tapes, inputs = Tapes(fused=True), {**vectors(1, 5000), "c": torch.tensor([2.0, 3.0], dtype=torch.float64)}
    for key in range(2):  # the second finds the kernel of the first
        got, expected = tapes.large((key,), function, long=["x0"])(inputs), function(inputs)
        assert torch.equal(got["y"], expected["y"])
        torch.testing.assert_close(got["sum"], expected["sum"], rtol=1e-13, atol=0)
