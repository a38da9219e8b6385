"""Images of the user's own: which are found, how they are cut, and what is said of folders and files that are wrong."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
import torch
from small import put_images
from toy import command, contents

from hyperstack.errors import InputError
from hyperstack.tasks import ImageFolder, imagefolder
from hyperstack.tasks.imagefolder import read_folder

Image = pytest.importorskip("PIL.Image", reason="needs Pillow, of the extra `images`")
CPU = torch.device("cpu")


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)


def flat(level, height=8, width=8, channels=3):
    return np.full((height, width, channels), level, np.uint8)


# ---- what is read


def test_classes_are_folders_and_examples_come_in_the_order_of_their_paths(tmp_path):
    for level, path in enumerate(["train/b/1", "train/a/2", "train/a/10", "train/b/deep/0", "val/b/0", "val/a/9"]):
        save(tmp_path / f"{path}.png", flat(10 * level))
    (tmp_path / "train" / "empty").mkdir()
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "a" / "._2.png").write_bytes(b"of a Mac")
    (tmp_path / "train" / ".cache").mkdir()
    said = []
    classes, (images, labels), (test_images, test_labels) = read_folder(tmp_path, 4, said.append)
    assert classes == ["a", "b"]
    assert labels.tolist() == [0, 0, 1, 1]
    assert images[:, 0, 0, 0].tolist() == [20, 10, 0, 30]
    assert test_labels.tolist() == [0, 1]
    assert test_images[:, 2, 3, 3].tolist() == [50, 40]
    assert images.shape == (4, 3, 4, 4)
    assert images.dtype == np.uint8
    assert said == ["reading 4 images to train on and 2 to test on"]


def test_val_goes_before_test(tmp_path):
    put_images(tmp_path, splits=("train", "test"), each=3)
    assert len(read_folder(tmp_path, 4)[2][1]) == 6
    put_images(tmp_path, splits=("val",), each=1)
    assert len(read_folder(tmp_path, 4)[2][1]) == 2


def test_the_middle_of_the_shorter_side(tmp_path):
    """Quarters of a wide image: the outer ones are cut off; the rest is scaled without jags."""
    pixels = flat(0, 8, 16)
    pixels[:, 4:8], pixels[:, 8:12] = [200, 100, 0], [0, 100, 200]
    for split in ("train", "val"):
        save(tmp_path / split / "a" / "0.png", pixels)
        save(tmp_path / split / "b" / "0.png", pixels.transpose(1, 0, 2))
    _, (images, _), _ = read_folder(tmp_path, 8)
    wide, high = images
    assert wide[0].tolist() == [[200] * 4 + [0] * 4] * 8
    assert wide[2].tolist() == [[0] * 4 + [200] * 4] * 8
    assert wide[1].tolist() == [[100] * 8] * 8
    assert high.tolist() == wide.transpose(0, 2, 1).tolist()
    _, (images, _), _ = read_folder(tmp_path, 4)
    # A triangle two pixels wide to each side: 1/8, 3/8, 3/8 and 1/8 of pixels 3 to 6, 5 to 8, 7 to 10 and 9 to 12.
    assert images[0, 0].tolist() == [[175, 175, 25, 0]] * 4


@pytest.mark.parametrize(
    ("mode", "suffix", "expected"),
    [
        ("RGB", ".png", (40, 80, 120)),
        ("RGB", ".JPEG", (40, 80, 120)),
        ("L", ".jpg", (73, 73, 73)),
        ("CMYK", ".jpg", (40, 80, 120)),
        ("P", ".gif", (40, 80, 120)),
        ("1", ".bmp", (0, 0, 0)),
        ("RGBA", ".png", (20, 40, 60)),
        ("LA", ".png", (37, 37, 37)),
        ("RGB", ".webp", (40, 80, 120)),
        ("RGB", ".tif", (40, 80, 120)),
    ],
)
def test_every_kind_of_image_becomes_colour(tmp_path, mode, suffix, expected):
    """What is half transparent is half as bright: it lies on black."""
    image = Image.new("RGB", (8, 8), (40, 80, 120))
    if mode in ("RGBA", "LA"):
        image = image.convert("RGBA")
        image.putalpha(128)
    image = image.convert(mode, dither=Image.Dither.NONE) if mode == "1" else image.convert(mode)
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            image.save(tmp_path / split / name / f"0{suffix}")
    _, (images, _), _ = read_folder(tmp_path, 4)
    np.testing.assert_allclose(images[0, :, 2, 2], expected, atol=3)


def test_a_palette_that_is_partly_transparent(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 40, 80, 120, 200, 200, 200])
    for split in ("train", "val"):
        for name, clear in (("a", 1), ("b", 2)):
            (tmp_path / split / name).mkdir(parents=True)
            image.save(tmp_path / split / name / "0.png", transparency=clear)
    _, (images, _), _ = read_folder(tmp_path, 4)
    assert images[:, :, 0, 0].tolist() == [[0, 0, 0], [40, 80, 120]]


def test_a_large_photograph_is_not_read_whole(tmp_path):
    """A fraction of a JPEG's pixels is decoded, and looks the same."""
    row = np.linspace(0, 255, 1600).astype(np.uint8)
    pixels = np.broadcast_to(row[:, None], (1600, 1600, 3))
    for path in ("train/a/0", "train/b/0", "val/a/0"):
        save(tmp_path / f"{path}.jpg", pixels, quality=95)
    _, (images, _), _ = read_folder(tmp_path, 16)
    np.testing.assert_allclose(images[0, 1, 3], (np.arange(16) + 0.5) * 255 / 16, atol=3)


