"""The rules that come with hyperstack: importing this package registers them, one line a rule."""

from hyperstack.rules.adagrad import AdaGrad
from hyperstack.rules.adam import Adam
from hyperstack.rules.rmsprop import RMSProp
from hyperstack.rules.sgd import SGD

__all__ = ["SGD", "AdaGrad", "Adam", "RMSProp"]
