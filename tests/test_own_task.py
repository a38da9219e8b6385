"""Tasks from outside the package: a class in a file, and entry points."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from toy import command, contents, ok

from hyperstack.errors import InputError
from hyperstack.tasks import TASKS, get_task, own, same_task

pytestmark = pytest.mark.usefixtures("elsewhere")

FILE = '''\
"""A task of the user's."""

import torch

from hyperstack.tasks import Classifier, Data, Task
from beside import COUNT


class Sides(Classifier):
    """On which side of a line a point lies."""

    name = "sides"
    summary = "points on two sides of a line"
    batch_size = 16
    epochs = 2

    def load(self, data_dir, device, notify=None):
        points = torch.randn(COUNT, 2, generator=torch.Generator().manual_seed(0)).to(device)
        sides = (points.sum(1) > 0).long()
        return Data(points[::2], sides[::2], points[1::2], sides[1::2])

    def model(self):
        return torch.nn.Linear(2, 2)


class Half(Task):
    name = "half"

    def model(self):
        return torch.nn.Linear(2, 2)


class Nameless(Sides):
    name = None


class Elsewhere(Sides):
    name = "../elsewhere"


class Broken(Sides):
    def __init__(self):
        raise RuntimeError("no luck\\nand more of it")


def number():
    return 3
