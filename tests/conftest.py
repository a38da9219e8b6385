"""What every test starts from: fixed seeds, one thread, signals heeded, and a visible reason where there is no GPU."""

import collections
import signal

import pytest
import torch
from toy import finished_run, furnished

# A process in the background may be told to ignore these, and would pass that on to those that the tests start.
for number, handler in {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}.items():
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

torch.set_num_threads(1)  # the tensors here are small: a second thread costs more than it gives


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """The current folder is one of the test's own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of two epochs, and what it said."""
    path = tmp_path_factory.mktemp("cli") / "run"
    return path, *finished_run(path)


@pytest.fixture(scope="module")
def run(finished):
    """The folder of a finished run."""
    return finished[0]


@pytest.fixture
def folder(tmp_path, run):
    """Where every command is tried that may write or lose nothing."""
    return furnished(tmp_path, run)


@pytest.hookimpl(tryfirst=True)  # before anything is chosen by its markers
def pytest_collection_modifyitems(items):
    counts = collections.Counter()
    for item in items:
        if sampled := item.get_closest_marker("sampled"):
            counts[item.function] += 1
            if counts[item.function] % sampled.args[0] != 1:
                item.add_marker("slow")
    if not torch.cuda.is_available():
        without = pytest.mark.skip(reason="needs a CUDA device, and there is none here")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(without)
