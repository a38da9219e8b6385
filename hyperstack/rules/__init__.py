"""The rules that come with hyperstack: importing this package registers them, one line a rule."""

from hyperstack.rules.adabound import AdaBound
from hyperstack.rules.adagrad import AdaGrad
from hyperstack.rules.adam import Adam
from hyperstack.rules.adamw import AdamW
from hyperstack.rules.alrc import ALRC
from hyperstack.rules.amsgrad import AMSGrad
from hyperstack.rules.lamb import LAMB
from hyperstack.rules.lambc import LAMBC
from hyperstack.rules.lion import Lion
from hyperstack.rules.nadam import NAdam
from hyperstack.rules.radam import RAdam
from hyperstack.rules.rmsprop import RMSProp
from hyperstack.rules.sgd import SGD
from hyperstack.rules.yogi import Yogi

__all__ = [
    "ALRC",
    "LAMB",
    "LAMBC",
    "SGD",
    "AMSGrad",
    "AdaBound",
    "AdaGrad",
    "Adam",
    "AdamW",
    "Lion",
    "NAdam",
    "RAdam",
    "RMSProp",
    "Yogi",
]
