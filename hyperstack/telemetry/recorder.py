"""The recorder: one row a recorded step, gathered on the device and fetched in blocks.

A row holds the step, the loss and, for each learned hyperparameter KEY, `KEY.value` in natural units, `KEY.grad`
(its raw hypergradient, before clipping) and `KEY.clip` (the factor that clipping applied to it). Where a
hyperparameter has one number a tensor, `value` is their mean and `grad` the norm of their gradients.

Behind these stand, for what the level above clips by the cumulative average of its norm, `KEY.average`, that average
as the step left it; and what the primary level found: where it limits losses, `loss.bound` and `loss.limited`, the
share of losses that were; where it clips the network's gradients, for each parameter `@NAME.norm`, of its gradient, and
`@NAME.clip`, the factor; and what its rule keeps of each parameter, such as `@NAME.trust_ratio`.

Where hypergradients are measured at averages, every so many steps, `probe` is how many of these probes there were, and
for each learned hyperparameter KEY of the primary level, `KEY.cosine` is ḡ·d / (‖ḡ‖ ‖d‖), from -1 to 1, and
`KEY.displacement` is ‖d‖, how far a shift of KEY would have moved the average since the probe before: for the logarithm
of a rate, how far it did move. Between two probes they repeat, and so does `KEY.grad`; before the first all are 0. Of
one number a tensor, `cosine` is the mean, and `displacement` the norm.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from hyperstack.averaging import AveragingTower
from hyperstack.engine import Tower
from hyperstack.layout import Tensors
from hyperstack.optimizer import HyperOptimizer
from hyperstack.telemetry.sinks import Rows, Sink
from hyperstack.transforms import Cumulative

LOSSES = {"bound": "bound", "limited": "share"}
PROBED = ("cosine", "displacement")
VECTOR = 64  # a multiple of what processors compute at once


class Recorder:
    """Records every `every`-th step of an optimizer into sinks, without waiting for the device at each step.

        recorder = Recorder(opt, [JsonLines("record.jsonl")])
        ...
        opt.step()
        recorder.record(step, loss)
        ...
        recorder.close()

    Rows lie on the device until `block` of them are there or `seconds` have passed. A context manager, too.
    """

    def __init__(
        self, opt: HyperOptimizer, sinks: Sequence[Sink], every: int = 1, block: int = 256, seconds: float = 0.5
    ) -> None:
        self.every, self.seconds, self.sinks = every, seconds, list(sinks)
        self._opt, self._towers = opt, list(opt.towers())  # load_state_dict makes others, of the same form
        first = self._towers[0][1].cells
        sizes = [size for _, tower in self._towers for size in (len(tower.cells), len(tower.found))]
        width, self._sizes = 2 + sum(sizes), sizes
        self._rows = torch.zeros(block, width, dtype=first.dtype, device=first.device)
        # Every place that a step fills, as views made once.
        self._places = [(row[0], row[1], row[2:].split(sizes)) for row in self._rows.unbind()]
        self._filled, self._fetched_at = 0, time.perf_counter()
        self.columns = ["step", "loss"]
        for prefix, tower in self._towers:
            keys = [f"{prefix}{k}.{name}" for k, level in enumerate(tower.levels) for name in level.learned]
            self.columns += [f"{key}.{what}" for key in keys for what in ("value", "grad", "clip")]
        for prefix, tower in self._towers:
            self.columns += [f"{prefix}{key}.average" for key in _averages(tower)]
            self.columns += [f"{prefix}loss.{what}" for what in LOSSES if tower.levels[0].limits]
            if isinstance(tower, AveragingTower):
                keys = [f"{prefix}0.{name}" for name in tower.levels[0].learned]
                self.columns += [f"{prefix}probe", *(f"{key}.{what}" for key in keys for what in PROBED)]
            names = tower.levels[0].names
            self.columns += [f"{prefix}@{name}.{what}" for what in tower.findings.shapes for name in names]
        with ExitStack() as opened:
            for sink in self.sinks:
                sink.open(self.columns)
                opened.callback(sink.close)
            opened.pop_all()  # all or none

    @torch.no_grad()
    def record(self, step: int, loss: Tensor) -> None:
        """The state after optimizer step number `step`, whose loss was `loss` (0-dim, on the device)."""
        if step % self.every:
            return
        number, found, cells = self._places[self._filled]
        number.fill_(step)
        found.copy_(loss)
        for (_, tower), kept, measured in zip(self._opt.towers(), cells[::2], cells[1::2], strict=False):
            kept.copy_(tower.cells)
            measured.copy_(tower.found)
        self._filled += 1
        if self._filled == len(self._rows) or time.perf_counter() - self._fetched_at > self.seconds:
            self.fetch()

    def fetch(self) -> None:
        """Hand the rows that are waiting on the device to the sinks, and flush them."""
        if self._filled:
            rows = self._natural(self._rows[: self._filled])
            self._filled = 0
            for sink in self.sinks:
                sink.write(rows)
                sink.flush()
        self._fetched_at = time.perf_counter()

    def close(self) -> None:
        """Fetch what is left and close the sinks."""
        self.fetch()
        for sink in self.sinks:
            sink.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _natural(self, block: Tensor) -> Rows:
        """Rows of cells as the columns that sinks see; the bijections run once a block, not once a step.

        A number may round otherwise at the end of a vector than within: padded, all of them lie within, so that a row
        is the same to the last bit in whichever block it comes.
        """
        count, block = len(block), torch.nn.functional.pad(block.cpu(), (0, 0, 0, -len(block) % VECTOR))
        columns, *cells = block.split([2, *self._sizes], dim=1)
        towers = [tower for _, tower in self._towers]
        found = [columns, *(_columns(tower, rows) for tower, rows in zip(towers, cells[::2], strict=True))]
        for tower, rows, measured in zip(towers, cells[::2], cells[1::2], strict=True):
            parts = dict(zip(tower.climb.layout.shapes, rows.split(tower.climb.layout.sizes, dim=1), strict=True))
            found += [parts[cell][:, i : i + 1] for cell, i in _averages(tower).values()]
            found += [parts[f"0.loss.{cell}"] for cell in LOSSES.values() if tower.levels[0].limits]
            found += [*(_probed(tower, parts) if isinstance(tower, AveragingTower) else []), measured]
        return torch.cat(found, dim=1)[:count].double().numpy()


def _averages(tower: Tower) -> dict[str, tuple[str, int]]:
    """For each learned hyperparameter under a cumulative clip: the cell with the averages, and its place there."""
    found: dict[str, tuple[str, int]] = {}
    for k, (level, above) in enumerate(zip(tower.levels, tower.levels[1:], strict=False)):
        for i, transform in enumerate(above.rule.clip):
            if isinstance(transform, Cumulative):
                found |= {f"{k}.{name}": (f"{k + 1}.clip.{i}.average", j) for j, name in enumerate(level.learned)}
    return found


def _probed(tower: Tower, parts: Tensors) -> Iterator[Tensor]:
    """The number of probes; of each learned hyperparameter of the primary level, cosine and displacement."""
    yield parts["0.probes"]
    sizes = tower.levels[0].sizes
    pairs = zip(*(parts[f"0.{what}"].split(sizes, dim=1) for what in PROBED), strict=True)
    for cosines, displacements in pairs:
        yield cosines.mean(dim=1, keepdim=True)
        yield displacements.norm(dim=1, keepdim=True)


def _columns(tower: Tower, rows: Tensor) -> Tensor:
    """Value, hypergradient and clip factor of each learned hyperparameter of a tower, one column each."""
    parts = dict(zip(tower.climb.layout.shapes, rows.split(tower.climb.layout.sizes, dim=1), strict=True))
    columns = [rows[:, :0]]
    for k, level in enumerate(tower.levels):
        values = parts[f"{k}.raw"].split(level.sizes, dim=1)
        grads = parts[f"{k}.hypergradient"].split(level.sizes, dim=1)
        for i, name in enumerate(level.learned):
            natural = level.resolved[name].bijection.to_value(values[i])
            grad = grads[i] if level.sizes[i] == 1 else grads[i].norm(dim=1, keepdim=True)
            columns += [natural.mean(dim=1, keepdim=True), grad, parts[f"{k}.factor"][:, i : i + 1]]
    return torch.cat(columns, dim=1)
