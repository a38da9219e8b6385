"""Runs whose hypergradients are measured at averages: what is recorded of each probe, and what is read there."""

import io
import json
import pkgutil
import signal
import sys

import numpy as np
import pytest
import torch
from battery import ends
from rich.cells import cell_len
from rich.console import Console
from test_cli_process import rows, until
from test_cli_process import start as start_process
from test_inspect import WIDTHS
from toy import BATCHES, assert_same_run, command, ok, train_toy

import hyperstack as hs
from hyperstack.reports.evidence import Evidence
from hyperstack.reports.leveltext import clips, is_clipped, rescales, start
from hyperstack.reports.panels import panels
from hyperstack.reports.probes import FAR, FEWEST, LOWERED, PINNED, early
from hyperstack.reports.reading import reading
from hyperstack.reports.statistics import probe_statistics, statistics, statistics_of
from hyperstack.reports.text import number
from hyperstack.telemetry.record import Record
from hyperstack_cli.tower import TowerView

pytestmark = pytest.mark.usefixtures("elsewhere")
EVERY = 10
AUTO = str(hs.parse("auto(Adam)"))
ALIKE = f"auto(Adam, every={EVERY}, first={EVERY})"  # all windows as long as the last


def problem(opt_of, steps, path, **options):
    """A loop of one's own: least squares in float64; the run, and what the closure saw of probes and steps."""
    torch.manual_seed(1)
    weights = torch.nn.Parameter(torch.randn(5, 3, dtype=torch.float64))
    bias = torch.nn.Parameter(torch.randn(3, dtype=torch.float64))
    opt, seen = opt_of([weights, bias]), []

    with hs.record(opt, path, **options) as recording:
        for _ in range(steps):
            inputs, targets = torch.randn(16, 5, dtype=torch.float64), torch.randn(16, 3, dtype=torch.float64)
            calls = []

            def closure(inputs=inputs, targets=targets, calls=calls):
                opt.zero_grad()
                loss = (inputs @ weights + bias - targets).square().mean()
                loss.backward()
                recording.loss(loss)
                where = torch.cat([weights.detach().reshape(-1), bias.detach()])
                calls.append((loss.item(), where, torch.cat([weights.grad.reshape(-1), bias.grad])))
                return loss

            opt.step(closure)
            seen.append(calls)
    return hs.load_run(path), opt, seen


def hyper(stack):
    return lambda params: hs.HyperOptimizer(params, stack)


# ---- what is recorded


def test_cosine_and_displacement_are_those_of_what_the_closure_saw(tmp_path):
    run, opt, seen = problem(hyper("auto(SGD(0.01, momentum=0.9), bound=0)"), 47, tmp_path / "run")
    marks = np.array(ends(46, EVERY, 10))
    anchor = seen[0][0][1]  # the average begins where the weights do
    cosines, displacements = [0.0], [0.0]
    for calls in seen:
        if len(calls) == 2:
            _, average, gradient = calls[0]
            moved, anchor = average - anchor, average
            cosines.append((gradient @ moved / gradient.norm() / moved.norm()).item())
            displacements.append(moved.norm().item())
        else:
            cosines, displacements = [*cosines, cosines[-1]], [*displacements, displacements[-1]]
    assert [len(calls) for calls in seen] == [2 if t - 1 in marks else 1 for t in range(1, 48)]
    np.testing.assert_allclose(run["0.lr.cosine"], cosines[1:], rtol=1e-12)
    np.testing.assert_allclose(run["0.lr.displacement"], displacements[1:], rtol=1e-12)
    assert run["probe"].tolist() == [np.sum(marks < t) for t in range(1, 48)]
    assert run["loss"].tolist() == [calls[-1][0] for calls in seen]  # not those of the probes
    weighed = run["0.lr.cosine"][marks] * np.sqrt(np.diff(marks, prepend=0) / 10)
    expected = np.log(run["0.lr.value"][0]) - np.cumsum(weighed)
    np.testing.assert_allclose(np.log(run["0.lr.value"][marks]), expected, rtol=1e-12)
    assert "cosine" in (table := hs.tower_summary(opt, 80)).splitlines()[0]
    assert number(cosines[-1], 3) in table
    assert list(run)[:8] == [
        "step", "loss", "0.lr.value", "0.lr.grad", "0.lr.clip", "1.lr.value", "1.lr.grad", "1.lr.clip",
    ]  # fmt: skip
    assert list(run)[8:] == ["probe", "0.lr.cosine", "0.lr.displacement"]


