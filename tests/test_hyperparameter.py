"""Bijections over all that they can express, intervals, and what a setting resolves to."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperstack.errors import InputError
from hyperstack.hyperparameter import (
    BIJECTIONS,
    MODIFIERS,
    Free,
    Hyperparameter,
    Interval,
    Setting,
    as_setting,
    fixed,
    free,
    learned,
    per_tensor,
)
from hyperstack.rule import RULES

repeatable = settings(deadline=None, derandomize=True)
EPS = torch.finfo(torch.float64).eps
NAMES = {"bijection": tuple(BIJECTIONS), "learned": ("fixed", "learned"), "tensors": ("per_tensor", "shared")}
each_bijection = pytest.mark.parametrize("bijection", BIJECTIONS.values(), ids=BIJECTIONS)
every_hyperparameter = pytest.mark.parametrize(
    "declared", [pytest.param(h, id=f"{r}.{k}") for r, rule in RULES.items() for k, h in rule.hyperparameters.items()]
)


def numbers(interval):
    """Every number of an interval, from the smallest normal ones to the largest."""
    low, high = (None if math.isinf(x) else x for x in (interval.low, interval.high))
    return st.floats(
        low,
        high,
        exclude_min=low is not None and interval.low_open,
        exclude_max=high is not None and interval.high_open,
        allow_nan=False,
        allow_infinity=False,
        allow_subnormal=False,
    )


def slope(bijection, raw):
    raw = torch.tensor(raw, dtype=torch.float64, requires_grad=True)
    value = bijection.to_value(raw)
    return value.item(), torch.autograd.grad(value, raw)[0].item()


def message(error):
    return " ".join(str(error.value).split())


# Bijections


@pytest.mark.sampled(5)
@each_bijection
@repeatable
@given(data=st.data())
def test_a_bijection_comes_back_to_every_value_it_can_express(bijection, data):
    value = data.draw(numbers(bijection.image))
    raw = bijection.to_raw(value)
    again, derivative = slope(bijection, raw)
    # The raw number is off by a few roundings of itself, which reach the value times the derivative.
    assert abs(again - value) <= EPS * (8 * abs(value) + 4 * abs(derivative * raw))
    assert bijection.image.low <= again <= bijection.image.high


@each_bijection
@repeatable
@given(raw=st.floats(-18.0, 18.0))
def test_the_derivative_of_a_bijection_against_central_differences(bijection, raw):
    value, derivative = slope(bijection, raw)
    step = EPS ** (1 / 3) * max(1.0, abs(raw))
    up, down = raw + step, raw - step
    high, low = slope(bijection, up)[0], slope(bijection, down)[0]
    # Of each of these maps the third derivative is at most 8 times the value; exp is the steepest within a step.
    cut = step**2 / 6 * 8 * max(abs(high), abs(low), abs(value))
    rounding = 8 * EPS * max(abs(high), abs(low)) / (up - down)
    assert abs(derivative - (high - low) / (up - down)) <= cut + rounding


@pytest.mark.sampled(3)
@each_bijection
@repeatable
@given(raw=st.floats(-15.0, 15.0).filter(lambda raw: abs(raw) > 1e-3))
def test_a_bijection_stays_inside_its_image_and_grows_from_half_the_raw_line(bijection, raw):
    value, derivative = slope(bijection, raw)
    assert value in bijection.image
    assert derivative > 0 or (bijection.name == "square" and raw < 0 and derivative < 0)
    assert slope(bijection, abs(raw) * 1.001)[0] > slope(bijection, abs(raw))[0]


@each_bijection
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_reach_the_raw_tensor(bijection, dtype):
    raw = torch.tensor([-2.5, -0.5, 0.25, 1.0, 3.0], dtype=dtype, requires_grad=True)
    value = bijection.to_value(raw)
    assert (value.dtype, value.shape, value.device) == (raw.dtype, raw.shape, raw.device)
    cotangent = torch.tensor([1.0, -2.0, 3.0, 0.5, 0.0], dtype=dtype)
    (found,) = torch.autograd.grad(value, raw, cotangent)
    expected = torch.tensor([slope(bijection, r)[1] for r in raw.tolist()], dtype=dtype) * cotangent
    torch.testing.assert_close(found, expected, rtol=16 * torch.finfo(dtype).eps, atol=0)
    assert found[:4].abs().min() > 0


@repeatable
@given(raw=st.floats(-15.0, 15.0))
def test_logit_is_the_published_map(raw):
    assert math.isclose(slope(BIJECTIONS["logit"], raw)[0], (math.tanh(raw) + 1) / 2, rel_tol=0, abs_tol=2 * EPS)


@every_hyperparameter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_default_starts_as_a_finite_raw_number(declared, dtype):
    resolved = declared.resolve(None)
    assert (resolved.value, resolved.bijection.name) == (declared.default, declared.bijection)
    if resolved.learned:
        raw = torch.tensor(resolved.bijection.to_raw(resolved.value), dtype=dtype, requires_grad=True)
        value = resolved.bijection.to_value(raw)
        assert math.isclose(value.item(), declared.default, rel_tol=64 * torch.finfo(dtype).eps)
        assert torch.autograd.grad(value, raw)[0].item() > 0


# Intervals

INSIDE, EDGES, OUTSIDE = (0.5, 1.0, 1.999), (0.25, 2.0), (-1.0, 0.2499, 2.001, math.inf, -math.inf, math.nan)


@pytest.mark.parametrize(("low_open", "high_open"), [*itertools.product([False, True], repeat=2)])
def test_interval(low_open, high_open):
    interval = Interval(0.25, 2.0, low_open, high_open)
    assert all(x in interval for x in INSIDE)
    assert [x in interval for x in EDGES] == [not low_open, not high_open]
    assert not any(x in interval for x in OUTSIDE)
    assert str(interval) == "[("[low_open] + "0.25, 2" + "])"[high_open]


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(), "(-inf, inf)"),
        (Interval(0.0), "[0, inf)"),
        (Interval(0.0, low_open=True), "(0, inf)"),
        (Interval(high=1.0), "(-inf, 1]"),
    ],
)
def test_an_end_at_infinity_is_open(interval, text):
    assert str(interval) == text
    assert not any(x in interval for x in (math.inf, -math.inf, math.nan))
    assert all(x in interval for x in (1e308, 5e-324) if x <= interval.high)


@every_hyperparameter
def test_every_declaration_is_sound(declared):
    assert declared.default in declared.domain
    assert declared.bijection in BIJECTIONS
    assert declared.doc


# Settings


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        (Setting(0.1), "0.1"),
        (Setting(1e-5), "1e-05"),
        (Setting(Free("α")), "α"),
        (Setting(1.0, "log"), "log(1.0)"),
        (Setting(1.0, learned=False), "fixed(1.0)"),
        (Setting(1.0, learned=True), "learned(1.0)"),
        (Setting(1.0, per_tensor=True), "per_tensor(1.0)"),
        (Setting(Free("α"), "square", True, True), "learned(per_tensor(square(α)))"),
    ],
)
def test_str_of_a_setting(setting, text):
    assert str(setting) == text


@pytest.mark.parametrize(
    "names",
    [
        names
        for n in (1, 2, 3)
        for kinds in itertools.combinations(NAMES.values(), n)
        for names in itertools.product(*kinds)
    ],
)
def test_modifiers_mean_the_same_in_any_order(names):
    expected = Setting(
        0.5,
        next((n for n in names if n in BIJECTIONS), None),
        {"fixed": False, "learned": True}.get(next((n for n in names if n in NAMES["learned"]), "")),
        "per_tensor" in names,
        shared="shared" in names,
    )
    for order in itertools.permutations(names):
        made = 0.5
        for name in order:
            made = MODIFIERS[name](made)
        assert made == expected


def test_the_kinds_of_modifiers_are_all_here():
    assert sorted(itertools.chain(*NAMES.values())) == sorted(MODIFIERS)
    assert all(f.__name__ == name and f.__doc__ for name, f in MODIFIERS.items())


@pytest.mark.parametrize("pair", [pair for kind in NAMES.values() for pair in itertools.product(kind, repeat=2)])
def test_two_modifiers_of_one_kind_contradict_each_other(pair):
    outer, inner = pair
    with pytest.raises(InputError) as error:
        MODIFIERS[outer](MODIFIERS[inner](0.5))
    assert message(error).startswith(f"{outer}({inner}(0.5)) asks twice for the same thing")


@pytest.mark.parametrize("read", [as_setting, *MODIFIERS.values()], ids=lambda f: f.__name__)
def test_what_is_no_number(read):
    for value in (True, False, None, "0.1", [0.1], 1j, (0.1,), b"1", 10**400, object()):
        with pytest.raises(InputError, match=r"is not a number|too large"):
            read(value)


@pytest.mark.parametrize(
    "name", ["", "1a", "a b", "a.b", "α-β", "lambda", "None", "\x00", "log", "fixed", "inf", "NaN"]
)
def test_what_is_no_free_name(name):
    with pytest.raises(InputError, match=r"is no (name|number)"):
        free(name)


def test_a_free_name_is_the_identifier_that_python_would_read():
    assert free("\N{MICRO SIGN}") == free("\N{GREEK SMALL LETTER MU}")
    assert free("\N{MICRO SIGN}").value.name == "μ"
    assert str(fixed(free("η_1"))) == "fixed(η_1)"


# What a setting resolves to


@every_hyperparameter
def test_resolve_takes_what_is_asked_and_declares_the_rest(declared):
    value = {True: 0.5, False: declared.default}[0.5 in declared.domain]
    plain = declared.resolve(as_setting(value))
    assert plain == declared.resolve(Setting(value, declared.bijection))
    assert (plain.value, plain.bijection, plain.per_tensor) == (value, BIJECTIONS[declared.bijection], False)
    assert plain.learned == (declared.learnable and value not in (declared.domain.low, declared.domain.high))
    assert declared.resolve(per_tensor(value)).per_tensor
    assert not declared.resolve(fixed(value)).learned
    for name, bijection in BIJECTIONS.items():
        if value in bijection.image:
            asked = declared.resolve(learned(MODIFIERS[name](value)))
            assert (asked.value, asked.bijection, asked.learned) == (value, bijection, True)


@pytest.mark.parametrize("bijection", BIJECTIONS)
@pytest.mark.parametrize("edge", [0.0, 1.0])
def test_at_an_edge_it_is_fixed_unless_asked_for(bijection, edge):
    declared = Hyperparameter(0.5, Interval(0.0, 1.0), bijection)
    assert declared.resolve(as_setting(0.5)).learned
    assert not declared.resolve(as_setting(edge)).learned
    assert not declared.resolve(fixed(edge)).learned
    if edge in BIJECTIONS[bijection].image:
        assert declared.resolve(learned(edge)).learned
        assert not declared.resolve(MODIFIERS[bijection](edge)).learned
    else:
        for setting in (learned(edge), MODIFIERS[bijection](edge), fixed(MODIFIERS[bijection](edge))):
            with pytest.raises(InputError) as error:
                declared.resolve(setting)
            assert f"{bijection} cannot express {edge}" in message(error)
            assert f"its values lie in {BIJECTIONS[bijection].image}" in message(error)


def test_one_that_is_not_learnable_is_learned_only_when_asked():
    declared = Hyperparameter(1e-8, Interval(0.0), learnable=False)
    assert [declared.resolve(s).learned for s in (None, as_setting(1.0), fixed(1.0), learned(1.0))] == [False] * 3 + [
        True
    ]


@every_hyperparameter
def test_resolve_refuses_what_is_outside_the_domain(declared):
    ends = [(declared.domain.low, -1, declared.domain.low_open), (declared.domain.high, 1, declared.domain.high_open)]
    beyond = [end if is_open else math.nextafter(end, sign * math.inf) for end, sign, is_open in ends]
    for value in {*beyond, math.inf, -math.inf, math.nan}:
        for setting in (Setting(value), fixed(value), learned(value)):
            with pytest.raises(InputError) as error:
                declared.resolve(setting)
            assert message(error) == f"{value!r} is outside {declared.domain} the default is {declared.default:g}"


def test_resolve_names_the_free_name_that_is_not_bound():
    with pytest.raises(InputError) as error:
        Hyperparameter(0.1, Interval()).resolve(fixed(free("α")))
    assert message(error) == "α is not bound bind it: α=NUMBER"