'''


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """tasks.py and what it imports, in a folder `mine` beside others; modules are forgotten afterwards."""
    before, path = set(sys.modules), list(sys.path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "tasks.py").write_text(FILE)
    (tmp_path / "mine" / "beside.py").write_text("COUNT = 128\n")
    (tmp_path / "mine" / "typo.py").write_text("def broken(:\n")
    (tmp_path / "mine" / "missing.py").write_text("import no_such_module\n")
    (tmp_path / "mine" / "exits.py").write_text("import sys\nsys.exit('two\\nlines')\n")
    (tmp_path / "mine" / "nothing.py").write_text("from hyperstack.tasks import Task\n")
    yield
    for name in set(sys.modules) - before:
        if name.startswith("hyperstack_task_") or name in ("beside", "a_package_of_tasks"):
            del sys.modules[name]
    sys.path[:] = path


# ---- a class in a file


def test_a_class_in_a_file(tmp_path):
    task = get_task("mine/tasks.py:Sides")
    assert (task.name, task.batch_size) == ("sides", 16)
    assert type(get_task(f"{tmp_path}/mine/../mine/tasks.py:Sides")) is type(task), "the file was imported twice"


def test_home_in_a_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert get_task("~/mine/tasks.py:Sides").name == "sides"


WRONG = {
    "mine/nowhere.py:Sides": ["there is no file mine/nowhere.py", "does not exist"],
    "mine:Sides/": ["does not name a class in a file"],
    "mine/tasks.py": ["does not name a class in a file", "path/to/file.py:MyTask"],
    "tasks.py": ["does not name a class in a file"],
    "mine/tasks.py:": ["does not name a class in a file"],
    "mine/tasks.py:a b": ["does not name a class in a file"],
    "mine/tasks.py:Side": ["mine/tasks.py holds no Side", "its tasks are Sides", "use mine/tasks.py:Sides"],
    "mine/nothing.py:Sides": ["mine/nothing.py holds no Sides", "it holds no task"],
    "mine/tasks.py:number": ["is no task", "no subclass of hyperstack.tasks.Task"],
    "mine/tasks.py:COUNT": ["is no task"],
    "mine/tasks.py:Half": ["is not whole", "it lacks error, load, losses"],
    "mine/tasks.py:Nameless": ["has the name None", 'name = "mine"'],
    "mine/tasks.py:Elsewhere": ["has the name '../elsewhere'"],
    "mine/tasks.py:Broken": ["can't be made", "RuntimeError: no luck"],
    "mine/typo.py:Sides": ["mine/typo.py can't be imported", "SyntaxError: ", "(typo.py, line 1)"],
    "mine/missing.py:Sides": ["can't be imported", "ModuleNotFoundError: No module named 'no_such_module'"],
    "mine/exits.py:Sides": ["can't be imported", "SystemExit: two"],
}


@pytest.mark.parametrize("text", WRONG)
def test_a_file_that_is_wrong_is_named_and_nothing_is_written(tmp_path, text):
    before = {path: held for path, held in contents(tmp_path).items() if "__pycache__" not in path.parts}
    code, output, remarks = command("train", text, "--out", "run")
    assert (code, output) == (2, "")
    for part in WRONG[text]:
        assert part in remarks
    assert "Traceback" not in remarks
    assert len(remarks.splitlines()) <= 3
    assert {p: held for p, held in contents(tmp_path).items() if "__pycache__" not in p.parts} == before


def test_a_folder_named_like_a_file(tmp_path):
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(InputError, match="it is not a file"):
        get_task("folder.py:Sides")


def test_a_file_that_failed_may_be_corrected(tmp_path):
    with pytest.raises(InputError, match="can't be imported"):
        get_task("mine/typo.py:Sides")
    (tmp_path / "mine" / "typo.py").write_text(FILE + "# corrected\n")
    assert get_task("mine/typo.py:Sides").name == "sides"


# ---- runs of such a task


def test_train_and_resume_from_another_folder(tmp_path, monkeypatch):
    """The run is filed under the task's name, and the plan holds what was typed."""
    output = ok("train", "mine/tasks.py:Sides", "--quiet", "--stack", "Adam(0.1) / SGD(1e-3)")
    assert output.startswith("test error ")
    run = tmp_path / "runs" / "sides-001"
    plan, summary = (json.loads((run / f"{name}.json").read_text()) for name in ("plan", "summary"))
    assert plan["task"] == summary["task"] == "mine/tasks.py:Sides"
    assert (plan["batch_size"], summary["steps"]) == (16, 8)
    assert summary["test_error"] < 0.3
    monkeypatch.chdir(tmp_path / "runs")
    ok("train", "../mine/tasks.py:Sides", "--quiet", "--out", "sides-001", "--resume", "--epochs", 3)
    ok("train", tmp_path / "mine/tasks.py:Sides", "--quiet", "--out", "sides-001", "--resume", "--epochs", 4)
    assert json.loads((run / "summary.json").read_text())["steps"] == 16
    assert json.loads((run / "plan.json").read_text())["task"] == "mine/tasks.py:Sides"
    straight = tmp_path / "straight"
    ok(
        "train",
        "../mine/tasks.py:Sides",
        "--quiet",
        "--stack",
        "Adam(0.1) / SGD(1e-3)",
        "--epochs",
        4,
        "--out",
        straight,
    )
    assert (run / "record.jsonl").read_bytes() == (straight / "record.jsonl").read_bytes()


@pytest.mark.parametrize("other", ["mine/other.py:Sides", "mine/tasks.py:Others", "toy", "mnist"])
def test_another_task_does_not_resume_it(tmp_path, other):
    (tmp_path / "mine" / "other.py").write_text(FILE)
    (tmp_path / "mine" / "tasks.py").write_text(FILE + "\n\nclass Others(Sides):\n    pass\n")
    ok("train", "mine/tasks.py:Sides", "--quiet", "--out", "run")
    before = contents(tmp_path / "run")
    code, _, remarks = command("train", other, "--out", "run", "--resume", "--epochs", 3)
    assert code == 2
    assert "belongs to another task" in remarks
    assert contents(tmp_path / "run") == before


def test_what_is_printed_to_go_on_with_can_be_typed(tmp_path):
    (tmp_path / "my tasks").mkdir()
    (tmp_path / "my tasks" / "tasks.py").write_text(
        FILE + "\n\nclass Stopped(Sides):\n    def losses(self, outputs, targets):\n        import signal\n\n"
        "        if len(outputs) == 16:  # in training\n            signal.raise_signal(signal.SIGINT)\n"
        "        return super().losses(outputs, targets)\n"
    )
    (tmp_path / "my tasks" / "beside.py").write_text("COUNT = 128\n")
    code, output, _ = command("train", "my tasks/tasks.py:Stopped", "--out", "run")
    assert code == 130
    assert "hyperstack train 'my tasks/tasks.py:Stopped' --out run --resume" in output


TRIED = [
    ("load(self, *_)", "return torch.ones(4, 2), torch.ones(4)", "load() gives a tuple", "a hyperstack.tasks.Data"),
    ("load(self, *_)", "return Data(*[torch.ones(n, 2) for n in (4, 3, 4, 4)])", "4 train_inputs and 3 train_targets"),
    ("load(self, *_)", "return Data(*[torch.ones(n, 2) for n in (4, 4, 0, 0)])", "0 test_inputs", "one at least"),
    ("load(self, *_)", "return Data(*[[1.0]] * 4)", "train data that are no tensors"),
    ("model(self)", "pass", "model() gives a NoneType", "a torch.nn.Module"),
    ("model(self)", "return torch.nn.Linear", "model() gives the class Linear"),
    ("model(self)", "return super().model().requires_grad_(False)", "without parameters to train"),
    ("prepare(self, x, *_)", "return x", "prepare() gives float32 [4, 2]", "a pair"),
    ("losses(self, *x)", "return super().losses(*x).mean()", "losses() gives float32 [] for 4 examples", "point, [4]"),
    ("losses(self, *x)", "return super().losses(*x).mean().item()", "losses() gives a float for 4 examples"),
    ("error(self, *x)", "return super().error(*x).mean()", "error() gives float32 [] for 4 examples"),
    ("error(self, *x)", "return super().error(*x) > 0", "error() gives bool [4]"),
    ("error(self, *x)", "return super().error(*x) * 100 + 60", "error() gives", "a number from 0 to 1"),
    ("batch_size", "'20'", "batch_size is '20'", "a whole number from 1 up"),
]


@pytest.mark.parametrize("verb", ["train", "sweep"])
@pytest.mark.parametrize(("name", "body", "said"), [pytest.param(n, b, said, id=said[0]) for n, b, *said in TRIED])
def test_a_task_that_is_none_is_refused_before_anything_is_written(verb, name, body, said, tmp_path):
    changed = f"def {name}:\n        {body}" if "(" in name else f"{name} = {body}"
    (tmp_path / "mine" / "wrong.py").write_text(f"{FILE}\n\nclass Wrong(Sides):\n    {changed}\n")
    before = contents(tmp_path)
    code, output, remarks = command(verb, "mine/wrong.py:Wrong", *(["--grid", "α=1e-5"] if verb == "sweep" else []))
    assert (code, output) == (2, ""), remarks
    for each in ("the task sides: ", *said):
        assert each in remarks
    assert {path for path in contents(tmp_path) if "__pycache__" not in str(path)} == set(before)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("mnist", "mnist", True),
        ("mnist", "mnist-conv", False),
        ("a/b.py:C", "b.py:C", True),
        ("a/b.py:C", "/x/y/b.py:C", True),
        ("a/b.py:C", "a/b.py:D", False),
        ("a/b.py:C", "a/c.py:C", False),
        ("mnist", "mnist.py:mnist", False),
    ],
)
def test_what_counts_is_the_name_of_the_file_and_of_the_class(one, other, same):
    assert same_task(one, other) is same_task(other, one) is same


# ---- entry points


def install(folder, points, name="a-package"):
    """What pip leaves behind of a package with these entry points, in a folder of the path."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = "".join(f"{point} = {value}\n" for point, value in points.items())
    (info / "entry_points.txt").write_text(f"[hyperstack.tasks]\n{lines}")
    return folder


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package with a task, and broken ones, which may not be imported unless asked for."""
    site = tmp_path / "site"
    points = {
        "sides": "a_package_of_tasks:Sides",
        "number": "a_package_of_tasks:number",
        "gone": "a_package_of_tasks:Gone",
        "broken": "a_broken_package:Task",
        "mnist": "a_package_of_tasks:Sides",
    }
    install(site, points)
    (site / "a_package_of_tasks.py").write_text(FILE)
    (site / "beside.py").write_text("COUNT = 128\n")
    (site / "a_broken_package.py").write_text("raise OSError('a library is missing\\nand a second line')\n")
    monkeypatch.syspath_prepend(site)
    return site


def test_the_entry_point_of_a_package(installed):
    assert get_task("sides").summary == "points on two sides of a line"
    assert ok("train", "sides", "--quiet", "--out", "run").startswith("test error")
    assert json.loads(Path("run/plan.json").read_text())["task"] == "sides"
    assert "finished already" in ok("train", "sides", "--out", "run", "--resume")


def test_the_tasks_that_come_with_hyperstack_go_first(installed):
    assert type(get_task("mnist")) is TASKS["mnist"]
    assert "a_package_of_tasks" not in sys.modules


def test_names_are_listed_without_importing_anything(installed):
    with pytest.raises(InputError) as raised:
        get_task("side")
    assert "broken, cifar10, " in raised.value.why
    assert "use 'sides'" in raised.value.instead
    assert not {"a_package_of_tasks", "a_broken_package"} & set(sys.modules)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("broken", ["the task 'broken' of the package a-package can't be imported", "OSError: a library is missing"]),
        ("gone", ["can't be imported", "AttributeError: "]),
        ("number", ["a_package_of_tasks:number is no task"]),
    ],
)
def test_a_broken_entry_point_is_named_and_breaks_no_other(installed, name, said):
    code, output, remarks = command("train", name)
    assert (code, output) == (2, "")
    for part in said:
        assert part in remarks
    assert len(remarks.splitlines()) <= 3
    assert get_task("sides").name == "sides"


def test_two_packages_with_one_name(installed, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(install(tmp_path / "other", {"sides": "another:Sides"}, "another-package"))
    with pytest.raises(InputError, match="several packages have a task 'sides': a-package, another-package"):
        get_task("sides")


def test_a_package_that_is_found_twice_has_its_task_once(installed, tmp_path, monkeypatch):
    """As an editable install may be."""
    monkeypatch.syspath_prepend(install(tmp_path / "again", {"sides": "a_package_of_tasks:Sides"}))
    assert get_task("sides").name == "sides"


# ---- what it costs


@pytest.mark.slow
def test_the_tasks_import_nothing_but_torch_and_numpy():
    program = textwrap.dedent("""
        import sys, torch
        before = set(sys.modules)
        import hyperstack.tasks
        new = {name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
        sys.exit(f"imported: {new}" if new - {"hyperstack", "numpy"} else 0)
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_known_name_is_looked_for_nowhere_else(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **options: pytest.fail("packages were looked at"))
    assert get_task("mnist").name == "mnist"
    assert own.is_in_a_file("a.py:B")
    assert not own.is_in_a_file("mnist")
