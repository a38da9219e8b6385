"""A run on a screen: what stands there is what was recorded, on any terminal, whatever was recorded."""

import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from toy import command, contents, ok

import hyperstack as hs
from hyperstack.reports.grid import Field, grid, wrapped
from hyperstack.reports.reading import reading
from hyperstack.reports.run import load_run
from hyperstack.reports.statistics import statistics, statistics_of, tensor_statistics
from hyperstack.reports.text import number, percent
from hyperstack.reports.view import View
from hyperstack.telemetry.jsonl import JsonLines

pytestmark = pytest.mark.usefixtures("elsewhere")
WIDTHS = (1, 8, 20, 40, 60, 80, 140)


def made(path, rows, stack="Adam(0.01) / SGD(0.001, clip)", keys=("0.lr", "1.lr"), **plan):
    """A run folder with these rows, as a run that was killed leaves it."""
    path.mkdir()
    (path / "plan.json").write_text(json.dumps({"task": "made", "stack": stack, "device": "cpu", **plan}))
    sink = JsonLines(path / "record.jsonl")
    sink.open(["step", "loss", *(f"{key}.{what}" for key in keys for what in ("value", "grad", "clip"))])
    if len(rows):
        sink.write(np.asarray(rows, float))
    sink.close()
    return path


def rows(n, keys=2):
    found = np.abs(np.random.default_rng(0).standard_normal((n, 2 + 3 * keys)))
    found[:, 0] = np.arange(1, n + 1)
    return found


def fits(path, *arguments):
    for width in WIDTHS:
        lines = ok("inspect", path, *arguments, columns=width).splitlines()
        assert max(map(cell_len, lines)) <= width
    return ok("inspect", path, *arguments, columns=200)


# ---- what it says


def test_the_header(run):
    head, *tree, state, result = ok("inspect", run).split("\n\n")[0].splitlines()
    found = load_run(run)
    assert head == f"toy · seed 0 · cpu · {found.when:%Y-%m-%d %H:%M %Z}"
    assert tree == [
        "├── level 0: Adam(0.01) updates the network",
        "├── level 1: SGD(0.01, clip) updates level 0",
        "└── level 2: SGD updates level 1",
    ]
    assert state == f"finished: 2 epochs, 20 steps (20 recorded), {found.summary['seconds']:.1f} s"
    assert result == f"test error {percent(found.summary['test_error'])}, train loss {found.summary['train_loss']:.4g}"


def test_every_figure_is_that_of_the_record(run):
    table = ok("inspect", run, columns=200)
    found = statistics(load_run(run).record)
    titles = next(line for line in table.splitlines() if " median " in line).split("value")[1].split("  ")
    titles = [title.strip() for title in titles if title.strip()]
    expected = "first last min max hypergradient median", "95 %", "max", "at step average clipped to flips"
    assert " ".join(titles) == " ".join(expected)
    for key, s in found.items():
        line = next(line for line in table.splitlines() if line.startswith(f"{key} "))
        cells = re.split(r" {2,}", re.sub("[▁-█]+", "  ", line).strip())[1:]
        digits = [6 if abs(1 - x) < 0.01 else 4 for x in (s.first, s.last, s.min, s.max)]
        assert cells == [
            *map(number, (s.first, s.last, s.min, s.max), digits),
            *(number(x, 3) for x in (s.grad_median, s.grad_95, s.grad_max)),
            str(s.grad_max_step),
            number(s.average, 3),
            percent(s.clipped, 0) if key.startswith("0.") else "-",  # by level 1, the only one with a clip
            *(percent(x, 0) for x in (s.factor, s.flips)),
        ]
    assert "nothing learns from those of level 2, the top" in " ".join(table.split())


def test_curves_follow_the_record(tmp_path):
    block = rows(60)
    block[:, 2], block[:, 3] = np.arange(60), -(10.0 ** np.linspace(-9, 0, 60))
    made(tmp_path / "x", block)
    line = next(line for line in ok("inspect", "x", columns=200).splitlines() if line.startswith("0.lr "))
    value, grad = re.findall("[▁-█]+", line)
    assert value == "".join(sorted(value)) == "▁▁▁▂▂▂▃▃▃▄▄▄▅▅▅▆▆▆▇▇▇███"
    assert grad == value  # a straight line in logarithms
    line = next(line for line in ok("inspect", "x", "--linear", columns=200).splitlines() if line.startswith("0.lr "))
    assert re.findall("[▁-█]+", line)[1].count("▁") > 15


def test_what_nothing_clips_has_no_columns_for_that(tmp_path):
    block = rows(5)
    block[:, [4, 7]] = 1
    made(tmp_path / "x", block, "Adam / SGD")
    table = ok("inspect", "x", columns=200)
    assert "clipped" not in table
    assert "nan/inf" not in table
    made(tmp_path / "y", block)
    assert " clipped " in ok("inspect", "y", columns=200)


