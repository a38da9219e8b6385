"""What summaries of runs have in common."""

from __future__ import annotations

import math
import platform
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hyperstack.version import __version__


def number(x: float) -> float | None:
    """A number as JSON has it: not-a-number and infinity are null."""
    return x if math.isfinite(x) else None


def plain(value: Tensor) -> float | list[float | None] | None:
    """A 0-dim or 1-dim tensor as JSON has it."""
    return number(value.item()) if value.dim() == 0 else [number(x) for x in value.tolist()]


def versions() -> dict[str, Any]:
    """Of what a run was made with."""
    return {
        "hyperstack": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
