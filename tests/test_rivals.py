"""Towers and their rivals: optimizers of other packages in our loop, and comparisons from file to outcome."""

import json
import math
import statistics
import types
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scripts import script
from toy import DATA, PLAN, Calm, altered, command, contents, train_toy

from hyperstack import rivals
from hyperstack.batches import Batches
from hyperstack.errors import InputError
from hyperstack.experiments import experiment as experiments
from hyperstack.experiments import standing
from hyperstack.experiments.experiment import load, read
from hyperstack.experiments.outcome import outcome
from hyperstack.experiments.work import Asked, hours
from hyperstack.reports import figure
from hyperstack.rivals import KNOWN, Rival, read_optimizer
from hyperstack.rule import Stack
from hyperstack.sweep.final import FinalLoss
from hyperstack.tasks import TASKS, Data
from hyperstack.training import Trainer
from hyperstack_cli.screen import out
from hyperstack_cli.standing import comparison_pictures, errors, show_comparison, summary

# ---- the optimizers of other packages


@given(st.sampled_from(sorted(KNOWN)), st.floats(1e-300, 1e300) | st.sampled_from(["λ", "d0"]))
def test_the_text_of_a_rival_reads_back(name, rate):
    rival = Rival(name, rate)
    assert read_optimizer(str(rival)) == rival
    assert rival.bind(λ=0.5, d0=0.5) == (rival if isinstance(rate, float) else Rival(name, 0.5))


NEITHER = ["prodigy()", "prodigy(1, 2)", "prodigy(x=1)", "Prodigy(1)", "d-adaptation(-)", "", "prodigy"]


@pytest.mark.parametrize("text", NEITHER)
def test_what_is_neither_a_rival_nor_a_stack(text):
    with pytest.raises(InputError):
        read_optimizer(text)


@pytest.mark.parametrize("rate", ["λ", 0.0, -1.0, math.inf, math.nan])
def test_what_a_rival_cannot_start_from(rate):
    with pytest.raises(InputError, match="does not start from"):
        Rival("prodigy", rate).resolve()


def test_a_stack_is_a_stack():
    assert isinstance(read_optimizer("Adam / SGD"), Stack)


class Exact(Calm):
    """In float64."""

    def model(self):
        return super().model().double()


DATA64 = Data(DATA.train_inputs.double(), DATA.train_targets, DATA.test_inputs.double(), DATA.test_targets)


def by_hand(make, evaluated=lambda opt: None):
    """A plain loop with an optimizer of another package: the network, and its test error."""
    torch.manual_seed(0)
    model = Exact().model()
    opt, source = make(model.parameters()), Batches(Exact(), DATA64)
    for epoch in range(3):
        for i, chosen in enumerate(source.order(0, epoch).split(PLAN.batch_size)):
            inputs, targets = source.training(chosen, 0, epoch, i)
            opt.zero_grad()
            torch.nn.functional.nll_loss(model(inputs), targets).backward()
            opt.step()
    evaluated(opt)
    outputs = model(DATA64.test_inputs)
    return (outputs.argmax(1) != DATA64.test_targets).double().mean().item(), outputs.detach()


def prodigy(params):
    return pytest.importorskip("prodigyopt").Prodigy(params, lr=1.0, d0=1e-3)


def d_adaptation(params):
    return pytest.importorskip("dadaptation").DAdaptAdam(params, lr=1.0, d0=1e-3)


def schedule_free(params):
    opt = pytest.importorskip("schedulefree").AdamWScheduleFree(params, lr=1e-3)
    opt.train()
    return opt


