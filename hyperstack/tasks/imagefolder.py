"""Images of the user's own: a folder a class, as in ImageNet."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from hyperstack.errors import InputError
from hyperstack.tasks import fetch
from hyperstack.tasks.base import STEADY, Data, Notify
from hyperstack.tasks.images import Bytes, ImageClassifier, cropped, flipped
from hyperstack.tasks.resnet import resnet18

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ImageFolder", "read_folder"]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
TEST_FOLDERS = ("val", "test")
BLOCK = 1024  # images in the queue of the threads that decode
SHOWN = 5  # of the files that can't be read
LAYOUT = "put images into train/CLASS/ and val/CLASS/ (or test/CLASS/) below it"

Split = tuple[Bytes, Bytes]


class ImageFolder(ImageClassifier):
    """Images in `train/CLASS/` and `val/CLASS/` (or `test/CLASS/`) below --data-dir, read by ResNet-18 for small images
    with an output for each class.

    Images are scaled so that their shorter side has 64 pixels, and cut to the 64x64 in the middle; in training they
    are also moved by up to 4 pixels, and flipped left to right or not. Fong et al., "Improving layer-wise adaptive
    rate methods using trust ratio clipping", section 4.3, train ImageNet at this size, in batches of 400. A subclass
    may choose another `size`. A batch takes about 33 MB an image, and the data 12 kB each.
    """

    name: ClassVar[str] = "imagefolder"
    summary: ClassVar[str] = "images of your own, a folder a class; ResNet-18"
    stack: ClassVar[str] = STEADY
    batch_size: ClassVar[int] = 64
    epochs: ClassVar[int] = 20
    test_batch_size: ClassVar[int] = 128
    # Pixels in a row, and rows.
    size: ClassVar[int] = 64

    classes: Sequence[str] = ()

    def load(self, data_dir: Path | None, device: torch.device, notify: Notify | None = None) -> Data:
        """Inputs: bytes [examples, 3, size, size], which `prepare` normalizes; targets: int64, places in `classes`."""
        if data_dir is None:
            raise InputError("imagefolder needs a folder of images", instead=f"pass --data-dir, and {LAYOUT}")
        self.classes, train, test = read_folder(data_dir, self.size, notify)
        return self._data(train, test, device)

    def prepare(self, inputs: Tensor, targets: Tensor, draw: torch.Generator, training: bool) -> tuple[Tensor, Tensor]:
        images = self.channels.normalized(inputs)
        if training:
            images = cropped(flipped(images, draw), 4, draw)
        return images, targets

    def model(self) -> nn.Module:
        return resnet18(len(self.classes))


def read_folder(data_dir: Path, size: int, notify: Notify | None = None) -> tuple[list[str], Split, Split]:
    """The names of the classes, in order; and images (count, 3, size, size) and labels (count,), an int64 place among
    the classes, of the training and of the test examples, in the order of their paths.

    Hidden files and files of other kinds are passed over. Raises `InputError` where folders or images are missing,
    where the test examples have another class, where an image can't be read, and where Pillow isn't installed.
    """
    data_dir = fetch.data_folder(data_dir, LAYOUT)
    _need_pillow()
    found = next((name for name in TEST_FOLDERS if (data_dir / name).is_dir()), None)
    if found is None or not (data_dir / "train").is_dir():
        missing = "train" if found else " or ".join(TEST_FOLDERS)
        raise InputError(f"{data_dir} holds no images to train on", why=f"it has no folder {missing}", instead=LAYOUT)
    train, test = _paths(data_dir / "train"), _paths(data_dir / found)
    classes = list(train)
    if len(classes) < 2:
        raise InputError(f"{data_dir / 'train'} holds fewer than two classes of images", instead=LAYOUT)
    if strange := [name for name in test if name not in train]:
        why = f"there are no images in {data_dir / 'train' / strange[0]}"
        raise InputError(f"{data_dir / found / strange[0]} is a class that can't be learned", why=why, instead=LAYOUT)
    if not test:
        raise InputError(f"{data_dir / found} holds no images", instead=LAYOUT)
    if notify is not None:
        counts = (sum(map(len, paths.values())) for paths in (train, test))
        notify("reading {:,} images to train on and {:,} to test on".format(*counts))
    return classes, _split(train, classes, size), _split(test, classes, size)


def _need_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        instead = "install it: pip install hyperstack[images]"
        raise InputError("reading images needs Pillow", why=str(error), instead=instead) from error


def _paths(folder: Path) -> dict[str, list[Path]]:
    """The images of each class that has any, in order."""
    try:
        found = {
            each.name: sorted(p for p in each.rglob("*") if p.suffix.lower() in SUFFIXES and p.name[0] != ".")
            for each in sorted(folder.iterdir())
            if each.is_dir() and each.name[0] != "."
        }
    except OSError as error:
        raise InputError(f"{folder} can't be read", why=error.strerror or str(error), instead=LAYOUT) from error
    return {name: paths for name, paths in found.items() if paths}


def _split(paths: dict[str, list[Path]], classes: Sequence[str], size: int) -> Split:
    """All images and their labels; an `InputError` that names those that can't be read."""
    every = [path for name in paths for path in paths[name]]
    labels = np.repeat([classes.index(name) for name in paths], [len(found) for found in paths.values()])
    images = np.empty((len(every), 3, size, size), np.uint8)
    wrong = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow's, about details of files that it reads all the same
        for i, result in enumerate(_decoded(every, size)):
            if isinstance(result, str):
                wrong.append(f"{every[i]}: {result}")
            else:
                images[i] = result
    if wrong:
        more = f"\nand {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        count = f"{len(wrong)} image file{'s' if len(wrong) > 1 else ''} can't be read"
        raise InputError(count, why="\n".join(wrong[:SHOWN]) + more, instead="repair or delete what is damaged")
    return images, labels.astype(np.int64)


def _decoded(paths: Sequence[Path], size: int) -> Iterator[Bytes | str]:
    """Each image in order, or what is wrong with it."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), BLOCK):
            yield from pool.map(_decode, paths[start : start + BLOCK], itertools.repeat(size))


def _decode(path: Path, size: int) -> Bytes | str:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * size, 2 * size))  # a large JPEG is decoded at a fraction of its size
            whole = _colour(image)
            return np.asarray(ImageOps.fit(whole, (size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    except Exception as error:  # what a damaged file may raise depends on its format: struct.error, SyntaxError, ...
        return str(error).replace(str(path), path.name) or type(error).__name__


def _colour(image: Image.Image) -> Image.Image:
    """The image in red, green and blue, on black where it is transparent."""
    if image.mode in ("P", "PA", "LA", "RGBA") or "transparency" in image.info:
        from PIL import Image

        clear = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, "black"), clear).convert("RGB")
    return image.convert("RGB")
