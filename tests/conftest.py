"""What every test starts from: fixed seeds, one thread, and a visible reason where there is no GPU."""

import pytest
import torch

torch.set_num_threads(1)  # the tensors here are small: a second thread costs more than it gives


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        without = pytest.mark.skip(reason="needs a CUDA device, and there is none here")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(without)
