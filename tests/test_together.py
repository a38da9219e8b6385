"""Runs trained together: each is the one that it is alone, whatever becomes of the others."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from battery import RULES, SHAPES, asked, assert_close, assert_same, calm, gradients, option_choices, tensors
from torch import nn
from toy import BATCHES, DATA, PLAN, Calm, Toy

import hyperstack as hs
from hyperstack import parts, together
from hyperstack.engine import Tower
from hyperstack.errors import InputError, RunError
from hyperstack.sweep.block import Block, CannotTogether
from hyperstack.tape import Tapes
from hyperstack.tasks import Data
from hyperstack.together import Together
from hyperstack.training import Trainer

RUNS = 3
NAMES = list(RULES)


def follow(stacks, steps=50, shapes=SHAPES, dtype=torch.float64, missing=(), rtol=1e-9, fused=False):
    """Together and alone, on gradients of each run's own; everything equal after every tenth step."""
    starts = [tensors(dtype, shapes, seed=10 + r) for r in range(len(stacks))]
    side = [torch.stack(list(each)) for each in zip(*starts, strict=True)]
    alone = [Tower(stack, params) for stack, params in zip(stacks, starts, strict=True)]
    many = Together(stacks, side, fused=fused)
    series = [gradients(steps, dtype, shapes, seed=20 + r) for r in range(len(stacks))]
    for t in range(steps):
        grads = [torch.stack([own[t][i] for own in series]) for i in range(len(shapes))]
        many.step(side, [None if i in missing else g for i, g in enumerate(grads)])
        for tower, params, own in zip(alone, starts, series, strict=True):
            tower.step(params, [None if i in missing else g for i, g in enumerate(own[t])])
        if t % 10 == 9 or t < 2:
            for r, (tower, params) in enumerate(zip(alone, starts, strict=True)):
                mine = many.tower(r)
                assert_close([x[r] for x in side], params, rtol)
                assert_close(mine.hyperparameters(), tower.hyperparameters(), rtol)
                if dtype is torch.float64:
                    assert_close(mine.hypergradients(), tower.hypergradients(), 1e-6, 1e-12)
                assert_same(mine.nonfinite_counts(), tower.nonfinite_counts())
    return many


def stacks(lower, upper, top=(), **arguments):
    """Stacks that differ in every number; the upper levels move slowly, so that no rounding grows."""
    found = []
    for r in range(RUNS):
        settings = {"lr": hs.learned(0.02 + 0.01 * r), **calm(lower, upper), **arguments}
        level = asked(RULES[lower], lambda value, r=r: value * (1 - 0.03 * r), **settings)
        above = RULES[upper](1e-6 * (1 + r), clip=True)
        found.append(hs.Stack([level, above, *(RULES[name](1e-5 / (1 + r)) for name in top)]))
    return found


near = [(a, NAMES[(i + 1) % len(NAMES)]) for i, a in enumerate(NAMES)]
pairs = [
    pytest.param(*p, marks=() if p in near else pytest.mark.slow, id="-".join(p))
    for p in itertools.product(NAMES, repeat=2)
]


@pytest.mark.sampled(15)
@pytest.mark.parametrize(("lower", "upper"), pairs)
def test_each_run_is_the_one_alone(lower, upper):
    follow(stacks(lower, upper))


CASES = [
    pytest.param(name, options, id=f"{name}-{i}")
    for name in NAMES
    for i, options in enumerate(option_choices(RULES[name])[1:])
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), CASES)
def test_with_every_option(name, options):
    follow(stacks(name, "SGD", **options))


CLIPS = {
    "value": "value(0.05)", "norm": "norm(0.5)", "norm of each": 'norm(0.5, per="tensor")', "cumulative": "cumulative",
    "counting": "cumulative(skip_zeros)", "adaptive": "adaptive(n=0.5)", "percentile": "percentile(p=40, window=8)",
    "agc": "agc(ratio=0.01)", "centralize": "centralize", "normalize": "normalize", "cosine": "cosine",
}  # fmt: skip


def test_every_transform_is_tried():
    assert {text.partition("(")[0] for text in CLIPS.values()} == set(hs.TRANSFORMS)


