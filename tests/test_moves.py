"""Parameters that are moved, converted, aliased or reshaped under the optimizer, in every form of the engine."""

import copy
import itertools
import pickle

import pytest
import torch
from battery import assert_close, assert_same
from torch import nn

import hyperstack as hs
from hyperstack import buffers

# Elements of a block, and whether kernels are fused. One block keeps what its pull needs, several compute it again.
FORMS = {"cached": (1 << 18, False), "recomputed": (64, False), "fused": (1 << 18, True), "cut": (64, True)}
SHAPES = [(9, 40), (5,), (), (2, 3, 4, 5), (3, 7)]
# Reads parameters, clips, has numbers of each tensor and three levels; and none of that.
RICH = "Adam(learned(per_tensor(0.02)), clip, weight_decay=learned(0.1)) / SGD(1e-3, clip, momentum=0.5) / SGD(1e-5)"
PLAIN = "Adam(0.02) / SGD(1e-3)"
by_form = pytest.mark.parametrize("form", FORMS)
by_stack = pytest.mark.parametrize("stack", [RICH, PLAIN], ids=["rich", "plain"])


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch):
    """The programs of the kernels, run as they are; blocks as they were, afterwards."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(buffers, "BLOCK", buffers.BLOCK)


def model_of(dtype=torch.float64, seed=3):
    random = torch.Generator().manual_seed(seed)
    return nn.ParameterList([torch.randn(s, generator=random, dtype=torch.float64).to(dtype) for s in SHAPES])


def gradient(params, t):
    """Of some function of the parameters; the second has none at steps 2 and 3."""
    grads = [torch.cos(3.0 * p.detach() * (t + 1)) + 0.2 for p in params]
    return [None if i == 1 and t in (2, 3) else g for i, g in enumerate(grads)]


def make(form, params, stack=PLAIN):
    return hs.HyperOptimizer(params, stack, compile=FORMS[form][1])


def step(form, opt, grads):
    """One step in blocks of the form's size, and what it left."""
    buffers.BLOCK = FORMS[form][0]
    for p, g in zip((p for group in opt.param_groups for p in group["params"]), grads, strict=True):
        p.grad = g
    opt.step()
    return seen(opt)


def seen(opt):
    params = [p.detach().clone() for group in opt.param_groups for p in group["params"]]
    return [*params, *opt.hyperparameters().values(), *opt.hypergradients().values()]


def run(form, stack=PLAIN, change=lambda t, model: None, steps=7):
    """What each step leaves, `change` meddling with the model before it."""
    model, found = model_of(), []
    opt = make(form, model.parameters(), stack)
    for t in range(steps):
        change(t, model)
        found += step(form, opt, gradient(model, t))
    return found


@by_form
def test_forms_are_different_ways_through_the_engine(form):
    """What the other tests rest on."""
    model = model_of()
    opt = make(form, model.parameters())
    step(form, opt, gradient(model, 0))
    ((_, tower),) = opt.towers()
    (bucket,) = tower.buckets
    assert (len(bucket.blocks) > 1) == (form in ("recomputed", "cut"))
    assert (bucket.ahead is not None) == (form == "cached")
    assert tower.tapes.fused == (form in ("fused", "cut"))


# ---- other values, other storage


def put(p, value):
    p.data.copy_(value)


def assign(p, value):
    p.data = value.clone()


def swap(p, value):
    torch.utils.swap_tensors(p, nn.Parameter(value.clone()))


@pytest.mark.slow
@by_stack
@by_form
@pytest.mark.parametrize("way", [put, assign, swap, "load_state_dict"])
def test_values_replaced_in_mid_run(way, form, stack):
    """However they come in, the run goes on from them as if they had been copied into the first storage."""

    def change(t, model, way=way):
        if t in (2, 4, 5):
            if way == "load_state_dict":
                model.load_state_dict(model_of(seed=t).state_dict())
            else:
                for p, value in zip(model, model_of(seed=t), strict=True):
                    way(p, value.detach())

    found = run(form, stack, change)
    assert_close(found, run("cached", stack, lambda t, model: change(t, model, put)), 1e-12, 1e-12)
    assert not torch.allclose(found[-1], run("cached", stack)[-1]), "the values do not matter"


@pytest.mark.sampled(9)
@by_stack
@by_form
def test_strides_that_come_and_go(form, stack):
    def change(t, model):
        if t in (2, 4):
            model[0].data = model[0].data.t().contiguous().t() if t == 2 else model[0].data.contiguous()
            kind = torch.channels_last if t == 2 else torch.contiguous_format
            model[3].data = model[3].data.contiguous(memory_format=kind)
        assert [p.is_contiguous() for p in model] == [t not in (2, 3), True, True, t not in (2, 3), True]

    assert_close(run(form, stack, change), run("cached", stack), 1e-12, 1e-12)


