"""What it takes to add a rule: one file, one line that imports it, one line that names its oracle.

The rest - text form, command line, battery - finds it by itself. Measured here by adding one from outside the package.
"""

import itertools
import runpy
import sys

import pytest
import test_rules
import torch
from battery import like, option_choices
from toy import ok

import hyperstack as hs
from hyperstack.engine import Tower

FILE = '''\
"""Quasi-hyperbolic momentum."""

import torch

from hyperstack import NON_NEGATIVE, UNIT, Hyperparameter, Option, Rule


class QHM(Rule):
    """b <- β b + (1 - β) g;  p <- p - lr ((1 - ν) g + ν b); `damped` halves lr.

    β is `momentum`, ν `share`. State: b.
    """

    lr = Hyperparameter(1.0, NON_NEGATIVE, doc="learning rate")
    momentum = Hyperparameter(0.9, UNIT, "logit", doc="β: decay of b")
    share = Hyperparameter(0.7, UNIT, "logit", doc="ν: the share of b in the step")
    damped = Option(False, "halve the step")
    source = "Ma and Yarats 2019, equation 3"

    def init(self, like):
        return {"buffer": torch.zeros_like(like)}

    def coefficients(self, h, t):
        return {"lr": h.lr / 2 if self.damped else h.lr, "momentum": h.momentum, "share": h.share}

    def update(self, g, s, c, p):
        b = torch.lerp(g, s["buffer"], c.momentum)
        return -c.lr * torch.lerp(g, b, c.share), {"buffer": b}
'''


def published(g, s, lr=1.0, beta=0.9, nu=0.7):
    b = s["b"] = beta * s.get("b", torch.zeros_like(g)) + (1 - beta) * g
    return lr * ((1 - nu) * g + nu * b)


CASES = [
    ("QHM", like(published)),
    ("QHM(0.1, momentum=0.5, share=0.2)", like(published, lr=0.1, beta=0.5, nu=0.2)),
    ("QHM(0.1, damped)", like(published, lr=0.05)),
]


@pytest.fixture
def rule(tmp_path, monkeypatch):
    """The rule, imported from a file; forgotten afterwards."""
    known = dict(hs.RULES)
    (tmp_path / "quasi_hyperbolic_momentum.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    import quasi_hyperbolic_momentum

    yield quasi_hyperbolic_momentum.QHM
    del sys.modules["quasi_hyperbolic_momentum"]
    hs.RULES.clear()
    hs.RULES.update(known)


def test_it_takes_a_short_file():
    assert len(FILE.splitlines()) <= 40


def test_the_text_form_and_the_command_line_know_it(rule):
    stack = hs.parse("QHM(0.1, damped, share=log(0.5)) / SGD(1e-3)")
    assert stack == rule(0.1, damped=True, share=hs.log(0.5)) / hs.SGD(1e-3)
    assert "level 0: QHM updates the network" in ok("explain", str(stack))
    assert "β: decay of b" in ok("rules", "QHM")
    assert ok("train", "toy", "--quiet", "--epochs", 1, "--stack", "QHM / QHM").startswith("test error")


@pytest.mark.parametrize("upper", ["", " / SGD(0.0)"])
@pytest.mark.parametrize("case", CASES, ids=[text for text, _ in CASES])
def test_parity(rule, case, upper):
    test_rules.test_parity(case, upper)
    if not upper:
        test_rules.test_parity_in_float32(case)


def test_the_battery(rule):
    for options in option_choices(rule):
        test_rules.test_an_update_is_elementwise(rule, options)
        test_rules.test_hypergradients_are_the_derivatives_of_the_last_update(rule, options)
        for dtype in (torch.float32, torch.float64):
            test_rules.test_an_update_is_pure_and_keeps_shape_and_dtype(rule, options, dtype)
    test_rules.test_hypergradients_chain_through_three_levels(rule)
    test_rules.test_hypergradients_of_one_number_a_tensor(rule)


@pytest.mark.slow
def test_beside_every_rule(rule):
    for other, above in itertools.product((rule, *hs.RULES.values()), (False, True)):
        params = [torch.randn(3, 4, dtype=torch.float64), torch.randn((), dtype=torch.float64)]
        before = [p.clone() for p in params]
        tower = Tower(rule / other if above else other / rule(1e-3), params)
        for _ in range(3):
            tower.step(params, [0.1 * torch.randn_like(p) for p in params])
        assert all(torch.isfinite(x).all() for x in (*params, *tower.hyperparameters().values()))
        assert not torch.equal(params[0], before[0])


def test_in_a_file_that_starts_the_command_line(rule, tmp_path, monkeypatch, capsys):
    """As docs/extending.md says: a file of one's own imports the rule and calls main."""
    script = "import quasi_hyperbolic_momentum\nfrom hyperstack_cli.main import main\nmain()\n"
    (tmp_path / "mine.py").write_text(script)
    monkeypatch.setattr(sys, "argv", ["mine.py", "explain", "Adam / QHM"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(tmp_path / "mine.py")
    assert end.value.code == 0
    assert "level 1: QHM updates level 0" in capsys.readouterr().out
