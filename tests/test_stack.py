"""Levels and stacks as Python values: `/`, equality, every mistake of the constructor, free names, the registry."""

import copy
import itertools
import math
import pickle
import re
import sys
from dataclasses import FrozenInstanceError
from unittest import mock

import pytest
import torch

import hyperstack as hs
from hyperstack.hyperparameter import BIJECTIONS, MODIFIERS, Setting
from hyperstack.rule import RULES, Option, Rule, Stack
from hyperstack.transforms import TRANSFORMS, Cumulative, Transform

every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
every_hyperparameter = pytest.mark.parametrize(
    ("rule", "name"), [pytest.param(r, k, id=f"{n}.{k}") for n, r in RULES.items() for k in r.hyperparameters]
)
every_option = pytest.mark.parametrize(
    ("rule", "name"), [pytest.param(r, k, id=f"{n}.{k}") for n, r in RULES.items() for k in r.options]
)
FORMS = {
    "class": (hs.Adam, [hs.Adam()]),
    "level": (hs.SGD(0.1), [hs.SGD(0.1)]),
    "stack": (hs.RMSProp(0.2) / hs.AdaGrad, [hs.RMSProp(0.2), hs.AdaGrad()]),
}


def mistake(make, *arguments, **named):
    """The message of the InputError that a call ends in, on one line."""
    with pytest.raises(hs.InputError) as error:
        make(*arguments, **named)
    return " ".join(str(error.value).split())


def other_than_default(rule, name):
    """A value for one argument of a rule that is not its default."""
    if name in rule.options:
        default = rule.options[name].default
        return not default if isinstance(default, bool) else default + 0.25
    declared = rule.hyperparameters[name]
    return next(x for x in (0.25, 0.75, declared.default / 2) if x in declared.domain and x != declared.default)


# Division


@pytest.mark.parametrize("right", FORMS)
@pytest.mark.parametrize("left", FORMS)
def test_division(left, right):
    (a, levels_a), (b, levels_b) = FORMS[left], FORMS[right]
    made = a / b
    assert isinstance(made, Stack)
    assert list(made) == levels_a + levels_b
    assert len(made) == len(levels_a) + len(levels_b)
    assert [made[i] for i in range(len(made))] == levels_a + levels_b
    assert str(made) == repr(made) == " / ".join(map(str, levels_a + levels_b))


def test_division_is_associative_and_leaves_its_operands_alone():
    a, b, c = hs.Adam(0.1) / hs.SGD, hs.SGD(0.2), hs.RMSProp
    assert (a / b) / c == a / (b / c) == Stack([*a, b, c()])
    assert (len(a), str(a)) == (2, "Adam(0.1) / SGD")


@pytest.mark.parametrize("left", FORMS)
@pytest.mark.parametrize("other", [3, None, "SGD", [hs.SGD], int, Rule.check], ids=repr)
def test_only_levels_can_be_divided(left, other):
    assert "is no level of a stack" in mistake(lambda: FORMS[left][0] / other)
    with pytest.raises(TypeError):
        other / FORMS[left][0]


@pytest.mark.parametrize("levels", [["SGD"], [hs.SGD], [hs.SGD(), None], [hs.SGD / hs.SGD]], ids=str)
def test_a_stack_is_made_of_levels(levels):
    assert "is no level of a stack" in mistake(Stack, levels)


def test_a_stack_has_a_level_and_not_too_many():
    assert "at least one level" in mistake(Stack, [])
    highest = Stack([hs.SGD()] * Stack.MAX_HEIGHT)
    assert len(highest.resolve()) == Stack.MAX_HEIGHT
    for make in (lambda: highest / hs.SGD, lambda: hs.Adam(1) / highest, lambda: Stack([*highest, *highest])):
        assert f"at most {Stack.MAX_HEIGHT}" in mistake(make)


# Values


@every_rule
def test_a_level_is_an_immutable_value(rule):
    level = rule(0.5, clip=True)
    for name in ("lr", "settings", "chosen", "clip", "anything", *rule.options):
        with pytest.raises(AttributeError, match="immutable"):
            setattr(level, name, 1)
    for mapping in (level.settings, level.chosen):
        with pytest.raises(TypeError):
            mapping["lr"] = Setting(1.0)
    with pytest.raises(FrozenInstanceError):
        level.settings["lr"].value = 2.0
    assert level == rule(0.5, clip=True)


