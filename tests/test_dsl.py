"""The text form: what it means, that it comes back, and that every mistake is shown where it is."""

import contextlib
import copy
import functools
import itertools
import pickle
import re
import time
import warnings
from dataclasses import MISSING, dataclass, fields
from typing import ClassVar
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hyperstack as hs
from hyperstack.dsl import MAX_LENGTH
from hyperstack.hyperparameter import BIJECTIONS, MODIFIERS, Free
from hyperstack.hyperparameter import WORDS as WISHES
from hyperstack.measuring import MEASURED
from hyperstack.rule import RULES, Stack
from hyperstack.rules import ALRC
from hyperstack.transforms import TRANSFORMS, Cumulative, Transform

repeatable = settings(deadline=None, derandomize=True, max_examples=80)
MEANS_SOMETHING = {"clip", "at", *RULES, *WISHES, *(name for rule in RULES.values() for name in rule.options)}


# Every stack that the registries allow


def is_free(name):
    """Whether a name may stand for a number in every rule."""
    try:
        return Free(name).name not in MEANS_SOMETHING
    except hs.InputError:
        return False


NAMES = st.one_of(
    st.sampled_from(
        ["α", "β", "η", "μ", "\N{MICRO SIGN}", "ϵ", "lr", "_", "c_2", "Α1", "fixed_", "cumulative", "学习率"]
    ),
    st.text("abfinz_AΩ012αβγδεζηθικλμνξπρστυφχψωϑϱς学ﬁℌª", min_size=1, max_size=4),
).filter(is_free)


@functools.cache
def inside(interval):
    """The numbers of an interval, each end too where it is closed."""
    low, high = (None if abs(x) == float("inf") else x for x in (interval.low, interval.high))
    number = st.floats(
        low,
        high,
        exclude_min=low is not None and interval.low_open,
        exclude_max=high is not None and interval.high_open,
        allow_nan=False,
        allow_infinity=False,
    )
    return st.one_of(number, st.sampled_from([1e-5, 1e-3, 0.01, 0.5, 0.9, 0.0, 1, 3]).filter(interval.__contains__))


@st.composite
def values(draw, declared):
    """What may be written for one hyperparameter: a number or a free name in modifiers that make sense for it."""
    value = draw(inside(declared.domain) | NAMES)
    expressible = [b.name for b in BIJECTIONS.values() if isinstance(value, str) or value in b.image]
    bijection = draw(st.sampled_from([None, *expressible]))
    can_learn = (bijection or declared.bijection) in expressible
    wishes = [bijection, draw(st.sampled_from([None, "fixed", *["learned"] * can_learn]))]
    whole = declared is ALRC.hyperparameters["n"]
    wishes.append(draw(st.sampled_from([None, "shared", *["per_tensor"] * (not whole)])))
    made = hs.free(value) if isinstance(value, str) else value
    for wish in filter(None, draw(st.permutations(wishes))):
        made = MODIFIERS[wish](made)
    can_end = can_learn and not {"fixed", "learned"} & {*wishes}
    return hs.fixed_after(made, draw(st.integers(1, 10**9))) if can_end and draw(st.booleans()) else made


@st.composite
def transforms(draw):
    """One gradient transform: a class, or an instance with some of its arguments chosen."""
    cls = draw(st.sampled_from([*TRANSFORMS.values()]))
    needed = [f for f in fields(cls) if f.default is MISSING]
    if not needed and draw(st.booleans()):
        return cls
    chosen = [f for f in fields(cls) if f in needed or draw(st.booleans())]
    return cls(**{f.name: draw(_options(f)) for f in chosen})


def _options(f):
    """What may be written for a field of a transform."""
    domain = f.metadata.get("domain")
    if isinstance(f.default, bool):
        return st.booleans()
    if isinstance(f.default, str):
        return st.sampled_from(domain or ["*", "lr", "*.weight", "é'\""])
    return st.integers(1, 9) if isinstance(f.default, int) else inside(domain)


@functools.cache
def arguments(rule):
    """For each argument of a rule, what it may be."""
    found = {k: values(h) for k, h in rule.hyperparameters.items()}
    for name, option in rule.options.items():
        is_flag = isinstance(option.default, bool)
        found[name] = st.booleans() if is_flag else st.floats(0, allow_infinity=False) | st.integers(0, 9)
    found["clip"] = st.booleans() | st.none() | transforms() | st.lists(transforms(), max_size=3)
    found["at"] = places()
    return found


@st.composite
def places(draw):
    """Where to measure: nowhere said, live, or averages with some of their arguments chosen."""
    if draw(st.booleans()):
        return draw(st.sampled_from([None, hs.live, hs.live()]))
    chosen = [f for f in fields(hs.average) if f.default is MISSING or draw(st.booleans())]
    return hs.average(**{f.name: draw(_options(f)) for f in chosen})


@st.composite
def levels(draw):
    rule = draw(st.sampled_from([*RULES.values()]))
    chosen = draw(st.lists(st.sampled_from([*arguments(rule)]), unique=True, max_size=5))
    named = {name: draw(arguments(rule)[name]) for name in chosen}
    by_position = [named.pop("lr")] if "lr" in named and draw(st.booleans()) else []
    try:
        return rule(*by_position, **named)
    except hs.InputError:  # bounds that cross: each argument alone is right
        return rule()


