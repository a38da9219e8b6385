"""The scripts of docs/, as modules."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def script(name):
    """docs/NAME.py, run afresh."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
