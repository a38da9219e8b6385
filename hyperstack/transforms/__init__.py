"""Gradient transforms: what a level does to a gradient before its rule sees it.

A transform is an immutable value carried by a level. Its two functions are pure:

    init(segments, like)              -> state, a dict of tensors with one entry a tensor of the buffer
    apply(gradient, state, context)   -> gradient, state, factor

`gradient` is flat and `context.segments` says which tensors lie in it; `factor`, shape [tensors], is what each
tensor was multiplied by, for the record.
"""

from hyperstack.choices import option
from hyperstack.transforms.adaptive import AGC, Adaptive, Percentile
from hyperstack.transforms.base import TRANSFORMS, Context, State, Transform, register
from hyperstack.transforms.clipping import Cumulative, Norm, Value
from hyperstack.transforms.direction import Centralize, Cosine, Normalize

__all__ = [
    "AGC",
    "TRANSFORMS",
    "Adaptive",
    "Centralize",
    "Context",
    "Cosine",
    "Cumulative",
    "Norm",
    "Normalize",
    "Percentile",
    "State",
    "Transform",
    "Value",
    "option",
    "register",
]