def test_a_norm_has_no_sign_that_could_flip(tmp_path):
    made(tmp_path / "x", rows(30), "Adam(per_tensor(0.01)) / SGD")
    lines = ok("inspect", "x", columns=200).splitlines()
    flips = {line.split()[0]: line.split()[-2:] for line in lines if re.match(r"\d\.lr ", line)}
    assert flips["0.lr"][-1] == "-"
    assert flips["1.lr"] == ["0", "%"]
    found = json.loads(ok("inspect", "x", "--json"))["keys"]
    assert (found["0.lr"]["flips"], found["1.lr"]["flips"]) == (None, 0)


def test_programs_get_no_nan(tmp_path):
    made(tmp_path / "x", rows(5), extra=float("nan"))
    found = json.loads(ok("inspect", "x", "--json"), parse_constant=pytest.fail)
    assert found["plan"]["extra"] is None


def test_the_reading_comes_before_the_figures(tmp_path):
    block = rows(100)
    block[:, 2] = np.linspace(0.1, -1, 100)
    made(tmp_path / "x", block)
    screen = ok("inspect", "x")
    remarks = reading(load_run("x"))
    assert remarks[0].severity == 3
    assert f"!! {remarks[0].key}: {remarks[0].sentence}" in " ".join(screen.split())
    assert screen.index("!! 0.lr: went below 0") < screen.index("hypergradient")
    found = json.loads(ok("inspect", "x", "--json"))
    assert found["reading"] == [remark.as_dict() for remark in remarks]
    assert (found["rows"], found["steps"], found["state"]) == (100, [1, 100], "stopped")


# ---- what is asked for


def test_keys_by_name_and_pattern(run):
    def shown(*arguments):
        return list(json.loads(ok("inspect", run, "--json", *arguments))["keys"])

    assert shown("--key", "1.lr") == ["1.lr"]
    assert shown("--key", "*.lr") == shown("--key", "lr") == ["0.lr", "1.lr", "2.lr"]
    assert shown("--key", "0.beta?", "--key", "2.lr") == ["0.beta1", "0.beta2", "2.lr"]
    assert shown("--key", "lr", "--level", 1) == ["1.lr"]
    code, _, remarks = command("inspect", run, "--key", "0.beta3")
    assert code == 2
    assert "no hyperparameter is called '0.beta3'\ndid you mean 0.beta" in remarks
    rows = [line.split()[0] for line in ok("inspect", run, "--key", "0.beta1").splitlines() if re.match(r"\d\.", line)]
    assert {*rows} == {"0.beta1"}


def test_a_range_of_steps(run):
    record = load_run(run).record
    for span, ends in {"5:9": (5, 9), "15:": (15, 20), ":3": (1, 3), " 7 : 7 ": (7, 7)}.items():
        found = json.loads(ok("inspect", run, "--steps", span, "--json"))
        part = record.between(*ends)
        assert (found["rows"], found["steps"]) == (len(part), list(ends))
        assert found["keys"] == {key: s.as_dict() for key, s in statistics_of(part, load_run(run).levels).items()}
        assert f"shown below: steps {ends[0]} to {ends[1]}" in ok("inspect", run, "--steps", span)


@pytest.mark.parametrize(
    ("span", "said"),
    [
        *[(wrong, "is no range of steps") for wrong in ("5", ":", "a:b", "", "1:2:3", "1.5:2")],
        ("30:40", "none of these steps was recorded\nthe record goes from 1 to 20"),
        ("9:5", "is no range of steps"),
    ],
)
def test_a_range_that_is_none(run, span, said):
    code, output, remarks = command("inspect", run, "--steps", span)
    assert (code, output) == (2, "")
    assert said in remarks


# ---- any terminal, any record


def test_every_width(run):
    before = contents(run)
    fits(run)
    assert "0.beta1" in ok("inspect", run, columns=20)
    assert contents(run) == before


@pytest.mark.parametrize("n", [0, 1, 2])
def test_records_of_no_and_few_rows(tmp_path, n):
    made(tmp_path / "x", rows(n))
    assert f"stopped: {n} steps recorded so far" in fits("x")
    assert json.loads(ok("inspect", "x", "--json"), parse_constant=pytest.fail)["rows"] == n
    assert str(load_run("x"))


@pytest.mark.parametrize("x", [np.nan, np.inf, -np.inf, 1.7e308, -5e-324, 0.0])
def test_numbers_of_any_kind(tmp_path, x):
    block = np.full((50, 8), x)
    block[:, 0] = np.arange(1, 51)
    made(tmp_path / "x", block)
    text = fits("x")
    assert ("nan/inf" in text) is not bool(np.isfinite(x))
    assert len(re.findall(" 50$", text, re.MULTILINE)) == (0 if np.isfinite(x) else 2)
    json.loads(ok("inspect", "x", "--json"), parse_constant=pytest.fail)