@st.composite
def wrapped(draw):
    """A level, one in ten of them in a wrapper."""
    level = draw(levels())
    if draw(st.integers(0, 9)):
        return level
    flags, number = [k for k, o in ALRC.options.items() if isinstance(o.default, bool)], st.floats(0, 1e3)
    chosen = {name: draw(st.booleans()) for name in draw(st.lists(st.sampled_from(flags), unique=True))}
    chosen |= {name: draw(number) for name in ("shift", "huber_after", "overestimate") if draw(st.booleans())}
    return ALRC(level, **chosen, **({"n": draw(values(ALRC.hyperparameters["n"]))} if draw(st.booleans()) else {}))


def placed(made):
    """A stack of those that may stand where they come."""
    kept = []
    for level in made:
        try:
            level.check_place(len(kept))
        except hs.InputError:
            continue
        kept.append(level)
    return Stack(kept or [hs.SGD()])


@st.composite
def automatic(draw):
    """`auto` around a level, under more levels perhaps."""
    place = draw(places().filter(lambda place: isinstance(place, hs.average)))
    numbers = {f.name: getattr(place, f.name) for f in fields(place) if draw(st.booleans())}
    rate = {"rate": draw(values(hs.SGD.hyperparameters["lr"]))} if draw(st.booleans()) else {}
    try:
        made = hs.auto(draw(wrapped()), **rate, **numbers)
    except hs.InputError:  # a rate that is 0, fixed or shared, or a level that belongs elsewhere
        made = hs.auto(hs.SGD(0.1, momentum=0.9), **numbers)
    return placed([*made, *draw(st.lists(levels(), max_size=2))])


stacks = st.lists(wrapped(), min_size=1, max_size=4).map(placed) | automatic()


# What a text means


@pytest.mark.parametrize(
    ("text", "stack"),
    [
        ("Adam / SGD(1e-5)", hs.Adam / hs.SGD(1e-5)),
        (
            "Adam(lr=1e-3, beta1=fixed(0.9)) / SGD(1e-5, clip)",
            hs.Adam(1e-3, beta1=hs.fixed(0.9)) / hs.SGD(1e-5, clip=True),
        ),
        (
            "Adam(lr=1e-3, beta1=fixed(0.9)) / SGD(1e-5, clip=True)",
            hs.parse("Adam(lr=1e-3, beta1=fixed(0.9)) / SGD(1e-5, clip)"),
        ),
        ("SGD(0.01) / SGD(0.1) / SGD(0.1)", hs.SGD(0.01) / hs.SGD(0.1) / hs.SGD(0.1)),
        ("Adam(lr=log(1e-3)) / Adam(0.01)", hs.Adam(hs.log(1e-3)) / hs.Adam(0.01)),
        ("SGD(per_tensor(0.01)) / SGD(1e-3)", hs.SGD(hs.per_tensor(0.01)) / hs.SGD(1e-3)),
        ("Adam(1e-3, clip=[cumulative])", Stack([hs.Adam(1e-3, clip=True)])),
        ("Adam / SGD(α, clip)", hs.Adam / hs.SGD(hs.free("α"), clip=True)),
        ("Adam(v0=1e-8) / SGD", hs.Adam(v0=1e-8) / hs.SGD),
        (
            "RMSProp(square(0.01), eps_inside, eps=1e-8) / AdaGrad(eps_inside, initial=0.1)",
            hs.RMSProp(hs.square(0.01), eps=1e-8, eps_inside=True) / hs.AdaGrad(initial=0.1, eps_inside=True),
        ),
    ],
)
def test_the_examples_of_the_design(text, stack):
    assert hs.parse(text) == stack
    assert hs.parse(str(hs.parse(text))) == hs.parse(text)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("Adam", "Adam"),
        ("Adam()", "Adam"),
        ("(Adam)/((SGD/AdaGrad) / RMSProp)", "Adam / SGD / AdaGrad / RMSProp"),
        ("Adam / (SGD(1))", "Adam / SGD(1.0)"),
        ("\n  Adam(\n    lr = 1e-3,\n  )\n\t/ SGD\r\n", "Adam(0.001) / SGD"),
        ("Adam\u00a0/\u2009SGD\u2028/ SGD", "Adam / SGD / SGD"),
        ("Adam(eps=1, beta1=0.5, clip=True, lr=+2, amsgrad=True)", "Adam(2.0, amsgrad, clip, beta1=0.5, eps=1.0)"),
        ("Adam(clip, amsgrad, v0=0.5)", "Adam(amsgrad, clip, v0=0.5)"),
        ("Adam(0.1, amsgrad=False, clip=False, v0=0, beta1=0.9)", "Adam(0.1, beta1=0.9)"),
        ("SGD(log(learned(per_tensor(1))))", "SGD(learned(per_tensor(log(1.0))))"),
        ("SGD(1_000, momentum=-0.0)", "SGD(1000.0, momentum=-0.0)"),
        ("SGD(0x10) / SGD(1e22) / SGD(5e-324)", "SGD(16.0) / SGD(1e+22) / SGD(5e-324)"),
        ("SGD(\N{MICRO SIGN}) / SGD(ﬁxed(ϵ))", "SGD(μ) / SGD(fixed(ε))"),
        ("SGD(clip=cumulative)", "SGD(clip)"),
        ("SGD(clip=cumulative())", "SGD(clip)"),
        ("SGD(clip=[cumulative(skip_zeros=False)])", "SGD(clip)"),
        ("SGD(clip=[])", "SGD"),
        ("SGD(clip=cumulative(skip_zeros))", "SGD(clip=[cumulative(skip_zeros)])"),
        ("SGD(clip=[cumulative(skip_zeros=True), cumulative])", "SGD(clip=[cumulative(skip_zeros), cumulative])"),
    ],
)
def test_canonical_form(text, canonical):
    assert str(hs.parse(text)) == canonical
    assert hs.parse(canonical) == hs.parse(text)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_with_everything_it_has_on_every_level(rule):
    hyperparameters, options = RULES[rule].hyperparameters, RULES[rule].options
    bound = {k: "0.5" for k, h in hyperparameters.items() if 0.5 in h.domain}
    flags = [k for k, o in options.items() if isinstance(o.default, bool)]
    named = [f"{k}={v}" for k, v in bound.items() if k != "lr"] + [f"{k}=0.25" for k in options if k not in flags]
    made = hs.parse(" / ".join([f"{rule}({', '.join(['0.5', *flags, 'clip', *named])})"] * 3))
    expected = dict.fromkeys(bound, 0.5) | {k: True if k in flags else 0.25 for k in options} | {"clip": True}
    assert list(made) == [RULES[rule](**expected)] * 3
    assert all(getattr(made[2], k) == expected[k] for k in options)


