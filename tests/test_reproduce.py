"""Published experiments: their files, the rule of verdicts, and running them, whole, in part and again."""

import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from toy import BATCH, EXAMPLES, altered, command, contents

from hyperstack.dsl import parse
from hyperstack.errors import InputError
from hyperstack.experiments import experiment as experiments
from hyperstack.experiments.experiment import load, names, read
from hyperstack.experiments.verdicts import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, compared, judged, quantile
from hyperstack.experiments.work import Asked, hours, scaled, share
from hyperstack.sweep.planning import SweepPlan
from hyperstack.tasks import TASKS, Data

# ---- files

WANTED = {
    *(f"clip-table-{n}" for n in range(1, 6)),
    *("alrc-table-1", "lambc-table-1", "lambc-bounds", "adam-clip-table-1"),
}


def test_the_experiments():
    assert set(names()) == WANTED | {"rivals", "auto"}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", sorted(WANTED))
def test_a_file_is_well_formed(name):
    found = load(name)
    assert found.name == name
    assert len(found.remarks) >= 2
    assert len(found.source.title) > 20
    assert found.source.place.startswith(("Table", "section"))
    raw = (files("hyperstack.experiments") / f"{name}.json").read_text(encoding="utf-8")
    assert "/" not in "".join(v for v in json.loads(raw)["source"].values()), "a source is a document, not a path"
    for part in found.parts:
        assert part.task in TASKS
        for series in part.series:
            for value, figure in zip(part.values(series), series.published, strict=True):
                stack = parse(series.bound(value))
                stack.resolve()
                assert str(stack) == series.bound(value)
                assert figure is None or 0 <= figure <= 100
            assert any(f is not None for f in series.published) or part.claims
        assert len(Asked(name, 1.0, None, [], "cpu", "").pieces(part)[0].plan.cells()) == part.seeds * sum(
            len(part.values(series)) for series in part.series
        )


def test_the_figures_of_table_2():
    """Typed again from the document, independently of the file."""
    (part,) = load("clip-table-2").parts
    alone, without, with_clip = part.series
    assert alone.published == (4.63,)
    assert part.grid["α"] == [1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2, 5e-2, 1e-1, 5e-1]
    assert without.published == (3.14, 3.09, 3.05, 3.59, 4.71, 35.89, 79.57, 86.8, 76.17, 83.16)
    assert with_clip.published == (3.23, 3.21, 3.06, 3.20, 3.35, 16.6, 23.2, 84.27, 86.44, 82.36)


TINY = {
    "name": "tiny",
    "title": "A toy, with and without clipping",
    "source": {"title": "Points in three directions", "authors": "A. Author", "place": "Table 1"},
    "measure": "test error",
    "digits": 1,
    "data": "none",
    "hours": 0.001,
    "remarks": ["It is a toy."],
    "parts": [
        {
            "name": "toy", "task": "calm", "epochs": 2, "batch_size": 32, "seeds": 3, "published_runs": 3,
            "grid": {"α": [1e-5, 1e-3]},
            "series": [
                {"label": "alone", "stack": "Adam(0.01)", "published": [99.0]},
                {"label": "no clipping", "stack": "Adam(0.01) / SGD(α)", "published": [50.0, None]},
                {"label": "clipping", "stack": "Adam(0.01) / SGD(α, clip)", "published": [60.0, 70.0]},
            ],
            "claims": [
                {"better": "clipping", "than": "alone", "at": [1e-3]},
                {"like": "clipping", "as": "no clipping", "at": [1e-5], "within": 100.0},
            ],
        }
    ],
    "not_run": [{"row": "another", "published": "1 %", "why": "there is no such toy"}],
}  # fmt: skip


def changed(path, value):
    """The tiny file with one place changed."""
    return altered(TINY, path, value)


