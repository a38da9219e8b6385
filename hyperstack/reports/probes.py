"""What is remarkable in a run whose hypergradients are measured at averages: see `reading`.

A probe finds a cosine. Near -1 all that the average moves lowers the loss, and the value rises by as much as the rate
above lets it; near 1 it falls. What has arrived has cosines around 0, or a little above: rates fall slowly as a
network learns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from hyperstack.reports.evidence import Evidence, Remark
from hyperstack.reports.text import number
from hyperstack.telemetry.record import Column, parts

FEWEST = 10  # probes, below which nothing is concluded from the last ones
PINNED = 0.5  # cosine, beyond which there is no doubt about the direction
FAR = 10.0  # times: a start that is that far off costs steps that a better one saves
LOWERED = 2.0  # times: as much smaller the bound on the first updates has made a rate


def unprobed(e: Evidence) -> Iterator[Remark]:
    """A run too short for a probe."""
    keys = [key for key in e.probed if key in e.learned and len(e.record) and not e.record.probes(key)[-1]]
    if keys:
        text = f"no probe in {e.record.steps[-1]:.0f} steps: nothing was learned yet; train longer, or probe more often"
        yield Remark(1, ", ".join(keys), text)


def early(e: Evidence) -> Iterator[Remark]:
    """A start so far off that the first probes all say so."""
    for key in _rates(e):
        fresh = e.record.fresh(key)
        cosines, values = e.column(key, "cosine")[fresh], e.column(key, "value")[fresh]
        for sign, side, way in ((-1, f"below -{PINNED:g}", "low"), (1, f"above {PINNED:g}", "high")):
            count = _leading(sign * cosines > PINNED)
            if not count or not _off(e, key, float(values[count - 1]), sign):
                continue
            end, step = number(values[count - 1]), int(e.record.steps[fresh][count - 1])
            text = f"the cosine was {side} at the first {count} probes: the start is too {way} by orders of magnitude; "
            if count == len(cosines):
                text += f"it has not arrived after {step} steps, at {end}; train longer, or start there"
            else:
                text += f"it took {step} steps to arrive at {end}; start nearer, lr=log({number(values[count - 1], 2)})"
            yield Remark(1, key, text)


def late(e: Evidence) -> Iterator[Remark]:
    """What the last probes still took on in one direction."""
    for key in e.probed:
        if key not in e.learned or e.diverged or e.rise:
            continue  # what took the loss up is not to go on
        fresh = e.record.fresh(key)
        cosines, values = e.column(key, "cosine")[fresh], e.column(key, "value")[fresh]
        for sign, side, way, start in ((-1, "below -", "rises", "higher"), (1, "above ", "falls", "lower")):
            count = _leading((sign * cosines > PINNED)[::-1])
            told = count == len(cosines) and key in _rates(e)  # by `early`
            if count < FEWEST or (told and _off(e, key, float(values[-1]), sign)):
                continue
            what = "the rate" if parts(key)[2] == "lr" else "it"
            ends = f"from {number(values[-count])} to {number(values[-1])}"
            text = f"the cosine stayed {side}{PINNED:g} in the last {count} probes, which took it {ends}: {what} still "
            yield Remark(1, key, f"{text}{way}; train longer, or start {start}")


PROBE_RULES: Sequence[Callable[[Evidence], Iterator[Remark]]] = (unprobed, early, late)


def _rates(e: Evidence) -> list[str]:
    """The learned rates of which there were probes, or will be."""
    return [key for key in e.probed if key in e.learned and parts(key)[2] == "lr" and len(e.record)]


def _off(e: Evidence, key: str, arrived: float, sign: int) -> bool:
    """Whether a rate has risen (-1), or fallen (1), by orders of magnitude from where the user had it start.

    One that the bound on the first updates made smaller rises from there, wherever it started.
    """
    first = float(e.column(key, "value")[0])
    lowered = sign < 0 and e.start(key) > LOWERED * first
    return first > 0 and arrived > 0 and not lowered and (arrived / first) ** -sign >= FAR


def _leading(flags: Column | np.typing.NDArray[np.bool_]) -> int:
    """How many hold before the first that does not."""
    return len(flags) if flags.all() else int(np.argmin(flags))