def some(chosen, fast):
    """Of these transforms some are for the fast tier."""
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in chosen]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("clip", some([name for name in CLIPS if name != "cosine"], ("agc", "percentile", "norm")))
def test_with_every_transform_on_the_primary_level(clip):
    follow([hs.parse(f"Adam({0.01 * (1 + r)}, clip=[{CLIPS[clip]}]) / SGD(1e-4, clip)") for r in range(RUNS)])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("clip", some(CLIPS, ("cosine", "cumulative", "adaptive")))
def test_with_every_transform_on_the_level_above(clip):
    lower = "Adam(0.01, beta1=fixed(0.9), beta2=fixed(0.99))"  # whose hypergradients are rounding alone at first
    follow([hs.parse(f"{lower} / SGD({1e-5 * (1 + r)}, clip=[{CLIPS[clip]}]) / SGD(1e-8)") for r in range(RUNS)])


@pytest.mark.sampled(11)
@pytest.mark.parametrize(
    "text",
    [
        "SGD({})",
        "Adam({}, weight_decay=0.1)",
        "Adam({}) / SGD(1e-6) / SGD(1e-12) / SGD(1e-16)",
        "SGD(per_tensor({}), momentum=0.9) / Adam(1e-4, clip) / SGD(1e-6)",
        "LAMB({}, weight_decay=0.1, clip=[norm(1.0), centralize]) / SGD(1e-4, clip)",
        "Adam(fixed_after({}, 20)) / SGD(1e-4)",
        "Adam(fixed({})) / SGD(1e-4)",
        "Adam(log({}), beta1=fixed(0.8)) / SGD(fixed(1e-4), clip)",
    ],
)
def test_stacks_of_every_kind(text):
    follow([hs.parse(text.format(0.01 * (1 + r))) for r in range(RUNS)])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("block", [pytest.param(16, marks=pytest.mark.slow), 64, 500])
def test_however_the_work_is_cut_up(block, monkeypatch):
    """Blocks of one run or several, pieces of one tensor, and several tensors together."""
    monkeypatch.setattr(parts, "BLOCK", block)
    for text in ("Adam({}, weight_decay=0.1) / SGD(1e-4)", "LAMB({}) / SGD(1e-4, clip)", "SGD({}, clip=[norm(1.0)])"):
        many = follow([hs.parse(text.format(0.01 * (1 + r))) for r in range(5)], steps=12)
        assert many.parts.looks_ahead == (block == 500 and "/" in text)
        assert len(many.parts.parts) > (2 if block < 500 else 1)


KERNELS = [
    "Adam({}, weight_decay=0.1) / SGD(1e-4, clip)",
    "LAMB({}) / SGD(1e-6, clip)",
    "SGD({}, clip=[norm(1.0)])",
    "SGD(per_tensor({}), momentum=0.9) / SGD(1e-5, clip=[cosine])",
]


def in_kernels(text, monkeypatch):
    """Also with a tensor in a block of its own."""
    monkeypatch.setattr(parts, "BLOCK", 800)
    follow([hs.parse(text.format(0.01 * (1 + r))) for r in range(RUNS)], shapes=((9, 40), (5,), (2, 3)), fused=True)