@pytest.mark.parametrize(
    ("name", "make", "evaluated"),
    [
        ("prodigy", prodigy, lambda opt: None),
        ("d-adaptation", d_adaptation, lambda opt: None),
        ("schedule-free", schedule_free, lambda opt: opt.eval()),
    ],
)
def test_a_rival_trains_as_in_a_plain_loop(name, make, evaluated):
    error, outputs = by_hand(make, evaluated)
    plan = replace(PLAN, task="calm", stack=f"{name}(0.001)", epochs=3)
    trainer = Trainer(plan, Exact(), DATA64)
    losses = FinalLoss(trainer.batches * 3, trainer.total)
    trainer.run(losses)
    assert trainer.epochs[-1].test_error == error
    with trainer.opt.averaged():
        torch.testing.assert_close(trainer.model(DATA64.test_inputs), outputs, rtol=1e-9, atol=1e-9)
    summary = trainer.summary()
    assert math.isfinite(losses.mean())
    assert set(summary["hyperparameters"]) == {"lr"} | ({"d"} if name != "schedule-free" else set())
    assert summary["stack"] == f"{name}(0.001)"


def test_a_rival_under_a_schedule():
    pytest.importorskip("prodigyopt")
    trainer = Trainer(replace(PLAN, task="calm", stack="prodigy(0.001)", schedule="cosine"), Exact(), DATA64)
    seen = []
    trainer.run(types.SimpleNamespace(record=lambda step, loss: seen.append(trainer.opt.param_groups[0]["lr"])))
    assert seen == pytest.approx([(1 + math.cos(math.pi * t / 30)) / 2 for t in range(30)])


def test_a_rival_goes_on_from_its_state():
    pytest.importorskip("prodigyopt")
    plan = replace(PLAN, task="calm", stack="prodigy(0.001)")
    whole, half = Trainer(plan, Exact(), DATA64), Trainer(plan, Exact(), DATA64)
    whole.run()
    half.run(stop=lambda: half.steps == 14)
    again = Trainer(plan, Exact(), DATA64)
    again.restore(half.checkpoint())
    again.run()
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_only_towers_are_recorded(tmp_path):
    pytest.importorskip("prodigyopt")
    with pytest.raises(InputError, match="is no stack"):
        train_toy(tmp_path / "a", stack="prodigy(0.001)")
    code, _, remarks = command("train", "toy", "--stack", "prodigy(0.001)", "--out", tmp_path / "b")
    assert (code, "cannot read this stack" in remarks) == (2, True)


def test_a_package_that_is_not_there(monkeypatch):
    monkeypatch.setattr(rivals, "find_spec", lambda name: None)
    with pytest.raises(InputError) as error:
        Trainer(replace(PLAN, stack="d-adaptation(0.1)"), Exact(), DATA64)
    assert "dadaptation" in error.value.what
    assert error.value.instead == 'pip install "hyperstack[rivals]"'


# ---- files


def test_the_file():
    found = load("rivals")
    assert [part.name for part in found.parts] == ["mnist", "cifar10"]
    for part in found.parts:
        assert part.task in TASKS
        assert part.starts == tuple(10.0**k for k in range(-6, 1))
        assert len(part.entrants) == len({each.place for each in part.entrants}) >= 7
    assert len(found.remarks) >= 4
    assert {each.text.partition("(")[0] for each in part.entrants} >= {*KNOWN}
    assert [each.schedule for each in part.entrants if each.text == "AdamW(λ)"] == ["cosine"]


def test_hours_are_those_of_the_parts():
    found = load("rivals")
    for names in (["mnist"], ["cifar10"], []):
        asked = Asked("rivals", 1.0, None, names, "cpu", "")
        pieces = [piece for part in asked.chosen(found) for piece in asked.pieces(part)]
        assert hours(found, pieces) == pytest.approx(sum(part.hours for part in asked.chosen(found)))


TINY = {
    "name": "tiny",
    "title": "Toys",
    "digits": 1,
    "data": "none",
    "remarks": ["It is a toy."],
    "starts": [1e-3, 1e-2, 1e-1],
    "entrants": [
        {"label": "A tower!", "stack": "Adam(λ) / SGD(1e-3)", "default": 0.01},
        {"label": "Adam", "stack": "Adam(λ)"},
        {"label": "AdamW, cosine", "stack": "AdamW(λ)", "schedule": "cosine", "finer": [0.03]},
        {"label": "Prodigy", "rival": "prodigy"},
    ],
    "parts": [
        {"name": "toy", "task": "calm", "epochs": 2, "batch_size": 32, "seeds": 3, "hours": 0.001},
        {"name": "other", "task": "calm", "epochs": 1, "batch_size": 64, "seeds": 3, "hours": 0.001},
    ],
}  # fmt: skip


