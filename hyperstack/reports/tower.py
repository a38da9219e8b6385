"""The state of a tower as a table, for a loop that records nothing."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from hyperstack.reports.grid import Field, grid
from hyperstack.reports.leveltext import UNITLESS
from hyperstack.reports.text import number, percent

if TYPE_CHECKING:
    from torch import Tensor

    from hyperstack.optimizer import HyperOptimizer


def tower_summary(opt: HyperOptimizer, width: int | None = None) -> str:
    """What the tower of `opt` is doing now: a line for each hyperparameter that is learned, and a line of titles.

        print(hs.tower_summary(opt))

    Its key, such as "0.lr", with the rule of its level; its value in natural units, or the mean where it is one number
    a tensor; its hypergradient at the last step, before clipping, or their norm; to what share of itself the level
    above clipped it, where that does; and in how many steps it was left out because it was not finite, where there
    were any. Where hypergradients are measured at averages, those of the last probe, and its cosine, from -1 to 1. It
    waits for the device.

    width: columns of the terminal; as wide as the terminal is if not given. What there is no room for is left out.
    """
    values, grads, factors, skipped = (
        _plain(found)
        for found in (opt.hyperparameters(), opt.hypergradients(), opt.clip_factors(), opt.nonfinite_counts())
    )
    keys: list[str] = []
    rules: list[str] = []
    clipped: list[str] = []
    cosines: list[str] = []
    for prefix, tower in opt.towers():
        for k, level in enumerate(tower.levels):
            clip = tower.levels[k + 1].rule.clip if k + 1 < len(tower.levels) else ()
            above = bool(clip) and not any(transform.name in UNITLESS for transform in clip)
            found = tower.cosines() if k == 0 else {}
            for name in level.learned:
                keys.append(f"{prefix}{k}.{name}")
                rules.append(type(level.rule).__name__)
                clipped.append(percent(min(factors[keys[-1]]), 0) if above else "")
                cosines.append(number(float(found[name].mean()), 3) if name in found else "")
    fields = [
        Field("level", keys, right=False),
        Field("rule", rules, rank=3, right=False),
        Field("value", [number(sum(values[key]) / len(values[key]), 6) for key in keys]),
        Field("hypergradient", [number(_size(grads[key]), 3) for key in keys], rank=1),
        Field("cosine", cosines, rank=1),
        Field("clipped to", clipped, rank=2),
        Field("nan/inf", [f"{max(skipped[key]):.0f}" for key in keys], rank=1),
    ]
    no = {f.title for f in fields if f.title in ("cosine", "clipped to") and not any(f.cells)}
    no |= {"nan/inf"} if not any(max(skipped[key]) for key in keys) else set()
    if not keys:
        return "nothing is learned here"
    columns = shutil.get_terminal_size().columns if width is None else width
    return "\n".join(line.plain for line in grid([f for f in fields if f.title not in no], columns))


def _plain(found: dict[str, Tensor]) -> dict[str, list[float]]:
    return {key: x.flatten().tolist() for key, x in found.items()}


def _size(grads: list[float]) -> float:
    """A number as it is, and the norm of several."""
    largest = max(map(abs, grads))
    if len(grads) == 1 or not largest:
        return grads[0]
    return float(largest * sum((x / largest) ** 2 for x in grads) ** 0.5)
