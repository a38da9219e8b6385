"""Flat buffers: the parameters that a tower updates, their state, and the record of their last update.

A `Bucket` holds the parameters that have always had gradients together, on one device and in one dtype. Its state
and its record are flat, and work goes through them in `Block`s small enough to stay in cache: on a CPU every large
temporary is freshly mapped memory, which costs more than the arithmetic.

The parameters themselves are never moved into the buffer: they stay where the user put them, so that `.data`,
`load_state_dict` and identity go on meaning what they mean without hyperstack.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyperstack.layout import Layout, Tensors, section
from hyperstack.level import Level
from hyperstack.numerics import Segments

BLOCK = 1 << 18
"""Elements of a block on the CPU: 1 MiB in float32, a dozen of which fit into the cache that its cores share."""


@dataclass(frozen=True)
class Blocks:
    """How a bucket is cut, if it is larger than `together`: a tensor of `alone` elements or more has blocks of its
    own, each of at most `longest`; smaller ones share blocks of `together`.
    """

    together: int
    alone: int
    longest: int

    @staticmethod
    def best(device: torch.device, fused: bool) -> Blocks:
        """Fused kernels need nothing but their inputs in cache; on a GPU, fewer and larger operations are faster."""
        if device.type == "cpu":
            return Blocks(BLOCK, BLOCK // 8, sys.maxsize if fused else BLOCK)
        return Blocks(64 * BLOCK, 64 * BLOCK, sys.maxsize if fused else 64 * BLOCK)


@dataclass
class Block:
    """A range of a bucket's flat buffer: the bucket's tensors in the slice `tensors`, or a `piece` of a single one."""

    range: slice
    tensors: slice
    piece: slice | None
    segments: Segments

    def gather(self, tensors: Sequence[Tensor]) -> Tensor:
        """The block's elements of `tensors`, flat: a view where it is a piece of a contiguous one."""
        chosen = list(tensors[self.tensors])
        if self.piece is None:
            flat: Tensor = torch._C._nn.flatten_dense_tensors(chosen)
            return flat
        return chosen[0].reshape(-1)[self.piece]

    def scatter(self, tensors: Sequence[Tensor], flat: Tensor) -> None:
        """Write what `gather` returned of a piece back, in place, unless it is a view of the tensor already."""
        tensor = tensors[self.tensors.start]
        if tensor.is_contiguous():
            torch.autograd.graph.increment_version(tensor)  # the kernel has written to it
        else:
            tensor.copy_(flat.view(tensor.shape))

    def add(self, tensors: Sequence[Tensor], delta: Tensor) -> None:
        """Add the block's flat `delta` to its elements of `tensors`, in place."""
        chosen = list(tensors[self.tensors])
        if self.piece is None:
            torch._foreach_add_(chosen, torch._C._nn.unflatten_dense_tensors(delta, chosen))
        elif len(delta) == chosen[0].numel():
            chosen[0].add_(delta.view(chosen[0].shape))
        else:
            chosen[0].view(-1)[self.piece].add_(delta)


