"""hyperstack: stack optimizers, so that each level learns the hyperparameters of the one below.

import hyperstack as hs

opt = hs.HyperOptimizer(model.parameters(), "Adam / SGD(1e-5, clip)")
opt = hs.HyperOptimizer(model.parameters(), hs.Adam / hs.SGD(1e-5, clip=True))

What is named here is loaded when it is first asked for, so that reading a record does without torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hyperstack.api import *  # noqa: F403
    from hyperstack.api import __all__ as __all__

from hyperstack.version import __version__ as __version__


def __getattr__(name: str) -> object:
    if name == "__all__" or not name.startswith("_"):
        api = importlib.import_module("hyperstack.api")
        globals().update({known: getattr(api, known) for known in api.__all__}, __all__=api.__all__)
        if name in globals():  # a module, as in hyperstack.tasks, is there as soon as it was imported
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *importlib.import_module("hyperstack.api").__all__})