@pytest.mark.sampled(5)
@by_form
def test_a_step_moves_the_storage_that_is_there_and_nothing_else(form):
    model = model_of()
    opt, objects = make(form, model.parameters(), RICH), list(model)
    for t in range(4):
        if t in (0, 2):
            left = [p.data for p in model]
            old = [x.clone() for x in left]
            for p in model:
                p.data = p.detach().clone()
            pointers, views = [p.data_ptr() for p in model], [p.data.view(-1) for p in model]
            part, turned = model[0].data[2:5, 1::3], model[3].data.permute(3, 1, 0, 2)
        before, versions = [p.detach().clone() for p in model], [p._version for p in model]
        grads = [torch.cos(p.detach() + t) for p in model]
        kept = [g.clone() for g in grads]
        step(form, opt, grads)
        assert all(p is q is r for p, q, r in zip(model, objects, opt.param_groups[0]["params"], strict=True))
        assert [p.data_ptr() for p in model] == pointers
        assert_same(
            [*views, part, turned],
            [x.detach() for x in (*(p.view(-1) for p in model), model[0][2:5, 1::3])]
            + [model[3].detach().permute(3, 1, 0, 2)],
        )
        assert_same(left, old)
        assert all((p != b).all() for p, b in zip(model, before, strict=True))
        assert all(p._version > v for p, v in zip(model, versions, strict=True)), "autograd would use a stale value"
        assert all(p.grad is g and g._version == 0 for p, g in zip(model, grads, strict=True))
        assert_same(grads, kept)


@by_form
def test_parameters_that_share_storage(form):
    """Each moves what they share, as in torch.optim."""
    ours, theirs = model_of(), model_of()
    one, other = (
        make(form, ours.parameters(), "SGD(fixed(0.02)) / SGD(0.1)"),
        torch.optim.SGD(theirs.parameters(), 0.02),
    )
    for t in range(5):
        if t == 2:
            for model in (ours, theirs):
                storage = torch.linspace(-1, 1, 30, dtype=torch.float64)
                model[1].data, model[4].data, model[2].data = storage[18:23], storage[:21].view(3, 7), storage[2]
        grads = gradient(ours, t)
        step(form, one, grads)
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g
        other.step()
        assert_close(list(ours), list(theirs), 1e-12)


@pytest.mark.sampled(19)
@by_form
@pytest.mark.parametrize("habit", ["zeroes", "spoils", "accumulates"])
def test_gradients_changed_in_place_after_a_step(habit, form):
    """What a step has recorded is its own: hypergradients are those of a run that has new tensors each time."""
    model, same = model_of(), model_of()
    opt, other = make(form, model.parameters(), RICH), make("cached", same.parameters(), RICH)
    held = [torch.zeros_like(p) for p in model]
    for t in range(6):
        if habit == "zeroes":
            opt.zero_grad(set_to_none=False)
        for g, p in zip(held, model, strict=True):
            new = 0.1 * torch.cos(3.0 * p.detach() * (t + 1)) + 0.02
            g.copy_(new if habit == "spoils" else g + new)
        wanted = step("cached", other, [g.clone() for g in held])
        assert_close(step(form, opt, held), wanted, 1e-12, 1e-12)
        for g in held:
            g.mul_(float("nan") if habit == "spoils" else 1.0)


# ---- other dtypes, other devices


NARROW = ["float64 bfloat16", "float32 bfloat16 float32", "float16 float64"]