PART, SERIES, CLAIM = ("parts", 0), ("parts", 0, "series", 1), ("parts", 0, "claims", 0)
MALFORMED = {
    "no title": (("title",), ..., "title is missing"),
    "an empty text": (("title",), " ", "title is not a text"),
    "another name": (("name",), "other", "name is 'other'"),
    "a measure": (("measure",), "speed", "measure is 'speed'"),
    "an unknown field": (("colour",), 1, "colour is not known"),
    "a field of the source": (("source", "page"), 1, "source: page is not known"),
    "no parts": (("parts",), [], "parts must be there"),
    "epochs": ((*PART, "epochs"), 0, "parts 1: epochs is not a whole number from 1 up"),
    "true for a number": ((*PART, "seeds"), True, "seeds is not a whole number"),
    "a stack": ((*SERIES, "stack"), "Adm(0.01) / SGD(α)", "did you mean Adam?"),
    "a name without a grid": ((*SERIES, "stack"), "Adam / SGD(β)", "which is in the grid"),
    "a value that does not fit": ((*PART, "grid", "α"), [-1, 2], "outside"),
    "a grid with one twice": ((*PART, "grid", "α"), [1, 1], "not a list of different numbers"),
    "too few figures": ((*SERIES, "published"), [1.0], "published has 1 figures, and 2 are expected"),
    "above 100 %": ((*SERIES, "published"), [1.0, 101.0], "no percentage"),
    "no number": ((*SERIES, "published"), [1.0, "2"], "not a list of numbers"),
    "one label twice": ((*SERIES, "label"), "clipping", "different labels"),
    "a claim of nobody": ((*CLAIM, "better"), "clapping", "no series 'clapping'"),
    "a claim elsewhere": ((*CLAIM, "at"), [7.0], "7.0 is not in the grid of α"),
    "a schedule": ((*PART, "schedule"), "linear", "'linear' is no schedule"),
    "a claim without a place": ((*CLAIM, "at"), ..., "is not in the grid of α"),
}  # fmt: skip


def test_the_tiny_file_is_well_formed():
    assert read(json.dumps(TINY), "tiny").parts[0].claims[0].second == ("alone", None)


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_file(what):
    path, value, message = MALFORMED[what]
    with pytest.raises(InputError) as error:
        read(changed(path, value), "tiny")
    assert error.value.what == "the experiment tiny is damaged"
    assert message in error.value.why
    assert error.value.instead


@settings(max_examples=40)
@given(st.text(max_size=40) | st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=5), st.lists))
def test_no_content_makes_anything_but_our_own_error(content):
    with pytest.raises(InputError):
        read(content if isinstance(content, str) else json.dumps(content), "tiny")


# ---- how much of it


@given(st.integers(1, 200), st.integers(1, 20), st.floats(0.00001, 1))
def test_a_share_of_the_work(epochs, seeds, scale):
    """Seeds go first, down to two; then epochs; then examples; nearly as much is left as was asked for, and no more."""
    fewer, kept, of_examples = scaled(epochs, seeds, scale)
    assert 1 <= fewer <= epochs
    assert 1 <= kept <= seeds
    if fewer < epochs:
        assert kept <= 2
    if scale == 1:
        assert (fewer, kept, of_examples) == (epochs, seeds, 1)
    assert 0 < of_examples <= 1
    if of_examples < 1:
        assert (fewer, kept) == (1, 1)
    done, wanted = fewer * kept * of_examples, scale * epochs * seeds
    assert done <= wanted + 1e-6
    assert done > wanted - (epochs if fewer == epochs else 2) - 1e-6


def test_shares_of_an_experiment():
    found = load("adam-clip-table-1")
    asked = Asked(found.name, 0.1, None, [], "cpu", "")
    pieces = [piece for part in found.parts for piece in asked.pieces(part)]
    assert 0.05 < share(pieces) < 0.15
    assert hours(found, pieces) == pytest.approx(found.hours * share(pieces[:6]))
    assert pieces[0].plan.epochs == 1
    assert Asked(found.name, 0.1, 5, [], "cpu", "").pieces(found.parts[0])[0].plan.seeds == [0, 1, 2, 3, 4]


