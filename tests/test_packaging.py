"""What is installed, and from what: the project's own files agree with each other and with the code."""

import ast
import functools
import importlib.metadata
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import hyperstack

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = {"hyperstack": ROOT / "hyperstack", "hyperstack_cli": ROOT / "cli" / "hyperstack_cli"}
INSTALLED = {canonicalize_name(d.name) for d in importlib.metadata.distributions()}
LINTERS = [name for name in ("ruff", "mypy") if name in INSTALLED]  # they are no requirement of the tests


def constraints():
    """Every line of constraints.txt that holds for this Python, by name."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    found = [Requirement(line) for line in lines]
    assert all(re.fullmatch(r"==[\w.]+", str(r.specifier)) for r in found), "each names one version"
    here = [r for r in found if r.marker is None or r.marker.evaluate()]
    assert len({canonicalize_name(r.name) for r in here}) == len(here)
    return {canonicalize_name(r.name): r for r in here}


def needed(names, extra=""):
    """Everything that these packages need, and what that needs, and so on, by canonical name."""
    found, waiting, seen = set(), [(name, extra) for name in names], set()
    while waiting:
        name, extra = waiting.pop()
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            wanted = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
            asked = {(requirement.name, more) for more in requirement.extras or [""]} if wanted else set()
            found |= {canonicalize_name(name) for name, _ in asked}
            waiting += asked - seen
            seen |= asked
    return found - {canonicalize_name(name) for name in names}


@functools.cache
def sources():
    return {path: ast.parse(path.read_text()) for folder in FOLDERS.values() for path in folder.rglob("*.py")}


# ---- what is installed


def test_every_package_is_installed():
    found = set()
    for name, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            found.add(".".join((name, *path.parent.relative_to(folder).parts)))
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])
    for name, folder in PROJECT["tool"]["setuptools"]["package-dir"].items():
        assert (ROOT / folder) == FOLDERS[name]


def test_every_package_says_that_it_is_typed():
    for name, folder in FOLDERS.items():
        assert (folder / "py.typed").exists()
        assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"][name]


def test_whatever_is_no_code_is_installed():
    for name, folder in FOLDERS.items():
        held = {p for pattern in PROJECT["tool"]["setuptools"]["package-data"][name] for p in folder.glob(pattern)}
        others = {p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
        assert others == held


def test_the_version_stands_in_one_place_and_in_the_changelog():
    assert importlib.metadata.version("hyperstack") == hyperstack.__version__
    assert f"\n## [{hyperstack.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_command_is_installed():
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="hyperstack")
    assert callable(command.load())


@pytest.mark.slow
def test_what_is_imported_is_declared():
    declared = {Requirement(text).name for text in PROJECT["project"]["dependencies"]}
    known = {*sys.stdlib_module_names, *declared, *FOLDERS}
    extras = PROJECT["project"]["optional-dependencies"]
    named = [Requirement(text).name for extra in ("plots", "rivals", "tensorboard") for text in extras[extra]]
    optional = {"gdtuo", "PIL", *named}  # used where they are installed; PIL is Pillow
    for path, tree in sources().items():
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= known | optional, path


def test_no_file_names_a_folder_of_somebody():
    for path in [*sources(), *(ROOT / name for name in ("pyproject.toml", "constraints.txt", ".ci/run"))]:
        assert not re.search(r"/(home|root|Users|work)/", path.read_text()), path


# ---- what it is tested with


def test_whatever_the_tests_and_linters_need_has_its_version():
    platforms = ("nvidia-", "cuda-", "triton", "intel-", "pytorch-triton")  # of a torch for another device
    wanted = {n for n in needed(["hyperstack"], "test") | needed(LINTERS) if not n.startswith(platforms)}
    assert wanted <= set(constraints()), f"constraints.txt lacks {sorted(wanted - set(constraints()))}"


def test_the_versions_are_those_that_the_project_allows():
    extras = PROJECT["project"]["optional-dependencies"]
    known = constraints()
    for text in [*PROJECT["project"]["dependencies"], *(text for extra in extras.values() for text in extra)]:
        requirement = Requirement(text)
        if requirement.name != "hyperstack":
            version = str(known[canonicalize_name(requirement.name)].specifier).removeprefix("==")
            assert requirement.specifier.contains(version), text


def test_the_continuous_check_runs():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    subprocess.run(["bash", "-n", script], check=True)
    assert "set -euo pipefail" in script.read_text()


@pytest.mark.slow
def test_the_check_fails_where_a_part_fails(tmp_path):
    """On a copy with one mistake; without the network, as far as that goes."""
    for name in (".ci", "README.md"):
        subprocess.run(["cp", "-r", ROOT / name, tmp_path], check=True)
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    page = tmp_path / "README.md"
    page.write_text("<!-- setup: test -->\n```bash\necho ran &&\nfalse\n```\n")
    script = str(tmp_path / ".ci" / "run")
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([script, "test"], capture_output=True, text=True, check=False, cwd="/", env=env)
    assert done.returncode != 0
    assert "\nran\n" in done.stdout
    assert done.stdout.endswith("== failed: test\n")
    page.write_text("nothing\n")
    done = subprocess.run([script, "test"], capture_output=True, text=True, check=False, cwd="/", env=env)
    assert done.returncode != 0
    assert "has 0 blocks" in done.stderr
    assert not list(tmp_path.glob("hyperstack-ci.*"))