@pytest.mark.sampled(9)
@pytest.mark.parametrize("swaps", [False, True], ids=["data", "swap"])
@pytest.mark.parametrize(
    "kinds",
    ["float64 float32 float64", *(pytest.param(kinds, marks=pytest.mark.slow) for kinds in NARROW)],
)
@by_form
def test_a_model_converted_in_mid_run(form, kinds, swaps, monkeypatch):
    """State follows the dtype, half precision in float32; all is as in float64 with the same gradients, but rounded."""
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", swaps)
    dtypes = [getattr(torch, kind) for kind in kinds.split()]
    model, same = model_of(dtypes[0]), model_of()
    opt, other, objects = make(form, model.parameters()), make("cached", same.parameters()), list(model)
    for t in range(3 * len(dtypes)):
        dtype = dtypes[t // 3]
        model.to(dtype)
        grads = [torch.cos(3.0 * q.detach() * (t + 1)).to(dtype) for q in same]
        step(form, opt, grads)
        step("cached", other, [g.to(torch.float64, copy=True) for g in grads])
        for p, q, r in zip(model, same, objects, strict=True):
            assert p is r
            assert p.dtype == dtype
            for name in ("exp_avg", "exp_avg_sq"):
                assert opt.state[p][name].dtype == (torch.float32 if dtype.itemsize == 2 else dtype)
                assert_close([opt.state[p][name]], [other.state[q][name]], 1e-5, 1e-7)
            # Each conversion and step may round a parameter, of size up to 4, by half a unit.
            assert_close([p], [q], 0, (t + 2) * 2 * max(torch.finfo(d).eps for d in dtypes))
        assert_close(opt.hyperparameters(), other.hyperparameters(), 1e-5)
        assert_close(opt.hypergradients(), other.hypergradients(), 1e-4, 1e-5)


@pytest.mark.sampled(7)
@by_form
def test_dtypes_side_by_side_and_a_conversion_between_backward_and_step(form):
    """Kernels for buffers of one size and several dtypes."""
    kinds, values = [torch.float32, torch.bfloat16, torch.float16, torch.float64], torch.linspace(-1, 1, 70).double()
    params, exact = [nn.Parameter(values.to(kind)) for kind in kinds], [nn.Parameter(values.clone()) for _ in kinds]
    opt, other = make(form, params), make("cached", exact)
    for t in range(8):
        buffers.BLOCK = FORMS[form][0]
        for i, (p, q) in enumerate(zip(params, exact, strict=True)):
            p.grad = torch.sin(values * (i + t + 1)).to(p.dtype)
            q.grad = p.grad.to(torch.float64, copy=True)
            if t == 4:
                p.data = p.data.to(kinds[-1 - i])
        opt.step()
        other.step()
        for p, q in zip(params, exact, strict=True):
            assert_close([opt.state[p]["exp_avg_sq"]], [other.state[q]["exp_avg_sq"]], 1e-5, 1e-7)
        assert_close(opt.hyperparameters(), other.hyperparameters(), 1e-5)


@by_form
def test_a_model_made_complex_is_refused_and_nothing_changed(form):
    model = model_of()
    opt = make(form, model.parameters())
    step(form, opt, gradient(model, 0))
    before = copy.deepcopy([opt.state_dict(), opt.hypergradients()])
    for p in model:
        p.data = p.data.to(torch.complex128)
    held = [p.detach().clone() for p in model]
    with pytest.raises((hs.RunError, hs.InputError), match="complex"):
        step(form, opt, [torch.ones_like(p) for p in model])
    assert_same([opt.state_dict(), opt.hypergradients()], before)
    assert all(torch.equal(p, h) for p, h in zip(model, held, strict=True))


@pytest.mark.sampled(7)
@by_form
def test_a_model_on_the_meta_device(form, monkeypatch):
    """Everything follows; what had values before has none to come back with, which is said."""
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    model = model_of()
    opt = make(form, model.parameters(), RICH)
    for t in range(4):
        model.to("meta" if t > 1 else "cpu")
        step(form, opt, gradient(model, t))
    assert {x.device.type for p in model for x in (p, *opt.state[p].values(), *seen(opt))} == {"meta"}
    model.to_empty(device="cpu")
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        step(form, opt, [torch.ones_like(p) for p in model])


@pytest.mark.gpu
@by_stack
@by_form
def test_a_model_to_the_gpu_and_back(form, stack):
    found = run(form, stack, lambda t, model: model.to("cuda" if 1 < t < 5 else "cpu"))
    assert_close(found, run("cached", stack), 1e-12, 1e-12)


# ---- other shapes


@pytest.mark.sampled(9)
@by_form
@pytest.mark.parametrize("groups", [1, 2])
def test_another_shape_is_refused_and_changes_nothing(groups, form):
    model, same = model_of(), model_of()
    cuts = [0, 5] if groups == 1 else [0, 2, 5]
    opt, other = (make(form, [{"params": m[a:b]} for a, b in itertools.pairwise(cuts)], RICH) for m in (model, same))
    for t in range(3):
        step(form, opt, gradient(model, t))
        step(form, other, gradient(same, t))
    right = model[4].data
    for odd in ((3, 8), (21,), (7, 3), (0,)):
        model[4].data = torch.ones(odd, dtype=torch.float64)
        before = copy.deepcopy([seen(opt), opt.state_dict()])
        with pytest.raises(hs.RunError) as refusal:
            step(form, opt, [torch.ones_like(p) for p in model])
        assert all(str(list(shape)) in str(refusal.value) for shape in ((3, 7), odd))
        assert_same([seen(opt), opt.state_dict()], before)
    model[4].data = right
    for t in range(3, 6):
        assert_same(step(form, opt, gradient(model, t)), step(form, other, gradient(same, t)))


# ---- from one form to another

DUPLICATES = {"pickle": lambda opt: pickle.loads(pickle.dumps(opt)), "deepcopy": copy.deepcopy}


@pytest.mark.sampled(13)
@by_form
@pytest.mark.parametrize("then", FORMS)
@pytest.mark.parametrize("way", [*(pytest.param(way, marks=pytest.mark.slow) for way in DUPLICATES), "state_dict"])
def test_a_run_goes_on_in_another_form(way, form, then):
    """There at step 3, where a gradient is missing, and back at step 5; a copy takes the form that its group says."""
    model, found = model_of(), []
    opt = make(form, model.parameters(), RICH)
    for t in range(7):
        now = then if t in (3, 4) else form
        if t in (3, 5):
            old, params = opt, opt.param_groups[0]["params"]
            if way == "state_dict":
                opt = make(now, params, RICH)
                opt.load_state_dict(old.state_dict())
            else:
                old.param_groups[0]["compile"] = FORMS[now][1]
                opt = DUPLICATES[way](old)
        found += step(now, opt, gradient(opt.param_groups[0]["params"], t))
    assert_close(found, run("cached", RICH), 1e-12, 1e-12)
