"""`auto`: what it is short for, and what it refuses."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

import hyperstack as hs
from hyperstack.rule import RULES, Rule

FULL = "SGD(1.0, clip=[cosine], at=average(0.99, bound=0.1))"

SHORT = {
    # the text: its expansion, and the same in Python
    "auto": (f"Adam(log(0.001), beta1=fixed(0.9), beta2=fixed(0.999)) / {FULL}", lambda: hs.auto()),
    "auto(Adam)": (f"Adam(log(0.001), beta1=fixed(0.9), beta2=fixed(0.999)) / {FULL}", lambda: hs.auto(hs.Adam)),
    "auto(base=SGD(0.1, momentum=0.9))": (
        f"SGD(log(0.1), momentum=fixed(0.9)) / {FULL}",
        lambda: hs.auto(hs.SGD(0.1, momentum=0.9)),
    ),
    "auto(SGD(0.1, nesterov, clip, momentum=learned(0.9)), rate=0.5)": (
        f"SGD(log(0.1), nesterov, clip, momentum=learned(0.9)) / {FULL.replace('1.0', '0.5', 1)}",
        lambda: hs.auto(hs.SGD(0.1, nesterov=True, clip=True, momentum=hs.learned(0.9)), rate=0.5),
    ),
    "auto(Adam(per_tensor(α), beta1=fixed_after(0.9, 9)), rate=per_tensor(β), decay=0.9, every=5, warmup=2, bound=0)": (
        "Adam(per_tensor(log(α)), beta1=fixed_after(0.9, 9), beta2=fixed(0.999)) / "
        "SGD(per_tensor(β), clip=[cosine], at=average(0.9, every=5, warmup=2))",
        lambda: hs.auto(
            hs.Adam(hs.per_tensor(hs.free("α")), beta1=hs.fixed_after(0.9, 9)),
            rate=hs.per_tensor(hs.free("β")), decay=0.9, every=5, warmup=2, bound=0,
        ),
    ),
    "auto(ALRC(SGD(0.1), n=3))": (
        f"ALRC(SGD(log(0.1)), n=fixed(3.0)) / {FULL}",
        lambda: hs.auto(hs.ALRC(hs.SGD(0.1), n=3)),
    ),
    "auto(Adam) / SGD(1e-3)": (
        f"Adam(log(0.001), beta1=fixed(0.9), beta2=fixed(0.999)) / {FULL} / SGD(0.001)",
        lambda: hs.auto(hs.Adam) / hs.SGD(1e-3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("text", SHORT)
def test_what_it_is_short_for(text):
    expanded, made = SHORT[text]
    assert str(hs.parse(text)) == expanded
    assert hs.parse(text) == made() == hs.parse(expanded)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_rate_of_every_rule_is_learned_as_log_and_nothing_else(rule):
    stack = hs.auto(rule)
    resolved = stack.resolve()[0]
    assert [name for name, r in resolved.items() if r.learned] == ["lr"]
    assert resolved["lr"].bijection.name == "log"
    plain = rule().resolve()
    assert {name: r.value for name, r in resolved.items()} == {name: r.value for name, r in plain.items()}
    assert stack == hs.parse(f"auto({rule.__name__})") == hs.parse(str(stack))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3,), "auto takes a rule, not 3"),
        (("Adam",), "auto takes a rule, not 'Adam'"),
        ((hs.Adam / hs.SGD,), "auto takes a rule, not Adam / SGD"),
        ((Rule,), "auto takes a rule"),
        ((hs.SGD(hs.fixed(0.1)),), r"lr is fixed\(0.1\)"),
        ((hs.SGD(hs.lin(0.1)),), r"lr is lin\(0.1\)"),
        ((hs.SGD(0),), r"starts at 0[\s\S]*as in auto\(SGD\(1e-6\)\)"),
    ],
)
def test_what_is_no_rule_with_a_rate_to_learn_is_refused(arguments, message):
    with pytest.raises(hs.InputError, match=message):
        hs.auto(*arguments)


@pytest.mark.parametrize("rate", [-1, float("nan"), float("inf"), hs.fixed(-1), hs.per_tensor(-1)])
def test_a_rate_of_level_1_that_is_none(rate):
    with pytest.raises(hs.InputError, match=r"auto's rate is [\s\S]*from 0 up; 1 is the default"):
        hs.auto(rate=rate)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("auto(Adam, rate=-1)", "auto's rate is -1"),
        ("auto(Adam, at=average(0.99))", "the arguments of average(...) are auto's own"),
        ("Auto(Adam)", "did you mean auto?"),
        ("atuo(Adam) / SGD", "did you mean auto?"),
        ("Adm", "did you mean Adam?"),
    ],
)
def test_what_is_written_wrong_is_set_right(text, message):
    with pytest.raises(hs.StackError) as found:
        hs.parse(text)
    assert message in str(found.value)


@pytest.mark.parametrize("every", [0, -1, 2.5, True, float("inf"), float("nan"), "10", None])
def test_every_is_a_whole_number_from_1_up(every):
    with pytest.raises(hs.InputError, match=r"average's every is .*[\s\S]*give a whole number in \[1, inf\)"):
        hs.auto(every=every)


@pytest.mark.parametrize("name", ["decay", "warmup", "bound"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), True, "x"])
def test_the_other_numbers_are_checked(name, value):
    with pytest.raises(hs.InputError, match=f"average's {name} is"):
        hs.auto(**{name: value})


def test_its_numbers_are_those_of_the_place():
    place = hs.auto(decay=0.5, every=3, warmup=4, first=2, bound=0.2, deviations=9)[1].at
    assert place == hs.average(0.5, 3, 4, 2, 0.2, 9)
    numbers = {field.name for field in dataclasses.fields(place)}
    assert set(inspect.signature(hs.auto).parameters) == {"base", "rate", *numbers}
    assert [place.kept(t) for t in (1, 2, 4, 100)] == [1 / 5, 2 / 6, 4 / 8, 0.5]


@pytest.mark.parametrize("value", [3, "live", hs.Adam, hs.cosine(), [hs.live]])
def test_what_is_no_place_is_refused(value):
    with pytest.raises(hs.InputError, match="is no place to measure at"):
        hs.SGD(at=value)


def test_live_is_the_default():
    assert hs.SGD(at=hs.live) == hs.SGD(at=hs.live()) == hs.SGD(at=None) == hs.SGD()
    assert str(hs.Adam / hs.SGD(at=hs.live)) == "Adam / SGD"
