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

assert keep_freed() is {kept}
a = torch.ones(4_000_000)  # 16 MB, and as much for each sum


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        a + a
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


faults()
print(faults())
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


def faults(kept, **settings):
    """Pages that the kernel makes for twenty sums of 16 MB, after as many before them."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_"))}
    code = FAULTS.format(kept=kept)
    done = subprocess.run(
        [sys.executable, "-c", code], env={**env, **settings}, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@glibc
def test_what_is_freed_is_kept():
    page = os.sysconf("SC_PAGE_SIZE")
    assert faults(kept=True) < 4_000_000 * 4 / page  # less than one of the twenty, each of which is fresh otherwise


@pytest.mark.parametrize("settings", [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.check=0"}])
def test_who_has_chosen_settings_keeps_them(settings):
    faults(kept=False, **settings)


@pytest.mark.parametrize("failure", [AttributeError, OSError, TypeError])
def test_another_c_library_stays_as_it_is(failure, monkeypatch):
    def missing(name):
        raise failure

    for name in os.environ:
        if name.startswith(memory.OWN):
            monkeypatch.delenv(name)
    monkeypatch.setattr(memory.ctypes, "CDLL", missing)
    assert not memory.keep_freed()