@repeatable
@given(stack=stacks)
def test_the_text_of_every_stack_comes_back_to_it(stack):
    text = str(stack)
    again = hs.parse(text)
    assert again == stack
    assert hash(again) == hash(stack)
    assert str(again) == text
    assert again.free_names == stack.free_names
    numbers = dict.fromkeys(stack.free_names, 0.75)  # inside every domain
    with contextlib.suppress(hs.InputError):  # bounds may cross
        assert hs.parse(str(stack.bind(**numbers))) == again.bind(**numbers)
    for copied in (copy.copy(stack), copy.deepcopy(stack), pickle.loads(pickle.dumps(stack))):
        assert copied == stack
        assert hash(copied) == hash(stack)
        assert str(copied) == text


@settings(repeatable, max_examples=40)
@given(stack=stacks, blank=st.text(" \t\n\r\x0b\f\u00a0\u2028\u3000", max_size=3))
def test_blanks_between_words_mean_nothing(stack, blank):
    assert hs.parse(blank + re.sub(r"([(),=/\[\]])", lambda m: blank + m[1] + blank, str(stack)) + blank) == stack


# Mistakes


def error_of(text):
    with pytest.raises(hs.StackError) as error:
        hs.parse(text)
    return error.value


def squeezed(text):
    return "".join(text.split())


def shown(error):
    """(what the carets stand under, the message) of every mistake, read back from the printed lines."""
    lines = iter(str(error).split("\n")[1:])
    found = []
    for *_, message in error.mistakes[: error.SHOWN]:
        line, carets = next(lines), next(lines)
        place = re.match(r" *(\^+)", carets)
        assert place.end() <= max(len(line), place.start(1) + 1)
        told = carets[place.end() :].strip()
        while not squeezed(told).endswith(squeezed(message)[-60:]):
            told = f"{told} {next(lines).strip()}".strip()
        found.append((line[place.start(1) : place.end(1)], told))
    return found


def check(error):
    """What holds for the error of any text whatever."""
    text = error.text
    assert error.mistakes == sorted(error.mistakes)
    assert error.mistakes
    assert all(0 <= start < end and start <= len(text) and message for start, end, message in error.mistakes)
    printed = str(error).split("\n")
    assert all(len(line) <= 80 and line.isprintable() for line in printed), printed
    assert printed[-1] == "write, for example: Adam / SGD(1e-5, clip)"
    count = len(error.mistakes)
    assert printed[0] == "cannot read this stack" + (f": {count} mistakes" if count > 1 else "")
    assert (f"  and {count - error.SHOWN} more" in printed) == (count > error.SHOWN)
    for (start, end, _), (under, _) in zip(error.mistakes, shown(error), strict=False):
        place = text[start:end].split("\n")[0]
        place = "".join(" " if c.isspace() else c if c.isprintable() else "?" for c in place)
        assert place.startswith(under), (place, under)
        assert under or not place
    return error


