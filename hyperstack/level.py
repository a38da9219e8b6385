"""One level of a tower without its state: the rule, and the shape of its hyperparameters; pure functions over both."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor

from hyperstack.hyperparameter import Resolved
from hyperstack.layout import Layout, Tensors
from hyperstack.numerics import Segments
from hyperstack.rule import Rule
from hyperstack.wrapper import Wrapper


class Level:
    """A rule with its hyperparameters resolved, for a level that updates `count` tensors, which have `names`.

    The learned hyperparameters lie one after another in a flat `raw` tensor: `learned` names them, `shapes` and
    `sizes` say what each takes, `segments` tells them apart, and `ends` is after how many steps each stays as it is,
    None where none does. `coefficient_dims` names the rule's coefficients: 0-dim, or 1-dim with one number a tensor,
    where `per_tensor`; `depends`, those that depend on anything learned. `findings` is what a step finds of each
    tensor, for the record: the "norm" of its gradient and "clip", by what factor transforms changed that, where there
    are any; and what the rule keeps of each tensor.
    """

    def __init__(self, rule: Rule, resolved: dict[str, Resolved], names: Sequence[str], device: torch.device) -> None:
        self.rule, self.resolved, self.names, self.count = rule, resolved, names, len(names)
        count = self.count
        self.dtype, self.device = scalar_dtype(device), device
        self.limits = rule if isinstance(rule, Wrapper) else None
        self.learned = [name for name, r in resolved.items() if r.learned]
        self.shapes: list[tuple[int, ...]] = [(count,) if resolved[n].per_tensor else () for n in self.learned]
        self.layout = Layout(dict(zip(self.learned, self.shapes, strict=True)))
        self.segments = Segments(self.shapes, device, self.learned)
        self.sizes = self.segments.sizes
        self.fixed = {n: self._tensor(r.value) for n, r in resolved.items() if not r.learned}
        ends = [resolved[name].steps for name in self.learned]
        self.ends = self._tensor([float("inf") if end is None else end for end in ends]) if any(ends) else None
        self.shared = [name for name in self.learned if resolved[name].shared]
        self.tangents = [name for name in self.learned if self.limits and name in self.limits.own]
        self.layer_states = list(rule.init_layers(self._tensor([1.0])))
        clipping = ["norm", "clip"] if rule.clip else []
        self.findings = [*clipping, *self.layer_states]
        values = self.values(self.start().requires_grad_())
        found = self.coefficients(values, self._tensor(1.0))
        self.coefficient_dims = {name: c.dim() for name, c in found.items()}
        self.per_tensor = any(self.coefficient_dims.values())
        self.depends = [name for name, c in found.items() if c.requires_grad]

    def _tensor(self, value: float | list[float]) -> Tensor:
        return torch.tensor(value, dtype=self.dtype, device=self.device)

    def holding(self, fixed: Tensors) -> Level:
        """The same level with other tensors for what is fixed."""
        other = copy.copy(self)
        other.fixed = fixed
        return other

    def start(self) -> Tensor:
        """The raw tensor before the first step."""
        resolved = (self.resolved[name] for name in self.learned)
        starts = [r.bijection.to_raw(r.value) for r in resolved]
        return self._tensor([x for x, size in zip(starts, self.sizes, strict=True) for _ in range(size)])

    def values(self, raw: Tensor, schedule: Tensor | None = None) -> SimpleNamespace:
        """Every hyperparameter in natural units, the rate times the schedule factor."""
        parts = self.layout.unpack(raw)
        learned = {name: self.resolved[name].bijection.to_value(part) for name, part in parts.items()}
        values = {name: learned[name] if name in learned else self.fixed[name] for name in self.resolved}
        if schedule is not None:
            values["lr"] = values["lr"] * schedule
        values.update({_tangent(name): parts[name] for name in self.tangents})
        return SimpleNamespace(**values)

    def coefficients(self, values: SimpleNamespace, step: Tensor, index: list[int] | None = None) -> Tensors:
        """The coefficients of step number `step`: 0-dim, or one a tensor, of the tensors at `index` if given."""
        if index is not None and any(v.dim() for v in vars(values).values()):
            chosen = torch.tensor(index, device=self.device)
            values = SimpleNamespace(**{k: v[chosen] if v.dim() else v for k, v in vars(values).items()})
        acting = {name: getattr(values, name) for name in map(_tangent, self.tangents)}
        return {**self.rule.coefficients(values, step), **acting}

    def update(
        self,
        grad: Tensor,
        state: Tensors,
        coefficients: Tensors,
        params: Tensor | None,
        segments: Segments,
        tangents: Tensors | None = None,
    ) -> tuple[Tensor, Tensors]:
        """What to add to flat tensors told apart by `segments`, and the state after.

        `tangents`: how the gradient depends on what acts on the losses, where that is to be differentiated.
        """
        for name, tangent in (tangents or {}).items():
            raw = coefficients[_tangent(name)]
            grad = grad + (raw - raw.detach()) * tangent
        whole = self.rule.per_layer
        spread = {n: segments.expand(c) if c.dim() and n not in whole else c for n, c in coefficients.items()}
        if whole:
            spread["layers"] = segments  # type: ignore[assignment]
        return self.rule.update(grad, state, SimpleNamespace(**spread), params)


def _tangent(name: str) -> str:
    """The coefficient of a hyperparameter that acts on the losses: its raw value."""
    return f"raw.{name}"


def scalar_dtype(device: torch.device) -> torch.dtype:
    """The dtype of hyperparameters and scalar algebra: float64, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64
