"""CIFAR-10's data, from a folder, the cache and the archive. Small files stand for the real ones, but where the
environment variable HYPERSTACK_TEST_CIFAR10 names a folder that holds `cifar-10-batches-bin`.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from small import RECORDS, cifar10_files, put_cifar10

from hyperstack.errors import InputError
from hyperstack.tasks import CIFAR10, cifar10, fetch

REAL = "HYPERSTACK_TEST_CIFAR10"
SIZE = RECORDS * 3073


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """Where the files lie in an empty cache, with every way to the network cut."""
    monkeypatch.setenv("HYPERSTACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cifar10, "URLS", [(tmp_path / "archive.tar.gz").as_uri()])
    monkeypatch.setattr(cifar10, "RECORDS", RECORDS)
    return tmp_path / "cache" / "cifar10" / "cifar-10-batches-bin"


@pytest.fixture
def files() -> dict[str, np.ndarray]:
    return cifar10_files()


def tar_of(files: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def inside(files) -> dict[str, bytes]:
    """The files as the archive holds them, and what it holds beside them."""
    held = {f"cifar-10-batches-bin/{name}": records.tobytes() for name, records in files.items()}
    return {"cifar-10-batches-bin/readme.html": b"hello", **held}


def serve(tmp_path, monkeypatch, content: bytes) -> None:
    """Let this be the archive, and its hash and size the ones expected."""
    (tmp_path / "archive.tar.gz").write_bytes(content)
    monkeypatch.setattr(cifar10, "ARCHIVE_SHA", fetch.sha256(content))
    monkeypatch.setattr(cifar10, "ARCHIVE_SIZE", len(content))


def assert_same(loaded, files):
    """The planes of each record are its channels, row by row, in the order of the files."""
    train = np.concatenate([files[f"data_batch_{i}.bin"] for i in (1, 2, 3, 4, 5)])
    images, labels, test_images, test_labels = loaded
    assert images.dtype == labels.dtype == np.uint8
    for records, got, said in ((train, images, labels), (files["test_batch.bin"], test_images, test_labels)):
        assert got.shape == (len(records), 3, 32, 32)
        assert said.tolist() == records[:, 0].tolist()
        for i, channel, row, column in ((0, 0, 0, 0), (3, 0, 0, 5), (5, 1, 2, 3), (len(records) - 1, 2, 31, 31)):
            assert got[i, channel, row, column] == records[i, 1 + 1024 * channel + 32 * row + column]
        np.testing.assert_array_equal(got.reshape(len(records), -1), records[:, 1:])


# ---- a folder of the user


def test_folder(tmp_path, files):
    put_cifar10(tmp_path / "data", files)
    assert_same(cifar10.load_arrays(tmp_path / "data"), files)
    assert_same(cifar10.load_arrays(tmp_path / "data" / "cifar-10-batches-bin"), files)


def test_home_in_the_name_of_a_folder(tmp_path, monkeypatch, files):
    monkeypatch.setenv("HOME", str(tmp_path))
    put_cifar10(tmp_path / "data", files)
    assert_same(cifar10.load_arrays(Path("~/data")), files)


def with_label(records, place, label):
    changed = records.copy()
    changed[place, 0] = label
    return changed.tobytes()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda records: records.tobytes()[:-1], f"it has {SIZE - 1} bytes, expected {SIZE}"),
        (lambda records: records.tobytes() + b"\0", f"it has {SIZE + 1} bytes, expected {SIZE}"),
        (lambda records: b"", f"it has 0 bytes, expected {SIZE}"),
        (lambda records: with_label(records, 7, 10), "the label of its record 8 is 10, expected 0 to 9"),
        (lambda records: with_label(records, -1, 255), f"the label of its record {RECORDS} is 255"),
    ],
)
@pytest.mark.parametrize("name", ["data_batch_1.bin", "test_batch.bin"])
def test_damaged_file_in_a_folder(tmp_path, cache, files, name, damage, why):
    put_cifar10(tmp_path / "data", files)
    path = tmp_path / "data" / "cifar-10-batches-bin" / name
    path.write_bytes(damage(files[name]))
    with pytest.raises(InputError) as raised:
        cifar10.load_arrays(tmp_path / "data")
    assert str(path) in raised.value.what
    assert why in raised.value.why
    assert "replace it" in raised.value.instead
    assert not cache.exists(), "the network was used in place of the user's folder"


def test_missing_file_in_a_folder(tmp_path, files):
    put_cifar10(tmp_path / "data", files)
    (tmp_path / "data" / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    with pytest.raises(InputError, match=r"data_batch_3\.bin missing"):
        cifar10.load_arrays(tmp_path / "data")


def no_folder(path):
    return "does not exist"


def a_file(path):
    path.write_bytes(b"")
    return "not a folder"


def an_empty_folder(path):
    path.mkdir()
    return "none that may be read is in it"


def the_python_version(path):
    (path / "cifar-10-batches-py").mkdir(parents=True)
    return "cifar-10-batches-py is the Python version, and the binary version is needed"


@pytest.mark.parametrize("make", [no_folder, a_file, an_empty_folder, the_python_version])
def test_no_files_in_a_folder(tmp_path, cache, make):
    why = make(tmp_path / "data")
    with pytest.raises(InputError) as raised:
        cifar10.load_arrays(tmp_path / "data")
    assert str(tmp_path / "data") in raised.value.what
    assert why in raised.value.why
    assert "data_batch_5.bin" in raised.value.instead
    assert not cache.exists()


# ---- the cache and the archive


def test_fetched_once(tmp_path, monkeypatch, cache, files):
    serve(tmp_path, monkeypatch, tar_of(inside(files)))
    said = []
    assert_same(cifar10.load_arrays(notify=said.append), files)
    assert said == [f"fetching CIFAR-10 from {cifar10.URLS[0]} (170 MB)"]
    assert sorted(p.name for p in cache.iterdir()) == sorted([*files, "SHA256SUMS"])
    sums = {name: fetch.sha256(records.tobytes()) for name, records in files.items()}
    assert dict(reversed(line.split("  ")) for line in (cache / "SHA256SUMS").read_text().splitlines()) == sums
    (tmp_path / "archive.tar.gz").unlink()
    assert_same(cifar10.load_arrays(notify=said.append), files)
    assert len(said) == 1


def test_files_that_the_user_put_into_the_cache(cache, files):
    put_cifar10(cache.parent, files)
    assert_same(cifar10.load_arrays(), files)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("data_batch_2.bin", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
        ("data_batch_2.bin", lambda content: content[:700]),
        ("test_batch.bin", lambda content: b"\xff" + content[1:]),
        ("SHA256SUMS", lambda content: b"nothing of the kind"),
        ("SHA256SUMS", lambda content: b"\xff\xfe"),
    ],
)
def test_damaged_cache_is_fetched_again(tmp_path, monkeypatch, cache, files, name, damage):
    serve(tmp_path, monkeypatch, tar_of(inside(files)))
    cifar10.load_arrays()
    before = {path.name: path.read_bytes() for path in cache.iterdir()}
    (cache / name).write_bytes(damage(before[name]))
    said = []
    assert_same(cifar10.load_arrays(notify=said.append), files)
    assert "is damaged and is fetched again" in said[0]
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == before


def test_no_network(cache):
    with pytest.raises(InputError) as raised:
        cifar10.load_arrays()
    assert "no network" in raised.value.what
    assert cifar10.URLS[0] in raised.value.why
    assert "--data-dir" in raised.value.instead
    assert not list(cache.iterdir())


def test_an_archive_with_the_wrong_hash_is_not_opened(tmp_path, monkeypatch, cache, files):
    serve(tmp_path, monkeypatch, tar_of(inside(files)))
    monkeypatch.setattr(cifar10, "ARCHIVE_SHA", "0" * 64)
    monkeypatch.setattr(tarfile, "open", lambda *args, **options: pytest.fail("it was opened"))
    with pytest.raises(InputError, match=f"wrong content .*expected {'0' * 64}"):
        cifar10.load_arrays()
    assert not list(cache.iterdir())


def test_an_archive_that_is_too_long_is_given_up(tmp_path, monkeypatch, cache, files):
    serve(tmp_path, monkeypatch, tar_of(inside(files)))
    monkeypatch.setattr(cifar10, "ARCHIVE_SIZE", 1000)
    with pytest.raises(InputError, match="sent more than the 1000 bytes expected"):
        cifar10.load_arrays()
    assert not list(cache.iterdir())


def test_an_archive_writes_nothing_where_it_says(tmp_path, monkeypatch, cache, files):
    traps = dict.fromkeys(("../escaped", str(tmp_path / "absolute"), "data_batch_1.bin"), b"trap")
    serve(tmp_path, monkeypatch, tar_of({**traps, **inside(files)}))
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    cifar10.load_arrays()
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before
    assert sorted(p.name for p in cache.iterdir()) == sorted([*files, "SHA256SUMS"])


def test_cache_that_can_not_be_written(tmp_path, monkeypatch, files):
    serve(tmp_path, monkeypatch, tar_of(inside(files)))
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("HYPERSTACK_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set HYPERSTACK_CACHE"):
        cifar10.load_arrays()


def _load(barrier, expected):
    barrier.wait(10)
    assert_same(cifar10.load_arrays(), expected)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_two_processes_fetch_at_once(tmp_path, monkeypatch, cache, files):
    serve(tmp_path, monkeypatch, tar_of(inside(files)))
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    processes = [context.Process(target=_load, args=(barrier, files)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
        assert process.exitcode == 0
    assert sorted(p.name for p in cache.iterdir()) == sorted([*files, "SHA256SUMS"])


# ---- the task


def test_load_and_prepare(tmp_path, files):
    """Each channel has zero mean and unit deviation over the training images, by a computation of its own."""
    put_cifar10(tmp_path / "data", files)
    task, cpu = CIFAR10(), torch.device("cpu")
    data = task.load(tmp_path / "data", cpu)
    assert data.train_inputs.dtype == data.test_inputs.dtype == torch.uint8
    assert (len(data.train_inputs), len(data.test_inputs)) == (5 * RECORDS, RECORDS)
    assert data.test_targets.tolist() == files["test_batch.bin"][:, 0].tolist()
    assert data.train_targets.dtype == torch.int64
    draw = torch.Generator()
    train, labels = task.prepare(data.train_inputs, data.train_targets, draw, training=True)
    assert labels is data.train_targets
    assert train.dtype == torch.float32
    numbers = train.double()
    torch.testing.assert_close(numbers.mean(dim=(0, 2, 3)), torch.zeros(3).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(numbers.var(dim=(0, 2, 3), correction=0), torch.ones(3).double(), rtol=1e-6, atol=0)
    held = data.train_inputs.double()
    mean = held.mean(dim=(0, 2, 3), keepdim=True)
    deviation = held.std(dim=(0, 2, 3), correction=0, keepdim=True)
    test, _ = task.prepare(data.test_inputs, data.test_targets, draw, training=False)
    torch.testing.assert_close(test.double(), (data.test_inputs - mean) / deviation, rtol=1e-5, atol=1e-5)


def test_a_channel_of_one_level_is_no_division_by_zero(tmp_path, files):
    for records in files.values():
        records[:, 1:1025] = 7
    data = (task := CIFAR10()).load(put_cifar10(tmp_path / "data", files), torch.device("cpu"))
    images, _ = task.prepare(data.train_inputs, data.train_targets, torch.Generator(), training=True)
    assert torch.equal(images[:, 0], torch.zeros_like(images[:, 0]))
    assert torch.isfinite(images).all()


def test_the_model_is_the_papers():
    torch.manual_seed(0)
    model = CIFAR10().model().double()
    assert [tuple(p.shape) for p in model.parameters()] == [
        *[(16, 3, 3, 3), (16,), (16, 16, 3, 3), (16,)],
        *[(128, 12544), (128,), (10, 128), (10,)],
    ]
    a, b, c, d, e, f, g, h = model.parameters()
    images = torch.randn(2, 3, 32, 32).double()
    x = images.unfold(2, 3, 1).unfold(3, 3, 1).permute(0, 2, 3, 1, 4, 5).flatten(3)  # each 3x3 patch as a row
    x = (x @ a.flatten(1).T + b).clamp(min=0).permute(0, 3, 1, 2)
    x = x.unfold(2, 3, 1).unfold(3, 3, 1).permute(0, 2, 3, 1, 4, 5).flatten(3)
    x = (x @ c.flatten(1).T + d).clamp(min=0).permute(0, 3, 1, 2)
    x = ((x.flatten(1) @ e.T + f).tanh() @ g.T + h).tanh()
    torch.testing.assert_close(model(images), x, rtol=1e-12, atol=1e-12)
    labels = torch.tensor([3, 9])
    expected = x.exp().sum(1).log() - x[[0, 1], labels]
    torch.testing.assert_close(CIFAR10().losses(model(images), labels), expected, rtol=1e-12, atol=1e-12)


# ---- the real data


@pytest.fixture
def real(monkeypatch) -> Path:
    if not os.environ.get(REAL):
        pytest.skip(f"{REAL} names no folder with cifar-10-batches-bin")
    monkeypatch.setattr(cifar10, "RECORDS", 10_000)
    return Path(os.environ[REAL])


@pytest.mark.slow
def test_the_real_files(real):
    images, labels, test_images, test_labels = cifar10.load_arrays(real)
    assert (images.shape, test_images.shape) == ((50000, 3, 32, 32), (10000, 3, 32, 32))
    assert np.bincount(labels).tolist() == [5000] * 10
    assert np.bincount(test_labels).tolist() == [1000] * 10
    assert labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert test_labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    # As published for the originals: 125.3, 123.0, 113.9 and 63.0, 62.1, 66.7. JPEG moves them by less than this.
    np.testing.assert_allclose(images.mean(axis=(0, 2, 3)), [125.3, 123.0, 113.9], atol=1)
    np.testing.assert_allclose(images.std(axis=(0, 2, 3)), [63.0, 62.1, 66.7], atol=1.5)


@pytest.mark.slow
def test_a_hundred_steps_learn_something(real):
    """By chance 90 % would be read wrong."""
    from hyperstack.training import Plan, Trainer

    task = CIFAR10()
    data = task.load(real, torch.device("cpu"))
    trainer = Trainer(Plan("cifar10", "Adam / SGD(1e-05)", 1, 0, "cpu", 256), task, data)
    for chosen in trainer.source.order(trainer.plan.seed, trainer.epoch).split(256)[:100]:
        trainer._step(chosen)
    assert 0.3 < trainer.test_error() < 0.65
