"""Flat buffers: the tensors that a level updates, their state, and the record of their last update.

A `Bucket` holds the tensors of one level that have always had gradients together, on one device and in
one dtype. Its state and its record are flat, and work goes through them in `Block`s small enough to stay
in cache: on a CPU every large temporary is freshly mapped memory, which costs more than the arithmetic.

The tensors themselves are never moved into the buffer: parameters stay where the user put them, so that
`.data`, `load_state_dict` and identity go on meaning what they mean without hyperstack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyperstack.numerics import Segments
from hyperstack.rule import Rule

BLOCK = 1 << 17
"""Elements of a block: 512 KiB in float32, a few of which share a core's cache."""


@dataclass
class Block:
    """A range of a bucket's flat buffer, and where its elements come from.

    `pieces` holds (tensor, first element, past-the-last element); `segments` are the parts of the range
    that are told apart, and `tensors` says which of the bucket's segments those are.
    """

    range: slice
    pieces: list[tuple[int, int, int]]
    segments: Segments
    tensors: slice

    def gather(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """The block's elements of `tensors`, flat: a view where they are one contiguous piece."""
        parts = [tensors[i].reshape(-1)[a:b] for i, a, b in self.pieces]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(dtype)

    def add(self, tensors: Sequence[Tensor], delta: Tensor) -> None:
        """Add the block's flat `delta` to its elements of `tensors`, in place."""
        parts = delta.split([b - a for _, a, b in self.pieces])
        targets = [tensors[i] if b - a == tensors[i].numel() else tensors[i].view(-1)[a:b] for i, a, b in self.pieces]
        shaped = [part.view(target.shape) for part, target in zip(parts, targets, strict=True)]
        torch._foreach_add_(targets, shaped)


def cut(segments: Segments, splittable: Sequence[bool], device: torch.device, size: int = BLOCK) -> list[Block]:
    """Blocks of about `size` elements over the buffer; a tensor is split only where `splittable` says so."""
    ranges: list[list[tuple[int, int, int]]] = [[]]
    room = size
    for i, count in enumerate(segments.sizes):
        done = 0
        while done < count or (count == 0 and done == 0):
            if room <= 0:
                ranges, room = [*ranges, []], size
            take = min(count - done, room) if splittable[i] else count
            ranges[-1].append((i, done, done + take))
            done, room = done + max(take, 1), room - take
    blocks, start = [], 0
    for pieces in ranges:
        lengths = [(b - a,) for _, a, b in pieces]
        total = sum(n for (n,) in lengths)
        tensors = slice(pieces[0][0], pieces[-1][0] + 1)
        blocks.append(Block(slice(start, start + total), pieces, Segments(lengths, device), tensors))
        start += total
    return blocks


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of state and arithmetic for parameters of `dtype`: half precision is computed in float32."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


@dataclass
class Bucket:
    """Tensors of one level that move together, their state, and what their last update was a function of.

    `index`: which tensors of the level; `step`: updates so far, 0-dim, or one a tensor where single tensors
    may be skipped; `state`: the rule's state *before* the last update while `pending`, else after it;
    `grad`: the transformed gradient of the last update; `params`: the parameters before it, where the rule
    reads them; `applied`: which tensors that update moved (None: all); `transforms`: a state a transform.
    """

    index: list[int]
    segments: Segments
    blocks: list[Block]
    step: Tensor
    grad: Tensor
    state: dict[str, Tensor]
    transforms: list[dict[str, Tensor]]
    params: Tensor | None
    applied: Tensor | None = None
    pending: bool = False

    @classmethod
    def of_parameters(cls, rule: Rule, index: list[int], tensors: Sequence[Tensor]) -> Bucket:
        """The parameters at `index` of the primary level, before their first update."""
        device = tensors[0].device
        segments = Segments([tuple(t.shape) for t in tensors], device)
        blocks = cut(segments, [t.is_contiguous() for t in tensors], device)
        like = torch.zeros(segments.total, dtype=compute_dtype(tensors[0].dtype), device=device)
        step = torch.zeros((), dtype=scalar_dtype(device), device=device)
        return cls._new(rule, index, segments, blocks, step, like)

    @classmethod
    def of_hyperparameters(cls, rule: Rule, raw: Tensor, shapes: list[tuple[int, ...]], skips: bool) -> Bucket:
        """The hyperparameters of the level below, which lie one after another in the flat tensor `raw`.

        Each is told apart and counts its own steps; where `skips`, single ones may be left out of a step.
        """
        segments = Segments(shapes, raw.device)
        everything = slice(0, len(shapes))
        block = Block(slice(0, segments.total), [(0, 0, segments.total)], segments, everything)
        step = torch.zeros(len(shapes), dtype=raw.dtype, device=raw.device)
        made = cls._new(rule, list(range(len(shapes))), segments, [block], step, torch.zeros_like(raw))
        made.applied = torch.ones(len(shapes), dtype=torch.bool, device=raw.device) if skips else None
        return made

    @classmethod
    def _new(
        cls, rule: Rule, index: list[int], segments: Segments, blocks: list[Block], step: Tensor, like: Tensor
    ) -> Bucket:
        transforms = [transform.init(segments, like) for transform in rule.clip]
        params = torch.zeros_like(like) if rule.reads_params else None
        return cls(index, segments, blocks, step, like, rule.init(like), transforms, params)

    def flats(self) -> dict[str, Tensor]:
        """The flat buffers by name: the rule's state, the record's gradient, and its parameters if kept."""
        return {**self.state, "grad": self.grad, **({} if self.params is None else {"params": self.params})}

    def views(self, position: int, shape: torch.Size) -> dict[str, Tensor]:
        """The state of one tensor, as views of the flat buffers, under torch's names."""
        start = sum(self.segments.sizes[:position])
        stop = start + self.segments.sizes[position]
        return {"step": self.step, **{k: v[start:stop].view(shape) for k, v in self.flats().items()}}

    def part(self, keep: list[int], rule: Rule, tensors: Sequence[Tensor]) -> Bucket:
        """A new bucket with a copy of the tensors at positions `keep`."""
        made = Bucket.of_parameters(rule, [self.index[i] for i in keep], [tensors[self.index[i]] for i in keep])
        made.pending = self.pending
        made.step.copy_(self.step)
        ours = {**self.flats()}
        for name, flat in made.flats().items():
            parts = ours[name].split(self.segments.sizes)
            flat.copy_(torch.cat([parts[i] for i in keep]))
        chosen = torch.tensor(keep, device=self.grad.device)
        made.transforms = [{k: v.index_select(0, chosen) for k, v in state.items()} for state in self.transforms]
        return made

    def export(self) -> dict[str, Any]:
        """The bucket as tensors and plain values."""
        return {
            "index": list(self.index),
            "step": self.step,
            **{f"flat.{k}": v for k, v in self.flats().items()},
            "transforms": self.transforms,
            "applied": self.applied,
            "pending": self.pending,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Copy what `export` returned into this bucket, made for the same rule and tensors."""
        self.pending = bool(saved["pending"])
        self.step.copy_(saved["step"])
        for name, flat in self.flats().items():
            flat.copy_(saved[f"flat.{name}"])
        if self.applied is not None:
            self.applied.copy_(saved["applied"])
        for mine, theirs in zip(self.transforms, saved["transforms"], strict=True):
            for key, tensor in mine.items():
                tensor.copy_(theirs[key])


def scalar_dtype(device: torch.device) -> torch.dtype:
    """The dtype of hyperparameters and scalar algebra: float64, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64
