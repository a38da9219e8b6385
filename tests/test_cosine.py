"""Hypergradients as cosines: against Jacobians of the last update, one column after another."""

import pytest
import torch
from battery import RULES, Reference, asked, assert_close, gradients, tensors

import hyperstack as hs
from hyperstack import buffers
from hyperstack.engine import Tower
from hyperstack.errors import InputError

SMALL = ((3, 4), (5,), (), (2, 1, 3))
KINDS = [torch.float32, torch.float64]


def columns(reference, level, received):
    """For each entry of the raw hyperparameters of `level`, how long the change is that it makes to what lies below.

    `received` holds the keys of what was moved. The Jacobian is taken row by row, by backpropagation.
    """
    moved = {key: x for key, x in reference.moved[level].items() if key in received and x.requires_grad}
    raws = reference.moved[level + 1]
    rows = {name: [] for name in raws}
    for x in moved.values():
        for entry in x.reshape(-1).unbind():
            found = torch.autograd.grad(entry, list(raws.values()), retain_graph=True, materialize_grads=True)
            for name, g in zip(raws, found, strict=True):
                rows[name].append(g.reshape(-1))
    return {name: torch.stack(found).square().sum(0).sqrt() for name, found in rows.items()}


def run(stack, steps=6, fused=False, dtype=torch.float64, block=None, monkeypatch=None):
    if block:
        monkeypatch.setattr(buffers, "BLOCK", block)
    params = tensors(dtype, SMALL)
    tower = Tower(stack, params, fused=fused)
    for gs in gradients(steps, dtype, SMALL):
        tower.step(params, gs)
    return [*params, *tower.hyperparameters().values()]


