"""Small data in the layouts of the tasks, made up on the spot."""

from __future__ import annotations

import numpy as np

from hyperstack.tasks import cifar10

RECORDS = 12  # in each file of the small CIFAR-10


def cifar10_records(seed: int, count: int = RECORDS) -> np.ndarray:
    """Random records, [count, 1 + pixels]: label, red, green, blue."""
    random = np.random.default_rng(seed)
    records = random.integers(0, 256, (count, 1 + cifar10.PIXELS), dtype=np.uint8)
    records[:, 0] = random.integers(0, 10, count)
    return records


def cifar10_files(count: int = RECORDS) -> dict[str, np.ndarray]:
    """The records of each file by its name; those of the user must have as many as `cifar10.RECORDS` says."""
    return {name: cifar10_records(seed, count) for seed, name in enumerate((*cifar10.TRAIN, cifar10.TEST))}


def put_cifar10(folder, files=None):
    """`folder`, with the small CIFAR-10 in its canonical layout below it."""
    below = folder / cifar10.FOLDER
    below.mkdir(parents=True)
    for name, records in (files or cifar10_files()).items():
        (below / name).write_bytes(records.tobytes())
    return folder


def put_images(folder, classes=("cat", "dog"), each=4, splits=("train", "val"), side=70, suffix=".png"):
    """`folder`, with random images of various shapes in train/CLASS/ and val/CLASS/."""
    from PIL import Image

    random = np.random.default_rng(0)
    for split in splits:
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for i in range(each):
                pixels = random.integers(0, 256, (side + i, side, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}{suffix}")
    return folder