@pytest.mark.slow
def test_64_levels(tmp_path):
    keys = [f"{k}.lr" for k in range(64)]
    made(tmp_path / "x", rows(30, 64), " / ".join(["SGD(0.1)"] * 64), keys)
    text = fits("x")
    assert all(f"level {k}: SGD(0.1) updates" in text and f"\n{k}.lr " in text for k in range(64))
    part = "\n".join(line.plain for line in View(load_run("x"), most=12).lines(80))
    assert "and 52 more levels" in part
    assert "and 52 more hyperparameters" in part
    assert "12.lr " not in part.split("value")[1]


def test_groups_with_stacks_of_their_own(tmp_path):
    stacks = ["Adam / SGD", "SGD / SGD"]
    made(tmp_path / "x", rows(30), stacks[0], ("0.lr", "group1.0.lr"), stacks=stacks)
    text = fits("x")
    assert "├── Adam / SGD\n├── SGD / SGD" in text
    assert "\ngroup1.0.lr " in text


def test_a_last_line_that_is_cut_off(tmp_path):
    file = made(tmp_path / "x", rows(9)) / "record.jsonl"
    file.write_bytes(file.read_bytes()[:-7])
    assert "stopped: 8 steps recorded so far" in ok("inspect", "x")


def test_a_newer_format(tmp_path):
    file = made(tmp_path / "x", rows(9)) / "record.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"version": 1', b'"version": 2'))
    code, output, remarks = command("inspect", "x")
    assert (code, output) == (2, "")
    assert "format version 2" in remarks
    assert "install a newer hyperstack" in remarks


@pytest.mark.parametrize("key", ["lr", "x.lr", "0.", ".0.lr", "99999.lr"])
def test_keys_that_are_none(tmp_path, key):
    made(tmp_path / "x", rows(3, 1), keys=(key,))
    code, output, remarks = command("inspect", "x")
    assert (code, output) == (2, "")
    assert "other columns than a hyperstack record" in remarks


def test_a_stack_that_is_no_stack(tmp_path):
    made(tmp_path / "x", rows(9), "[bold]not ( a :smile: stack " * 9)
    assert "[bold]not ( a :smile: stack" in fits("x")


def test_without_unicode_it_is_ascii(run):
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(file=screen, width=80).print(load_run(run))
    screen.seek(0)
    text = screen.read()
    assert "|-- level 1: SGD(0.01, clip)" in text
    assert "?" not in text


def test_colour_changes_nothing_but_colour(run):
    text = ok("inspect", run)
    screen = io.StringIO()
    Console(file=screen, width=80, force_terminal=True, color_system="truecolor").print(load_run(run))
    assert "\x1b[" in screen.getvalue()
    assert re.sub(r"\x1b\[[\d;]*m", "", screen.getvalue()) == text


# ---- in Python


def test_a_run_shows_itself(run, monkeypatch):
    found = load_run(run)
    for width in (20, 80, 140):
        monkeypatch.setenv("COLUMNS", str(width))
        assert str(found) + "\n" == ok("inspect", run, columns=width)
    assert repr(found) == f"Run({str(run)!r}, 'Adam(0.01) / SGD(0.01, clip) / SGD', finished, 20 steps recorded)"


def test_a_tower_shows_itself():
    model = torch.nn.Linear(3, 2)
    opt = hs.HyperOptimizer(model.parameters(), "Adam(per_tensor(0.1)) / SGD(1e-3, clip) / SGD(1e-9)")
    for _ in range(3):
        opt.zero_grad()
        model(torch.randn(4, 3)).square().mean().backward()
        opt.step()
    titles, *lines = hs.tower_summary(opt, 80).splitlines()
    assert titles.split() == ["level", "rule", "value", "hypergradient", "clipped", "to"]
    values, grads, factors = opt.hyperparameters(), opt.hypergradients(), opt.clip_factors()
    for line in lines:
        key, rule, value, grad, *clip = line.split()
        assert rule == ("Adam" if key[0] == "0" else "SGD")
        assert value == number(values[key].double().mean().item(), 6)
        size = grads[key].double()
        assert grad == number(size.item() if size.dim() == 0 else size.norm().item(), 3)
        assert clip == ([f"{100 * factors[key].min().item():.0f}", "%"] if key[0] == "0" else [])
    assert [line.split()[0] for line in lines] == ["0.lr", "0.beta1", "0.beta2", "1.lr", "2.lr"]
    for width in WIDTHS:
        assert max(map(cell_len, hs.tower_summary(opt, width).splitlines())) <= width


