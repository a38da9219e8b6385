"""hyperstack: stack optimizers, so that each level learns the hyperparameters of the one below.

import hyperstack as hs

opt = hs.HyperOptimizer(model.parameters(), "Adam / SGD(1e-5, clip)")
opt = hs.HyperOptimizer(model.parameters(), hs.Adam / hs.SGD(1e-5, clip=True))
"""

from hyperstack.dsl import parse
from hyperstack.errors import HyperstackError, InputError, RunError, StackError
from hyperstack.hyperparameter import (
    NON_NEGATIVE,
    POSITIVE,
    UNIT,
    Hyperparameter,
    Interval,
    fixed,
    free,
    learned,
    lin,
    log,
    logit,
    per_tensor,
    square,
)
from hyperstack.optimizer import HyperOptimizer
from hyperstack.rule import RULES, Option, Rule, Stack
from hyperstack.rules import (
    LAMB,
    LAMBC,
    SGD,
    AdaBound,
    AdaGrad,
    Adam,
    AdamW,
    AMSGrad,
    Lion,
    NAdam,
    RAdam,
    RMSProp,
    Yogi,
)
from hyperstack.transforms import TRANSFORMS, Transform
from hyperstack.transforms import Cumulative as cumulative
from hyperstack.version import __version__

__all__ = [
    "LAMB",
    "LAMBC",
    "NON_NEGATIVE",
    "POSITIVE",
    "RULES",
    "SGD",
    "TRANSFORMS",
    "UNIT",
    "AMSGrad",
    "AdaBound",
    "AdaGrad",
    "Adam",
    "AdamW",
    "HyperOptimizer",
    "Hyperparameter",
    "HyperstackError",
    "InputError",
    "Interval",
    "Lion",
    "NAdam",
    "Option",
    "RAdam",
    "RMSProp",
    "Rule",
    "RunError",
    "Stack",
    "StackError",
    "Transform",
    "Yogi",
    "__version__",
    "cumulative",
    "fixed",
    "free",
    "learned",
    "lin",
    "log",
    "logit",
    "parse",
    "per_tensor",
    "square",
]