def test_a_stack_is_an_immutable_value():
    stack = hs.Adam / hs.SGD
    with pytest.raises(AttributeError, match="immutable"):
        stack.levels = ()
    with pytest.raises(TypeError):
        stack[0] = hs.SGD()
    assert stack == hs.Adam / hs.SGD


@pytest.mark.sampled(9)
@every_rule
def test_equality_sees_every_argument(rule):
    made = [rule(), rule(clip=True), rule(clip=Cumulative(skip_zeros=True)), rule(clip=[Cumulative, Cumulative])]
    made += [rule(**{k: other_than_default(rule, k)}) for k in (*rule.options, *rule.hyperparameters)]
    made += [
        rule(**{k: wish(0.5)})
        for k, h in rule.hyperparameters.items()
        if 0.5 in h.domain
        for wish in MODIFIERS.values()
    ]
    made += [rule(hs.free(name)) for name in "αβ"]
    made += [next(r for r in RULES.values() if r is not rule)(), None]
    for (i, a), (j, b) in itertools.product(enumerate(made), repeat=2):
        assert (a == b) == (i == j), (a, b)
    assert len({*made, *map(copy.copy, made)}) == len(made)
    upper = [level for level in made[:-1] if not any(setting.shared for setting in level.settings.values())]
    stacks = [a / b for a, b in itertools.product(made[:-1], upper)]
    assert len({*stacks, *map(str, stacks)}) == 2 * len(stacks)


@every_rule
def test_equal_however_it_is_written(rule):
    named = {k: other_than_default(rule, k) for k in (*rule.hyperparameters, *rule.options)}
    level = rule(**named, clip=True)
    again = rule(named.pop("lr"), clip=[Cumulative()], **dict(reversed(named.items())))
    assert again == level
    assert hash(again) == hash(level)
    assert str(again) == str(level)
    assert (
        rule(**{k: o.default for k, o in rule.options.items()}, clip=False)
        == rule()
        == rule(clip=None)
        == rule(clip=[])
    )
    assert rule(1) == rule(1.0) == rule(lr=Setting(1.0))


@every_rule
@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, *(lambda x, p=p: pickle.loads(pickle.dumps(x, p)) for p in range(6))]
)
def test_a_copy_is_equal(rule, again):
    named = {k: other_than_default(rule, k) for k in (*rule.hyperparameters, *rule.options)}
    stack = rule(**named, clip=[Cumulative(skip_zeros=True)]) / rule(hs.fixed(hs.free("α"))) / rule
    assert again(stack) == stack
    assert hash(again(stack)) == hash(stack)
    assert [again(level) for level in stack] == list(stack)
    assert str(again(stack)) == str(stack)


# Arguments


@every_rule
def test_the_positional_argument_is_the_rate(rule):
    lr, second = list(rule.hyperparameters)[:2]
    assert lr == "lr"
    assert rule(0.25).settings == {"lr": Setting(0.25)} == rule(lr=0.25).settings
    found = mistake(rule, 0.1, 0.2)
    assert found.startswith(f"{rule.__name__} takes one positional argument, lr, not 2")
    assert f"{second}=..." in found
    assert mistake(rule, 0.1, lr=0.1).startswith("lr is given twice")


@every_rule
def test_an_unknown_name_is_answered_with_the_nearest(rule):
    for name in (*rule.hyperparameters, *rule.options, "clip", "at"):
        assert mistake(rule, **{f"{name}x": 1}) == f"{rule.__name__} has no '{name}x' did you mean {name}?"
        assert f"did you mean {name}?" in mistake(rule, **{f"{name.upper()}_": 1})
    everything = ", ".join([*rule.hyperparameters, *rule.options, "clip", "at"])
    assert mistake(rule, ζζζζ=1).endswith(f"choose one of {everything}")


@every_hyperparameter
def test_a_hyperparameter_is_a_number(rule, name):
    for value in (True, False, None, "0.1", [0.1], 1j, 10**400):
        assert re.search(r"is not a number|too large", mistake(rule, **{name: value}))