def test_of_one_number_a_tensor_the_mean_and_the_norm(tmp_path):
    level = "Adam(per_tensor(log(0.01)), beta1=fixed(0.9), beta2=fixed(0.999))"
    stack = f"{level} / SGD(0.1, at=average(0.9, every=4, warmup=0))"
    run, opt, _ = problem(hyper(stack), 9, tmp_path / "run")
    cells = next(opt.towers())[1].climb.layout.unpack(next(opt.towers())[1].cells)
    assert cells["0.cosine"].shape == (2,)
    assert run["0.lr.cosine"][-1] == pytest.approx(cells["0.cosine"].mean().item(), rel=1e-15)
    assert run["0.lr.displacement"][-1] == pytest.approx(cells["0.displacement"].norm().item(), rel=1e-15)
    assert run["probe"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2]


def test_of_each_param_group_and_of_live_ones_nothing(tmp_path):
    def groups(params):
        stacks = (
            "SGD(0.01) / SGD(1e-3)",
            "auto(SGD(0.01), first=10)",
            "SGD(log(0.01)) / SGD(1, at=average(0.9, every=3))",
        )
        extra = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        extra.grad = torch.ones(1, dtype=torch.float64)
        chosen = zip([*params, extra], stacks, strict=True)
        return hs.HyperOptimizer([{"params": [p], "stack": stack} for p, stack in chosen], "SGD(0.01)")

    run, *_ = problem(groups, 12, tmp_path / "run")
    names = [name for name in run if name.endswith(("probe", "cosine", "displacement"))]
    groups = ("group1", "group2")
    assert names == [f"{g}.{x}" for g in groups for x in ("probe", "0.lr.cosine", "0.lr.displacement")]
    assert run["group1.probe"].tolist() == [0] * 10 + [1] * 2
    found = statistics(run.record)
    assert found["0.lr"].grad_median == np.median(np.abs(run["0.lr.grad"]))
    assert found["group1.0.lr"].grad_median == abs(run["group1.0.lr.grad"][-1])


def test_hs_auto_is_the_function_whatever_was_imported_first():
    """A module of that name would take its place once it is imported."""
    assert not {module.name for module in pkgutil.iter_modules(hs.__path__)} & {*hs.__all__}


# ---- going on


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("every", "stops"), [(1, (0, 7, 10, 11, 2 * BATCHES + 4)), (3, (13, 20))])
def test_interrupted_in_a_window_it_goes_on_bit_for_bit(tmp_path, every, stops):
    changes = {"stack": AUTO, "record_every": every}
    train_toy(tmp_path / "straight", **changes)
    for i, step in enumerate(stops):
        summary = train_toy(tmp_path / "run", resume=i > 0, stop_at=step, **changes)
        assert (summary["steps"], summary["finished"]) == (step, False)
        torch.manual_seed(1234)  # the next process starts elsewhere
    train_toy(tmp_path / "run", resume=True, **changes)
    assert_same_run(tmp_path / "straight", tmp_path / "run")