@pytest.mark.sampled(25)
@pytest.mark.parametrize(
    "spread", [pytest.param(False, id="one"), pytest.param(True, id="per tensor", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_against_the_jacobian(rule, spread):
    wish = hs.per_tensor if spread else lambda value: value
    upper = hs.SGD(0.0, clip=hs.cosine)
    stack = asked(rule, wish) / upper
    params, (slow_stack) = tensors(shapes=SMALL), asked(rule, wish) / hs.SGD(0.0)
    tower, slow = Tower(stack, params), Reference(slow_stack, params)
    lengths = {}
    for t, gs in enumerate(gradients(6, shapes=SMALL)):
        if t:
            lengths = columns(slow, 0, range(len(SMALL)))
        tower.step(params, gs)
        slow.step(gs)
        size = sum(float(g.square().sum()) for g in gs) ** 0.5
        for name, length in lengths.items():
            raw, factor = tower.hypergradients()[f"0.{name}"], tower.clip_factors()[f"0.{name}"]
            clear = length > 1e-6 * max(float(x.max()) for x in lengths.values())  # the others may be rounding alone
            wanted = torch.where(clear.view(raw.shape), raw / (size * length.view(raw.shape)), 0.0)
            before, after = raw.reshape(-1)[clear].norm(), wanted.reshape(-1)[clear].norm()
            if clear.all() and before > 0:
                assert float(factor) == pytest.approx(float(after / before), rel=1e-6)
            assert (wanted.abs() <= 1 + 1e-9).all()


@pytest.mark.parametrize(
    "text", ["SGD(0.1) / SGD(1e-3, clip=cosine)", "Adam(0.1) / SGD(0.01, clip=[cosine]) / SGD(1e-4)"]
)
def test_a_rate_moves_by_the_cosine(text):
    """For SGD it is the cosine of the angle between one gradient and the next."""
    params, given = tensors(shapes=SMALL), gradients(5, shapes=SMALL)
    tower = Tower(hs.parse(text), params)
    for t, gs in enumerate(given):
        before = tower.hyperparameters()
        tower.step(params, gs)
        after = tower.hyperparameters()
        if t and text.startswith("SGD"):
            last, now = (torch.cat([g.reshape(-1) for g in given[i]]) for i in (t - 1, t))
            cosine = float(last @ now / (last.norm() * now.norm()))
            assert float(after["0.lr"] - before["0.lr"]) == pytest.approx(1e-3 * cosine, rel=1e-9)
        for key, x in after.items():
            if key.startswith("0."):
                raw = tower.hypergradients()[key] * tower.clip_factors()[key]
                assert abs(float(raw)) <= 1 + 1e-9
                assert key == "0.lr" or torch.isfinite(x)


def test_the_scale_of_the_loss_does_not_matter():
    params = [tensors(shapes=SMALL) for _ in range(2)]
    towers = [Tower(hs.parse("SGD(log(0.001)) / SGD(0.1, clip=cosine)"), p) for p in params]
    for gs in gradients(4, shapes=SMALL):
        for scale, tower, p in zip((1.0, 1024.0), towers, params, strict=True):
            tower.step(p, [scale * g for g in gs])
    assert_close(*(tower.hyperparameters() for tower in towers), 1e-12)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("k", [1, 2])
def test_every_upper_level(k):
    """Level 2 gets what level 1's update makes of it."""
    clip = [{}, {}]
    clip[k - 1] = {"clip": hs.cosine}
    stack = hs.Adam(0.01) / hs.Adam(0.01, **clip[0]) / hs.SGD(1e-4, **clip[1])
    params = tensors(shapes=SMALL)
    tower = Tower(stack, params)
    seen = []
    for gs in gradients(8, shapes=SMALL):
        tower.step(params, gs)
        found = {key: float(x * tower.clip_factors()[key]) for key, x in tower.hypergradients().items()}
        seen += [abs(x) for key, x in found.items() if key.startswith(f"{k - 1}.")]
    assert max(seen) > 0.01
    assert max(seen) <= 1 + 1e-6


@pytest.mark.slow
def test_blocks_and_kernels_change_nothing(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    for text in (
        "Adam(0.01) / SGD(0.01, clip=cosine)",
        "Adam(per_tensor(0.01), weight_decay=learned(0.1)) / Adam(0.01, clip=cosine) / SGD(0.1, clip=cosine)",
    ):
        whole = run(hs.parse(text))
        for fused in (False, True):
            assert_close(run(hs.parse(text), fused=fused, block=8, monkeypatch=monkeypatch), whole, 1e-9)
        monkeypatch.undo()
        monkeypatch.setattr(torch, "compile", lambda function, **options: function)


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_what_rounding_alone_says_moves_nothing(dtype):
    """At Adam's first step the betas cancel: what is left of their derivatives is rounding."""
    params = tensors(dtype, SMALL)
    tower = Tower(hs.parse("Adam(0.01) / SGD(0.1, clip=cosine)"), params)
    for gs in gradients(2, dtype, SMALL):
        tower.step(params, gs)
    assert float(tower.hyperparameters()["0.beta1"]) == pytest.approx(0.9, abs=1e-12)
    assert float(tower.hyperparameters()["0.beta2"]) == pytest.approx(0.999, abs=1e-12)
    assert abs(float(tower.hyperparameters()["0.lr"]) - 0.01) > 1e-3


@pytest.mark.parametrize("text", ["Adam(clip=cosine) / SGD", "SGD(clip=[cosine])"])
def test_the_primary_level_has_no_hypergradients(text):
    with pytest.raises(hs.StackError, match="cosine has no meaning on the primary level"):
        hs.parse(text)
    with pytest.raises(InputError, match="give it to a level above"):
        hs.Stack([hs.Adam(clip=hs.cosine)])


def test_nothing_to_learn():
    params = tensors(shapes=SMALL)
    tower = Tower(hs.parse("SGD(fixed(0.1)) / SGD(0.1, clip=cosine)"), params)
    for gs in gradients(3, shapes=SMALL):
        tower.step(params, gs)
    assert all(torch.isfinite(p).all() for p in params)


@pytest.mark.slow
def test_on_the_meta_device():
    params = tensors(device="meta", shapes=SMALL)
    tower = Tower(hs.parse("Adam(per_tensor(0.01)) / SGD(0.1, clip=cosine) / SGD(0.1, clip=cosine)"), params)
    for gs in gradients(3, device="meta", shapes=SMALL):
        tower.step(params, gs)
    assert all(x.device.type == "meta" for x in tower.hyperparameters().values())