def changed(path, value):
    """The tiny file with one place changed."""
    return altered(TINY, path, value)


MALFORMED = {
    "one start": (("starts",), [1.0], "starts are not two or more rising"),
    "falling starts": (("starts",), [1.0, 0.1], "starts are not two or more rising"),
    "a start at 0": (("starts",), [0, 0.1], "starts are not two or more rising"),
    "no number": (("starts",), ["1", 0.1], "not a list of numbers"),
    "no tower": (("entrants", 0, "default"), ..., "the towers"),
    "a default elsewhere": (("entrants", 0, "default"), 0.5, "the default 0.5 is none of the starts"),
    "towers alone": (("entrants",), [TINY["entrants"][0]], "the towers"),
    "a label twice": (("entrants", 1, "label"), "a Tower", "different labels"),
    "no letters": (("entrants", 1, "label"), "λ", "different labels"),
    "a rival": (("entrants", 3, "rival"), "prodigal", "prodigal is none of prodigy"),
    "a rival and a stack": (("entrants", 3, "stack"), "Adam(λ)", "stack is not known"),
    "another name": (("entrants", 1, "stack"), "Adam(α)", "λ is not the one free name"),
    "two names": (("entrants", 1, "stack"), "Adam(λ) / SGD(α)", "λ is not the one free name"),
    "no name": (("entrants", 1, "stack"), "Adam", "λ is not the one free name"),
    "a stack": (("entrants", 1, "stack"), "Adm(λ)", "did you mean Adam?"),
    "a value that does not fit": (("entrants", 1, "stack"), "Adam(0.1, beta1=λ)", "outside"),
    "a schedule": (("entrants", 1, "schedule"), "linear", "'linear' is no schedule"),
    "no parts": (("parts",), [], "parts must be there"),
    "a part twice": (("parts", 1, "name"), "toy", "parts must be there, with different names"),
    "no list": (("entrants", 2, "finer"), 0.03, "finer is not a list"),
    "one between twice": (("entrants", 2, "finer"), [0.03, 0.03], "finer are not different numbers between the starts"),
    "one that is there": (("entrants", 2, "finer"), [0.01], "finer are not different numbers between the starts"),
    "one outside": (("entrants", 2, "finer"), [0.3], "finer are not different numbers between the starts"),
    "tuned with nothing": (("parts", 0, "tuned_with"), 0, "parts 1: tuned_with is"),
    "an unknown field": (("parts", 0, "colour"), 1, "parts 1: colour is not known"),
    "figures": (("source",), {}, "source is not known"),
}  # fmt: skip


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_file(what):
    path, value, message = MALFORMED[what]
    text = changed(path, value)
    if what == "a value that does not fit":
        text = text.replace("0.001, 0.01, 0.1]", "0.01, 2.0]")
    with pytest.raises(InputError) as error:
        read(text, "tiny")
    assert error.value.what == "the experiment tiny is damaged"
    assert message in error.value.why