# ---- what is wrong


def no_folder(path):
    return "there is no data folder"


def empty(path):
    path.mkdir()
    return "it has no folder val or test"


def no_train(path):
    put_images(path, splits=("val",))
    return "it has no folder train"


def no_test(path):
    put_images(path, splits=("train",))
    return "it has no folder val or test"


def one_class(path):
    put_images(path, classes=("cat",))
    return "fewer than two classes"


def no_classes(path):
    save(path / "train" / "0.png", flat(0))
    save(path / "val" / "0.png", flat(0))
    return "fewer than two classes"


def another_class(path):
    put_images(path)
    save(path / "val" / "emu" / "0.png", flat(0))
    return "emu is a class that can't be learned"


def nothing_to_test(path):
    put_images(path, splits=("train",))
    (path / "val" / "cat").mkdir(parents=True)
    return "val holds no images"


@pytest.mark.parametrize(
    "make", [no_folder, empty, no_train, no_test, one_class, no_classes, another_class, nothing_to_test]
)
def test_a_folder_that_is_laid_out_otherwise_is_named(tmp_path, make):
    said = make(tmp_path / "data")
    with pytest.raises(InputError, match=said) as raised:
        read_folder(tmp_path / "data", 8)
    assert str(tmp_path / "data") in str(raised.value)
    assert "train/CLASS/" in raised.value.instead