MISTAKES = [
    # the text, then for each mistake: what the carets stand under, and the whole message
    ("Adm", ("Adm", "no rule is called Adm: did you mean Adam?")),
    ("adam / sgd(1)", ("adam", "no rule is called adam: did you mean Adam?"), ("sgd", None)),
    ("Adam / 3", ("3", "a rule was expected, such as Adam or SGD(1e-5)")),
    ("(Adam * SGD)", ("Adam * SGD", "a rule was expected, such as Adam or SGD(1e-5)")),
    ("Adam / log(1)", ("log(1)", "a rule was expected, such as Adam or SGD(1e-5)")),
    ("cumulative / Adam", ("cumulative", "a rule was expected, such as Adam or SGD(1e-5)")),
    ("Adam / SGD()()", ("SGD()()", "a rule was expected, such as Adam or SGD(1e-5)")),
    ("hs.Adam", ("hs.Adam", "a rule was expected, such as Adam or SGD(1e-5)")),
    ("α / Adam(beta1=2) ", ("α", None), ("beta1=2", "Adam's beta1: 2.0 is outside [0, 1): the default is 0.9")),
    ("SGD(α, momentum=-β)", ("momentum=-β", "a number was expected: write a number such as 1e-3")),
    ("SGD(-1)", ("-1", "SGD's lr: -1.0 is outside [0, inf): the default is 0.001")),
    ("SGD(1e999)", ("1e999", "SGD's lr: inf is outside [0, inf): the default is 0.001")),
    ("SGD(inf) / SGD(nan)", ("inf", "inf is no number: write a number, or a free name such as α"), ("nan", None)),
    ("SGD(True)", ("True", "a number was expected, not True: write a number such as 1e-3")),
    ("SGD('0.1')", ("'0.1'", "a number was expected: write a number such as 1e-3")),
    ("SGD(1 + 1)", ("1 + 1", "a number was expected: write a number such as 1e-3")),
    ("SGD(1j)", ("1j", None)),
    ("SGD(None)", ("None", None)),
    ("SGD(exit())", ("exit()", f"exit(...) is no kind of value: choose one of {', '.join(MODIFIERS)}, fixed_after")),
    ("SGD(fixd(1))", ("fixd(1)", "fixd(...) is no kind of value: did you mean fixed?")),
    ("SGD(log())", ("log()", "log takes one value: write log(1e-3)")),
    ("SGD(log(1, 2))", ("log(1, 2)", "log takes one value: write log(1e-3)")),
    ("SGD(log(1,\n  2))", ("log(1,", "log takes one value: write log(1e-3)")),
    ("SGD(log(x=2))", ("log(x=2)", "log takes one value: write log(1e-3)")),
    ("SGD(log)", ("log", "log is no number: write a number, or a free name such as α")),
    ("SGD(lr=clip)", ("lr=clip", "SGD's lr: clip is no number: write a number, or a free name such as α")),
    ("SGD(Adam)", ("Adam", "SGD's lr: Adam is no number: write a number, or a free name such as α")),
    ("SGD(log(0))", ("log(0)", "SGD's lr: log cannot express 0.0: its values lie in (0, inf): start inside it, "
                     f"choose another of {', '.join(BIJECTIONS)}, or use fixed(...)")),
    ("SGD(fixed(log(learned(1))))",
     ("fixed(log(learned(1)))", "fixed(learned(log(1.0))) asks twice for the same thing: name at most one bijection, "
      "one of fixed, learned and fixed_after, one of per_tensor and shared")),
    ("SGD(1, 2)", ("2", "only lr is given by position: write name=value")),
    ("SGD(clip, 1)", ("1", "only lr is given by position: write name=value")),
    ("SGD(1, lr=2)", ("lr=2", "lr is given twice")),
    ("SGD(clip, clip=True)", ("clip=True", "clip is given twice")),
    ("SGD(momentum=1, momentum=0.5, momentum=0.4)", ("momentum=1", None), ("momentum=0.4", "momentum is given twice")),
    ("SGD(1, clp)", ("clp", "no flag is called clp: did you mean clip?")),
    ("SGD(1, agc)", ("agc", "this is a gradient transform: write clip=agc")),
    ("SGD(value(0.1))", ("value(0.1)", "this is a gradient transform: write clip=value(0.1)")),
    ("SGD(1, [agc])", ("[agc]", "only lr is given by position: write name=value")),
    ("SGD(1, Nesterov)", ("Nesterov", "no flag is called Nesterov: did you mean nesterov?")),
    ("SGD(momentun=0.9)", ("momentun=0.9", "SGD has no 'momentun': did you mean momentum?")),
    ("SGD(**α)", ("**α", "write name=value")),
    ("SGD(*α)", ("*α", "a number was expected: write a number such as 1e-3")),
    ("SGD(nesterov=1)", ("nesterov=1", "nesterov is a flag, not 1: write nesterov=True or leave it out")),
    ("Adam(v0=-1)", ("v0=-1", "v0 takes a number from 0 up, not -1: the default is 0")),
    ("Adam(v0=α)", ("v0=α", "a number was expected: write a number such as 1e-3")),
    ("Adam(amsgrad=-True)", ("amsgrad=-True", "a number was expected: write a number such as 1e-3")),
    ("SGD(clip=1)", ("1", f"a gradient transform was expected: choose one of {', '.join(TRANSFORMS)}")),
    ("SGD(clip=[cumulativ, 1, cumulative(2)])",
     ("cumulativ", "no gradient transform is called cumulativ: did you mean cumulative?"), ("1", None),
     ("2", "nothing is given by position: write name=value")),
    ("SGD(clip=cumulative(skip_zero, x=1))", ("skip_zero", "no flag is called skip_zero: did you mean skip_zeros?"),
     ("x=1", "cumulative has no 'x': choose one of skip_zeros, per, names")),
    ("SGD(clip=cumulative(skip_zeros=0))", ("skip_zeros=0", "cumulative's skip_zeros is a flag, not 0")),
    ("SGD(α) / SGD(at=averag(0.9))", ("averag(0.9)", "no place to measure at is called averag: did you mean average?")),
    ("SGD(α) / SGD(at=0.9)", ("0.9", "a place to measure at was expected: choose one of live, average")),
    ("SGD(α) / SGD(at=[live])", ("[live]", "a place to measure at was expected: choose one of live, average")),
    ("SGD(α) / SGD(at=live(0.9))", ("0.9", "nothing is given by position: write name=value")),
    ("SGD(α) / SGD(at=average)", ("average", "average needs decay")),
    ("SGD(α) / SGD(at=average(1))", ("average(1)", "average's decay is 1: give a number in [0, 1)")),
    ("SGD(α) / SGD(at=average(0.9, 10))", ("10", "only decay is given by position: write name=value")),
    ("SGD(α) / SGD(at=average(0.9, evry=10))", ("evry=10", "average has no 'evry': did you mean every?")),
    ("SGD(α) / SGD(at=average(0.9, every=True))", ("every=True", "average's every is a number, not True")),
    *((f"SGD(α) / SGD(at=average(0.9, every={n}))",
       (f"average(0.9, every={n})", f"average's every is {float(n)}: give a whole number in [1, inf)"))
      for n in ("2.5", "0.0")),
    ("SGD(α) / SGD(at=average(0.9, every=1e999))", ("average(0.9, every=1e999)", None)),
    ("SGD(α) / SGD(at=average(0.9, bound=-1))", ("average(0.9, bound=-1)", None)),
    ("SGD(α) / SGD(at=average(0.9, warmup=1e999))", ("average(0.9, warmup=1e999)", None)),
    ("live / SGD(α)", ("live", "a rule was expected, such as Adam or SGD(1e-5)")),
]  # fmt: skip
AT_THEIR_PLACE = [
    # the text as a whole, since what is wrong is where something stands
    ("SGD(at=average(0.9))", ("SGD(at=average(0.9))", "at=average(0.9) has no meaning on level 0: the primary level "
     "measures nothing: write it on level 1, the one above the primary level")),
    ("SGD / SGD / SGD(at=average(0.9, every=3))", ("SGD(at=average(0.9, every=3))", "at=average(0.9, every=3) has no "
     "meaning on level 2: higher levels move when level 1 does: write it on level 1, the one above the primary level")),
    ("ALRC(SGD(at=average(0.9)))", ("ALRC(SGD(at=average(0.9)))", None)),
    ("SGD / auto(Adam)", ("auto(Adam)", "auto makes the first two levels of a stack, and stands at its beginning")),
    ("auto(auto(Adam))", ("auto(Adam)", "auto makes the first two levels of a stack, and stands at its beginning")),
    ("auto(Adam / SGD)", ("Adam / SGD", "a rule was expected, such as Adam or SGD(1e-5)")),
    ("auto(0.1)", ("0.1", "a rule was expected, such as Adam or SGD(1e-5)")),
    ("auto(Adm)", ("Adm", "no rule is called Adm: did you mean Adam?")),
    ("auto(Adam, SGD)", ("SGD", "only base is given by position: write name=value")),
    ("auto(Adam, rte=1)", ("rte=1", "auto has no 'rte': did you mean rate?")),
    ("auto(Adam, decay=α)", ("decay=α", "a number was expected: write a number such as 1e-3")),
    ("auto(Adam, decay=1)", ("auto(Adam, decay=1)", "average's decay is 1: give a number in [0, 1)")),
    ("auto(Adam, every=True)", ("auto(Adam, every=True)", "average's every is True: give a whole number in [1, inf)")),
    ("auto(Adam(fixed(0.1)))", ("auto(Adam(fixed(0.1)))", "auto learns the logarithm of a rate, and lr is fixed(0.1): "
     "give it a plain number")),
    ("auto(Adam(square(0.1)))", ("auto(Adam(square(0.1)))", None)),
    ("auto(SGD(0))", ("auto(SGD(0))", None)),
    ("auto(Adam(at=average(0.9)))", ("auto(Adam(at=average(0.9)))", None)),
    ("auto(Adam, rate=shared(1))", ("auto(Adam, rate=shared(1))", None)),
    ("auto(Adam) / auto(SGD)", ("auto(SGD)", None)),
]  # fmt: skip
REFUSED_BY_PYTHON = [
    ("", ("", "a stack was expected, and the text is empty")),
    ("Adam /", ("", "this does not fit here: a stack reads Rule(...) / Rule(...)")),
    ("/ Adam", ("/", "this does not fit here: a stack reads Rule(...) / Rule(...)")),
    ("Adam / / SGD", ("/", None)),
    ("Adam SGD", ("SGD", "this does not fit here: a stack reads Rule(...) / Rule(...)")),
    ("Adam; SGD", (";", "this does not fit here: a stack reads Rule(...) / Rule(...)")),
    ("SGD(α β)", ("α β", "this does not fit here: a stack reads Rule(...) / Rule(...)")),
    ("Adam(α) / SGD(1e-5, clip", ("(", "'(' was never closed")),
    ("Adam(α) / SGD)", (")", "unmatched ')'")),
    ("Adam(α) / SGD(β]", ("]", "closing parenthesis ']' does not match opening parenthesis '('")),
    ("Adam(α) / SGD('", ("'", "a quoted text does not end here")),
    ("Adam(α, β“)", ("“", "invalid character '“'")),
    ("Adam(α) # for now", ("# for now", "a stack has no comments")),
    ("Adam(α)\0 / \ud800", ("?", "U+0000 is no character of a stack"), ("?", "U+D800 is no character of a stack")),
    ("SGD(α, momentum=0.9, clip)",
     ("clip", "flags come before name=value: move this forward, or write it as name=value")),
    ("SGD(lr=α, clip, momentum=0.9, 3) / Adam(eps=1, amsgrad)", ("clip", None), ("3", None), ("amsgrad", None)),
]  # fmt: skip


