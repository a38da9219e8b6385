"""The network's gradients as the primary level's transforms make them, and what these found on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hyperstack.buffers import Bucket
from hyperstack.derivatives import pushforward
from hyperstack.layout import Tensors, section
from hyperstack.transforms import Context, State, Transform

Tangents = Mapping[str, Sequence[Tensor | None]]


def transformed(
    buckets: Sequence[Bucket], grads: Sequence[Sequence[Tensor] | None], tensors: Sequence[Tensor], tangents: Tangents
) -> list[Sequence[Tensor] | None]:
    """The gradients of each bucket's blocks as the level's transforms, which need them all at once, make them.

    `tangents`, how the gradients depend on what acts on the losses, go the same way, and are kept.
    """
    found: list[Sequence[Tensor] | None] = list(grads)
    if not any(bucket.transforms or bucket.level.tangents for bucket in buckets):
        return found
    together: dict[Any, list[int]] = {}
    for b, bucket in enumerate(buckets):
        if grads[b] is not None:
            bucket.keep_tangents(tensors, tangents)
            if bucket.transforms:
                together.setdefault((bucket.device, bucket.dtype), []).append(b)
    for members in together.values():
        group = [buckets[b] for b in members]
        parts = [part for b in members for part in grads[b] or ()]
        made = _transformed(group, torch.cat([part.to(group[0].dtype) for part in parts]), tensors)
        for b, bucket, flat in zip(members, group, made, strict=True):
            found[b] = [flat[block.range] for block in bucket.blocks]
    return found


def _transformed(group: Sequence[Bucket], whole: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The flat gradients of buckets on one device and in one dtype, given one after another."""
    clip, segments = group[0].level.rule.clip, group[0].segments.joined([bucket.segments for bucket in group[1:]])
    context = Context(segments, _params(group, tensors) if any(t.reads_params for t in clip) else None)
    flats = [section(bucket.flats, "tangent.") for bucket in group]
    tangents = {name: torch.cat([flat[name] for flat in flats]) for name in flats[0]}
    norm, factor = segments.norm(whole), torch.ones(len(segments), dtype=whole.dtype, device=whole.device)
    for i, transform in enumerate(clip):
        states = [bucket.transforms[i] for bucket in group]
        state = {name: torch.cat([s[name] for s in states]) if len(states) > 1 else x for name, x in states[0].items()}
        alone = partial(_only_gradient, transform, state, context)
        tangents = {name: pushforward(alone, whole, tangent) for name, tangent in tangents.items()}
        whole, after, change = transform(whole, state, context)
        factor = factor * change
        _spread(after, states, [len(bucket.index) for bucket in group])
    _spread(tangents, flats, [bucket.segments.total for bucket in group])
    findings = {"norm": norm, "clip": factor}
    _spread(findings, [bucket.findings for bucket in group], [len(bucket.index) for bucket in group])
    return list(whole.split([bucket.segments.total for bucket in group]))


def _params(group: Sequence[Bucket], tensors: Sequence[Tensor]) -> Tensor:
    mine = [[tensors[i] for i in bucket.index] for bucket in group]
    parts = [block.gather(ts) for bucket, ts in zip(group, mine, strict=True) for block in bucket.blocks]
    return torch.cat([part.to(group[0].dtype) for part in parts])


def _only_gradient(transform: Transform, state: State, context: Context, gradient: Tensor) -> Tensor:
    return transform(gradient, state, context)[0]


def _spread(whole: Tensors, kept: Sequence[Tensors], sizes: list[int]) -> None:
    """Copy what was found of several buckets together to where each keeps it."""
    for name, x in whole.items():
        for mine, part in zip(kept, x.split(sizes), strict=True):
            mine[name].copy_(part)
