"""What a tower costs, measured: with bounds 1.3 times looser than what is wanted, because machines are noisy."""

import gc
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import hyperstack as hs
from hyperstack_cli.benchmark.contestants import Contestant, Trial, contestants
from hyperstack_cli.benchmark.measure import peak_memory, race, workload

pytestmark = pytest.mark.slow
SLACK = 1.3
GDTUO = "gdtuo Adam / SGD"


def ratios(name, seconds, *names):
    """Whole-step ratios to the first, interleaved, in a process of their own, as users have them."""
    known = contestants()
    chosen = [word for n in names if n in known for word in ("--only", n)]
    command = [sys.executable, "-m", "hyperstack_cli", "bench", name, "--seconds", str(seconds), "--json", *chosen]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {f["contestant"]: f["ratio"] for f in json.loads(ended.stdout)["workloads"][name]}
    print(name, {n: round(ratio, 3) for n, ratio in found.items()})
    return found


def assert_two_of_three(bounds, *race):
    """Two of three races keep all bounds, pairs of a ratio and its limit: what else runs may shift one either way."""
    kept, missed = 0, []
    while kept < 2 and len(missed) < 2:
        found = bounds(ratios(*race))
        if all(ratio < SLACK * limit for ratio, limit in found):
            kept += 1
        else:
            missed.append(found)
    assert kept == 2, f"not within {SLACK} times the limits: {missed}"


def test_a_step_of_mnist():
    def bounds(found):
        tower = found["Adam / SGD"]
        yield tower, 1.20
        yield found["Adam / SGD / SGD"] / tower, 1.02
        yield found["Adam / SGD, recorded"] / tower, 1.03
        if GDTUO in found:
            yield tower / found[GDTUO], 0.55

    names = "torch Adam", "Adam / SGD", "Adam / SGD, recorded", "Adam / SGD / SGD", GDTUO
    assert_two_of_three(lambda found: [*bounds(found)], "mnist", 10, *names)


@pytest.mark.parametrize("name", ["gpt", "resnet"])
def test_a_step_of_a_large_network(name):
    def bounds(found):
        tower = found["Adam / SGD"]
        return [(tower, 1.15), *([(tower / found[GDTUO], 1)] if GDTUO in found else [])]

    assert_two_of_three(bounds, name, 20, "torch Adam", "Adam / SGD", GDTUO)


@pytest.mark.parametrize("form", ["", ", compiled"])
def test_probes_cost_little(form):
    """Against the same tower that measures live, which takes a hypergradient at every step."""
    live, probing = f"auto(Adam), live{form}", f"auto(Adam, every=10){form}"
    assert_two_of_three(lambda found: [(found[probing], 1.12)], "mnist", 10, live, probing)


def test_steps_that_are_not_alike_are_compared_in_means_of_their_period():
    """One that waits at each tenth step, wherever these begin, takes a tenth of that more a step."""

    def waiting(name, period, pauses):
        def step(inputs, targets):
            time.sleep(next(pauses))
            return 1.0

        return Contestant(name, lambda model, workload: Trial(step), period)

    always = waiting("always", 1, itertools.repeat(0.002))
    now_and_then = waiting("now and then", 10, itertools.cycle([*[0.002] * 3, 0.062, *[0.002] * 6]))
    found = race([always, now_and_then], workload("10"), 0.1, torch.device("cpu"))
    assert found[1].ratio == pytest.approx(4, rel=0.3)
    assert found[1].whole == pytest.approx(8, rel=0.3)


@pytest.mark.parametrize("name", ["gpt", "resnet"])
def test_peak_memory(name):
    names = [n for n in ("torch Adam", "Adam / SGD", GDTUO) if n in contestants()]
    found = {n: peak_memory(n, name, "cpu") for n in names}
    print(name, found)
    assert found["Adam / SGD"] < 1.25 * SLACK * found["torch Adam"]
    if GDTUO in found:
        assert found["Adam / SGD"] < 0.5 * SLACK * found[GDTUO]


def resident():
    """MiB that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize("size", [2000, 300_000], ids=["cached", "recomputed"])
def test_memory_is_flat_over_many_steps(size):
    steps = 10_000 if size == 2000 else 1000
    params = [torch.nn.Parameter(torch.randn(size)), torch.nn.Parameter(torch.randn(()))]
    opt = hs.HyperOptimizer(params, "Adam(clip=True) / SGD(1e-6, clip)")
    schedule = torch.optim.lr_scheduler.ExponentialLR(opt, 0.9999)
    held = {}
    for t in range(steps + 1):
        for p in params:
            p.grad = torch.cos(p.detach() + t)
        opt.step()
        schedule.step()
        if t in (100, steps):
            gc.collect()
            held[t] = resident(), sum(type(x) is torch.Tensor for x in gc.get_objects())
    assert held[steps][1] <= held[100][1]
    assert held[steps][0] < held[100][0] + 4


def test_the_first_step_needs_nothing_of_torch_compile():
    """Loading it takes as long as loading torch."""
    code = """
import sys, torch, hyperstack as hs
model = torch.nn.Linear(3, 2)
opt = hs.HyperOptimizer(model.parameters(), "Adam / SGD(1e-5)")
opt.zero_grad(); model(torch.ones(4, 3)).sum().backward(); opt.step(); opt.state_dict()
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