def test_a_drop_comes_in_proportion():
    found = load("alrc-table-1")
    part = next(part for part in found.parts if part.name == "quartic-64")
    whole, half = (Asked(found.name, scale, None, [], "cpu", "").pieces(part)[0].plan for scale in (1.0, 0.1))
    assert (whole.epochs, whole.schedule) == (128, "drop(54687, 0.1)")
    assert (half.epochs, half.schedule) == (64, f"drop({round(54687 / 2)}, 0.1)")


def test_a_part_under_a_schedule(tiny, tmp_path):
    tiny["tiny"] = changed((*PART, "schedule"), "drop(10, 0.1)")
    arguments = ("reproduce", "tiny", "--jobs", 1, "--seeds", 2)
    code, output, _ = command(*arguments, "--out", "a", "--scale", 0.34, columns=120)
    assert (code, "schedule drop(5, 0.1)" in output) == (0, True)
    results = json.loads((tmp_path / "a" / "toy" / "results.json").read_text())
    assert {result["schedule"] for result in results} == {"drop(5, 0.1)"}


# ---- verdicts


def rule(figures, published, **changes):
    return judged(
        figures, published, **{"spread": None, "runs": 3, "digits": 2, "percent": True, "whole": True, **changes}
    )


def test_quantiles():
    """Of known tables, and by integrating the density beyond them."""
    assert [round(quantile(n), 3) for n in (1, 2, 4, 9, 30)] == [12.706, 4.303, 2.776, 2.262, 2.042]
    for n in (2, 5, 30, 31, 60, 500):
        t = np.linspace(0, quantile(n), 200_001)
        constant = math.exp(math.lgamma((n + 1) / 2) - math.lgamma(n / 2)) / math.sqrt(n * math.pi)
        density = constant * (1 + t**2 / n) ** (-(n + 1) / 2)
        inside = float(((density[1:] + density[:-1]) / 2 * np.diff(t)).sum())
        assert inside == pytest.approx(0.475, abs=2e-6)


def test_verdicts_by_hand():
    # n = 3, s = 0.1, N = 3: D = 4.30265 * 0.1 * sqrt(2/3) + 0.005 = 0.3563
    found = rule([3.0, 3.1, 3.2], 3.4)
    assert found.allowed == pytest.approx(0.35631, abs=1e-5)
    assert found.half == pytest.approx(4.30265 * 0.1 / math.sqrt(3))
    assert found.verdict == REPRODUCED
    assert rule([3.0, 3.1, 3.2], 3.46).verdict == NOT_REPRODUCED
    assert rule([3.0, 3.1, 3.2], 3.46, digits=1).verdict == REPRODUCED  # 3.46 may be anything from 3.41 to 3.51
    assert rule([3.0, 3.1, 3.2], 3.46, runs=1).verdict == REPRODUCED  # one run alone may be farther off
    assert rule([3.0, 3.1, 3.2], 3.46, spread=1.0).verdict == INCONCLUSIVE  # D = 2.5, over half of it
    assert rule([3.0, 3.1, 3.2], 3.1, whole=False).verdict == INCONCLUSIVE
    assert rule([3.1], 3.1).verdict == INCONCLUSIVE
    assert rule([90.0, 90.0, 90.0], 90.0).verdict == REPRODUCED
    assert rule([90.2, 90.2, 90.2], 90.0).verdict == NOT_REPRODUCED
    assert rule([97.0, 98.0, 99.0], 98.2).verdict == INCONCLUSIVE  # D = 3.5, and 1.8 to the end of the scale
    assert rule([97.0, 98.0, 99.0], 98.2, percent=False).verdict == REPRODUCED


