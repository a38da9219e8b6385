"""A run in words: what is remarkable in it, each sentence made from figures that it cites, and what to change.

A rule is a small function with its thresholds beside it. Rules err on the side of silence: noise and random walks are
not remarkable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from hyperstack.reports.evidence import (
    SHARES,
    Evidence,
    Remark,
    by_level,
    distances,
    growth,
    key_above,
    movement,
    within,
)
from hyperstack.reports.probes import PROBE_RULES
from hyperstack.reports.run import Run
from hyperstack.reports.statistics import Statistics, finite, statistics_of, tensor_statistics
from hyperstack.reports.text import number, percent
from hyperstack.telemetry.record import Record, parts

FEWEST = 20  # recorded steps, below which nothing is concluded from how a series goes on
SURE = 4.0  # standard errors: one false alarm in ten thousand, so that the many keys of a run bring none
CLIPPED = 0.5  # share of steps: where most are clipped, the threshold and not the gradient sets the step
EDGE, NEARER = 1e-3, 0.1  # as close to 0 or 1 as that, and so much closer than at the start, little can be learned
MOVED = 1e-3  # relative change, below which what is learned could as well be a number in the stack
UNSETTLED, LATE = 0.1, 0.1  # relative change within the last tenth of the steps
CRUSHED = 0.1  # mean factor: what is clipped as far as that does not move because of the clip


def reading(
    source: Run | Record, record: Record | None = None, found: dict[str, Statistics] | None = None
) -> list[Remark]:
    """What is remarkable, the most severe first; of a run, or of a record alone.

    record: the part of the run's steps to read; all if not given. found: its `statistics`, where they are known.
    """
    whole = source.record if isinstance(source, Run) else source
    record = whole if record is None else record
    diverged, levels = None, list[str]()
    if isinstance(source, Run):
        if source.summary and len(record) == len(whole):
            diverged = bool(source.summary["diverged"])
        if len(source.stacks) == 1:
            levels = source.levels
            found = statistics_of(record, levels) if found is None else found
    with np.errstate(all="ignore"):  # numbers that are not finite are remarked on, not warned of
        evidence = Evidence(record, diverged, levels, found)
        remarks = [remark for rule in RULES for remark in rule(evidence)]
    return sorted(remarks, key=lambda remark: -remark.severity)


# ---- the rules


def diverged(e: Evidence) -> Iterator[Remark]:
    """The network ended with numbers that are not finite."""
    if not e.diverged:
        return
    loss, steps = e.record.columns["loss"], e.record.steps
    known = np.flatnonzero(np.isfinite(loss))
    if not len(known):
        yield Remark(3, "loss", "diverged; no finite loss was recorded")
        return
    last = int(known[-1])
    text = f"diverged: the last finite loss was {number(loss[last])}, at step {steps[last]:.0f}"
    grown = [key for key in e.learned if parts(key)[2] == "lr" and growth(e, key, last) > 10]
    if grown:
        key = max(grown, key=lambda k: growth(e, k, last))
        values = e.column(key, "value")
        text += (
            f"; {key} had gone from {number(values[0])} to {number(values[last])} by then: "
            f"{e.rate_above(key)} is too high, {e.cure(key)}"
        )
    else:
        text += ": start with a lower learning rate, or clip the network's gradients"
    yield Remark(3, "loss", text)


def clipped_and_worse(e: Evidence) -> Iterator[Remark]:
    """Clipping holds most steps back, and still the loss rose: the rate above is too high, and not its gradients."""
    held: dict[str, list[str]] = {}
    for key in e.learned:
        if e.rise and (e.statistics[key].clipped or 0) > CLIPPED:
            held.setdefault(key_above(key), []).append(key)
    for above, keys in held.items():
        assert e.rise
        shares = " and ".join(f"{key} in {percent(e.statistics[key].clipped, 0)}" for key in keys)
        yield Remark(
            3,
            above,
            f"clipped {shares} of steps and the loss rose after step {e.rise.step}, from "
            f"{number(e.rise.before)} to {number(e.rise.after)}: {e.rate_above(keys[0])} is too high; "
            f"{e.cure(keys[0])}",
        )


def loss_rose(e: Evidence) -> Iterator[Remark]:
    """Without clipping: the learned rate that grew most since the loss was lowest took it up."""
    if not e.rise or any((e.statistics[key].clipped or 0) > CLIPPED for key in e.learned):
        return
    text = f"rose after step {e.rise.step}, from {number(e.rise.before)} to {number(e.rise.after)}"
    rates = [key for key in e.learned if parts(key)[2] == "lr" and e.statistics[key].first]
    grown = {key: (e.statistics[key].max or 0) / (e.statistics[key].first or 1) for key in rates}
    key = max(grown, key=lambda k: grown[k], default="")
    if key and grown[key] > 2:
        s = e.statistics[key]
        text += (
            f"; {key} went from {number(s.first)} up to {number(s.max)}: {e.rate_above(key)} is too high; "
            f"{e.cure(key)}{'' if key in e.probed else ', or clip'}"
        )
    yield Remark(3, "loss", text)


def negative(e: Evidence) -> Iterator[Remark]:
    """A rate that went below 0 makes steps uphill."""
    for key in e.learned:
        s, values = e.statistics[key], e.column(key, "value")
        if parts(key)[2] == "lr" and s.min is not None and s.min < 0:
            step = int(e.record.steps[int(np.argmax(values < 0))])
            rule = f"lr=log({number(s.first)})" if s.first and s.first > 0 else "lr=log(...)"
            yield Remark(
                3, key, f"went below 0 at step {step} (least {number(s.min)}): learn it as log, {rule}, which cannot"
            )


def nonfinite(e: Evidence) -> Iterator[Remark]:
    """Hypergradients that were no numbers, other than those of a network that has diverged."""
    for key in e.learned:
        bad = ~np.isfinite(e.column(key, "grad")) & e.record.fresh(key)
        if e.diverged:
            known = np.flatnonzero(np.isfinite(e.record.columns["loss"]))
            bad[known[-1] + 1 if len(known) else 0 :] = False
        if count := int(bad.sum()):
            first = int(e.record.steps[int(np.argmax(bad))])
            text = (
                f"its hypergradient was not finite in {count} {e.turns(key)}, the first of them step {first}; "
                "they were skipped"
            )
            yield Remark(2, key, text)


def saturated(e: Evidence) -> Iterator[Remark]:
    """What came so close to an edge of its domain that it hardly leaves it again."""
    for key in e.learned:
        values = e.column(key, "value")
        if parts(key)[2] not in SHARES or len(values) < FEWEST or not within(values):
            continue
        for edge, distance in ((0, values), (1, 1 - values)):
            limit = min(EDGE, NEARER * float(distance[0]))
            if distance[-1] < limit:
                outside = np.flatnonzero(distance >= limit)
                step = int(e.record.steps[int(outside[-1]) + 1])
                ends = f"first {number(values[0])}, last {number(values[-1], 6)}"
                yield Remark(
                    2,
                    key,
                    f"saturated near {edge} from step {step} ({ends}): "
                    f"fixed({number(values[0])}) keeps it, or a lower rate above, {e.rate_above(key)}",
                )


def overshoots(e: Evidence) -> Iterator[Remark]:
    """A hypergradient whose sign alternates more often than noise: each step goes beyond the valley."""
    for key in e.learned:
        grad = e.column(key, "grad")[e.record.fresh(key)]
        half = grad[len(grad) // 2 :]
        signs = np.sign(finite(half))
        pairs = signs[1:] * signs[:-1]
        pairs = pairs[pairs != 0]
        flips, count = int((pairs < 0).sum()), len(pairs)
        if count < FEWEST or movement(key, e.column(key, "value")) < MOVED:
            continue
        if (flips - count / 2) / np.sqrt(count / 4) > SURE:
            yield Remark(
                2,
                key,
                f"its hypergradient changed sign in {percent(flips / count, 0)} of the last {count} {e.turns(key)}, "
                f"noise does in 50 %: it overshoots; a lower rate above, {e.rate_above(key)}, steadies it"
                f"{': ' + e.cure(key) if key in e.probed else ''}",
            )


def tensors_clipped(e: Evidence) -> Iterator[Remark]:
    """Parameters of the network whose gradients are clipped in most steps."""
    found = {name: s for name, s in tensor_statistics(e.record).items() if (s.clipped or 0) > CLIPPED}
    for name, s in list(found.items())[:1]:
        others = f", and {len(found) - 1} more in over {percent(CLIPPED, 0)}" if len(found) > 1 else ""
        text = (
            f"its gradient was clipped in {percent(s.clipped, 0)} of steps, to {percent(s.factor, 0)} on average"
            f"{others}: the threshold and not the gradient sets the step"
        )
        yield Remark(1, name, text)


def dead(e: Evidence) -> Iterator[Remark]:
    """Hypergradients that are 0 throughout."""
    for group in by_level(key for key in e.learned if e.count(key) >= FEWEST and e.statistics[key].grad_max == 0):
        fixed = ", ".join(f"{parts(key)[2]}=fixed({number(e.statistics[key].last)})" for key in group)
        yield Remark(
            1,
            ", ".join(group),
            f"hypergradients of 0 in all {e.count(group[0])} {e.turns(group[0])}: nothing is learned here; "
            f"{fixed} saves the work",
        )


def hardly_moved(e: Evidence) -> Iterator[Remark]:
    """What is learned and stays where it was, though its hypergradients are let through."""

    def idle(key: str) -> bool:
        s = e.statistics[key]
        crushed = (s.clipped or 0) > CLIPPED and (s.factor or 0) < CRUSHED
        return bool(s.grad_max) and not crushed and 0 <= movement(key, e.column(key, "value")) < MOVED

    for group in by_level(key for key in e.learned if e.count(key) >= FEWEST and idle(key)):
        most = max(movement(key, e.column(key, "value")) for key in group)
        names = ", ".join(f"{parts(key)[2]}=fixed({number(e.statistics[key].first)})" for key in group)
        yield Remark(
            1,
            ", ".join(group),
            f"moved by {number(100 * most, 2)} % at most in {len(e.record)} steps: {names} saves the work, "
            f"or raise {e.rate_above(group[0])}",
        )


def still_moving(e: Evidence) -> Iterator[Remark]:
    """What the last steps still took on in one direction."""
    late = int(len(e.record) * (1 - LATE))
    if e.diverged or e.rise or len(e.record) < FEWEST:
        return  # what took the loss up is not to go on
    for key in e.learned:
        if key in e.probed:
            continue  # a rate that is learned there goes on falling: see `probes.late`
        values = e.column(key, "value")[late - 1 :]
        if parts(key)[2] == "lr" and (e.statistics[key].min or 0) < 0:
            continue
        found = distances(key, values)
        start, middle, end = found[0], found[len(found) // 2], found[-1]
        onward = min(start, end) < middle < max(start, end)
        if onward and abs(end - start) > UNSETTLED * abs(start) > 0:
            yield Remark(
                1,
                key,
                f"not settled: the last {len(values) - 1} steps took it from {number(values[0])} to "
                f"{number(values[-1])}; train longer, or raise {e.rate_above(key)}",
            )


RULES: Sequence[Callable[[Evidence], Iterator[Remark]]] = (
    diverged,
    clipped_and_worse,
    loss_rose,
    negative,
    nonfinite,
    saturated,
    overshoots,
    dead,
    still_moving,
    tensors_clipped,
    hardly_moved,
    *PROBE_RULES,
)