# ---- running


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The tiny comparison, as if its file were there, in an empty folder."""
    texts = {"tiny": json.dumps(TINY)}
    monkeypatch.setattr(experiments, "names", lambda: sorted(texts))
    monkeypatch.setattr(experiments, "load", lambda name: read(texts[name], name))
    monkeypatch.setitem(TASKS, "calm", Calm)
    monkeypatch.chdir(tmp_path)
    return texts


def stored(path):
    return json.loads((path / "results.json").read_text())


def test_a_whole_comparison(tiny, tmp_path):
    pytest.importorskip("prodigyopt")
    code, output, remarks = command("reproduce", "tiny", "--out", "whole", "--jobs", 1, columns=100)
    assert code == 0, remarks
    found = stored(tmp_path / "whole")
    assert [part["name"] for part in found["parts"]] == ["toy", "other"]
    assert (found["share"], found["not_run"]) == (1, [])
    assert "tiny · 78 runs, about a minute on two cores" in remarks
    assert "78/78  other/prodigy  λ = 0.1  seed 2" in remarks
    part = found["parts"][0]
    assert (part["cells"], part["cells_done"]) == (39, 39)
    for each, place in zip(part["entrants"], ("a-tower", "adam", "adamw-cosine", "prodigy"), strict=True):
        results = json.loads((tmp_path / "whole" / "toy" / place / "results.json").read_text())
        assert {r["schedule"] for r in results} == {"cosine" if "cosine" in place else "constant"}
        assert {r["together"] for r in results} == {{"prodigy": 1, "adamw-cosine": 4}.get(place, 9)}
        for row in each["rows"]:
            wanted = {str(r["seed"]): 100 * r["test_error"] for r in results if r["λ"] == row["start"]}
            assert row["figures"] == wanted
            assert row["mean"] == pytest.approx(statistics.fmean(wanted.values()))
            assert row["deviation"] == pytest.approx(statistics.stdev(wanted.values()))
        assert each["best"] == min(each["rows"], key=lambda row: row["mean"])["start"]
        curve = {row["start"]: row["mean"] for row in each["rows"] if row["start"] != 0.03}  # of those of all
        assert each["area"]["mean"] == pytest.approx(standing.area(curve))
    assert part["says"] == standing.sentences(part)
    for sentence in (*part["says"], *found["remarks"], *found["rule"]):
        assert sentence[:40] in output
    assert "all of the work" in output
    assert "AdamW, cosine: AdamW(λ), schedule cosine" in output


@pytest.mark.slow
def test_again_nothing_is_trained(tiny, tmp_path, monkeypatch):
    arguments = ("reproduce", "tiny", "--out", "a", "--part", "other", "--seeds", 2)
    assert command(*arguments, "--jobs", 1)[0] == 0
    before = contents(tmp_path / "a")
    monkeypatch.setattr("hyperstack.sweep.run.train_cells", None)
    code, output, remarks = command("reproduce", "tiny", "--out", "a", "--resume", "--json", "--quiet")
    assert (code, remarks) == (0, "")
    assert json.loads(output) == stored(tmp_path / "a")
    assert contents(tmp_path / "a") == before
    assert json.loads(output)["not_run"] == [{"row": "toy", "published": "", "why": "left out by --part"}]


@pytest.mark.slow
def test_a_stored_outcome_goes_on(tiny, tmp_path):
    """With what was stored of it, all but one entrant's runs are there; with those, it is the outcome that it was."""
    unpack = script("unpack_results").unpack
    assert command("reproduce", "tiny", "--out", "a", "--part", "other", "--seeds", 2, "--jobs", 1)[0] == 0
    wanted = stored(tmp_path / "a")
    runs = wanted["parts"][0]["cells"]
    assert unpack(wanted, tmp_path / "b", ["Adam"]) == runs - 6
    code, output, remarks = command("reproduce", "tiny", "--out", "b", "--resume", "--json", "--jobs", 1)
    assert code == 0
    assert f"{runs}/{runs}  other/adam  λ" in remarks
    assert remarks.count("other/") == 6
    found = json.loads(output)
    rows = ([row for each in all_of["parts"][0]["entrants"] for row in each["rows"]] for all_of in (found, wanted))
    for mine, theirs in zip(*rows, strict=True):
        assert mine["figures"] == pytest.approx(theirs["figures"], rel=1e-15)  # divided by 100, and multiplied again
        assert (mine["start"], mine["diverged"]) == (theirs["start"], theirs["diverged"])
    assert found["command"] == wanted["command"]
    assert found["parts"][0]["says"] == wanted["parts"][0]["says"]


TUNED = changed(("parts", 1, "tuned_with"), 1)


def figures(part):
    """Errors of a part of an outcome, by label, start and seed."""
    return {each["label"]: {row["start"]: row["figures"] for row in each["rows"]} for each in part["entrants"]}


