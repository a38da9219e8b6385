"""The CIFAR-10 task: colour photographs, 32 by 32 pixels, of ten kinds of things, and a small convolutional network.

The data are the six canonical binary files, from the user's folder, the cache or the public archive. The SHA-256 of
the archive is known; those of its files are noted in the cache as they come out of it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from hyperstack.errors import InputError
from hyperstack.tasks import archive, fetch
from hyperstack.tasks.base import Data, Notify
from hyperstack.tasks.images import Bytes, ImageClassifier

__all__ = ["CIFAR10", "load_arrays"]

URLS = ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",)
ARCHIVE_SHA = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
ARCHIVE_SIZE = 170_052_171

FOLDER = "cifar-10-batches-bin"
TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST = "test_batch.bin"
SUMS = "SHA256SUMS"  # as sha256sum writes and checks it

RECORDS = 10_000  # in each file
PIXELS = 3 * 32 * 32  # after one byte of label: red, green and blue, each row by row
CLASSES = 10

Arrays = tuple[Bytes, Bytes, Bytes, Bytes]


def load_arrays(data_dir: Path | None = None, notify: Notify | None = None) -> Arrays:
    """The data as writable arrays: train images (50000, 3, 32, 32), train labels (50000,), and the same for the
    10000 test examples. Channels are red, green and blue, 0 to 255; labels 0 to 9.

    `data_dir`: a folder that holds the binary files in itself or in `cifar-10-batches-bin`; then nothing is fetched,
    and sizes and labels are what is checked: pixels may be the user's own. Without it they come from the cache, and
    are fetched (170 MB) where the cache lacks a file or holds it damaged. `notify` gets a line of text when a fetch
    begins. Raises `InputError` where a file is missing or damaged in `data_dir`, where the archive can't be fetched,
    or where the cache can't be written.
    """
    if data_dir is None:
        files = _from_cache(notify or (lambda message: None))
    else:
        files = _from_folder(data_dir)
    train, test = np.concatenate([files[name] for name in TRAIN]), files[TEST]
    return *_images_and_labels(train), *_images_and_labels(test)


def _images_and_labels(records: Bytes) -> tuple[Bytes, Bytes]:
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].copy()


def _from_folder(data_dir: Path) -> dict[str, Bytes]:
    """The records of each file by name, from the user's folder."""
    names = ", ".join((*TRAIN, TEST))
    instead = f"name a folder with {FOLDER}, which holds {names}, or none to fetch them"
    data_dir = fetch.data_folder(data_dir, instead)
    folders = [folder for folder in (data_dir / FOLDER, data_dir) if _held(folder)]
    if not folders:
        other = (data_dir / "cifar-10-batches-py").is_dir()
        why = f"none that may be read is in it, or in its subfolder {FOLDER}"
        why += "; cifar-10-batches-py is the Python version, and the binary version is needed" if other else ""
        raise InputError(f"there are no CIFAR-10 files in {data_dir}", why=why, instead=instead)
    folder = max(folders, key=lambda folder: len(_held(folder)))
    if missing := [name for name in (*TRAIN, TEST) if name not in _held(folder)]:
        why = f"other CIFAR-10 files are there, {', '.join(missing)} missing"
        raise InputError(f"CIFAR-10 is not whole in {folder}", why=why, instead=instead)
    files = {}
    for name in (*TRAIN, TEST):
        try:
            files[name] = _read(folder / name)
        except (OSError, ValueError) as error:
            what = f"{folder / name} is damaged, or not the CIFAR-10 file of that name"
            raise InputError(what, why=str(error), instead=f"replace it, or {instead}") from error
    return files


def _held(folder: Path) -> list[str]:
    """Which of the files a folder holds."""
    return [name for name in (*TRAIN, TEST) if (folder / name).is_file()]