def test_claims_by_hand():
    assert compared([1.0, 1.1, 0.9], None, True).verdict == REPRODUCED
    assert compared([-1.0, -1.1, -0.9], None, True).verdict == NOT_REPRODUCED
    assert compared([1.0, -1.0, 0.5], None, True).verdict == INCONCLUSIVE
    assert compared([0.0, 0.0], None, True).verdict == NOT_REPRODUCED  # the same runs are not better
    assert compared([5.0], None, True).verdict == INCONCLUSIVE
    assert compared([1.0, 1.1, 0.9], None, False).verdict == INCONCLUSIVE
    assert compared([0.1, -0.1, 0.0], 1.0, True).verdict == REPRODUCED
    assert compared([3.1, 2.9, 3.0], 1.0, True).verdict == NOT_REPRODUCED
    assert compared([1.1, 0.9, 1.0], 1.0, True).verdict == INCONCLUSIVE


figures_of = st.lists(st.floats(0, 100), min_size=2, max_size=12)


@given(figures_of, st.floats(0, 100), st.integers(1, 10), st.integers(0, 3))
def test_the_rule(figures, published, runs, digits):
    found = rule(figures, published, runs=runs, digits=digits)
    mean, s = statistics.fmean(figures), statistics.stdev(figures)
    allowed = quantile(len(figures) - 1) * s * math.sqrt(1 / len(figures) + 1 / runs) + 0.5 / 10**digits
    assert found.allowed == pytest.approx(allowed)
    assume(abs(abs(mean - published) - allowed) > 1e-9)
    assert (found.verdict == NOT_REPRODUCED) == (abs(mean - published) > allowed)
    if found.verdict == REPRODUCED:
        assert allowed <= max(published, 100 - published)
        assert rule(figures, mean, runs=runs, digits=digits).verdict != NOT_REPRODUCED
    assert rule(figures, published, runs=runs, digits=digits, whole=False).verdict == INCONCLUSIVE


@given(figures_of, st.floats(0.01, 50))
def test_claims_are_symmetric(gains, within):
    there, back = compared(gains, None, True).verdict, compared([-g for g in gains], None, True).verdict
    if there == REPRODUCED:
        assert back == NOT_REPRODUCED
    assert compared(gains, within, True).verdict == compared([-g for g in gains], within, True).verdict