BEFORE = ["", "  ", "\n\t ", "αβγ / " + "SGD(η) / " * 20 + "\n", "SGD(η)\r\n/", "SGD(η) /" * 20]


@pytest.mark.parametrize(("text", "mistakes"), [(text, mistakes) for text, *mistakes in MISTAKES + REFUSED_BY_PYTHON])
def test_a_mistake_is_shown_where_it_is(text, mistakes):
    for before in BEFORE if text and not text.startswith("/") else BEFORE[:3]:
        found = shown(check(error_of(before + text)))
        if "αβγ" in before and len(found) > len(mistakes):
            assert found.pop(0)[0] == "αβγ"
        assert len(found) == len(mistakes)
        for (under, told), (place, message) in zip(found, mistakes, strict=True):
            assert under == place or under.strip() == place == ""
            assert message is None or told == message


@pytest.mark.parametrize(("text", "mistake"), AT_THEIR_PLACE)
def test_a_mistake_of_place_is_shown_where_it_is(text, mistake):
    ((under, told),) = shown(check(error_of(text)))
    assert under == mistake[0]
    assert mistake[1] is None or told == mistake[1]


def test_the_whole_message_of_a_stack_with_three_mistakes():
    error = error_of(" Adm(0.1) /\n  SGD(1, clp) / Adam(amsgrad, beta1=fixed(1.5))")
    assert str(error) == "\n".join([
        "cannot read this stack: 3 mistakes",
        "   Adm(0.1) /",
        "   ^^^ no rule is called Adm: did you mean Adam?",
        "    SGD(1, clp) / Adam(amsgrad, beta1=fixed(1.5))",
        "           ^^^ no flag is called clp: did you mean clip?",
        "    SGD(1, clp) / Adam(amsgrad, beta1=fixed(1.5))",
        "                                ^^^^^^^^^^^^^^^^",
        "    Adam's beta1: 1.5 is outside [0, 1): the default is 0.9",
        "write, for example: Adam / SGD(1e-5, clip)",
    ])  # fmt: skip
    assert [error.text[start:end] for start, end, _ in error.mistakes] == ["Adm", "clp", "beta1=fixed(1.5)"]
    assert isinstance(error, hs.InputError)
    assert isinstance(error, ValueError)
    assert error.exit_code == 2


