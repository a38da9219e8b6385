"""A training run that is killed at random moments: everything that was recorded before can be read, each time."""

import json
import random
import signal
import sys
import time

import pytest
from test_cli_process import LONG, ended, rows, start, until
from toy import assert_same_run, command, ok

from hyperstack_cli.main import cli

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them"),
]
KILLS = 20


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run that was never interrupted."""
    path = tmp_path_factory.mktemp("killed") / "run"
    assert command(*LONG, "--quiet", "--out", path)[0] == 0
    return path


def whole_lines(path):
    """The rows of the file as JSON has them, by nothing but their line ends."""
    header, *lines = (path / "record.jsonl").read_bytes().split(b"\n")[:-1]
    columns = json.loads(header)["columns"]
    return [dict(zip(columns, json.loads(line), strict=True)) for line in lines]


def assert_all_is_read(path, other):
    """Every verb that reads runs finds exactly the whole lines of the file."""
    expected = whole_lines(path)
    assert [row["step"] for row in expected] == list(range(1, 1 + len(expected)))
    assert [json.loads(line) for line in ok("export", path).splitlines()] == expected
    assert len(ok("export", path, "--format", "csv").splitlines()) == 1 + len(expected)
    found = json.loads(ok("inspect", path, "--json"))
    assert (found["rows"], found["summary"]) == (len(expected), None)
    for key, shown in found["keys"].items():
        values = [row[f"{key}.value"] for row in expected] or [None]  # killed before a row was written
        assert (shown["first"], shown["last"]) == (values[0], values[-1])
        assert (shown["min"], shown["max"]) == (min(values), max(values))
    assert "0.lr" in found["keys"]
    if "compare" in cli.list_commands(None):
        code, output, remarks = command("compare", path, other)
        assert code == 0, remarks
        assert str(path.name) in output
    if "runs" in cli.list_commands(None):
        assert path.name in ok("runs", path.parent, columns=200)


def test_whatever_was_recorded_is_read_and_the_run_goes_on_bit_for_bit(tmp_path, straight):
    draw, kills, number, resumed = random.Random(5), 0, 0, 0
    while kills < KILLS:
        path, number, begun = tmp_path / f"run{number}", number + 1, False
        while True:
            arguments = ("train", "toy", "--resume") if begun else LONG
            before = rows(path) if begun else 0
            process = start(*arguments, "--quiet", "--out", path, TOY_DELAY=0.002)
            if kills == KILLS or (begun and draw.random() < 0.2):
                ended(process, 0)
                assert_same_run(straight, path)
                resumed += 1
                break
            until(lambda least=before, path=path: rows(path) != least, process)
            time.sleep(draw.uniform(0, 0.3))
            process.kill()
            process.communicate()
            if (path / "summary.json").exists():  # it was faster, and at most killed on its way out
                assert_same_run(straight, path)
                break
            assert process.returncode == -signal.SIGKILL
            kills, begun = kills + 1, True
            assert_all_is_read(path, straight)
    assert resumed >= 2