@pytest.mark.sampled(4)
@every_hyperparameter
@pytest.mark.parametrize("wish", [None, *MODIFIERS])
def test_a_value_is_inside_the_domain_and_the_bijection_expresses_it(rule, name, wish):
    declared, who = rule.hyperparameters[name], f"{rule.__name__}'s {name}"
    for value in (-1.0, -1e-300, 0.0, 5e-324, 0.25, 1.0, 1.0000001, math.inf, -math.inf, math.nan):
        setting = MODIFIERS[wish](value) if wish else Setting(value)
        bijection = BIJECTIONS[setting.bijection or declared.bijection]
        if value not in declared.domain:
            found = mistake(rule, **{name: setting})
            assert found == f"{who}: {value!r} is outside {declared.domain} the default is {declared.default:g}"
        elif value in bijection.image or not (setting.bijection or setting.learned):
            beside = {"trust_max": 2.0} if name == "trust_min" else {}  # which bounds it from above
            assert rule(**{name: setting}, **beside).settings[name] == setting
        else:
            found = mistake(rule, **{name: setting})
            assert found.startswith(
                f"{who}: {bijection.name} cannot express {value!r} its values lie in {bijection.image}"
            )


@every_option
def test_an_option_has_the_type_of_its_default(rule, name):
    default = rule.options[name].default
    wrong = [None, "1", [True], hs.free("α"), hs.fixed(1), math.nan]
    wrong += [0, 1, 1.0] if isinstance(default, bool) else [True, False, -1, -1e-9, math.inf, 10**400, 1j]
    for value in wrong:
        assert re.match(rf"{name} (is a flag|takes a number from 0 up), not", mistake(rule, **{name: value}))
    assert getattr(rule(), name) == default
    value = other_than_default(rule, name)
    assert getattr(rule(**{name: value}), name) == value
    assert rule(**{name: value}).chosen == {name: value}
    assert type(getattr(rule(**{name: value}), name)) is type(default)
    assert isinstance(getattr(rule, name), Option)


def test_clip_takes_many_forms():
    for value in (True, Cumulative, Cumulative(), [Cumulative], (Cumulative(),)):
        assert hs.SGD(clip=value).clip == (Cumulative(),)
        assert str(hs.SGD(clip=value)) == "SGD(clip)"
    assert str(hs.SGD(1, clip=[Cumulative, Cumulative(True)])) == "SGD(1.0, clip=[cumulative, cumulative(skip_zeros)])"


@pytest.mark.parametrize("value", [1, 0.5, "cumulative", [1], [True], [[Cumulative]], hs.SGD, hs.SGD(), int], ids=repr)
def test_clip_refuses_what_is_no_transform(value):
    assert "is no gradient transform" in mistake(hs.SGD, clip=value)


@pytest.mark.parametrize("name", sorted({"clip", "at", *RULES, *(k for r in RULES.values() for k in r.options)}))
def test_a_free_name_is_not_one_that_means_something_else(name):
    assert name in RULES or any(name in ("clip", "at", *rule.options) for rule in RULES.values())
    for rule in RULES.values():
        if name in ("clip", "at", *RULES, *rule.options):
            assert f"lr: {name} is no number" in mistake(rule, hs.free(name))
            assert f"lr: {name} is no number" in mistake(rule, lr=hs.fixed(hs.free(name)))
        else:
            assert hs.parse(str(rule(hs.free(name)))) == Stack([rule(hs.free(name))])


@every_hyperparameter
def test_off_is_fixed_at_zero(rule, name):
    declared = rule.hyperparameters[name]
    assert rule().off(name) == (declared.default == 0)
    if 0.0 in declared.domain:
        assert rule(**{name: 0}).off(name)
        assert rule(**{name: hs.fixed(0)}).off(name)
        assert not rule(**{name: hs.learned(hs.lin(0))}).off(name)
    assert not rule(**{name: hs.fixed(other_than_default(rule, name))}).off(name)
    assert not rule(**{name: hs.free("α")}).off(name)


# Free names


@pytest.fixture
def open_stack():
    a, b, c = (hs.free(name) for name in ("α", "β", "c_2"))
    return hs.Adam(hs.log(b), beta1=hs.fixed(a)) / hs.SGD(momentum=c, lr=hs.per_tensor(a), clip=True) / hs.RMSProp


def test_free_names_from_left_to_right(open_stack):
    assert open_stack.free_names == ("β", "α", "c_2")
    assert [level.free_names for level in open_stack] == [("β", "α"), ("α", "c_2"), ()]
    assert (hs.Adam / hs.SGD).free_names == ()