@pytest.mark.slow
def test_rivals_may_be_tuned_with_the_first_seeds(tiny, tmp_path):
    """The runs that there are end as they do where all entrants have all seeds, also where further seeds come later."""
    pytest.importorskip("prodigyopt")
    arguments = ("reproduce", "tiny", "--part", "other", "--jobs", 1)
    assert command(*arguments, "--out", "all")[0] == 0
    wanted = figures(stored(tmp_path / "all")["parts"][0])
    tiny["tiny"] = TUNED
    code, output, remarks = command(*arguments, "--out", "tuned", columns=100)
    assert (code, "tiny · 25 runs" in remarks, "25/25  other/prodigy/best  λ" in remarks) == (0, True, True)
    found = stored(tmp_path / "tuned")
    (part,) = found["parts"]
    assert (found["share"], part["cells_done"], part["seeds"], part["tuned_with"]) == (1, 25, [0, 1, 2], 1)
    assert "batches of 64, 3 seeds, rivals tuned with the first" in output
    for each in part["entrants"]:
        label, rows = each["label"], {row["start"]: row for row in each["rows"]}
        best = min(rows, key=lambda start: wanted[label][start]["0"])
        assert each["best"] == best or each["default"]
        for start, row in rows.items():
            seeds = 3 if each["default"] or start == best else 1
            first = {str(seed): wanted[label][start][str(seed)] for seed in range(seeds)}
            assert (row["figures"], row["seeds"]) == (pytest.approx(first, abs=1e-9), seeds)
        assert (each["area"]["half"] is None) == (each["default"] is None)
    decided = {(duel["rival"], duel["start"]) for duel in part["duels"] if duel["half"] is not None}
    assert decided == {(e["label"], e["best"]) for e in part["entrants"] if not e["default"] and e["best"] != 0.03}
    assert "by the first seed: " in " ".join(part["says"])
    assert part["defaults"][0]["half"] is not None
    assert command(*arguments, "--out", "grown", "--seeds", 1)[0] == 0
    once = stored(tmp_path / "grown")
    assert (once["share"], once["parts"][0]["cells"]) == (pytest.approx(13 / 25, rel=1e-5), 13)
    code, _, remarks = command("reproduce", "tiny", "--out", "grown", "--resume", "--seeds", 3, "--jobs", 1)
    assert (code, "25 runs, 13 of them done" in remarks) == (0, True)
    (grown,) = stored(tmp_path / "grown")["parts"]
    for (label, mine), theirs in zip(figures(grown).items(), figures(part).values(), strict=True):
        assert mine == {start: pytest.approx(row, abs=1e-9) for start, row in theirs.items()}, label
    before = contents(tmp_path / "grown")
    assert command("reproduce", "tiny", "--out", "grown", "--resume", "--quiet")[0] == 0
    assert contents(tmp_path / "grown") == before


@pytest.mark.slow
def test_what_was_tuned_is_unpacked(tiny, tmp_path):
    """All of it; and where a rate has to be found anew, nothing that depends on it."""
    tiny["tiny"] = TUNED
    unpack = script("unpack_results").unpack
    assert command("reproduce", "tiny", "--out", "a", "--part", "other", "--jobs", 1)[0] == 0
    wanted = stored(tmp_path / "a")
    runs = wanted["parts"][0]["cells"]
    assert unpack(wanted, tmp_path / "b", []) == runs
    wanted["parts"][0]["entrants"][1]["rows"][0]["figures"] = {}
    assert unpack(wanted, tmp_path / "c", []) == runs - 1 - (2 if wanted["parts"][0]["entrants"][1]["best"] else 0)
    assert not (tmp_path / "c" / "other" / "adam" / "best").exists()
    for name, left in (("b", 0), ("c", 3)):
        code, _, remarks = command("reproduce", "tiny", "--out", name, "--resume", "--jobs", 1)
        assert (code, remarks.count("  seed ")) == (0, left)
        assert figures(stored(tmp_path / name)["parts"][0]).keys() == figures(wanted["parts"][0]).keys()


