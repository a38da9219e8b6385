"""A step can be captured once and replayed, as a CUDA graph does: always the same memory, and no word from the host."""

import pytest
import torch
from battery import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import hyperstack as hs
from hyperstack import HyperOptimizer, primary
from hyperstack.rule import RULES
from hyperstack.tape import host, replay

SHAPES = [(5, 3), (), (4,), (3, 2, 2)]
STACKS = [
    "Adam / SGD(1e-4)",
    "Adam(0.01, weight_decay=learned(0.1), clip=True) / Adam(1e-3, clip=True) / SGD(1e-6)",
    "SGD(per_tensor(0.01), momentum=learned(0.9)) / RMSProp(1e-4)",
    "AdaGrad(0.01)",
]


class Captured(TorchDispatchMode):
    """The operations of a piece of code; `replay` runs them again, on the same tensors and into the same tensors."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host asks for a value"
        result = func(*args, **(kwargs or {}))
        if func.namespace == "aten":  # not the profiler's
            self.calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            if result is None or any(r.alias_info is not None for r in func._schema.returns):
                continue  # changed in place, or a view
            pairs = [(result, again)] if isinstance(result, torch.Tensor) else zip(result, again, strict=True)
            for old, new in pairs:
                old.copy_(new)


@pytest.fixture
def as_on_a_device(monkeypatch):
    """The engine as it works where memory is not the host's."""
    monkeypatch.setattr(primary, "_looks_ahead", lambda bucket: False)
    monkeypatch.setattr(host, "WORTH_IT", -1)
    monkeypatch.setattr(replay, "assign", lambda program, scratch: {})


def values(seed):
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=random, dtype=torch.float64) for shape in SHAPES]


def gradients(params, t):
    return [torch.cos(3.0 * p * (t + 1)) + 0.1 for p in params]


def trained(text, step_of, steps=8, device="cpu", **options):
    """What comes of some steps with a moving schedule, each made by what `step_of` returns."""
    params = [torch.nn.Parameter(x.to(device)) for x in values(1)]
    for p in params:
        p.grad = torch.zeros_like(p)
    opt = HyperOptimizer(params, text, **options)
    opt.param_groups[0]["lr"] = torch.ones((), dtype=torch.float64, device=device)
    step = None
    for t in range(steps):
        with torch.no_grad():
            for p, g in zip(params, gradients(params, t), strict=True):
                p.grad.copy_(g)
        opt.param_groups[0]["lr"].fill_(1.0 if t < 5 else 0.5)
        if t < 3:
            opt.step()
            continue
        step = step or step_of(opt)
        step()
    return [*(p.detach().cpu() for p in params), *(x.cpu() for x in opt.hyperparameters().values())]


def captured(opt):
    """A step recorded by emulation at its first call, and replayed after it."""
    recorded = Captured()

    def step():
        if recorded.calls:
            recorded.replay()
        else:
            with recorded:
                opt.step()

    return step


@pytest.mark.sampled(33)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("text", [*STACKS, *(f"{name} / SGD(1e-5)" for name in RULES)])
def test_a_step_can_be_replayed(text, fused, as_on_a_device, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    wanted = trained(text, lambda opt: opt.step)
    assert_close(trained(text, captured, compile=fused), wanted, 1e-12, 1e-13)


def test_the_emulation_sees_what_a_graph_would_not():
    """With what is only sound in host memory it fails: so the test above can fail."""
    with pytest.raises(AssertionError):
        assert_close(trained(STACKS[0], captured), trained(STACKS[0], lambda opt: opt.step), 1e-12, 1e-13)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("text", STACKS)
def test_a_step_in_a_cuda_graph(text, compiled):
    def in_a_graph(opt):
        graph, steps = torch.cuda.CUDAGraph(), []

        def step():
            if not steps:
                with torch.cuda.graph(graph):
                    opt.step()
                steps.append(1)
            graph.replay()

        return step

    wanted = trained(text, lambda opt: opt.step)
    assert_close(trained(text, in_a_graph, device="cuda", compile=compiled), wanted, 1e-9, 1e-10)


@pytest.mark.gpu
def test_forward_backward_and_step_in_one_cuda_graph():
    """The whole training step, with the schedule factor as a tensor."""
    found = []
    for capture in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Tanh(), torch.nn.Linear(30, 1)).cuda()
        opt = HyperOptimizer(model.parameters(), hs.parse("Adam / SGD(1e-5)"))
        x = torch.randn(16, 20, device="cuda")

        def whole(model=model, opt=opt, x=x):
            opt.zero_grad(set_to_none=False)
            model(x).square().mean().backward()
            opt.step()

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                whole()
        torch.cuda.current_stream().wait_stream(side)
        if capture:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                whole()
        for _ in range(5):
            graph.replay() if capture else whole()
        found.append([*(p.detach().cpu() for p in model.parameters()), *opt.hyperparameters().values()])
    assert_close(found[1], found[0], 1e-5, 1e-7)
