"""`hyperstack completion`: what shells offer, asked of the shells themselves."""

import os
import shlex
import shutil
import subprocess
import sys

import click
import pytest
from test_cli_process import REAL, environment
from toy import command, ok

from hyperstack import tasks
from hyperstack_cli.complete import MANY, RunPath, runs, task_names
from hyperstack_cli.main import cli

pytestmark = [
    pytest.mark.usefixtures("elsewhere"),
    pytest.mark.skipif(sys.platform == "win32", reason="shells as POSIX has them"),
]
SHELLS = ("bash", "zsh", "fish")


def needs(shell):
    return pytest.mark.skipif(not shutil.which(shell), reason=f"{shell} is not installed here")


@pytest.fixture
def path(tmp_path_factory, monkeypatch):
    """A `hyperstack` on the PATH, which is the one that is tested."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "hyperstack").write_text(f'#!/bin/sh\nexec {shlex.join(REAL)} "$@"\n')
    (folder / "hyperstack").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def places(tmp_path):
    """Run folders in several places, and what is none."""
    for name in ("runs/mnist-001", "runs/mnist-002", "runs/old/toy-001", "alone", ".hidden/run", "runs/.hidden"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "plan.json").write_text("{}")
    for name in ("empty", "runs/none", "alone/inner"):
        (tmp_path / name).mkdir()
    (tmp_path / "runs.txt").write_text("mine")


def in_bash(*lines):
    """What bash offers behind each line, through the function that the script registers with `complete`."""
    program = """
    eval "$(hyperstack completion bash)"
    spec=$(complete -p hyperstack); function=${spec#*-F }; function=${function%% *}
    offer() { COMPREPLY=(); "$function" hyperstack "$1" "$2"; printf '%s\\n' "${COMPREPLY[@]}" =====; }
    """
    for line in lines:
        words = [*shlex.split(line), *([""] if line.endswith(" ") else [])]
        program += f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; COMP_LINE={shlex.quote(line)}\n"
        program += f"offer {shlex.quote(words[-1])} {shlex.quote(words[-2])}\n"
    found = "\n".join(shell("bash", "--norc", "-c", program)).split("=====")
    return [part.split() for part in found[:-1]]


def in_fish(line):
    return shell("fish", "--no-config", "-c", f"hyperstack completion fish | source; complete -C {shlex.quote(line)}")


def shell(*arguments):
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment(), check=True, timeout=60)
    assert done.stderr == ""
    return [line.split("\t")[0] for line in done.stdout.splitlines() if line]


# ---- the scripts


@pytest.mark.parametrize("name", SHELLS)
def test_each_shell_takes_its_script(name, path):
    script = ok("completion", name)
    assert "_HYPERSTACK_COMPLETE" in script
    if not shutil.which(name):
        pytest.skip(f"{name} is not installed here, so that nothing reads its script")
    subprocess.run([name, "-n"], input=script, text=True, check=True)


def test_another_shell_is_refused():
    code, output, remarks = command("completion", "tcsh")
    assert (code, output) == (2, "")
    assert "bash" in remarks


# ---- in bash


@pytest.mark.slow
@needs("bash")
def test_bash_completes_verbs_options_and_values(path, places):
    options = {name for p in cli.get_command(None, "train").params for name in p.opts if name.startswith("--")}
    expected = {
        "hyperstack ": cli.list_commands(None),
        "hyperstack ins": ["inspect"],
        "hyperstack export --for": ["--format"],
        "hyperstack export --format ": ["jsonl", "csv"],
        "hyperstack train mnist --sink t": ["tensorboard"],
        "hyperstack completion ": list(SHELLS),
        "hyperstack inspect runs/m": ["runs/mnist-001", "runs/mnist-002"],
        "hyperstack watch al": ["alone"],
    }
    *found, first, tasks_found = in_bash(*expected, "hyperstack train --", "hyperstack train mni")
    assert found == list(expected.values())
    assert options <= {*first}
    assert tasks_found[0] == "mnist"


@needs("zsh")
def test_zsh_completes_verbs_and_values(path, places):
    """What the function that the script registers hands to zsh's own."""
    program = """
    compdef() { registered=$1 }
    compadd() { print -rl -- ${(P)argv[-1]} }
    _describe() { print -rl -- ${(P)3} }
    eval "$(hyperstack completion zsh)"
    words=(hyperstack ins); CURRENT=2; $registered
    words=(hyperstack inspect runs/m); CURRENT=3; $registered
    true
    """
    verb, *found = shell("zsh", "-f", "-c", program)
    assert verb.startswith("inspect:")
    assert found == ["runs/mnist-001", "runs/mnist-002"]


@needs("fish")
def test_fish_completes_verbs_options_and_values(path, places):
    assert "inspect" in in_fish("hyperstack ins")
    assert in_fish("hyperstack inspect runs/m") == ["runs/mnist-001", "runs/mnist-002"]


# ---- values


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("", ["alone", "runs/mnist-001", "runs/mnist-002", "runs/old/toy-001"]),
        ("r", ["runs/mnist-001", "runs/mnist-002", "runs/old/toy-001"]),
        ("runs/", ["runs/mnist-001", "runs/mnist-002", "runs/old/toy-001"]),
        ("./runs/o", ["./runs/old/toy-001"]),
        ("runs/mnist-002", ["runs/mnist-002"]),
        (".hid", [".hidden/run"]),
        ("runs/.", ["runs/.hidden"]),
        ("e", []),
        ("nothing/", []),
        ("runs.txt/", []),
    ],
)
def test_folders_that_hold_runs_or_lead_to_one(places, typed, found):
    assert runs(typed) == found


def test_from_a_folder_and_from_home(places, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert runs("~/al") == ["~/alone"]
    assert runs(f"{tmp_path}/al") == [f"{tmp_path}/alone"]


def test_a_large_tree_is_not_walked_to_its_end(tmp_path):
    for i in range(MANY // 20):
        for j in range(30):
            (tmp_path / f"{i:03}" / f"{j:02}").mkdir(parents=True)
    (tmp_path / "zzz").mkdir()
    (tmp_path / "zzz" / "plan.json").write_text("{}")
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os.path, "isfile", lambda path, real=os.path.isfile: seen.append(path) or real(path))
        assert runs("") == ["zzz"]
    assert len(seen) == MANY


def test_the_names_of_tasks_are_those_that_there_are():
    assert task_names(None, None, "") == sorted(tasks.TASKS)
    assert task_names(None, None, "mn") == [name for name in sorted(tasks.TASKS) if name.startswith("mn")]


def test_every_argument_that_names_a_run_is_completed():
    for verb in cli.list_commands(None):
        for parameter in cli.get_command(None, verb).params:
            if isinstance(parameter, click.Argument) and parameter.name in ("run", "runs"):
                assert isinstance(parameter.type, RunPath), f"{verb}: give {parameter.name} the type screen.RUN"


def test_a_completion_does_not_wait_for_torch(places):
    for words, number in (("hyperstack ", 1), ("hyperstack train m", 2), ("hyperstack inspect r", 2)):
        more = {"_HYPERSTACK_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": number}
        code = "import sys, atexit\nfrom hyperstack_cli.main import main\n"
        code += "atexit.register(lambda: print(*({'torch', 'numpy', 'hyperstack.api'} & {*sys.modules})))\nmain()"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment(**more), check=True
        )
        *found, loaded = done.stdout.splitlines()
        assert found
        assert loaded == ""