@pytest.mark.slow
def test_one_seed_and_pictures(tiny, tmp_path):
    arguments = ("--out", "a", "--part", "toy", "--scale", 0.2, "--jobs", 1, "--plot", "--png", "a.png")
    code, output, remarks = command("reproduce", "tiny", *arguments, columns=80)
    assert code == 0, remarks
    assert "toy: calm, 1 epoch of 2, batches of 32, 1 seed of 3" in output
    assert "toy: test error, %" in output
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    part = stored(tmp_path / "a")["parts"][0]
    assert {duel["verdict"] for duel in part["duels"]} == {"open"}
    assert {each["area"]["half"] for each in part["entrants"]} == {None}


def test_a_package_that_is_missing_is_listed(tiny, tmp_path, monkeypatch):
    """The others are trained, and it itself once it is there."""
    pytest.importorskip("prodigyopt")
    arguments = ("reproduce", "tiny", "--out", "a", "--part", "other", "--seeds", 1, "--jobs", 1)
    with monkeypatch.context() as patch:
        patch.setattr(rivals, "find_spec", lambda name: None)
        code, output, _ = command(*arguments)
        assert code == 0
        found = stored(tmp_path / "a")
        assert [each["label"] for each in found["parts"][0]["entrants"]] == ["A tower!", "Adam", "AdamW, cosine"]
        why = 'prodigy is in the package prodigyopt, which is not installed: pip install "hyperstack[rivals]"'
        assert found["not_run"][0] == {"row": "other: Prodigy", "published": "", "why": why}
        assert "not run: other: Prodigy: prodigy is in the package" in output
    code, _, remarks = command(*arguments, "--resume")
    assert (code, remarks.count("  seed ")) == (0, 3)
    found = stored(tmp_path / "a")
    assert [each["label"] for each in found["parts"][0]["entrants"]][-1] == "Prodigy"
    assert not [each for each in found["not_run"] if "Prodigy" in each["row"]]


def test_diverged_runs_count(tiny, tmp_path):
    content = json.loads(json.dumps(TINY))
    content["entrants"][1] = {"label": "wild", "stack": "SGD(λ) / SGD(1e38) / SGD(1e38)"}
    del content["entrants"][2:]
    tiny["tiny"] = json.dumps(content)
    assert command("reproduce", "tiny", "--out", "a", "--part", "toy", "--seeds", 2, "--jobs", 1)[0] == 0
    part = stored(tmp_path / "a")["parts"][0]
    row = part["entrants"][1]["rows"][1]
    assert row["diverged"] == 2
    assert len(row["figures"]) == 2
    assert 0 < row["mean"] <= 100


def test_an_outcome_before_all_have_ended(tiny, tmp_path):
    """Of nothing, and of one entrant from one start alone."""
    found = experiments.load("tiny")
    asked = Asked("tiny", 1.0, 2, ["toy"], "cpu", "")
    pieces = [piece for part in asked.chosen(found) for piece in asked.pieces(part)]
    nothing = outcome(found, asked, pieces, {})
    assert comparison_pictures(nothing) == []
    assert nothing["parts"][0]["says"] == []
    one = outcome(found, asked, pieces, {"toy/adam": {0: {"test_error": 0.25, "diverged": False}}})
    (adam,) = (each for each in one["parts"][0]["entrants"] if each["label"] == "Adam")
    assert (adam["best"], adam["area"]["mean"]) == (None, None)
    assert errors(one["parts"][0], (1e-3, 0.01, 0.03, 0.1), 1)[2][1:] == ["25.0 of 1", "-", "", "-"]
    (panel,) = comparison_pictures(one)
    assert [(line.label, line.steps.tolist(), line.values.tolist()) for line in panel.lines] == [
        ("Adam", [1e-3], [25.0])
    ]
    figure.png([panel], tmp_path / "one.png")
    assert summary(one["parts"][0], 1)[2] == ["Adam", "-", "-", "3", "", "-"]
    both = outcome(found, asked, pieces, {"toy/adam": {i: {"test_error": 0.25, "diverged": False} for i in range(3)}})
    assert summary(both["parts"][0], 1)[2][:3] == ["Adam", "25.0 ± 0.0", "0.001"]  # of one start two, of another one
    for each in (nothing, one):
        show_comparison(out(), each)