def test_the_error_can_be_copied_and_sent_to_another_process():
    error = error_of("Adm / SGD(clp, clp)")
    for again in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert type(again) is hs.StackError
        assert (str(again), again.text, again.mistakes) == (str(error), error.text, error.mistakes)


def test_many_mistakes_are_all_found_and_some_are_printed():
    error = error_of(" / ".join(["Adam(x, y, z=1)"] * 60))
    check(error)
    assert [error.text[s:e] for s, e, _ in error.mistakes] == ["y", "z=1"] * 60
    assert str(error).count("\n") < 4 * error.SHOWN


def test_a_long_line_is_cut_to_a_window_around_each_mistake():
    for at in range(0, 60, 7):
        names = ["SGD(0.1, momentum=0.9)"] * 60
        names[at] = f"Wrong{at}"
        text = " / ".join(names)
        error = error_of(text)
        check(error)
        ((under, _),) = shown(error)
        assert under == f"Wrong{at}"
        window = str(error).split("\n")[1][2:]
        assert window.startswith("...") == (at > 1)
        assert window.endswith("...") == (at < 58)
        assert window.strip(".") in text


def test_too_high_a_tower_is_shown_where_it_becomes_too_high():
    assert len(hs.parse("/".join(["SGD"] * Stack.MAX_HEIGHT))) == Stack.MAX_HEIGHT
    error = error_of("/".join(["SGD"] * Stack.MAX_HEIGHT + ["Adam"] * 3))
    assert shown(error) == [("Adam", f"a stack has at most {Stack.MAX_HEIGHT} levels, here are {Stack.MAX_HEIGHT + 3}")]
    assert error.mistakes[0][0] == 4 * Stack.MAX_HEIGHT