def cut(segments: Segments, splittable: bool, how: Blocks) -> list[Block]:
    """The blocks of a buffer: small tensors together, large ones alone, in equal pieces where they are `splittable`."""
    blocks: list[Block] = []
    members: list[int] = []
    start = gathered = 0

    def add(tensors: slice, lengths: list[int], piece: slice | None) -> None:
        nonlocal start
        parts = Segments([(n,) for n in lengths], segments.device)
        blocks.append(Block(slice(start, start + parts.total), tensors, piece, parts))
        start += parts.total

    def add_members() -> None:
        if members:
            first, last = members[0], members[-1]
            sizes = segments.sizes[first : last + 1]
            add(slice(first, last + 1), sizes, slice(0, sizes[0]) if first == last else None)
            members.clear()

    for i, count in enumerate(segments.sizes):
        if count >= how.alone and segments.total > how.together:
            add_members()
            parts = -(-count // how.longest) if splittable else 1
            for j in range(parts):
                piece = slice(count * j // parts, count * (j + 1) // parts)
                add(slice(i, i + 1), [piece.stop - piece.start], piece)
        else:
            if members and gathered + count > how.together:
                add_members()
            gathered = gathered + count if members else count
            members.append(i)
    add_members()
    return blocks


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of state and arithmetic for parameters of `dtype`: half precision is computed in float32."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


Keeps = Callable[[Tensor, Tensors], tuple[Tensors, set[str]]]
"""Makes flats of flat weights and states; and names those of them that have one number a tensor."""


class Bucket:
    """Parameters that move together, their state, and what their last update was a function of.

    `index`: which of the tower's tensors; `flats`: "state.NAME", the rule's state (*before* the last update while
    `pending`, else after it), and where the derivative of that update is asked for, `recorded`, "grad", its transformed
    gradient, "params", the parameters before it, where the rule reads them, and "tangent.NAME", how that gradient
    depends on what acts on the losses; and what `kept` makes of weights and states, for a window; `whole`: the flats
    with one number a tensor; `parts`: the flats cut into `blocks`, as views; `coefficients`: those of that update, one
    after another; `nothing`: what its pull returns where it was not updated, zeros; `transforms`: one state a
    transform; `ahead`: of a small bucket, what could be computed of its next pull at its last push, a cache;
    `findings`: see `Level.findings`; `place`: `index` as a tensor.
    """

    def __init__(
        self,
        level: Level,
        index: list[int],
        tensors: Sequence[Tensor],
        *,
        recorded: bool,
        fused: bool,
        sloped: bool,
        kept: Keeps | None = None,
    ) -> None:
        self.level, self.index, self.recorded = level, index, recorded
        self.how: dict[str, Any] = {"recorded": recorded, "fused": fused, "sloped": sloped, "kept": kept}
        self.device, self.dtype = device, dtype = tensors[0].device, compute_dtype(tensors[0].dtype)
        self.segments = Segments([tuple(t.shape) for t in tensors], device, [level.names[i] for i in index])
        self.contiguous = tensors[0].is_contiguous()
        self.blocks = cut(self.segments, self.contiguous and not level.rule.per_layer, Blocks.best(device, fused))
        zeros = torch.zeros(self.segments.total, dtype=dtype, device=device)
        states = {**level.rule.init(zeros), **level.rule.init_layers(zeros.new_zeros(len(index)))}
        self.flats: Tensors = {f"state.{name}": flat for name, flat in states.items()}
        self.states = list(self.flats)
        self.whole = {f"state.{name}" for name in level.layer_states}
        self.records = ["grad"] * recorded + ["params"] * (recorded and level.rule.reads_params)
        tangents = [f"tangent.{name}" for name in level.tangents if recorded]
        self.flats.update({name: torch.zeros_like(zeros) for name in (*self.records, *tangents)})
        if kept is not None:
            weights = torch.cat([zeros[:0], *(t.detach().reshape(-1).to(dtype) for t in tensors)])
            more, whole = kept(weights, states)
            self.flats.update(more)
            self.whole |= whole
        self.transforms = [transform.init(self.segments, zeros) for transform in level.rule.clip]
        shapes: dict[str, tuple[int, ...]] = {n: (len(index),) * d for n, d in level.coefficient_dims.items()}
        self.layout = Layout(shapes)
        self.coefficients = torch.zeros(self.layout.total, dtype=dtype, device=device)
        depending = Layout({name: shapes[name] for name in level.depends})
        pairs = len(level.depends) ** 2 * (len(index) if level.per_tensor else 1)
        self.nothing = torch.zeros(depending.total + (pairs + 1) * sloped, dtype=dtype, device=device)
        self.place = torch.tensor(index, dtype=torch.int64, device=device)
        self.findings = {name: zeros.new_zeros(len(index)) for name in level.findings}
        self.pending = False
        self.ahead: tuple[Tensors, tuple[Tensor, ...]] | None = None
        self.parts = [self.part_of(block) for block in self.blocks]

    def part_of(self, block: Block) -> Tensors:
        """The flats of one block, as views."""
        return {n: x[block.tensors if n in self.whole else block.range] for n, x in self.flats.items()}

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Whether its buffers are where, of the dtype that, and cut as its parameters among `tensors` want."""
        first = tensors[self.index[0]]
        alike = first.device == self.device and compute_dtype(first.dtype) == self.dtype
        return alike and first.is_contiguous() == self.contiguous

    def pick(self, tensors: Sequence[Tensor | None]) -> list[Tensor] | None:
        """The bucket's own among the tower's `tensors`; None where they are None."""
        chosen = [tensors[i] for i in self.index]
        return None if chosen[0] is None else chosen  # type: ignore[return-value]

    def gather(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """The gradients of each block, flat, in their own dtype."""
        return [block.gather(grads) for block in self.blocks]

    def keep_tangents(self, tensors: Sequence[Tensor], tangents: Mapping[str, Sequence[Tensor | None]]) -> None:
        """Keep how the gradients of the tower's tensors depend on what acts on the losses; 0 where nothing is given."""
        for name, flat in section(self.flats, "tangent.").items():
            given = tangents.get(name, [None] * len(tensors))
            mine = [torch.zeros_like(tensors[i]) if given[i] is None else given[i] for i in self.index]
            flat.copy_(torch.cat(self.gather(mine)))  # type: ignore[arg-type]

    def measure(self, block: Block, found: Tensors) -> None:
        """Keep what an update of a block found of each tensor."""
        for name, values in section(found, "layer.").items():
            self.findings[name][block.tensors] = values

    def record(self, block: Block, part: Tensors, grad: Tensor, tensors: Sequence[Tensor]) -> Tensors:
        """The block's new gradient, and the parameters where the rule reads them: recorded, if they are to be."""
        found = {"grad": grad, **({"params": block.gather(tensors)} if self.level.rule.reads_params else {})}
        for name in self.records:
            part[name].copy_(found[name])
        return {name: part[name] if self.recorded else x.to(self.dtype) for name, x in found.items()}

    def views(self, position: int, shape: torch.Size) -> Tensors:
        """The state of one parameter, as views of the flat buffers, under torch's names."""
        start = sum(self.segments.sizes[:position])
        stop = start + self.segments.sizes[position]
        found = {n: self.flats[n][position] if n in self.whole else self.flats[n][start:stop] for n in self.states}
        return {n.removeprefix("state."): x if n in self.whole else x.view(shape) for n, x in found.items()}

    def part(self, keep: list[int], tensors: Sequence[Tensor]) -> Bucket:
        """A new bucket with a copy of the parameters at places `keep`."""
        index = [self.index[i] for i in keep]
        chosen_tensors = [tensors[i] for i in index]
        made = Bucket(self.level, index, chosen_tensors, **self.how)
        chosen = torch.tensor(keep, device=self.device)
        made.pending = self.pending
        coefficients = self.layout.unpack(self.coefficients)
        kept = made.layout.pack({n: c[chosen] if c.dim() else c for n, c in coefficients.items()})
        made.coefficients.copy_(kept)
        for name, flat in made.flats.items():
            parts = self.flats[name].split(1 if name in self.whole else self.segments.sizes)
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