def test_bind_puts_numbers_in_and_leaves_the_rest(open_stack):
    some = open_stack.bind(α=0.5)
    assert (
        some
        == hs.Adam(hs.log(hs.free("β")), beta1=hs.fixed(0.5))
        / hs.SGD(hs.per_tensor(0.5), momentum=hs.free("c_2"), clip=True)
        / hs.RMSProp
    )
    assert some.free_names == ("β", "c_2")
    everything = some.bind(β=1, c_2=0)
    assert str(everything) == ("Adam(log(1.0), beta1=fixed(0.5)) / SGD(per_tensor(0.5), clip, momentum=0.0) / RMSProp")
    assert everything == open_stack.bind(c_2=0, β=1, α=0.5)
    assert everything.bind() == everything
    assert open_stack.free_names == ("β", "α", "c_2")


def test_what_is_not_bound_is_named_all_at_once(open_stack):
    found = mistake(open_stack.resolve)
    assert found.startswith("this stack leaves β, α, c_2 open")
    assert str(open_stack) in found
    assert found.endswith("bind: β=NUMBER, α=NUMBER, c_2=NUMBER")
    assert mistake(open_stack.bind(α=0.5, β=1).resolve).startswith("this stack leaves c_2 open")


def test_bind_refuses_names_that_are_not_there(open_stack):
    assert mistake(open_stack.bind, c_1=1).startswith("this stack has no free name c_1")
    assert mistake(open_stack.bind, c_1=1).endswith("did you mean c_2?")
    assert mistake(open_stack.bind, lr=1).endswith("choose one of β, α, c_2")
    assert mistake(open_stack.bind(α=0.5, β=1, c_2=0).bind, α=1).endswith("it has no free names")


@pytest.mark.parametrize(
    "value",
    [None, "1", True, hs.free("γ"), hs.fixed(1), hs.log(1), hs.per_tensor(1), [1], 10**400],
    ids=lambda v: str(v)[:9],
)
def test_bind_takes_plain_numbers(open_stack, value):
    assert re.search(r"is not a number|plain number|too large", mistake(open_stack.bind, α=value))


def test_a_bound_value_is_checked_like_any_other(open_stack):
    assert mistake(open_stack.bind, α=1.0).startswith("Adam's beta1: 1.0 is outside [0, 1)")
    assert mistake(open_stack.bind, β=0).startswith("Adam's lr: log cannot express 0.0")


@pytest.mark.parametrize(
    ("written", "bound"), [*itertools.product("\N{MICRO SIGN}\N{GREEK SMALL LETTER MU}", repeat=2)]
)
def test_both_characters_for_mu_are_one_name(written, bound):
    stack = hs.parse(f"SGD({written})")
    assert stack == Stack([hs.SGD(hs.free(written))])
    assert stack.bind(**{bound: 0.5}) == Stack([hs.SGD(0.5)])


def test_any_name_can_be_bound():
    names = ["self", "values", "cls", "lr", "name", "Α", "_"]
    for name in names:
        assert Stack([hs.SGD(hs.free(name))]).bind(**{name: 0.5}) == Stack([hs.SGD(0.5)])


# Rates of upper levels


def rates(stack):
    return [level["lr"].value for level in stack.resolve()]


@pytest.mark.parametrize(("lower", "upper"), [*itertools.product(RULES.values(), repeat=2)])
def test_an_upper_rate_starts_at_a_multiple_of_the_one_below(lower, upper):
    default, ratio = lower.hyperparameters["lr"].default, lower.upper_ratio
    assert 0 < ratio < 1
    assert rates(lower / upper / upper) == [default, *(float(f"{default * r:.12g}") for r in (ratio, ratio * 1e-6))]
    assert rates(lower(0.3) / upper / lower) == [0.3, *(float(f"{0.3 * r:.12g}") for r in (ratio, ratio * 1e-6))]
    assert rates(lower(0.1234567891) / upper) == [0.1234567891, float(f"{0.1234567891 * ratio:.12g}")]
    assert rates(lower(0.3) / upper(7) / lower) == [0.3, 7, 7e-6]
    assert rates(lower(0.3) / upper(0) / lower) == [0.3, 0, 0]
    assert (lower(0.3) / upper).resolve()[1]["lr"].learned
    assert hs.parse(str(lower / upper)) == lower / upper


def test_a_tower_of_default_rates():
    first, *found = rates(Stack([hs.SGD(1)] + [hs.SGD()] * 40))
    assert first == 1
    assert all(math.isclose(x, 0.01 * 1e-6**k, rel_tol=1e-11) for k, x in enumerate(found))
    assert len(found) == 40