def _read(path: Path, sha: str | None = None) -> Bytes:
    """The records of a file, [records, 1 + pixels]; OSError or ValueError says what is wrong with it."""
    raw = np.fromfile(path, np.uint8)
    if raw.size != RECORDS * (1 + PIXELS):
        raise ValueError(f"it has {raw.size} bytes, expected {RECORDS * (1 + PIXELS)}")
    if sha is not None and (found := fetch.sha256(raw.data)) != sha:
        raise ValueError(f"its SHA-256 is {found}, expected {sha}")
    records = raw.reshape(RECORDS, 1 + PIXELS)
    if (wrong := np.flatnonzero(records[:, 0] >= CLASSES)).size:
        raise ValueError(f"the label of its record {wrong[0] + 1} is {records[wrong[0], 0]}, expected 0 to 9")
    return records


def _from_cache(notify: Notify) -> dict[str, Bytes]:
    """The records of each file by name; fetched into the cache where it lacks one, or holds one damaged."""
    folder = fetch.cache_dir() / "cifar10" / FOLDER
    try:
        sums = _noted(folder / SUMS)
        return {name: _read(folder / name, sums.get(name)) for name in (*TRAIN, TEST)}
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        notify(f"{folder} is damaged and is fetched again: {error}")
    _fetch(folder, notify)
    return {name: _read(folder / name) for name in (*TRAIN, TEST)}


def _noted(path: Path) -> dict[str, str]:
    """The SHA-256 of each file as it came out of the archive; none where the user put the files into the cache."""
    if not path.exists():
        return {}
    lines = [line.split() for line in path.read_text("utf-8").splitlines()]
    return {name: sha for sha, name in lines}


def _fetch(folder: Path, notify: Notify) -> None:
    """Bring the files of the archive into `folder`, each whole or not at all, and note their sums."""
    notify(f"fetching CIFAR-10 from {URLS[0]} (170 MB)")
    sums = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Beside the files, so that where there is no room nothing is replaced; without a name, so that none is left.
        with tempfile.TemporaryFile(dir=folder) as stream:
            fetch.download_into(stream, URLS, ARCHIVE_SHA, limit=ARCHIVE_SIZE)
            sizes = {f"{FOLDER}/{name}": RECORDS * (1 + PIXELS) for name in (*TRAIN, TEST)}
            for member, content in archive.tar_members(stream, sizes):
                path = folder / member.rpartition("/")[2]
                fetch.write_atomically(path, content, instead=fetch.CACHE_HINT)
                sums[path.name] = fetch.sha256(content)
    except OSError as error:
        why = error.strerror or str(error)
        raise InputError(f"{folder} can't be written", why=why, instead=fetch.CACHE_HINT) from error
    except fetch.SourceError as error:
        raise InputError(
            "CIFAR-10 can't be fetched: no network, or its source has something else",
            why="\n".join(error.reasons),
            instead=f"pass --data-dir with a folder that holds {FOLDER}",
        ) from error
    lines = "".join(f"{sha}  {name}\n" for name, sha in sums.items())
    fetch.write_atomically(folder / SUMS, lines.encode(), instead=fetch.CACHE_HINT)


class CIFAR10(ImageClassifier):
    """Ten kinds of photographs, read by the convolutional network of Huang et al., "Gradient clipping for automatic
    hyperparameter tuning", section 4.2, which names layers, batch size, epochs and normalization: two 3x3 convolutions
    of 16 filters without padding, each with ReLU; then, as for MNIST, 128 and 10 units with tanh after both; the loss
    is the negative log-likelihood under the softmax of the outputs. 1,609,818 parameters. Data: see `load_arrays`.
    """

    name: ClassVar[str] = "cifar10"
    summary: ClassVar[str] = "CIFAR-10 photographs, a small convolutional net"

    def load(self, data_dir: Path | None, device: torch.device, notify: Notify | None = None) -> Data:
        """Inputs: bytes [examples, 3, 32, 32], which `prepare` normalizes; targets: int64 labels."""
        images, labels, test_images, test_labels = load_arrays(data_dir, notify)
        return self._data((images, labels), (test_images, test_labels), device)

    def model(self) -> nn.Module:
        convolutions = nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten()
        return nn.Sequential(*convolutions, nn.Linear(16 * 28 * 28, 128), nn.Tanh(), nn.Linear(128, 10), nn.Tanh())
