"""Memory that is freed and asked for again: the same pages, where a process says so."""

import os
import platform
import subprocess
import sys

import pytest

from hyperstack import memory

FAULTS = """
import resource
import torch
from hyperstack.memory import keep_freed

assert keep_freed()
a = torch.ones(4_000_000)  # 16 MB, and as much for each sum


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        a + a
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


faults()
print(faults())
"""


def unset(environment):
    """The environment of somebody who has chosen nothing."""
    return {name: value for name, value in environment.items() if not name.startswith(memory.OWN)}


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_what_is_freed_is_kept():
    """Twenty sums of 16 MB, each of fresh pages otherwise, take fewer than one of them would."""
    run = [sys.executable, "-c", FAULTS]
    done = subprocess.run(run, env=unset(os.environ), capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4_000_000 * 4 / os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_who_has_chosen_settings_keeps_them(name, monkeypatch):
    monkeypatch.setattr(memory.os, "environ", {**unset(os.environ), name: "1"})
    monkeypatch.setattr(memory.ctypes, "CDLL", None)  # not asked
    assert not memory.keep_freed()


@pytest.mark.parametrize("failure", [AttributeError, OSError, TypeError])
def test_another_c_library_stays_as_it_is(failure, monkeypatch):
    def missing(name):
        raise failure

    monkeypatch.setattr(memory.os, "environ", unset(os.environ))
    monkeypatch.setattr(memory.ctypes, "CDLL", missing)
    assert not memory.keep_freed()