# ---- running


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The tiny experiment, as if its file were there, in an empty folder."""
    texts = {"tiny": json.dumps(TINY)}
    monkeypatch.setattr(experiments, "names", lambda: sorted(texts))
    monkeypatch.setattr(experiments, "load", lambda name: read(texts[name], name))
    monkeypatch.chdir(tmp_path)
    return texts


def stored(path):
    return json.loads((path / "results.json").read_text())


@pytest.mark.slow
def test_less_than_an_epoch(tiny, tmp_path):
    """Some of the examples; nothing is judged by so few, and a sweep that goes on there takes the same."""
    code, output, _ = command("reproduce", "tiny", "--jobs", 1, "--scale", 0.1, "--out", "a", columns=100)
    assert (code, "0.1 of the work: fewer epochs" in output, "0.6 epochs of 2" in output) == (0, True, True)
    found = stored(tmp_path / "a")
    (part,) = found["parts"]
    assert (found["share"], part["epochs"], part["seeds"]) == (0.1, pytest.approx(0.6), [0])
    assert {each["verdict"] for each in (*part["rows"], *part["claims"])} == {INCONCLUSIVE, None}
    results = json.loads((tmp_path / "a" / "toy" / "results.json").read_text())
    assert {result["steps"] for result in results} == {math.ceil(0.6 * EXAMPLES / BATCH)}
    kept = contents(tmp_path / "a" / "toy" / "cells")
    assert command("sweep", "calm", "--out", "a/toy", "--resume", "--jobs", 1)[0] == 0
    assert contents(tmp_path / "a" / "toy" / "cells") == kept
    next((tmp_path / "a" / "toy" / "cells").iterdir()).unlink()
    assert command("sweep", "calm", "--out", "a/toy", "--resume", "--jobs", 1)[0] == 0
    again = json.loads((tmp_path / "a" / "toy" / "results.json").read_text())
    assert [(r["steps"], r["test_error"]) for r in again] == [(r["steps"], r["test_error"]) for r in results]


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 50), st.floats(1e-6, 1))
def test_examples_are_taken_evenly_and_a_batch_at_least(training, testing, batch, part):
    train, test = torch.arange(training), torch.arange(testing)
    plan = SweepPlan("toy", ["Adam"], {}, [0], 1, "cpu", batch, 1, share=part)
    found = plan.taken(Data(train, 2 * train, test, 3 * test))
    for whole, own, same in ((train, found.train_inputs, found.train_targets / 2),
                             (test, found.test_inputs, found.test_targets / 3)):  # fmt: skip
        assert len(own) == max(min(batch, len(whole)), math.floor(part * len(whole)))
        gaps = own.diff(prepend=-torch.ones(1, dtype=torch.int64), append=torch.tensor([len(whole)]))
        assert gaps.min() >= 1
        assert gaps.max() <= math.ceil(len(whole) / len(own)) + 1
        assert torch.equal(own, same.to(torch.int64))


def test_a_whole_experiment(tiny, tmp_path):
    code, output, remarks = command("reproduce", "tiny", "--out", "whole", "--jobs", 1, columns=100)
    assert code == 0, remarks
    found = stored(tmp_path / "whole")
    assert found["share"] == 1
    (part,) = found["parts"]
    assert (part["cells_done"], part["cells"]) == (15, 15)
    results = json.loads((tmp_path / "whole" / "toy" / "results.json").read_text())
    for row in part["rows"]:
        wanted = {str(r["seed"]): 100 * r["test_error"] for r in results if r["stack"] == row["stack"]}
        assert row["figures"] == wanted
        assert row["mean"] == pytest.approx(statistics.fmean(wanted.values()))
    verdicts = {(row["series"], row["value"]): row["verdict"] for row in part["rows"]}
    assert verdicts["alone", None] == NOT_REPRODUCED  # it is no 99 %
    assert verdicts["no clipping", 1e-3] is None  # nothing is published
    first, second = ({r["seed"]: 100 * r["test_error"] for r in results if r["stack"] == s} for s in (
        "Adam(0.01)", "Adam(0.01) / SGD(0.001, clip)"))  # fmt: skip
    assert part["claims"][0]["gains"] == pytest.approx([first[seed] - second[seed] for seed in range(3)])
    assert part["claims"][1]["verdict"] == REPRODUCED
    assert "Points in three directions, Table 1" in output
    assert "all of the work" in output
    assert "not run: another (published: 1 %): there is no such toy" in output
    assert "how verdicts are given" in output
    assert "15/15  toy" in remarks


def test_again_nothing_is_trained(tiny, tmp_path, monkeypatch):
    assert command("reproduce", "tiny", "--out", "a", "--jobs", 1, "--seeds", 2)[0] == 0
    before = contents(tmp_path / "a")
    monkeypatch.setattr("hyperstack.sweep.run.train_cells", None)
    code, output, remarks = command("reproduce", "tiny", "--out", "a", "--resume", "--json", "--quiet")
    assert (code, remarks) == (0, "")
    assert json.loads(output) == stored(tmp_path / "a")
    assert contents(tmp_path / "a") == before
    (row, *_) = json.loads(output)["parts"][0]["rows"]
    assert sorted(row["figures"]) == ["0", "1"]


def test_more_seeds_later(tiny, tmp_path):
    quick = ("reproduce", "tiny", "--out", "a", "--jobs", 1)
    assert command(*quick, "--seeds", 1)[0] == 0
    before = contents(tmp_path / "a" / "toy" / "cells")
    code, output, remarks = command(*quick, "--resume", "--seeds", 3, "--json")
    assert code == 0, remarks
    found = json.loads(output)
    (part,) = found["parts"]
    assert (part["seeds"], part["cells"], part["cells_done"], found["share"]) == ([0, 1, 2], 15, 15, 1)
    assert sum("  seed 0" in line for line in remarks.splitlines()) == 0
    assert before.items() <= contents(tmp_path / "a" / "toy" / "cells").items()
    assert command(*quick, "--resume", "--json", "--quiet") == (0, output, "")


def test_a_fraction_says_so_and_gives_no_verdicts(tiny, tmp_path):
    code, output, _ = command("reproduce", "tiny", "--out", "a", "--jobs", 1, "--scale", 0.34, "--note", "a toy's toy")
    assert code == 0
    found = stored(tmp_path / "a")
    assert found["share"] == pytest.approx(1 / 3, abs=1e-4)
    assert (found["parts"][0]["epochs"], found["parts"][0]["seeds"]) == (1, [0, 1])
    of_rows = {row["verdict"] for row in found["parts"][0]["rows"]}
    assert of_rows | {claim["verdict"] for claim in found["parts"][0]["claims"]} == {INCONCLUSIVE, None}
    assert "0.333 of the work: fewer epochs than published" in output
    assert "note: a toy's toy" in output


def test_fewer_seeds_are_judged(tiny, tmp_path):
    """Two thirds of the work are two of three seeds: less to go by, and the rule knows that."""
    assert command("reproduce", "tiny", "--out", "a", "--jobs", 1, "--scale", 0.67)[0] == 0
    (part,) = stored(tmp_path / "a")["parts"]
    assert (part["epochs"], part["seeds"]) == (2, [0, 1])
    assert part["rows"][0]["verdict"] == NOT_REPRODUCED


@pytest.mark.slow
def test_more_seeds_than_published(tiny, tmp_path):
    _, output, _ = command("reproduce", "tiny", "--out", "a", "--jobs", 1, "--seeds", 4)
    assert "all of the work, with more seeds" in output
    assert stored(tmp_path / "a")["command"] == "hyperstack reproduce tiny --seeds 4"
    assert "2 epochs, batches of 32, 4 seeds\n" in output
    assert stored(tmp_path / "a")["share"] == pytest.approx(4 / 3, abs=1e-4)


@pytest.mark.slow
def test_accuracy_and_final_losses(tiny, tmp_path):
    for measure, figure in (("test accuracy", lambda r: 100 - 100 * r["test_error"]),
                            ("training loss", lambda r: 100 * r["final_loss"])):  # fmt: skip
        tiny["tiny"] = changed(("measure",), measure)
        out = tmp_path / measure
        assert command("reproduce", "tiny", "--out", out, "--jobs", 1, "--seeds", 2)[0] == 0
        results = json.loads((out / "toy" / "results.json").read_text())
        rows = stored(out)["parts"][0]["rows"]
        for row in rows:
            wanted = {str(r["seed"]): figure(r) for r in results if r["stack"] == row["stack"]}
            assert row["figures"] == pytest.approx(wanted)
        gains = stored(out)["parts"][0]["claims"][0]["gains"]
        sign = -1 if measure == "test accuracy" else 1
        alone, clipped = rows[0]["figures"], rows[4]["figures"]
        assert gains == pytest.approx([sign * (alone[s] - clipped[s]) for s in "01"])


@pytest.mark.slow
def test_a_diverged_run_is_a_result(tiny, tmp_path):
    tiny["tiny"] = changed((*PART, "series", 0, "stack"), "SGD(0.01) / SGD(1e38) / SGD(1e38)")
    assert command("reproduce", "tiny", "--out", "a", "--jobs", 1, "--seeds", 2)[0] == 0
    row = stored(tmp_path / "a")["parts"][0]["rows"][0]
    assert row["diverged"] == 2
    assert len(row["figures"]) == 2
    tiny["tiny"] = json.dumps({**json.loads(tiny["tiny"]), "measure": "training loss"})
    code, output, _ = command("reproduce", "tiny", "--out", "a", "--resume", columns=100)
    assert code == 0
    assert "diverged" in output
    row = stored(tmp_path / "a")["parts"][0]["rows"][0]
    assert (row["figures"], row["mean"], row["verdict"]) == ({"0": None, "1": None}, None, NOT_REPRODUCED)


@pytest.mark.slow
def test_pictures(tiny, tmp_path):
    arguments = ("reproduce", "tiny", "--out", "a", "--jobs", 1, "--scale", 0.34, "--plot", "--png", "a.png")
    code, output, remarks = command(*arguments, columns=80)
    assert code == 0, remarks
    assert "tiny: test error, %, by α" in output
    assert "clipping, published" in output
    assert "1e-5" in output.splitlines()[-5]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    code, _, remarks = command("reproduce", "tiny", "--out", "a", "--resume", "--png", "a.png")
    assert (code, "exists already" in remarks) == (2, True)


WRONG = {
    "no name": ((), "--list"),
    "a name": (("tony",), "no experiment 'tony'"),
    "scale": (("tiny", "--scale", 0), "0 is not a share"),
    "too much": (("tiny", "--scale", 1.5), "1.5 is not a share"),
    "not a number": (("tiny", "--scale", "nan"), "nan is not a share"),
    "a part": (("tiny", "--part", "ty"), "no part 'ty'"),
    "resume of nothing": (("tiny", "--resume"), "--resume needs the folder"),
    "resume elsewhere": (("tiny", "--resume", "--out", "."), "cannot read"),
    "taken": (("tiny", "--out", "taken"), "exists already"),
    "another scale": (("tiny", "--out", "taken", "--resume", "--scale", 0.5), "has another scale"),
    "fewer seeds": (("tiny", "--out", "taken", "--resume", "--seeds", 1), "has other seeds"),
    "a picture": (("tiny", "--png", "taken/results.json"), "taken/results.json is not named as a PNG"),
    "a picture there": (("tiny", "--png", "there.png"), "exists already"),
    "many seeds": (("tiny", "--out", "taken", "--resume", "--seeds", 3), "say that you mean it with --yes"),
}


def test_wrong_input(tiny, tmp_path, monkeypatch):
    assert command("reproduce", "tiny", "--out", "taken", "--scale", 0.1, "--seeds", 2, "--jobs", 1)[0] == 0
    (tmp_path / "there.png").touch()
    monkeypatch.setattr("hyperstack_cli.verbs.reproduce.LONG", 1e-9)
    real = {"tony": "tony"}
    before = contents(tmp_path)
    for what, (arguments, message) in WRONG.items():
        with pytest.MonkeyPatch.context() as patch:
            if real.keys() & set(arguments):
                patch.setattr(experiments, "load", load)
            code, output, remarks = command("reproduce", *arguments)
        assert (code, output) == (2, ""), what
        assert message in remarks, what
        assert "Traceback" not in remarks
        assert contents(tmp_path) == before, what
    (tmp_path / "taken" / "reproduce.json").write_text("{")
    code, _, remarks = command("reproduce", "tiny", "--out", "taken", "--resume")
    assert (code, "is damaged" in remarks) == (2, True)


def test_nothing_to_draw(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, remarks = command("reproduce", "lambc-table-1", "--yes", "--plot")
    assert (code, contents(tmp_path)) == (2, {})
    assert "lambc-table-1 has nothing to draw" in remarks


def test_hours_of_work_need_a_yes(tiny, tmp_path):
    tiny["tiny"] = changed(("hours",), 30)
    code, _, remarks = command("reproduce", "tiny")
    assert (code, contents(tmp_path)) == (2, {})
    assert "takes about 30 h on two cores" in remarks
    assert "--yes" in remarks
    assert command("reproduce", "tiny", "--yes", "--jobs", 1, "--scale", 0.1)[0] == 0
    assert stored(tmp_path / "reproduced" / "tiny-001")["share"] < 0.5


def test_the_list():
    code, output, remarks = command("reproduce", "--list", columns=120)
    assert (code, remarks) == (0, "")
    assert all(name in output for name in WANTED)


@pytest.mark.slow
def test_parts_on_data_of_ones_own(tiny, tmp_path):
    """They are left out without --data-dir, and take it alone with it."""
    content = json.loads(json.dumps(TINY))
    content["parts"].append({**content["parts"][0], "name": "own", "own_data": True})
    tiny["tiny"] = json.dumps(content)
    quick = ("--scale", 0.1, "--jobs", 1, "--json", "--quiet")
    _, output, _ = command("reproduce", "tiny", "--out", "a", *quick)
    found = json.loads(output)
    assert [part["name"] for part in found["parts"]] == ["toy"]
    assert found["not_run"][1] == {"row": "own", "published": "", "why": "it needs data of your own: --data-dir"}
    code, _, remarks = command("reproduce", "tiny", "--part", "own", *quick)
    assert (code, "own needs data of your own" in remarks) == (2, True)
    code, _, remarks = command("reproduce", "tiny", "--out", "b", "--data-dir", "nowhere", *quick)
    assert (code, "there is no data folder nowhere" in remarks) == (2, True)
    _, output, _ = command("reproduce", "tiny", "--out", "c", "--data-dir", tmp_path, *quick)
    assert [part["name"] for part in json.loads(output)["parts"]] == ["toy", "own"]


@pytest.mark.slow
def test_images_of_ones_own(tmp_path):
    """The rows of ImageNet, on a few generated images."""
    image = pytest.importorskip("PIL.Image")
    draw = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for name, level in (("dark", 40), ("bright", 200)):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(level + draw.integers(-30, 30, (70, 80, 3)), 0, 255).astype(np.uint8)
                image.fromarray(pixels).save(folder / f"{i}.png")
    arguments = ("--part", "imagenet-clipped", "--scale", 0.004, "--data-dir", tmp_path / "images", "--jobs", 1)
    code, output, remarks = command("reproduce", "adam-clip-table-1", *arguments, "--out", tmp_path / "out", "--json")
    assert code == 0, remarks
    (part,) = json.loads(output)["parts"]
    assert (part["task"], part["epochs"], part["epochs_published"]) == ("imagefolder", 1, 100)
    assert 0 <= part["rows"][0]["mean"] <= 100
    assert part["rows"][0]["verdict"] == INCONCLUSIVE


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_ended_from_outside(signum, code, tmp_path):
    """Finished runs are kept, the outcome says how many there are, and --resume trains the others alone."""
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from toy import Toy, Calm, TASKS
from hyperstack.experiments import experiment
from hyperstack_cli.main import main
TASKS.update(toy=Toy, calm=Calm)
text = {changed((*PART, "task"), "toy")!r}
experiment.names = lambda: ["tiny"]
experiment.load = lambda name: experiment.read(text, name)
sys.argv = ["hyperstack", *sys.argv[1:]]
main()
"""
    arguments = [sys.executable, "-c", program, "reproduce", "tiny", "--out", "out", "--jobs", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        arguments, cwd=tmp_path, env={**environment, "TOY_DELAY": "0.02"}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("out/toy/cells/*.json"))) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signum)
    output, remarks = process.communicate(timeout=120)
    assert process.returncode == code, remarks
    assert "Traceback" not in remarks
    kept = {p: p.read_bytes() for p in tmp_path.glob("out/toy/cells/*.json")}
    assert 2 <= len(kept) < 15
    if signum != signal.SIGKILL:
        assert f"so far {len(kept)} of 15 runs have ended" in output
        assert "--out out --resume" in remarks
    done = subprocess.run(
        [*arguments, "--resume"], cwd=tmp_path, env=environment, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sum("  seed " in line for line in done.stderr.splitlines()) == 15 - len(kept)
    assert all(p.read_bytes() == content for p, content in kept.items())
    assert stored(tmp_path / "out")["parts"][0]["cells_done"] == 15
