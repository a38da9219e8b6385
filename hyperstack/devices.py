"""Devices by name, and their failures as errors of ours."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hyperstack.errors import InputError, RunError

FAILURES = tuple(getattr(torch, name) for name in ("OutOfMemoryError", "AcceleratorError") if hasattr(torch, name))


def find_device(name: str) -> torch.device:
    """The device called `name`, "auto" being a GPU if there is one; InputError that says why it cannot be had."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    instead = "use cpu, or auto for a GPU if there is one"
    if name == "meta":
        raise InputError("the meta device holds no numbers to train", instead=instead)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that PyTorch is about to drop
            device = torch.device(name)
            torch.zeros(1, device=device)
    except Exception as error:  # what PyTorch raises depends on the name: at least four kinds
        raise InputError(f"the device {name!r} cannot be used", why=_reason(name, error), instead=instead) from None
    return device


def _reason(name: str, error: Exception) -> str:
    kind = name.split(":")[0]
    if kind == "cuda" and not torch.cuda.is_available():
        return "this PyTorch finds no CUDA device"
    if kind == "cuda" and "nvalid device string" not in str(error):
        return f"there are {torch.cuda.device_count()} CUDA devices, counted from 0"
    if isinstance(error, NotImplementedError | ImportError | AssertionError):
        return f"this PyTorch was built without {kind}"
    return "a device is called cpu, cuda, cuda:1, mps, ..."


@contextmanager
def device_failures() -> Iterator[None]:
    """A RunError in the place of what PyTorch raises when a device fails or its memory does not suffice."""
    try:
        yield
    except FAILURES as error:
        memory = isinstance(error, torch.OutOfMemoryError)
        raise RunError(
            "the device ran out of memory" if memory else "the device failed",
            why=str(error).splitlines()[0],
            instead="choose a smaller batch size, or another device",
        ) from error