DAMAGES = {
    "empty": lambda content: b"",
    "no image": lambda content: b"this is no image",
    "cut off": lambda content: content[: len(content) // 2],
    "a broken chunk": lambda content: content[:60] + b"\xff" * 40 + content[100:],
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_images_are_named(tmp_path, kind):
    put_images(tmp_path)
    path = tmp_path / "val" / "dog" / "2.png"
    path.write_bytes(DAMAGES[kind](path.read_bytes()))
    with pytest.raises(InputError) as raised:
        read_folder(tmp_path, 8)
    assert raised.value.what == "1 image file can't be read"
    assert raised.value.why.startswith(f"{path}: ")
    assert len(raised.value.why.splitlines()) == 1
    assert "delete what is damaged" in raised.value.instead


def test_many_damaged_images_are_counted(tmp_path):
    put_images(tmp_path)
    for path in (tmp_path / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="8 image files can't be read") as raised:
        read_folder(tmp_path, 8)
    assert raised.value.why.splitlines()[-1] == "and 3 more"
    assert len(raised.value.why.splitlines()) == 6


def test_an_image_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    put_images(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(InputError, match="decompression bomb"):
        read_folder(tmp_path, 8)


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    put_images(tmp_path)
    real = builtins.__import__

    def without(name, *arguments):
        if name.split(".")[0] == "PIL":
            raise ImportError("No module named 'PIL'")
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="reading images needs Pillow") as raised:
        read_folder(tmp_path, 8)
    assert "pip install hyperstack[images]" in raised.value.instead


@pytest.mark.usefixtures("elsewhere")
def test_the_command_line_says_what_is_missing_and_writes_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    before = contents(tmp_path)
    for arguments, said in (((), "pass --data-dir"), (("--data-dir", "empty"), "no folder val or test")):
        code, output, remarks = command("train", "imagefolder", *arguments)
        assert (code, output) == (2, "")
        assert said in remarks
    assert contents(tmp_path) == before


# ---- the task


def test_load_and_prepare(tmp_path, monkeypatch):
    monkeypatch.setattr(imagefolder, "resnet18", lambda classes: torch.nn.Linear(3, classes))
    put_images(tmp_path, classes=("x", "y", "z"))
    task = ImageFolder()
    data = task.load(tmp_path, CPU)
    assert task.model().out_features == 3
    assert data.train_inputs.shape == (12, 3, 64, 64)
    assert data.train_inputs.dtype == torch.uint8
    assert data.test_targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    plain, _ = task.prepare(data.train_inputs, data.train_targets, torch.Generator(), training=False)
    held = data.train_inputs.double()
    mean, deviation = held.mean((0, 2, 3)), held.std((0, 2, 3), correction=0)
    expected = (held - mean[:, None, None]) / deviation[:, None, None]
    torch.testing.assert_close(plain.double(), expected, rtol=1e-5, atol=1e-5)
    draw = torch.Generator().manual_seed(0)
    moved, _ = task.prepare(data.train_inputs, data.train_targets, draw, training=True)
    for one, original in zip(moved, plain, strict=True):
        padded = torch.nn.functional.pad(original, (4, 4, 4, 4))
        mirrored = torch.nn.functional.pad(original.flip(2), (4, 4, 4, 4))
        cuts = [p[:, y : y + 64, x : x + 64] for p in (padded, mirrored) for y in range(9) for x in range(9)]
        assert sum(torch.equal(one, cut) for cut in cuts) == 1


def test_a_subclass_chooses_another_size(tmp_path):
    class Tiny(ImageFolder):
        size = 8

    assert Tiny().load(put_images(tmp_path), CPU).train_inputs.shape == (8, 3, 8, 8)


@pytest.mark.slow
def test_two_kinds_of_images_are_told_apart(tmp_path):
    """Reddish from bluish ones; the error ends at 0."""
    from hyperstack.training import Plan, Trainer

    random = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 8)):
        for name, tint in (("blue", (-40, 0, 40)), ("red", (40, 0, -40))):
            for i in range(count):
                pixels = np.clip(random.integers(60, 196, (16, 16, 3)) + tint, 0, 255)
                save(tmp_path / split / name / f"{i}.jpg", pixels)

    class Tiny(ImageFolder):
        size = 16

    task = Tiny()
    data = task.load(tmp_path, CPU)
    trainer = Trainer(Plan("tiny", "Adam", 3, 0, "cpu", 8), task, data)
    for trainer.epoch in range(8):
        trainer.batch = 0
        for chosen in trainer.source.order(trainer.plan.seed, trainer.epoch).split(8):
            trainer._step(chosen)
    assert trainer.test_error() == 0