def test_a_tower_counts_what_was_not_finite():
    model = torch.nn.Linear(3, 1)
    opt = hs.HyperOptimizer(model.parameters(), "SGD(0.1) / SGD(1e-3)")
    for factor in (1.0, float("inf"), 1.0):
        opt.zero_grad()
        (model(torch.ones(1, 3)).sum() * factor).backward()
        opt.step()
    table = [line.split() for line in hs.tower_summary(opt, 80).splitlines()]
    assert table[0][-1] == "nan/inf"
    assert int(table[1][-1]) == opt.nonfinite_counts()["0.lr"].item() > 0
    fixed = hs.HyperOptimizer(model.parameters(), "SGD(fixed(0.1))")
    assert hs.tower_summary(fixed) == "nothing is learned here"


# ---- the tables


def test_columns_of_a_high_rank_go_first():
    fields = [Field("a", ["11"]), Field("bb", ["2"], rank=2), Field("c", ["3"], rank=1), Field("d", [""], rank=2)]
    assert [line.plain.split() for line in grid(fields, 80)] == [["a", "bb", "c", "d"], ["11", "2", "3"]]
    assert grid(fields, 9)[0].plain.split() == ["a", "bb", "c", "d"]
    assert grid(fields, 8)[0].plain.split() == ["a", "bb", "c"]
    assert grid(fields, 6)[0].plain.split() == ["a", "c"]
    assert grid(fields, 3)[0].plain.split() == ["a"]
    assert [line.plain for line in grid(fields, 1)] == ["…", "…"]


def test_drawn_columns_share_the_room():
    fields = [Field("x", ["1"]), *(Field("", draw=lambda width: ["=" * width], most=12, right=False) for _ in "ab")]
    assert grid(fields, 20)[1].plain == "1 ======== ========="
    assert grid(fields, 90)[1].plain == "1  ============  ============"


def test_words_that_are_too_long_are_broken():
    lines = [line.plain for line in wrapped("one two-three-four 漢字漢字 five", 8, "- ", "  ")]
    assert lines == ["- one", "  two-th", "  ree-fo", "  ur", "  漢字漢", "  字", "  five"]
    assert "".join(line[2:] for line in lines) == "onetwo-three-four漢字漢字five"


def test_tensors_are_those_of_the_record():
    stack = "Adam(0.01, clip=[norm(0.05, per='tensor', names='0.*')]) / SGD(1e-4)"
    ok("train", "toy", "--quiet", "--epochs", 1, "--stack", stack, "--out", "x")
    table = fits("x").split("gradient of ")[1].splitlines()
    for line, (name, s) in zip(table[1:], tensor_statistics(load_run("x").record).items(), strict=True):
        cells = re.split(r" {2,}", line.strip())
        assert cells == [
            name,
            number(s.norm_median, 3),
            number(s.norm_max, 3),
            percent(s.clipped, 0),
            percent(s.factor, 0),
        ]


MILLION = """
import numpy as np, json, sys
from pathlib import Path
from hyperstack.telemetry.jsonl import JsonLines
out = Path(sys.argv[1]); out.mkdir()
keys = ["0.lr", "0.beta1", "0.beta2", "1.lr"]
columns = ["step", "loss", *(f"{k}.{w}" for k in keys for w in ("value", "grad", "clip"))]
columns += [f"{k}.average" for k in keys[:3]]
draw = np.random.default_rng(0)
sink = JsonLines(out / "record.jsonl"); sink.open(columns)
for i in range(0, 1_000_000, 10_000):
    block = np.abs(draw.standard_normal((10_000, len(columns)))); block[:, 0] = np.arange(i + 1, i + 10_001)
    sink.write(block)
sink.close()
(out / "plan.json").write_text(json.dumps({"task": "mnist", "stack": "Adam / SGD(1e-05, clip)", "device": "cpu"}))
"""
MEASURED = """
import resource, subprocess, sys
text = subprocess.run([sys.executable, "-m", "hyperstack_cli", "inspect", sys.argv[1]], check=True, capture_output=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
assert b"1,000,000 steps recorded" in text.stdout
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is that of Linux")
def test_a_million_rows_open_at_once(tmp_path):
    """The time is that of the processor, on one thread: what a machine takes that has nothing else to do."""
    subprocess.run([sys.executable, "-c", MILLION, str(tmp_path / "x")], check=True)

    def measured():
        found = subprocess.run(
            [sys.executable, "-c", MEASURED, str(tmp_path / "x")], check=True, capture_output=True, text=True
        )
        return map(float, found.stdout.split())

    seconds, megabytes = zip(*(measured() for _ in range(3)), strict=True)
    assert min(seconds) < 2
    assert max(megabytes) < 300