@pytest.mark.parametrize("name", [*RULES, *MODIFIERS, *TRANSFORMS])
def test_the_nearest_name_is_proposed(name):
    template = {**dict.fromkeys(RULES, "{}"), **dict.fromkeys(MODIFIERS, "SGD({}(1))")}.get(name, "SGD(clip={})")
    for wrong in (name + "x", name.upper() + "_", name[0] + name):
        error = error_of("Adam /" + template.format(wrong))
        assert shown(error)[0][1].endswith(f"did you mean {name}?")
        check(error)


@pytest.mark.parametrize(
    ("rule", "name"), [(r, k) for r in RULES for k in (*RULES[r].hyperparameters, *RULES[r].options, "clip")]
)
def test_the_nearest_argument_is_proposed(rule, name):
    assert shown(error_of(f"{rule}({name}x=1)")) == [(f"{name}x=1", f"{rule} has no '{name}x': did you mean {name}?")]
    if name == "clip" or isinstance(getattr(RULES[rule].options.get(name), "default", None), bool):
        assert shown(error_of(f"{rule}(1, {name}x)")) == [
            (f"{name}x", f"no flag is called {name}x: did you mean {name}?")
        ]


@pytest.mark.parametrize("value", [None, 3, b"Adam", hs.Adam, hs.Adam / hs.SGD, ["Adam"]], ids=str)
def test_only_text_can_be_parsed(value):
    with pytest.raises(hs.InputError, match="a stack is written as text"):
        hs.parse(value)


@mock.patch.dict(TRANSFORMS)
def test_a_transform_that_needs_numbers():
    @dataclass(frozen=True)
    class Scale(Transform):
        name: ClassVar[str] = "scale_by"
        by: float
        floor: float = 0.5
        loud: bool = False

        def __post_init__(self):
            if not self.by > 0:
                raise hs.InputError(f"{self.by} is not above 0")

        def init(self, segments, like): ...

        def apply(self, gradient, state, segments): ...

    forms = {
        "scale_by(2)": Scale(2),
        "scale_by(by=2)": Scale(2),
        "scale_by(0.5, loud)": Scale(0.5, loud=True),
        "scale_by(loud, by=1e-3, floor=-1)": Scale(1e-3, -1, True),
    }
    for text, made in forms.items():
        for stack in (
            hs.parse(f"SGD(clip={text})"),
            hs.parse(f"SGD(clip=[{text}])"),
            hs.parse(str(hs.SGD(clip=made) / hs.SGD)),
        ):
            assert stack[0] == hs.SGD(clip=[made])
    assert hs.parse("SGD(clip=[cumulative, scale_by(3)])")[0].clip == (Cumulative(), Scale(3))
    wrong = {
        "scale_by": ("scale_by", "scale_by needs by"),
        "scale_by(loud)": ("scale_by(loud)", "scale_by needs by"),
        "scale_by(-1)": ("scale_by(-1)", "-1 is not above 0"),
        "scale_by(True)": ("True", "scale_by's by is a number, not True"),
        "scale_by(1, loud=1)": ("loud=1", "scale_by's loud is a flag, not 1"),
        "scale_by(1, 2)": ("2", "only by is given by position: write name=value"),
        "scale_by(1, flor=2)": ("flor=2", "scale_by has no 'flor': did you mean floor?"),
    }
    for text, mistake in wrong.items():
        assert shown(error_of(f"SGD(α, clip=[cumulative, {text}])")) == [mistake]
    with pytest.raises(hs.InputError, match="scale_by needs its arguments"):
        hs.SGD(clip=Scale)


# Any text at all

WORDS = [*RULES, *MODIFIERS, *TRANSFORMS, *{k for r in RULES.values() for k in (*r.hyperparameters, *r.options)}]
WORDS += [*MEASURED, *(f.name for cls in MEASURED.values() for f in fields(cls)), "at", "auto", "auto(", "rate", "base"]
WORDS += [
    "α",
    "clip",
    "1e-3",
    "-1",
    "0",
    "1e999",
    "True",
    "None",
    "inf",
    "x",
    "lambda x: ",
    "if",
    "else",
    "for",
    "in",
    "await",
]
WORDS += [
    *"()[]{}/,=*.:;#@!~<>+-_'\"\\ \n\t\r\f\0é\ud800\u2028\ufeff",
    "**",
    ":=",
    "==",
    "//",
    "...",
    "1or",
    "'\\d'",
    "f'{",
]


def read(text):
    """Parse any text: the stack, which comes back from its own text, or the error, which keeps its promises."""
    try:
        stack = hs.parse(text)
    except hs.StackError as error:
        return check(error)
    assert hs.parse(str(stack)) == stack
    return stack


