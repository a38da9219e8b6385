"""Memory that a training step frees is kept for the next one."""

from __future__ import annotations

import ctypes
import os

# malloc.h of glibc.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
TOP_PAD = 64 << 20
OWN = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed() -> bool:
    """Have the C library keep freed memory in this process; whether that was possible.

    glibc maps a large block from the system when it is asked for and unmaps it when it is freed, so that every large
    activation of every step is made of fresh pages, each cleared by the kernel at its first touch: up to a third of
    the time in which a CPU trains a convolutional network. Kept, they are reused. The process stays as large as it once
    was, which is right for one that does nothing but train, and wrong for a library to decide: only programs call this.

    Nothing is changed where the C library is another one, or where the user has chosen an allocator or its settings.
    """
    if any(name.startswith(OWN) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no such function; no such library; Windows
        return False
    settings = (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, TOP_PAD)
    done = [mallopt(name, value) for name, value in settings]
    return all(done)
