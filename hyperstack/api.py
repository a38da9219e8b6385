"""Everything that `hyperstack` offers by name; importing it loads torch."""

from hyperstack.dsl import parse
from hyperstack.errors import HyperstackError, InputError, RunError, StackError
from hyperstack.hyperparameter import (
    NON_NEGATIVE,
    POSITIVE,
    UNIT,
    Hyperparameter,
    Interval,
    fixed,
    fixed_after,
    free,
    learned,
    lin,
    log,
    logit,
    per_tensor,
    square,
)
from hyperstack.loop import Recording, record
from hyperstack.measuring import Average as average
from hyperstack.measuring import Live as live
from hyperstack.numerics import huberize
from hyperstack.optimizer import HyperOptimizer
from hyperstack.recipe import auto
from hyperstack.reports.run import Run, load_run
from hyperstack.reports.tower import tower_summary
from hyperstack.rule import RULES, Option, Rule, Stack
from hyperstack.rules import (
    ALRC,
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
from hyperstack.telemetry.csvfile import CSV
from hyperstack.telemetry.jsonl import JsonLines
from hyperstack.telemetry.recorder import Recorder
from hyperstack.telemetry.sinks import Sink
from hyperstack.telemetry.tensorboard import TensorBoard
from hyperstack.transforms import AGC as agc
from hyperstack.transforms import TRANSFORMS, Transform
from hyperstack.transforms import Adaptive as adaptive
from hyperstack.transforms import Centralize as centralize
from hyperstack.transforms import Cosine as cosine
from hyperstack.transforms import Cumulative as cumulative
from hyperstack.transforms import Norm as norm
from hyperstack.transforms import Normalize as normalize
from hyperstack.transforms import Percentile as percentile
from hyperstack.transforms import Value as value
from hyperstack.version import __version__

__all__ = [
    "ALRC",
    "CSV",
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
    "JsonLines",
    "Lion",
    "NAdam",
    "Option",
    "RAdam",
    "RMSProp",
    "Recorder",
    "Recording",
    "Rule",
    "Run",
    "RunError",
    "Sink",
    "Stack",
    "StackError",
    "TensorBoard",
    "Transform",
    "Yogi",
    "__version__",
    "adaptive",
    "agc",
    "auto",
    "average",
    "centralize",
    "cosine",
    "cumulative",
    "fixed",
    "fixed_after",
    "free",
    "huberize",
    "learned",
    "lin",
    "live",
    "load_run",
    "log",
    "logit",
    "norm",
    "normalize",
    "parse",
    "per_tensor",
    "percentile",
    "record",
    "square",
    "tower_summary",
    "value",
]