@repeatable
@given(text=st.text(st.characters(exclude_categories=[])) | st.text(st.characters(max_codepoint=127)))
def test_any_text_is_a_stack_or_a_stack_error(text):
    read(text)


@pytest.mark.slow
@settings(repeatable, max_examples=200)
@given(words=st.lists(st.sampled_from(WORDS), max_size=20))
def test_any_words_are_a_stack_or_a_stack_error(words):
    read("".join(words))
    read(f"Adam({' '.join(words)})")


@pytest.mark.slow
@settings(repeatable, max_examples=100)
@given(stack=stacks, data=st.data())
def test_a_stack_with_something_wrong_in_it_is_a_stack_or_a_stack_error(stack, data):
    text = str(stack)
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, min(len(text), start + 4)))
    read(text[:start] + data.draw(st.sampled_from(["", *WORDS])) + text[stop:])


ENDLESS = {
    "brackets": "(" * 5000,
    "brackets that close": "(" * 4000 + "Adam" + ")" * 4000,
    "squares": "SGD(clip=" + "[" * 4000,
    "modifiers": "SGD(" + "log(" * 1500 + "1" + ")" * 1501,
    "signs": "SGD(" + "-" * 9000 + "1)",
    "levels": "a/" * 4999 + "a",
    "levels in brackets": "a/(" * 190 + "a" + ")" * 190,
    "flags behind names": "SGD(lr=1, b" + "/a" * 3000 + ")",
    "calls": "SGD" + "()" * 4000,
    "arguments": f"SGD({'x,' * 4000})",
    "named arguments": f"SGD({','.join(f'a{i}=1' for i in range(1200))})",
    "transforms": f"SGD(clip=[{'x,' * 4000}])",
    "one name": "A" * 9999,
    "one long name like a rule's": "Adam" * 2400,
    "digits": f"SGD({'1' * 9000})",
    "digits behind the point": f"SGD(momentum=1.{'1' * 9000})",
    "hexadecimal digits": f"SGD(0x{'f' * 9000})",
    "hexadecimal digits of an option": f"Adam(v0=-0x{'f' * 9000})",
    "hexadecimal digits of a flag": f"Adam(clip=cumulative(skip_zeros=0x{'f' * 9000}))",
    "not quite so many digits": f"Adam(v0={'9' * 400})",
    "null bytes": "\0" * 10_000,
    "one null byte": "Adam / \0SGD",
    "a lone surrogate": "Adam / SGD(\udc80)",
    "quotes": "'" * 5000,
    "lines": "Adm\n/" * 2000 + "Adm",
    "10^5 letters": "a" * 100_000,
    "10^5 blanks": " " * 100_000,
    "10^5 levels": "SGD/" * 100_000,
    "10^6 brackets": "(" * 1_000_000,
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("text", ENDLESS.values(), ids=ENDLESS)
def test_huge_and_deep_texts_are_refused_at_once(text):
    before = time.perf_counter()
    error = read(text)
    assert time.perf_counter() - before < 2
    assert isinstance(error, hs.StackError)
    assert len(str(error)) < 10_000


def test_the_longest_text_that_is_read():
    text = "Adam".ljust(MAX_LENGTH)
    assert hs.parse(text) == Stack([hs.Adam()])
    assert shown(error_of(text + "x")) == [
        ("x", f"a stack has at most {MAX_LENGTH} characters, here are {MAX_LENGTH + 1}")
    ]


@pytest.mark.parametrize(
    "text", ["SGD(1if 2else 3)", "SGD(1or 2)", "SGD('\\d')", "SGD(momentum=1, 0or 1)", "SGD(1 is 1)", "SGD((1)(2))"]
)
def test_what_looks_odd_to_python_warns_nobody(text):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        read(text)
    assert seen == []


@repeatable
@given(name=st.text(st.characters(categories=["Ll", "Lu", "Lo", "Nd", "Pc"]), min_size=1, max_size=3))
def test_a_free_name_that_python_accepts_comes_back_from_the_text(name):
    try:
        made = hs.SGD(hs.free(name))
    except hs.InputError:
        assert isinstance(read(f"SGD({name})"), hs.StackError) or name.isdecimal()
        return
    assert hs.parse(f"SGD({name})") == hs.parse(str(made)) == Stack([made])
    assert made.free_names == (made.settings["lr"].value.name,) == (Free(name).name,)


def test_a_mistake_does_not_hide_the_others():
    parts = [(text, len(mistakes)) for text, *mistakes in MISTAKES]
    for (a, one), (b, two) in itertools.pairwise(parts):
        text = f"({a}) / ({b})"
        assert len(error_of(text).mistakes) == one + two
        check(error_of(text))


def test_a_rule_that_is_not_whole_says_what_it_lacks():
    class Halfway(hs.Rule):
        lr = hs.Hyperparameter(0.1, hs.NON_NEGATIVE)

        def init(self, p):
            return {}

    with pytest.raises(hs.StackError, match="the rule Halfway is not whole: it lacks coefficients, update"):
        hs.parse("Halfway(0.1) / SGD")
    assert Halfway.__abstractmethods__
