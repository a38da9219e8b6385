"""Fused kernels do what the engine does operation by operation, and hand over to it and back in mid-run."""

import subprocess
import sys

import pytest
import torch
from battery import asked, assert_close

import hyperstack as hs
from hyperstack import buffers
from hyperstack.engine import Tower
from hyperstack.rule import RULES

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.compile loads

SHAPES = [(3, 5), (40, 6), (), (7,), (0,), (150,), (6, 40)]


def make(dtype=torch.float64):
    random = torch.Generator().manual_seed(5)
    params = [torch.randn(shape, generator=random, dtype=torch.float64).to(dtype) for shape in SHAPES]
    return [*params, torch.randn(6, 60, generator=random, dtype=torch.float64).to(dtype).t()]


def gradient(params, t):
    """Of some function of the parameters; two have none at steps 3 and 4, and the fourth comes in at step 2."""
    grads = [torch.cos(3.0 * p * (t + 1)) + 0.2 for p in params]
    missing = {3: (1, 2), 4: (1, 2)}.get(t, ()) if t >= 2 else (3,)
    return [None if i in missing else g for i, g in enumerate(grads)]


def run(stack, *fused, steps=7, dtype=torch.float64):
    """What comes of some steps, the tower handing over to one of the next kind in `fused` every other step."""
    params = make(dtype)
    tower = Tower(stack, params, fused=fused[0])
    for t in range(steps):
        if t and t % 2 == 0 and len(fused) > 1:
            saved, tower = tower.export(), Tower(stack, params, fused=fused[t // 2 % len(fused)])
            tower.restore(saved, params)
        tower.step(params, gradient(params, t), schedule=1.0 if t < 2 else 0.5)
    return [*params, *tower.hyperparameters().values(), *tower.hypergradients().values()]


@pytest.fixture
def small_blocks(monkeypatch):
    """So that small tensors lie together and large ones alone."""
    monkeypatch.setattr(buffers, "BLOCK", 800)


@pytest.fixture
def uncompiled(monkeypatch):
    """The programs of the kernels, run as they are."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


def learning(name, **options):
    return asked(RULES[name], **options) / hs.SGD(1e-4, clip=True)


MORE = {"clip": True, "lr": hs.learned(hs.per_tensor(0.01))}


@pytest.mark.sampled(17)
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    "options", [pytest.param({}, id="plain"), pytest.param(MORE, id="more", marks=pytest.mark.slow)]
)
def test_every_rule(name, options, small_blocks, uncompiled):
    stack = learning(name, **options)
    eager = run(stack, False)
    assert_close(run(stack, True), eager, 1e-12, 1e-12)
    assert_close(run(stack, True, False), eager, 1e-12, 1e-12)


@pytest.mark.sampled(13)
@pytest.mark.parametrize("name", RULES)
def test_one_level(name, small_blocks, uncompiled):
    assert_close(run(hs.Stack([RULES[name]()]), True), run(hs.Stack([RULES[name]()]), False), 1e-12, 1e-14)


def test_half_precision(small_blocks, uncompiled):
    stack = hs.parse("Adam(weight_decay=0.1) / SGD(1e-4)")
    assert_close(run(stack, True, dtype=torch.bfloat16), run(stack, False, dtype=torch.bfloat16), 1e-6, 1e-8)


WITH_DECAY = "Adam(0.01, weight_decay=learned(0.1)) / SGD(1e-4, momentum=learned(0.5)) / SGD(1e-7)"


@pytest.mark.slow
@pytest.mark.parametrize("text", ["Adam / SGD(1e-4)", WITH_DECAY])
def test_compiled(text, small_blocks):
    """The kernels themselves: in double precision but for rounding, and in single within single's."""
    eager = run(hs.parse(text), False)
    assert_close(run(hs.parse(text), True), eager, 1e-12, 1e-12)
    assert_close(run(hs.parse(text), True, False), eager, 1e-12, 1e-12)
    single = [run(hs.parse(text), fused, dtype=torch.float32) for fused in (False, True)]
    assert_close(single[1], single[0], 1e-3, 1e-5)


@pytest.mark.slow
def test_as_an_optimizer():
    """A compiled optimizer trains as another does, and its state goes on in either, and after deepcopy."""
    torch.manual_seed(0)
    model, x = torch.nn.Linear(300, 400), torch.randn(16, 300)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    found = []
    for compiles in ((False, False), (True, True), (True, False), (False, True)):
        model.load_state_dict(start)
        opt = hs.HyperOptimizer(model.parameters(), "Adam / SGD(1e-6)", compile=compiles[0])
        for t in range(6):
            if t == 3:
                saved = opt.state_dict()
                opt = hs.HyperOptimizer(model.parameters(), "Adam / SGD(1e-6)", compile=compiles[1])
                opt.load_state_dict(saved)
                assert opt.param_groups[0]["compile"] is compiles[1]
            opt.zero_grad()
            model(x).square().mean().backward()
            opt.step()
        found.append([*(p.detach().clone() for p in model.parameters()), *opt.hyperparameters().values()])
    for other in found[1:]:
        assert_close(other, found[0], 1e-4, 1e-6)


@pytest.mark.slow
def test_without_a_compiler(tmp_path):
    """What is missing is said, and nothing was changed."""
    code = """
import torch, hyperstack as hs
p = torch.nn.Parameter(torch.ones(50))
p.grad = torch.ones(50)
opt = hs.HyperOptimizer([p], "Adam / SGD(1e-6)", compile=True)
try:
    opt.step()
except hs.RunError as error:
    assert "C++ compiler" in str(error), error
    assert torch.equal(p, torch.ones(50))
    print("refused")
"""
    surroundings = {"PATH": "", "CXX": "/nowhere", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=surroundings)
    assert ended.stdout == "refused\n", ended.stderr[-2000:]
