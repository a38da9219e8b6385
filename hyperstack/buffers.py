"""Flat buffers: the parameters that a tower updates, their state, and the record of their last update.

A `Bucket` holds the parameters that have always had gradients together, on one device and in one dtype. Its state
and its record are flat, and work goes through them in `Block`s small enough to stay in cache: on a CPU every large
temporary is freshly mapped memory, which costs more than the arithmetic.

The parameters themselves are never moved into the buffer: they stay where the user put them, so that `.data`,
`load_state_dict` and identity go on meaning what they mean without hyperstack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyperstack.layout import Layout, Tensors
from hyperstack.level import Level
from hyperstack.numerics import Segments

BLOCK = 1 << 17
"""Elements of a block: 512 KiB in float32, a few of which share a core's cache."""


@dataclass
class Block:
    """A range of a bucket's flat buffer, and where its elements come from.

    `pieces` holds (tensor, first element, past-the-last element), the tensor by its place in the bucket; `whole`:
    whether these are several tensors from their first to their last element.
    """

    range: slice
    pieces: list[tuple[int, int, int]]
    segments: Segments
    whole: bool

    @property
    def tensors(self) -> slice:
        """Which of the bucket's tensors the block touches."""
        return slice(self.pieces[0][0], self.pieces[-1][0] + 1)

    def gather(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """The block's elements of `tensors`, flat: a view where they are one contiguous piece."""
        if self.whole:
            return torch._C._nn.flatten_dense_tensors(list(tensors[self.tensors])).to(dtype)
        flats = [tensors[i].reshape(-1) for i, _, _ in self.pieces]
        parts = [f if b - a == f.numel() else f[a:b] for f, (_, a, b) in zip(flats, self.pieces, strict=True)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(dtype)

    def add(self, tensors: Sequence[Tensor], delta: Tensor) -> None:
        """Add the block's flat `delta` to its elements of `tensors`, in place."""
        if self.whole:
            whole = list(tensors[self.tensors])
            torch._foreach_add_(whole, torch._C._nn.unflatten_dense_tensors(delta, whole))
            return
        targets = [tensors[i] if b - a == tensors[i].numel() else tensors[i].view(-1)[a:b] for i, a, b in self.pieces]
        parts = delta.split(self.segments.sizes)
        torch._foreach_add_(targets, [p.view(t.shape) for p, t in zip(parts, targets, strict=True)])


def cut(segments: Segments, splittable: Sequence[bool], device: torch.device) -> list[Block]:
    """Blocks of about BLOCK elements over the buffer; a tensor is split only where `splittable` says so."""
    ranges: list[list[tuple[int, int, int]]] = [[]]
    room = BLOCK
    for i, count in enumerate(segments.sizes):
        done = 0
        if not count:
            ranges[-1].append((i, 0, 0))  # so that a block's tensors have no gaps
        while done < count:
            if room <= 0:
                ranges, room = [*ranges, []], BLOCK
            take = min(count - done, room) if splittable[i] else count
            ranges[-1].append((i, done, done + take))
            done, room = done + take, room - take
    blocks, start = [], 0
    for pieces in filter(None, ranges):
        parts = Segments([(b - a,) for _, a, b in pieces], device)
        whole = len(pieces) > 1 and all(b - a == segments.sizes[i] for i, a, b in pieces)
        blocks.append(Block(slice(start, start + parts.total), pieces, parts, whole))
        start += parts.total
    return blocks


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of state and arithmetic for parameters of `dtype`: half precision is computed in float32."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


class Bucket:
    """Parameters that move together, their state, and what their last update was a function of.

    `index`: which of the tower's tensors; `flats`: "state.NAME", the rule's state (*before* the last update while
    `pending`, else after it), "grad", the transformed gradient of that update, and "params", the parameters before
    it, where the rule reads them; `coefficients`: those of that update, one after another; `nothing`: a 0 for each
    element of those that depend on anything learned; `transforms`: one state a transform;
    `ahead`: of a small bucket, what could be computed of its next pull at its last push, a cache.
    """

    def __init__(self, level: Level, index: list[int], tensors: Sequence[Tensor]) -> None:
        self.level, self.index = level, index
        device, dtype = tensors[0].device, compute_dtype(tensors[0].dtype)
        self.segments = Segments([tuple(t.shape) for t in tensors], device)
        self.blocks = cut(self.segments, [t.is_contiguous() for t in tensors], device)
        grad = torch.zeros(self.segments.total, dtype=dtype, device=device)
        self.flats: Tensors = {"grad": grad}
        self.flats.update({f"state.{name}": flat for name, flat in level.rule.init(grad).items()})
        self.states = [name for name in self.flats if name.startswith("state.")]
        if level.rule.reads_params:
            self.flats["params"] = torch.zeros_like(grad)
        self.transforms = [transform.init(self.segments, grad) for transform in level.rule.clip]
        shapes: dict[str, tuple[int, ...]] = {n: (len(index),) * d for n, d in level.coefficient_dims.items()}
        self.layout = Layout(shapes)
        self.coefficients = torch.zeros(self.layout.total, dtype=dtype, device=device)
        depending = Layout({name: shapes[name] for name in level.depends})
        self.nothing = torch.zeros(depending.total, dtype=dtype, device=device)
        self.pending = False
        self.ahead: tuple[Tensors, tuple[Tensor, ...]] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of its buffers."""
        return self.flats["grad"].dtype

    @property
    def device(self) -> torch.device:
        """Of its buffers."""
        return self.flats["grad"].device

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Whether its buffers are where, and of the dtype that, its parameters among `tensors` want."""
        first = tensors[self.index[0]]
        return first.device == self.device and compute_dtype(first.dtype) == self.dtype

    def pick(self, tensors: Sequence[Tensor | None]) -> list[Tensor] | None:
        """The bucket's own among the tower's `tensors`; None where they are None."""
        chosen = [tensors[i] for i in self.index]
        return None if chosen[0] is None else chosen  # type: ignore[return-value]

    def inputs(self, block: Block) -> Tensors:
        """What a block's update is a function of: its part of the flat buffers."""
        if len(self.blocks) == 1:
            return dict(self.flats)
        return {name: flat[block.range] for name, flat in self.flats.items()}

    def write_state(self, block: Block, outputs: Tensors) -> None:
        """Take a block's new state from `outputs`."""
        for name in self.states:
            self.flats[name][block.range].copy_(outputs[name])

    def gather(self, gradients: Sequence[Tensor] | None) -> list[Tensor]:
        """The gradients of each block, flat, in the dtype of the buffers."""
        return [block.gather(gradients, self.dtype) for block in self.blocks] if gradients else []

    def record(self, tensors: Sequence[Tensor], gathered: Sequence[Tensor]) -> None:
        """Record the new gradient, transformed, and the parameters where the rule reads them."""
        for block, gradient in zip(self.blocks, gathered, strict=True):
            if block.whole and len(self.blocks) == 1:
                self.flats["grad"] = gradient  # it is a copy already
            else:
                self.flats["grad"][block.range].copy_(gradient)
            if "params" in self.flats:
                self.flats["params"][block.range].copy_(block.gather(tensors, self.dtype))
        for transform, state in zip(self.level.rule.clip, self.transforms, strict=True):
            gradient, after, _ = transform.apply(self.flats["grad"], state, self.segments)
            self.flats["grad"].copy_(gradient)
            state.update(after)

    def views(self, position: int, shape: torch.Size) -> Tensors:
        """The state of one parameter, as views of the flat buffers, under torch's names."""
        start = sum(self.segments.sizes[:position])
        stop = start + self.segments.sizes[position]
        return {name.removeprefix("state."): self.flats[name][start:stop].view(shape) for name in self.states}

    def part(self, keep: list[int], tensors: Sequence[Tensor]) -> Bucket:
        """A new bucket with a copy of the parameters at places `keep`."""
        index = [self.index[i] for i in keep]
        made = Bucket(self.level, index, [tensors[i] for i in index])
        chosen = torch.tensor(keep, device=self.device)
        made.pending = self.pending
        coefficients = self.layout.unpack(self.coefficients)
        kept = made.layout.pack({n: c[chosen] if c.dim() else c for n, c in coefficients.items()})
        made.coefficients.copy_(kept)
        for name, flat in made.flats.items():
            parts = self.flats[name].split(self.segments.sizes)
            flat.copy_(torch.cat([parts[i] for i in keep]))
        made.transforms = [
            {name: x.index_select(0, chosen).to(made.device, made.dtype) for name, x in state.items()}
            for state in self.transforms
        ]
        return made

    def export(self) -> dict[str, Any]:
        """The bucket as tensors and plain values."""
        return {name: getattr(self, name) for name in ("index", "flats", "coefficients", "transforms", "pending")}

    def restore(self, saved: dict[str, Any]) -> None:
        """Copy what `export` returned into this bucket, made for the same level and parameters."""
        self.pending = bool(saved["pending"])
        self.coefficients.copy_(saved["coefficients"])
        for name, flat in self.flats.items():
            flat.copy_(saved["flats"][name])
        for mine, theirs in zip(self.transforms, saved["transforms"], strict=True):
            for name, tensor in mine.items():
                tensor.copy_(theirs[name])
