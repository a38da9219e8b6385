"""What `inspect` and `export` make of a run."""

import csv
import io
import json
import re

import numpy as np
import pytest
from toy import command, contents, ok

from hyperstack.reports.statistics import statistics_of
from hyperstack.telemetry.jsonl import read_record
from hyperstack.telemetry.runfolder import RunFolder

pytestmark = pytest.mark.usefixtures("elsewhere")


# ---- inspect


def test_inspect_for_programs(run):
    path = run
    found = json.loads(ok("inspect", path, "--json"), parse_constant=pytest.fail)
    assert found["plan"] == RunFolder(path).read_heading()
    assert found["summary"] == RunFolder(path).read_summary()
    assert found["rows"] == 20
    figures = statistics_of(RunFolder(path).read_record(), ["Adam(0.01)", "SGD(0.01, clip)", "SGD"])
    assert found["keys"] == {key: s.as_dict() for key, s in figures.items()}
    one = json.loads(ok("inspect", path, "--json", "--level", 1))
    assert one["keys"] == {"1.lr": found["keys"]["1.lr"]}


def test_inspect_of_one_level(run):
    text = ok("inspect", run, "--level", 2, "--level", 2)
    assert {*re.findall(r"^\d\.\w+", text, re.MULTILINE)} == {"2.lr"}


def test_inspect_of_a_run_that_has_not_ended(folder):
    run = folder / "run"
    (run / "summary.json").unlink()
    (run / "record.jsonl").write_bytes((run / "record.jsonl").read_bytes()[:-30])
    assert "stopped: 19 steps recorded so far" in ok("inspect", "run")
    (run / "record.jsonl").write_bytes((run / "record.jsonl").read_bytes().splitlines(True)[0])
    assert "stopped: 0 steps recorded so far" in ok("inspect", "run")
    assert json.loads(ok("inspect", "run", "--json"), parse_constant=pytest.fail)["summary"] is None


def test_inspect_of_rules_that_are_not_known_here(folder):
    for name in ("plan.json", "summary.json"):
        file = folder / "run" / name
        file.write_text(file.read_text().replace("Adam(0.01)", "Mine(0.01)"))
    text = ok("inspect", "run")
    assert "level 0: Mine(0.01) updates the network" in text
    assert {*re.findall(r"^\d\.\w+", text, re.MULTILINE)} == {"0.lr", "0.beta1", "0.beta2", "1.lr", "2.lr"}


def test_one_number_a_tensor_is_said_to_be_so():
    ok("train", "toy", "--quiet", "--stack", "SGD(per_tensor(0.1)) / SGD", "--out", "run", "--epochs", 1)
    assert "lr: one a tensor, shown are the mean and the norm" in ok("inspect", "run", columns=140)


def test_the_parameters_that_are_clipped_most_come_first():
    stack = "Adam(0.01, clip=[norm(0.05, per='tensor', names='0.*')]) / SGD(1e-4)"
    ok("train", "toy", "--quiet", "--epochs", 1, "--stack", stack, "--out", "run")
    output = ok("inspect", "run")
    table = output[output.index("gradient of") :].split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in table[1:]][:2] == ["0.weight", "0.bias"]
    assert table[0].split()[-2:] == ["clipped", "to"]
    found = json.loads(ok("inspect", "run", "--json"))["tensors"]
    assert list(found) == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert found["0.weight"]["clipped"] > 0.5 > found["3.bias"]["clipped"] == 0
    assert found["0.weight"]["factor"] < 1
    assert f"{100 * found['0.weight']['clipped']:.0f} %" in table[1]


def test_a_layerwise_rule_shows_its_trust_ratios():
    ok("train", "toy", "--quiet", "--epochs", 1, "--stack", "LAMBC(0.01) / SGD", "--out", "run")
    assert re.search(r"gradient of +median trust +max trust\n", ok("inspect", "run"))


def test_what_is_fixed_has_no_table():
    ok("train", "toy", "--quiet", "--stack", "SGD(fixed(0.1)) / SGD", "--out", "run", "--epochs", 1)
    assert "level 0: SGD(fixed(0.1)) updates the network, nothing of it is learned\n" in ok("inspect", "run")


# ---- export


def test_export_as_json_lines_is_the_record(run):
    record = RunFolder(run).read_record().columns
    rows = [json.loads(line) for line in ok("export", run).splitlines()]
    assert [list(row) for row in rows] == [list(record)] * 20
    keys = ("0.lr", "0.beta1", "0.beta2", "1.lr", "2.lr")
    columns = [f"{key}.{what}" for key in keys for what in ("value", "grad", "clip")]
    averages = [f"{key}.average" for key in keys[:3]]  # of what level 1 clips
    assert list(record) == ["step", "loss", *columns, *averages]
    for name, column in record.items():
        assert [row[name] for row in rows] == column.tolist()
    assert type(rows[0]["step"]) is int


def test_export_as_csv_is_the_record(run, tmp_path):
    record = RunFolder(run).read_record().columns
    assert ok("export", run, "--format", "csv", "--out", "run.csv") == ""
    text = (tmp_path / "run.csv").read_text()
    assert ok("export", run, "--format", "csv") == text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert rows[0]["step"] == "1"
    for name, column in record.items():
        assert [float(row[name]) for row in rows] == column.tolist()


def test_export_of_what_is_not_finite(folder):
    file = folder / "run" / "record.jsonl"
    lines = file.read_bytes().splitlines(True)
    width = len(read_record(file).columns)
    lines[1] = json.dumps([1, None, *[0.5] * (width - 2)]).encode() + b"\n"
    lines[2] = b"[2, -1e999, 1e999" + b", 0.5" * (width - 3) + b"]\n"
    file.write_bytes(b"".join(lines))
    first, second, *_ = [json.loads(line, parse_constant=pytest.fail) for line in ok("export", "run").splitlines()]
    assert (first["loss"], second["loss"], second["0.lr.value"]) == (None, -np.inf, np.inf)
    _, first, second, *_ = ok("export", "run", "--format", "csv").splitlines()
    assert first.startswith("1,nan,0.5")
    assert second.startswith("2,-inf,inf,")


def test_an_export_to_a_full_disk_leaves_nothing(folder, monkeypatch):
    from hyperstack_cli.verbs import export

    def fail(record):
        yield "step,loss"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "_csv", fail)
    before = contents(folder)
    code, _, remarks = command("export", "run", "--format", "csv", "--out", "new.csv")
    assert (code, remarks) == (1, "hyperstack: cannot write new.csv\nNo space left on device\n")
    assert contents(folder) == before
