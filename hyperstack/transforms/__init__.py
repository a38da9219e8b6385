"""Gradient transforms: what a level does to a gradient before its rule sees it.

A transform is an immutable value carried by a level. Its two functions are pure:

    init(segments, like)              -> state, a dict of tensors with one entry a tensor of the buffer
    apply(gradient, state, context)   -> gradient, state, factor

`gradient` is flat and `context.segments` says which tensors lie in it; `factor`, shape [tensors], is what each
tensor was multiplied by, for the record.
"""

from hyperstack.transforms.base import TRANSFORMS, Context, State, Transform, register
from hyperstack.transforms.clipping import Cumulative
from hyperstack.transforms.direction import Cosine

__all__ = ["TRANSFORMS", "Context", "Cosine", "Cumulative", "State", "Transform", "register"]
