"""The examples at the end of each verb's help: every one of them runs."""

import re
import shlex
import shutil
import subprocess
import sys

import pytest
from test_cli_process import REAL, environment
from toy import command

from hyperstack_cli.main import cli

TRAINING = {"train", "bench", "sweep", "reproduce"}  # verbs that take seconds: they train
SHELL = set("|<>;&$")  # what only a shell understands


def examples(verb):
    """The examples of a verb, in their order; a line that ends in a backslash goes on in the next."""
    epilog = (cli.get_command(None, verb).epilog or "").replace("\b", "")
    block = re.search(r"^Examples:\n((?: +\S.*\n)+)", epilog, re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", block[1]).splitlines() if block else []
    return [line.strip() for line in lines]


@pytest.fixture
def workplace(tmp_path, run, monkeypatch):
    """A folder with runs in it, as the examples name them, and a `hyperstack` on the PATH."""
    for name in ("mnist-001", "mnist-002", "mnist-003"):
        shutil.copytree(run, tmp_path / "work" / "runs" / name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "hyperstack").write_text(f'#!/bin/sh\nexec {shlex.join(REAL)} "$@"\n')
    (tmp_path / "bin" / "hyperstack").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.chdir(tmp_path / "work")


def succeeds(example):
    """Run an example: in this process where it is one plain command, else in bash."""
    if not SHELL & {*example}:
        program, *words = shlex.split(example)
        assert program == "hyperstack"
        code, _, remarks = command(*words)
        assert code == 0, f"{example}\n{remarks}"
        return
    script = f"set -eo pipefail\n{example}"
    done = subprocess.run(["bash", "-c", script], env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), f"{example}\n{done.stderr}"


def verbs(training):
    return [verb for verb in cli.list_commands(None) if (verb in TRAINING) is training]


def test_every_verb_has_examples_and_each_is_of_this_verb():
    for verb in cli.list_commands(None):
        assert len(examples(verb)) >= 2, f"{verb} --help ends without examples"
        for example in examples(verb):
            assert f"hyperstack {verb}" in example, f"{verb} --help shows {example!r}"
            assert len(example) < 200


def test_every_verb_says_how_it_ends():
    for verb in cli.list_commands(None):
        assert re.search(r"^Exit status: 0 ", cli.get_command(None, verb).epilog, re.MULTILINE), verb


@pytest.mark.skipif(sys.platform == "win32", reason="needs bash")
@pytest.mark.parametrize("verb", verbs(training=False))
def test_the_examples_run(verb, workplace):
    for example in examples(verb):
        succeeds(example)


@pytest.mark.slow
@pytest.mark.parametrize("verb", verbs(training=True))
def test_the_examples_that_train_run(verb, workplace):
    for example in examples(verb):
        succeeds(example)