@pytest.mark.slow
@pytest.mark.parametrize("text", KERNELS)
def test_as_for_kernels(text, monkeypatch):
    """What torch.compile would be given, uncompiled."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    in_kernels(text, monkeypatch)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.compile loads
@pytest.mark.parametrize("text", KERNELS)
def test_in_kernels(text, monkeypatch):
    in_kernels(text, monkeypatch)


def test_long_rows_and_large_registers():
    follow([hs.parse(f"Adam({0.01 * (1 + r)}) / SGD(1e-6)") for r in range(RUNS)], 12, ((40, 300), (7,)), rtol=1e-8)


def test_tensors_without_a_gradient_stay():
    follow([hs.parse(f"Adam({0.01 * (1 + r)}) / SGD(1e-4)") for r in range(RUNS)], steps=10, missing=(1, 2))


def test_in_float32():
    follow([hs.parse(f"Adam({0.001 * (1 + r)}) / SGD(1e-6)") for r in range(RUNS)], 20, dtype=torch.float32, rtol=1e-4)


def test_one_that_leaves_the_numbers_does_not_disturb_the_others():
    """Bit for bit: the others do not know whether their neighbour has diverged."""
    texts = ["Adam(0.01, clip) / SGD(1e-4, clip)", "Adam({}, clip) / SGD(1e-4, clip)", "Adam(0.02, clip) / SGD(1e-5)"]
    found = []
    for wild in ("0.01", "1e+300"):
        side = [torch.stack([p] * 2) for p in tensors()]
        many = Together([hs.parse(text.format(wild)) for text in texts[:2]], side)
        for t, grads in enumerate(gradients(12)):
            given = [torch.stack([g, g * (math.nan if wild == "1e+300" and t > 5 else 1)]) for g in grads]
            many.step(side, given)
        found.append(([x[0] for x in side], many.tower(0).hyperparameters(), many.tower(0).hypergradients()))
        assert all(bool(torch.isfinite(x[1]).all()) == (wild == "0.01") for x in side)
    assert_same(*found)


@pytest.mark.parametrize(
    "texts",
    [
        ("Adam / SGD(1e-4)", "Adam / SGD(1e-4, clip)"),
        ("Adam", "Adam / SGD(1e-4)"),
        ("Adam / SGD(1e-4)", "Adam(0.1, beta1=fixed(0.9)) / SGD(1e-4)"),
        ("Adam(weight_decay=0.1)", "Adam"),
        ("Adam / SGD", "Adam(v0=1e-8) / SGD"),
        ("Adam(log(1e-3)) / SGD", "Adam / SGD"),
    ],
)
def test_stacks_of_several_shapes_are_refused(texts):
    one, other = (hs.parse(text) for text in texts)
    assert together.shape(one) != together.shape(other)
    with pytest.raises(InputError, match="several shapes"):
        Together([one, other], [torch.zeros(2, 3)])


@pytest.mark.parametrize(
    ("text", "why"), [("ALRC(Adam) / SGD", "ALRC limits the losses"), ("auto(Adam)", "at the averages of its own run")]
)
def test_what_looks_at_its_own_run_is_refused(text, why):
    with pytest.raises(InputError, match=why):
        Together([hs.parse(text)] * 2, [torch.zeros(2, 3)])


def test_gradients_that_come_and_go_are_refused():
    side = [torch.zeros(2, 3), torch.zeros(2, 4)]
    many = Together([hs.parse("Adam / SGD")] * 2, side)
    many.step(side, [None, None])
    many.step(side, [torch.ones(2, 3), None])
    with pytest.raises(RunError, match="the same tensors at every step"):
        many.step(side, [torch.ones(2, 3), torch.ones(2, 4)])


def test_several_dtypes_are_refused():
    side = [torch.zeros(2, 3), torch.zeros(2, 4, dtype=torch.float64)]
    with pytest.raises(RunError, match="one device and dtype"):
        Together([hs.parse("Adam / SGD")] * 2, side).step(side, [torch.ones_like(x) for x in side])


def test_what_draws_random_numbers_is_not_recorded():
    tape = Tapes().large(("noise",), lambda inputs: {"y": inputs["x"] + torch.rand(3)})
    with pytest.raises(RunError, match="draws random numbers"):
        tape({"x": torch.zeros(3)})


# ---- networks


class Exact(Calm):
    """In float64, with a parameter that is frozen."""

    def model(self):
        layers = super().model()
        layers[0].bias.requires_grad_(False)
        return layers.double()


class Tied(Toy):
    """Convolutions, one weight used twice, a buffer that the seed draws, and a parameter that nothing uses."""

    def model(self):
        return TiedNetwork().double()


class TiedNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv1d(1, 4, 3, padding=1)
        self.again = self.convolution
        self.mixed, self.unused = nn.Linear(32, 3), nn.Linear(2, 2)
        self.register_buffer("noise", torch.randn(8))

    def forward(self, x):
        hidden = torch.relu(self.convolution((x + self.noise).unsqueeze(1)))
        return self.mixed((hidden * self.again(x.unsqueeze(1))).flatten(1)).log_softmax(1)


class Normalized(Toy):
    """Batch normalization of every kind: of rows and of lengths, without weights, averaging all, and shared.

    Without biases before it, whose gradients are rounding alone.
    """

    def model(self):
        again = nn.BatchNorm1d(4)
        return nn.Sequential(
            nn.Linear(8, 4, bias=False), again, nn.Tanh(), nn.Linear(4, 4, bias=False), again, nn.Unflatten(1, (2, 2)),
            nn.Conv1d(2, 3, 1, bias=False), nn.BatchNorm1d(3, momentum=None), nn.Tanh(),
            nn.Conv1d(3, 3, 1, bias=False), nn.BatchNorm1d(3, affine=False), nn.Tanh(),
            nn.Flatten(), nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 3),
            nn.LogSoftmax(1),
        ).double()  # fmt: skip


EXACT = Data(DATA.train_inputs.double(), DATA.train_targets, DATA.test_inputs.double(), DATA.test_targets)


class Unrecorded:
    def record(self, step, loss):
        pass


def alone(plan, task, data):
    trainer = Trainer(plan, task, data)
    trainer.run(Unrecorded())
    return trainer, trainer.summary()


def plans(texts, seeds, **changes):
    return [replace(PLAN, stack=text, seed=seed, **changes) for text in texts for seed in seeds]


TEXTS = [f"Adam(0.01, clip=[norm(1.0)]) / SGD({a}, clip) / SGD(1e-06)" for a in ("0.0001", "0.001")]


@pytest.mark.sampled(7)
@pytest.mark.parametrize("task", [Exact, Tied, Normalized])
@pytest.mark.parametrize("seeds", [(3,), (0, 1, 3)])
def test_each_run_is_the_one_that_the_trainer_makes(task, seeds):
    """50 steps in float64: parameters, hyperparameters, losses and test errors."""
    cells = plans(TEXTS, seeds, epochs=5)
    block = Block(cells, task(), EXACT)
    found = dict(block.run())
    assert block.steps == 5 * BATCHES
    assert sorted(found) == list(range(len(cells)))
    for r, plan in enumerate(cells):
        trainer, wanted = alone(plan, task(), EXACT)
        mine = {name: p[r] for name, p in block.networks.params.items()}
        assert_close(mine, dict(trainer.model.named_parameters()), 1e-9)
        kept = {name: b[r] for name, b in block.networks.buffers.items()}
        assert_close(kept, dict(trainer.model.named_buffers()), 1e-9)
        for key in ("task", "stack", "seed", "epochs", "steps", "diverged", "finished", "test_error", "nonfinite"):
            assert found[r][key] == wanted[key], key
        assert found[r]["hyperparameters"] == pytest.approx(wanted["hyperparameters"], rel=1e-9)
        for ours, theirs in zip(found[r]["history"], wanted["history"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-9)


def test_a_diverged_run_ends_by_itself():
    cells = plans(["SGD(0.1) / SGD(0.0001)", "SGD(1e+308) / SGD(1e+308)", "SGD(0.2) / SGD(0.001)"], (0,), epochs=3)
    found = list(Block(cells, Exact(), EXACT).run())
    assert [r for r, _ in found] == [1, 0, 2]
    assert [(x["diverged"], x["finished"], x["epochs"]) for _, x in found] == [
        (True, True, 1), (False, True, 3), (False, True, 3),
    ]  # fmt: skip
    assert found[0][1]["train_loss"] is None
    for r, x in found:
        assert x["test_error"] == pytest.approx(alone(cells[r], Exact(), EXACT)[1]["test_error"], abs=1e-12)


@pytest.mark.slow
def test_in_float32_as_the_trainer():
    cells = plans(TEXTS, (0, 1))
    for r, x in Block(cells, Calm(), DATA).run():
        assert abs(x["test_error"] - alone(cells[r], Calm(), DATA)[1]["test_error"]) <= 0.02


def test_stopped_between_steps():
    asked = iter(range(100))
    block = Block(plans(TEXTS, (0,)), Exact(), EXACT)
    assert list(block.run(lambda: next(asked) == 13)) == []
    assert block.steps == 13


def counting():
    class Counting(nn.Linear):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    return Counting(8, 3).double()


def reading():
    class Reading(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (2.0 if float(x.detach().sum()) > 0 else 1.0)

    return Reading(8, 3).double()


@pytest.mark.parametrize("model", [Toy().model, counting, reading])
def test_networks_that_cannot_be_recorded_say_so(model):
    task = Exact()
    task.model = lambda: model().double()
    with pytest.raises(CannotTogether):
        list(Block(plans(TEXTS, (0,)), task, EXACT).run())