@pytest.mark.slow
def test_in_processes_of_their_own(tiny, tmp_path):
    pytest.importorskip("prodigyopt")
    for jobs in (1, 2):
        assert command("reproduce", "tiny", "--out", f"by-{jobs}", "--part", "toy", "--jobs", jobs)[0] == 0
    one, two = (stored(tmp_path / f"by-{jobs}")["parts"][0]["entrants"] for jobs in (1, 2))
    assert one[-1] == two[-1]
    for a, b in zip(one, two, strict=True):
        for row, other in zip(a["rows"], b["rows"], strict=True):
            assert row["mean"] == pytest.approx(other["mean"], abs=1.0)  # blocks of other sizes round otherwise


def test_the_list():
    code, output, _ = command("reproduce", "--list", columns=120)
    assert (code, "rivals " in output) == (0, True)


# ---- areas and who loses


rising = st.lists(st.integers(-60, 20), min_size=2, max_size=9, unique=True).map(sorted)


@given(rising, st.data())
def test_the_area_is_the_mean_of_the_curve(exponents, data):
    """By its value at many points between the starts, in equal steps of the logarithm."""
    values = data.draw(st.lists(st.floats(0, 100), min_size=len(exponents), max_size=len(exponents)))
    found = standing.area({10.0 ** (k / 10): e for k, e in zip(exponents, values, strict=True)})
    grid = torch.linspace(exponents[0], exponents[-1], 20 * (exponents[-1] - exponents[0]) + 1, dtype=torch.float64)
    at = torch.bucketize(grid, torch.tensor(exponents[1:-1] if len(exponents) > 2 else [math.inf], dtype=torch.float64))
    left, right = (torch.tensor(x, dtype=torch.float64)[at] for x in (exponents[:-1], exponents[1:]))
    low, high = (torch.tensor(x, dtype=torch.float64)[at] for x in (values[:-1], values[1:]))
    curve = low + (high - low) * (grid - left) / (right - left)
    wanted = float((curve.sum() - (curve[0] + curve[-1]) / 2) / (len(grid) - 1))
    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_areas_by_hand():
    assert standing.area({0.01: 10.0, 0.1: 20.0, 1.0: 60.0}) == pytest.approx((15 + 40) / 2)
    assert standing.area({0.001: 10.0, 0.1: 20.0, 1.0: 60.0}) == pytest.approx((2 * 15 + 40) / 3)


def part_of(errors, default=0.01):
    """A part of an outcome with these errors, by label, start and seed; the first is the tower."""
    labels = list(errors)
    starts = list(errors[labels[0]])
    duels = [standing._duel(labels[0], rival, start, start, errors) for rival in labels[1:] for start in starts]
    tower = types.SimpleNamespace(label=labels[0], default=default)
    return {
        "entrants": [
            {
                "label": label,
                "runs": len(starts),
                "rows": [{"mean": statistics.fmean(x.values()), "figures": x} for x in errors[label].values()],
            }
            for label in labels
        ],
        "duels": duels,
        "defaults": [standing._at_default(tower, labels[1:], errors)],
    }