@pytest.mark.slow
def test_with_betas_learned_too_it_goes_on_bit_for_bit(tmp_path):
    stack = "Adam(log(0.01)) / SGD(0.5, clip=[cosine], at=average(0.9, every=4))"
    train_toy(tmp_path / "straight", stack=stack)
    for i, step in enumerate((3, 6)):
        train_toy(tmp_path / "run", resume=i > 0, stop_at=step, stack=stack)
    train_toy(tmp_path / "run", resume=True, stack=stack)
    assert_same_run(tmp_path / "straight", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_ended_from_outside_it_goes_on_bit_for_bit(tmp_path, signum):
    arguments = ("train", "toy", "--epochs", "20", "--stack", "auto(Adam)", "--quiet")
    assert command(*arguments, "--out", tmp_path / "straight")[0] == 0
    path = tmp_path / "run"
    process = start_process(*arguments, "--out", path, TOY_DELAY=0.005)
    until(lambda: rows(path) > 2 * BATCHES + 3, process)
    process.send_signal(signum)
    process.communicate()
    assert process.returncode == (130 if signum == signal.SIGINT else -signum)
    assert command("train", "toy", "--quiet", "--resume", "--out", path)[0] == 0
    assert_same_run(tmp_path / "straight", path)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_sweeps_train_them_alone_beside_others(tmp_path, jobs):
    stacks = "auto(Adam(λ))", "Adam(λ) / SGD(1e-5)"
    found = sweep_of(tmp_path / "sweep", stacks, "--grid", "λ=1e-6,0.01", "--jobs", jobs)
    assert [row["diverged"] for row in found] == [False] * 4
    for row in found:
        path = tmp_path / "alone" / row["stack"].replace("/", " ")
        command("train", "calm", "--stack", row["stack"], "--epochs", 1, "--quiet", "--out", path)
        assert row["test_error"] == hs.load_run(path).summary["test_error"]


def sweep_of(path, stacks, *more):
    """The cells of a sweep of one epoch and one seed."""
    chosen = [word for stack in stacks for word in ("--stack", stack)]
    code, _, remarks = command("sweep", "calm", *chosen, *more, "--seeds", 1, "--epochs", 1, "--out", path)
    assert code == 0, remarks
    return json.loads((path / "results.json").read_text())


# ---- what is read

N, PROBES = 401, 40


def record(cosines=None, start=0.01, **columns):
    """A run of 401 steps with a probe every 10, as the recorder writes it, from the cosines of its 40 probes."""
    draw = np.random.default_rng(3)
    cosines = 0.2 * draw.standard_normal(PROBES) if cosines is None else np.asarray(cosines, float)
    steps = np.arange(1.0, N + 1)
    probe = ((steps - 1) // EVERY).astype(int)

    def held(values):
        return np.concatenate([[0.0], values])[probe]

    value = start * np.exp(-held(np.cumsum(cosines)))
    found = {"step": steps, "loss": 1 + 0.1 * draw.standard_normal(N)}
    found |= {"0.lr.value": value, "0.lr.grad": 3 * held(cosines), "0.lr.clip": held(1 / 3 + 0 * cosines)}
    found |= {"1.lr.value": np.ones(N), "1.lr.grad": held(0.1 * cosines), "1.lr.clip": np.ones(N)}
    found |= {"probe": probe, "0.lr.cosine": held(cosines), "0.lr.displacement": held(3 + 0 * cosines)}
    return Record({name: np.asarray(values, float) for name, values in {**found, **columns}.items()})


def of(found, part):
    return [remark.sentence for remark in found if part in remark.sentence]


def test_figures_of_hypergradients_are_of_probes():
    draw = np.random.default_rng(5)
    cosines = draw.uniform(-1, 1, PROBES)
    found, plain = statistics(record(cosines))["0.lr"], np.abs(3 * cosines)
    assert (found.grad_median, found.grad_95) == tuple(np.quantile(plain, [0.5, 0.95]))
    largest = int(plain.argmax())
    assert (found.grad_max, found.grad_max_step) == (plain[largest], 1 + EVERY * (largest + 1))
    assert found.flips == np.mean(np.sign(cosines[1:]) != np.sign(cosines[:-1]))
    cosines[7] = np.nan
    assert statistics(record(cosines))["0.lr"].nonfinite == 1
    probes = probe_statistics(record(cosines))["0.lr"]
    known = cosines[np.isfinite(cosines)]
    assert (probes.probes, probes.cosine_median, probes.cosine_last) == (PROBES, np.median(known), cosines[-1])
    assert (probes.displacement_median, probes.displacement_last) == (3, 3)


def test_of_some_steps_those_probes_count_that_hold_there():
    cosines = np.random.default_rng(5).uniform(-1, 1, PROBES)
    found = statistics(record(cosines).between(105, 130))["0.lr"]
    assert (found.grad_max, found.grad_max_step) == max(zip(3 * abs(cosines[9:12]), (105, 111, 121), strict=True))
    rare = record(cosines)
    rare = Record({name: column[19::20] for name, column in rare.columns.items()})  # every 20th step was recorded
    assert statistics(rare)["0.lr"].grad_median == np.median(np.abs(3 * cosines[::2]))


def test_a_cosine_clips_nothing():
    levels = ["Adam(log(0.001))", "SGD(1.0, clip=[cosine], at=average(0.99, bound=0.1))"]
    assert statistics(record())["0.lr"].clipped == 1  # its factor is 1/3
    assert statistics_of(record(), levels)["0.lr"].clipped is None
    assert not any(is_clipped("0.lr", levels, share) for share in (None, 0.0, 1.0))
    for text, unit, clipped in (
        ("SGD(1.0, clip=[cosine])", True, False),
        ("SGD(1.0, clip=[normalize(per='level')])", True, False),
        ("SGD(1.0, clip=[norm(1.0)])", False, True),
        ("SGD(1.0, clip)", False, True),
        ("SGD(1.0, at=live)", False, False),
    ):
        assert (rescales(text), clips(text)) == (unit, clipped), text


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [("Adam(log(1.0), eps=2.0)", "lr", 1.0), ("SGD(per_tensor(log(1e-3)))", "lr", 1e-3), ("Adam", "lr", None),
     ("Adam(0.1, beta1=fixed(0.8))", "beta1", 0.8), ("ALRC(Adam(0.5), n=3.0)", "lr", 0.5), ("Adam(α)", "lr", None)],
)  # fmt: skip
def test_where_a_level_starts(text, name, value):
    assert start(text, name) == value


def test_noise_is_not_remarkable():
    for seed in range(100):
        draw = np.random.default_rng(seed)
        assert not reading(record(0.3 * draw.standard_normal(PROBES))), seed


def test_a_run_without_a_probe():
    assert of(reading(record().between(1, 10)), "no probe in 10 steps")
    assert not of(reading(record().between(1, 11)), "no probe")


@pytest.mark.parametrize(("sign", "way", "side"), [(-1, "low", "below -0.5"), (1, "high", "above 0.5")])
def test_a_start_that_is_far_off(sign, way, side):
    noise = 0.2 * np.random.default_rng(3).standard_normal(PROBES)
    for each, fires in ((0.99 * np.log(FAR) / 4, False), (1.01 * np.log(FAR) / 4, True)):
        cosines = np.concatenate([[sign * each] * 4, -sign * np.abs(noise[4:])])  # at the first 4 probes
        found = of(reading(record(cosines)), "by orders")
        assert bool(found) is fires
        if fires:
            end = 0.01 * np.exp(-sign * 4 * each)
            assert found == [
                f"the cosine was {side} at the first 4 probes: the start is too {way} by orders of magnitude; it took "
                f"41 steps to arrive at {number(end)}; start nearer, lr=log({number(end, 2)})"
            ]
    cosines = np.concatenate([[sign * 0.99 * PINNED] * 9, -sign * np.abs(noise[9:])])
    assert not of(reading(record(cosines)), "by orders")
    never = of(reading(record([sign * 0.9] * PROBES)), "by orders")
    assert "it has not arrived after 401 steps" in never[0]
    assert not of(reading(record([sign * 0.9] * PROBES)), "stayed")  # one sentence is enough


@pytest.mark.parametrize(("sign", "text"), [(1, "above 0.5"), (-1, "below -0.5")])
def test_what_the_last_probes_took_on(sign, text):
    for count, size, fires in ((FEWEST - 1, 0.6, False), (FEWEST, 0.6, True), (FEWEST, PINNED, False)):
        cosines = 0.2 * np.random.default_rng(3).standard_normal(PROBES)
        cosines[-count - 1], cosines[-count:] = 0.1, sign * size
        found = of(reading(record(cosines)), "stayed")
        assert bool(found) is fires
        if fires:
            values = 0.01 * np.exp(-np.cumsum(cosines))
            way, start = ("falls", "lower") if sign > 0 else ("rises", "higher")
            assert found == [
                f"the cosine stayed {text} in the last {count} probes, which took it from {number(values[-count])} to "
                f"{number(values[-1])}: the rate still {way}; train longer, or start {start}"
            ]
    loss = np.concatenate([np.linspace(2, 1, 200), np.linspace(1, 3, N - 200)])
    assert not of(reading(record(cosines, loss=loss)), "stayed")  # what took the loss up is not to go on


def test_a_rate_that_the_bound_made_smaller_did_not_start_too_low(tmp_path):
    """It rises from there, wherever it started."""
    for factor, fires in ((0.99 * LOWERED, True), (1.01 * LOWERED, False)):
        levels = [f"SGD(log({0.01 * factor}))", "SGD(1.0, clip=[cosine], at=average(0.99, bound=0.1))"]
        found = early(Evidence(record([-0.9] * 4 + [0.1] * (PROBES - 4)), False, levels))
        assert bool([*found]) is fires
    run, *_ = problem(hyper("auto(SGD(1.0))"), 30, tmp_path / "run")
    assert run["0.lr.value"][0] < 0.01
    assert run["0.lr.value"].max() > FAR * run["0.lr.value"][0]
    assert not of(reading(run), "too low")


def test_a_rate_that_overshoots_at_every_probe():
    found = of(reading(record(0.8 * (-1.0) ** np.arange(PROBES))), "changed sign")
    assert not found  # 20 probes are too few
    more = {name: np.concatenate([column, column]) for name, column in record().columns.items()}
    signs = 0.8 * (-1.0) ** np.arange(2 * PROBES)
    steps = np.arange(1.0, 2 * N + 1)
    probe = np.minimum((steps - 1) // EVERY, 2 * PROBES).astype(int)
    held = np.concatenate([[0.0], signs])[probe]
    more |= {"step": steps, "probe": probe.astype(float), "0.lr.grad": held, "0.lr.cosine": held}
    more["0.lr.value"] = 0.01 * np.exp(-np.concatenate([[0.0], np.cumsum(signs)])[probe])
    assert of(reading(Record(more)), "changed sign") == [
        "its hypergradient changed sign in 100 % of the last 39 probes, noise does in 50 %: it overshoots; a lower "
        "rate above, 1.lr = 1, steadies it: try 0.3 of it, 0.3"
    ]


# ---- what is shown


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of auto, from far below."""
    path = tmp_path_factory.mktemp("auto") / "run"
    train_toy(path, stack=str(hs.parse(f"auto(Adam(1e-6), every={EVERY}, first={EVERY})")), epochs=20)
    return path


@pytest.mark.slow
def test_the_screen(run):
    found, screen = hs.load_run(run), ok("inspect", run, columns=200)
    count = (found["step"][-1] - 1) // EVERY
    assert f"updates level 0, at averages: {count:.0f} probes" in screen
    lines = screen.splitlines()
    title = next(i for i, line in enumerate(lines) if line.startswith("probes "))
    cells = lines[title + 1].split()
    cosines = found["0.lr.cosine"][EVERY::EVERY]
    assert cells[:2] == ["0.lr", "".join("▁▂▃▄▅▆▇█"[min(int(4 * (1 + x)), 7)] for x in cosines)]
    shown = probe_statistics(found.record)["0.lr"]
    numbers = (shown.cosine_median, shown.cosine_last, shown.displacement_median, shown.displacement_last)
    assert [cells[i] for i in (2, 3, 5, 6)] == [number(x, 3) for x in numbers]
    assert "value of 0.lr: log scale, too; figures of hypergradients are of the probes" in " ".join(screen.split())
    assert "the start is too low by orders of magnitude" in " ".join(screen.split())
    assert "clipped" not in screen
    plain = json.loads(ok("inspect", run, "--json"))
    assert plain["probes"]["0.lr"] == shown.as_dict()
    assert plain["keys"]["0.lr"]["clipped"] is None
    assert json.loads(ok("inspect", run, "--json", "--level", "1"))["probes"] == {}


def test_it_fits_every_terminal(run):
    for width in WIDTHS:
        assert max(map(cell_len, ok("inspect", run, columns=width).splitlines())) <= width


def test_a_run_without_probes_has_no_table_of_them(tmp_path):
    train_toy(tmp_path / "x", stack=str(hs.parse(ALIKE)), stop_at=10)
    screen = ok("inspect", "x")
    assert "at averages: 0 probes" in " ".join(screen.split())
    assert "\nprobes" not in screen
    assert "no probe in 10 steps" in screen


def test_pictures_pages_tables_and_comparisons(run, tmp_path):
    found = hs.load_run(run)
    drawn = {panel.title: panel for panel in panels([("a", found)], None, True)}
    assert list(drawn)[1:5] == ["0.lr", "hypergradient of 0.lr", "cosine of 0.lr", "displacement of 0.lr"]
    assert not drawn["cosine of 0.lr"].log
    assert drawn["cosine of 0.lr"].lines[0].values.tolist() == found["0.lr.cosine"].tolist()
    header, *rows = ok("export", run, "--format", "csv").splitlines()
    assert header.endswith("1.lr.clip,probe,0.lr.cosine,0.lr.displacement")
    assert float(rows[-1].split(",")[-2]) == found["0.lr.cosine"][-1]
    train_toy(tmp_path / "live", epochs=1)
    compared = ok("compare", run, "live", columns=120)
    line = next(line for line in compared.splitlines() if line.startswith("  cosine"))
    assert line.split()[-1] == "-"  # the other has none
    watched = ok("watch", run)
    assert "finished" in watched or "test error" in watched


def test_a_tower_at_work_shows_the_cosine(run):
    plan, row = json.loads((run / "plan.json").read_text()), {"step": 21.0, "loss": 1.0}
    row |= {f"{key}.{what}": 1.0 for key in ("0.lr", "1.lr") for what in ("value", "grad", "clip")}
    row |= {"probe": 2.0, "0.lr.cosine": -0.987, "0.lr.displacement": 1.0}
    for width, shown in ((80, True), (50, False)):
        console = Console(file=io.StringIO(), width=width, height=20)
        console.print(TowerView(console, plan, None).draw(row))
        lines = console.file.getvalue().splitlines()
        assert ("cosine" in lines[1], "-0.987" in lines[2]) == (shown, shown)
        assert "clipped" not in lines[1]
        assert "-0.987" not in lines[3]


@pytest.mark.slow
def test_the_page_has_a_table_of_probes(run, tmp_path):
    pytest.importorskip("matplotlib")
    assert command("inspect", run, "--html", tmp_path / "page.html")[0] == 0
    page = (tmp_path / "page.html").read_text()
    assert "measured at averages" in page
    assert "median cosine" in page
    assert "cosine of 0.lr" in page