@every_rule
def test_resolve_leaves_nothing_open(rule):
    (level,) = Stack([rule()]).resolve()
    assert list(level) == list(rule.hyperparameters)
    assert {k: r.value for k, r in level.items()} == {k: h.default for k, h in rule.hyperparameters.items()}
    assert level == {k: h.resolve(None) for k, h in rule.hyperparameters.items()}


# The registry


def define(name, base=hs.SGD, **body):
    """A new class of this module, as a class statement would define it."""
    return type(base)(name, (base,), {"__module__": __name__, "__qualname__": name, "__doc__": "A rule.", **body})


def test_the_registry_holds_the_rules_under_their_names():
    assert all(name == rule.__name__ and issubclass(rule, Rule) for name, rule in RULES.items())
    assert {hs.SGD, hs.Adam, hs.AdaGrad, hs.RMSProp} <= set(RULES.values())
    assert hs.RULES is RULES
    assert hs.TRANSFORMS is TRANSFORMS


@mock.patch.dict(RULES)
def test_a_second_rule_of_one_name_is_refused():
    found = mistake(define, "Adam")
    assert found == "the name Adam is taken by hyperstack.rules.adam.Adam give the new class another name"
    assert RULES["Adam"] is hs.Adam
    define("Lookahead")
    assert "is taken by" in mistake(define, "Lookahead", __qualname__="inside.Lookahead")
    assert "is taken by" in mistake(define, "Lookahead", __module__="elsewhere")


@mock.patch.dict(RULES)
def test_a_plain_value_settles_what_is_inherited():
    made = define("Careful", hs.Adam, amsgrad=True, eps=0.1)
    assert "amsgrad" not in made.options
    assert "eps" not in made.hyperparameters
    assert made().amsgrad is True
    assert "max_exp_avg_sq" in made().init(torch.zeros(2))
    assert "has no 'amsgrad'" in mistake(made, amsgrad=False)
    assert {"v0"} < set(made.options) < set(hs.Adam.options)
    assert "amsgrad" not in define("Careless", made).options


@mock.patch.dict(RULES)
def test_the_same_rule_may_be_defined_again():
    first, second = define("Lookahead"), define("Lookahead")
    assert RULES["Lookahead"] is second is not first


@mock.patch.dict(RULES)
def test_a_rule_is_known_to_the_text_form_as_soon_as_it_is_defined():
    with pytest.raises(hs.StackError, match="no rule is called Lookahead"):
        hs.parse("Lookahead / SGD")
    lookahead = define(
        "Lookahead", ahead=hs.Hyperparameter(0.5, hs.SGD.hyperparameters["momentum"].domain), twice=Option(False)
    )
    assert list(lookahead.hyperparameters) == [*hs.SGD.hyperparameters, "ahead"]
    assert list(lookahead.options) == [*hs.SGD.options, "twice"]
    assert "ahead" not in hs.SGD.hyperparameters
    made = hs.parse("Lookahead(0.1, twice, nesterov, clip, ahead=fixed(0.25), momentum=0.5) / Lookahead")
    assert made == lookahead(0.1, twice=True, nesterov=True, clip=True, ahead=hs.fixed(0.25), momentum=0.5) / lookahead
    assert hs.parse(str(made)) == made
    assert made[0].twice
    assert not made[1].twice
    assert made != hs.parse(str(made).replace("twice, ", ""))
    with pytest.raises(hs.StackError, match=r"did you mean Lookahead\?"):
        hs.parse("lookahead")


@mock.patch.dict(TRANSFORMS)
def test_a_transform_is_registered_and_guarded_in_the_same_way():
    def define_transform():
        return type(Transform)("Mine", (Transform,), {"__module__": __name__, "__qualname__": "Mine", "name": "mine"})

    first, second = define_transform(), define_transform()
    assert TRANSFORMS["mine"] is second is not first
    with pytest.raises(hs.InputError, match="the name mine is taken by"):
        type(Transform)("Yours", (Transform,), {"__module__": __name__, "__qualname__": "Yours", "name": "mine"})


def test_no_name_is_claimed_by_two_registries():
    names = [*RULES, *TRANSFORMS, *MODIFIERS]
    assert len(names) == len(set(names))
    assert all(name.isidentifier() for name in names)
    assert sys.modules[hs.SGD.__module__].SGD is RULES["SGD"]