def test_sentences_by_hand():
    # differences at 0.01: 1.0, 1.1, 0.9: 1.00 ± 4.30265 * 0.1 / sqrt(3) = 0.25
    errors = {
        "tower": {0.001: {0: 5.0, 1: 5.0, 2: 5.0}, 0.01: {0: 4.0, 1: 4.1, 2: 3.9}},
        "rival": {0.001: {0: 9.0, 1: 9.1, 2: 8.9}, 0.01: {0: 3.0, 1: 3.0, 2: 3.0}},
        "other": {0.001: {0: 5.0, 1: 6.0, 2: 4.0}, 0.01: {0: 90.0, 1: 4.0, 2: 5.0}},
    }
    assert standing.sentences(part_of(errors)) == [
        "tower, against 4 pairs of a rival and a start: wins 1, loses 1, undecided 2.",
        "tower loses to rival from λ = 0.01 by 1.00 ± 0.25.",
        "tower from its default, λ = 0.01, one run a seed: 4.00 %; the best tuned rival, rival from λ = 0.01, the best "
        "of 2 runs a seed: 3.00 %: the tower loses by 1.00 ± 0.25.",
        "tower from any start: 1.33 to 1.67 times the error of that rival.",
    ]
    single = {label: {start: {0: x[0]} for start, x in by.items()} for label, by in errors.items()}
    assert standing.sentences(part_of(single, 0.001)) == [
        "tower, against 4 pairs of a rival and a start: in 2 of 4 with a single run the smaller error.",
        "tower has the larger error than rival from λ = 0.01 by 1.00 (single runs, without an interval).",
        "tower from its default, λ = 0.001, one run a seed: 5.00 %; the best tuned rival, rival from λ = 0.01, the "
        "best of 2 runs a seed: 3.00 %: undecided, +2.00 from the rival to the tower.",
        "tower from any start: 1.33 to 1.67 times the error of that rival.",
    ]
    tuned = {**errors, "rival": {**errors["rival"], 0.001: {0: 4.5}}, "other": {**errors["other"], 0.01: {0: 90.0}}}
    assert standing.sentences({**part_of(tuned), "tuned_with": 1}) == [
        "tower, against 4 pairs of a rival and a start: wins 0, loses 1, undecided 1; in 1 of 2 with a single run the "
        "smaller error.",
        "tower loses to rival from λ = 0.01 by 1.00 ± 0.25.",
        "tower has the larger error than rival from λ = 0.001 by 0.50 (single runs, without an interval).",
        "tower from its default, λ = 0.01, one run a seed: 4.00 %; the best tuned rival, rival from λ = 0.01, the best "
        "of 2 starts by the first seed: 3.00 %: the tower loses by 1.00 ± 0.25.",
        "tower from any start: 1.33 to 1.67 times the error of that rival.",
    ]


errors_of = st.dictionaries(
    st.sampled_from(["tower", "rival", "other"]),
    st.lists(st.lists(st.integers(0, 20), min_size=3, max_size=3), min_size=2, max_size=2),
    min_size=3,
)
T = 0.95 / math.sqrt(2 * 0.975 * 0.025)  # the 0.975 quantile of Student's t with two degrees of freedom


@given(errors_of)
def test_who_loses_where(found):
    """Against a t-test written again, and the sentences against the test."""
    starts = (0.001, 0.01)
    errors = {
        label: {start: dict(enumerate(map(float, row))) for start, row in zip(starts, found[label], strict=True)}
        for label in ("tower", "rival", "other")
    }
    part, lost = part_of(errors), set()
    for rival in ("rival", "other"):
        for start in starts:
            gaps = [errors["tower"][start][s] - errors[rival][start][s] for s in range(3)]
            mean = sum(gaps) / 3
            bound = T * math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / 2 / 3)
            assume(abs(abs(mean) - bound) > 1e-4 or not bound)
            if mean > 0 and mean > bound:
                lost.add((rival, start))
    assert lost == {(d["rival"], d["start"]) for d in part["duels"] if d["verdict"] == standing.LOSES}
    said = standing.sentences(part)
    for rival in ("rival", "other"):
        line = next((s for s in said if s.startswith(f"tower loses to {rival} ")), "")
        assert {start for start in starts if f" {start:g} by " in line} == {s for r, s in lost if r == rival}
    best = min((statistics.fmean(errors[r][s].values()), r, s) for r in ("rival", "other") for s in starts)
    assert part["defaults"][0]["rival_error"] == best[0]
    told = next(s for s in said if "the best tuned rival" in s)
    assert f"{best[0]:.2f} %" in told
    own = [statistics.fmean(errors["tower"][start].values()) for start in starts]
    ratios = f"{min(own) / best[0]:.2f} to {max(own) / best[0]:.2f} times" if best[0] else ""
    assert [s for s in said if " times " in s] == [s for s in said if ratios and ratios in s]
    assert len([s for s in said if " times " in s]) == bool(ratios)
