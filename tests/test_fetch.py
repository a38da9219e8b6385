"""The generic fetching helpers. Nothing here leaves this computer."""

from __future__ import annotations

import errno
import gzip
import importlib.metadata
import io
import multiprocessing
import os
import pickle
import socket
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hyperstack.errors import InputError
from hyperstack.tasks import archive, fetch
from hyperstack.tasks.fetch import SourceError

CONTENT = b"some content"
SHA = fetch.sha256(CONTENT)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def zip_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


# The cache folder


@pytest.mark.parametrize(
    ("own", "shared", "expected"),
    [
        ("/own", "/shared", "/own"),
        ("", "/shared", "/shared/hyperstack"),
        (None, "/shared", "/shared/hyperstack"),
        (None, "", "/home/user/.cache/hyperstack"),
        (None, None, "/home/user/.cache/hyperstack"),
        ("~/here", None, "/home/user/here"),
    ],
)
def test_cache_dir(monkeypatch, own, shared, expected):
    monkeypatch.setenv("HOME", "/home/user")
    for name, value in (("HYPERSTACK_CACHE", own), ("XDG_CACHE_HOME", shared)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert fetch.cache_dir() == Path(expected)


def test_cache_dir_without_a_home(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("HYPERSTACK_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(InputError, match="HYPERSTACK_CACHE"):
        fetch.cache_dir()


def test_sha256():
    assert fetch.sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# Atomic writes


def test_write_makes_the_folder_and_replaces_the_file(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    fetch.write_atomically(path, b"old")
    fetch.write_atomically(path, CONTENT)
    assert path.read_bytes() == CONTENT
    assert names_in(path.parent) == ["file"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, failing):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, failing, full)
    with pytest.raises(InputError) as raised:
        fetch.write_atomically(path, CONTENT)
    assert str(path) in raised.value.what
    assert "No space left" in raised.value.why
    assert "free space" in raised.value.instead
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["file"]


def test_interrupted_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch.write_atomically(path, CONTENT)
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["file"]


def test_write_where_no_folder_can_be(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(InputError, match="can't be written"):
        fetch.write_atomically(tmp_path / "file" / "below", CONTENT)
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_write_in_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="Permission denied"):
            fetch.write_atomically(tmp_path / "file", CONTENT)
    finally:
        tmp_path.chmod(0o700)


def _write_often(path, content, barrier):
    barrier.wait(10)
    for _ in range(30):
        fetch.write_atomically(path, content)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_two_processes_write_one_file(tmp_path):
    context = multiprocessing.get_context("fork")
    path, contents, barrier = tmp_path / "file", [b"a" * 2**20, b"b" * 2**20], context.Barrier(2)
    writers = [context.Process(target=_write_often, args=(path, each, barrier)) for each in contents]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            assert path.read_bytes() in contents, "a reader saw part of a file"
            seen += 1
    for writer in writers:
        writer.join(10)
        assert writer.exitcode == 0
    assert seen > 0
    assert names_in(tmp_path) == ["file"]


# gzip


def test_gunzip():
    assert archive.gunzip(gzip.compress(CONTENT), len(CONTENT)) == CONTENT


@pytest.mark.parametrize(
    "damaged",
    [b"", b"not gzip at all", gzip.compress(CONTENT)[:-4], gzip.compress(CONTENT)[:12] + b"\xff" * 20],
    ids=["empty", "other", "truncated", "altered"],
)
def test_gunzip_refuses_damage(damaged):
    with pytest.raises(ValueError, match=r"bad gzip|SHA"):
        fetch._check(archive.gunzip(damaged, 1000), SHA)


def test_gunzip_stops_at_its_limit():
    with pytest.raises(ValueError, match="more than the 1000 bytes"):
        archive.gunzip(gzip.compress(bytes(10**7)), 1000)


# Downloads, from mirrors that are local files


def mirror(tmp_path: Path, name: str, content: bytes) -> str:
    (tmp_path / name).write_bytes(content)
    return (tmp_path / name).as_uri()


def test_download_takes_the_first_mirror_that_is_right(tmp_path):
    gone = (tmp_path / "gone").as_uri()
    wrong, right = mirror(tmp_path, "wrong", b"other"), mirror(tmp_path, "right", CONTENT)
    assert fetch.download([gone, wrong, right, "nonsense"], SHA) == CONTENT


def test_download_checks_what_was_decoded(tmp_path):
    urls = [mirror(tmp_path, "raw", CONTENT), mirror(tmp_path, "gz", gzip.compress(CONTENT))]
    assert fetch.download(urls, SHA, decode=lambda got: archive.gunzip(got, 100)) == CONTENT


def test_download_says_what_each_mirror_said(tmp_path):
    urls = [
        (tmp_path / "gone").as_uri(),
        mirror(tmp_path, "wrong", b"other"),
        mirror(tmp_path, "long", bytes(1001)),
        "nonsense",
    ]
    with pytest.raises(SourceError) as raised:
        fetch.download(urls, SHA, limit=1000)
    reasons = raised.value.reasons
    assert [reason.startswith(url) for reason, url in zip(reasons, urls, strict=True)] == [True] * 4
    assert "No such file" in reasons[0]
    assert f"{fetch.sha256(b'other')}, expected {SHA}" in reasons[1]
    assert "more than the 1000 bytes" in reasons[2]
    assert "unknown url type" in reasons[3]


def test_download_gives_up_a_silent_mirror():
    with socket.create_server(("127.0.0.1", 0), backlog=8) as silent:
        socket.create_connection(silent.getsockname()).close()  # it listens, and says nothing
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file"
        with pytest.raises(SourceError, match="timed out"):
            fetch.download([url], SHA, timeout_s=0.1)


# Wheels


def stand_in_for_pip(monkeypatch, files: dict[str, bytes], code: int = 0, stderr: str = "") -> list[list[str]]:
    """Let `files` be what pip downloads; returns the list that will hold the commands run."""
    commands: list[list[str]] = []

    def run(command, **options):
        commands.append(command)
        for name, content in files.items():
            (Path(command[command.index("-d") + 1]) / name).write_bytes(content)
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_pip_wheel(monkeypatch):
    commands = stand_in_for_pip(monkeypatch, {"thing-1.0-py3-none-any.whl": CONTENT})
    assert fetch.pip_wheel("thing==1.0", SHA) == CONTENT
    (command,) = commands
    assert command[1:4] == ["-m", "pip", "download"]
    assert {"thing==1.0", "--no-deps", "--no-cache-dir", "--only-binary=:all:"} < set(command)
    assert not any("index" in word or "://" in word for word in command), "the user's index is to be used"


def test_pip_wheel_with_the_wrong_hash(monkeypatch):
    stand_in_for_pip(monkeypatch, {"thing-1.0-py3-none-any.whl": b"other"})
    with pytest.raises(SourceError, match=f"thing==1.0: wrong content .* expected {SHA}"):
        fetch.pip_wheel("thing==1.0", SHA)


def test_pip_wheel_without_a_wheel(monkeypatch):
    stand_in_for_pip(monkeypatch, {"thing-1.0.tar.gz": CONTENT})
    with pytest.raises(SourceError, match="0 wheels"):
        fetch.pip_wheel("thing==1.0", SHA)


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("/usr/bin/python: No module named pip\n", "No module named pip"),
        ("ERROR: no route\n\n[notice] a new release of pip\n", "ERROR: no route"),
        ("", "exit status 1"),
    ],
)
def test_pip_wheel_where_pip_fails(monkeypatch, stderr, said):
    stand_in_for_pip(monkeypatch, {}, code=1, stderr=stderr)
    with pytest.raises(SourceError, match=said):
        fetch.pip_wheel("thing==1.0", SHA)


@pytest.mark.parametrize("error", [subprocess.TimeoutExpired("pip", 600), PermissionError(13, "denied")])
def test_pip_wheel_where_pip_can_not_run(monkeypatch, error):
    def run(*args, **options):
        raise error

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SourceError, match=r"pip download thing==1\.0"):
        fetch.pip_wheel("thing==1.0", SHA)


@pytest.mark.slow
@pytest.mark.skipif(not list(importlib.metadata.distributions(name="pip")), reason="needs pip")
def test_pip_wheel_with_pip_itself(tmp_path, monkeypatch):
    metadata = b"Metadata-Version: 2.1\nName: hyperstack-test-thing\nVersion: 1.0\n"
    info = "hyperstack_test_thing-1.0.dist-info"
    tags = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    wheel = zip_of({f"{info}/METADATA": metadata, f"{info}/WHEEL": tags, f"{info}/RECORD": b""})
    (tmp_path / "hyperstack_test_thing-1.0-py3-none-any.whl").write_bytes(wheel)
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(tmp_path)), ("CONFIG_FILE", os.devnull)):
        monkeypatch.setenv(f"PIP_{name}", value)
    assert fetch.pip_wheel("hyperstack-test-thing==1.0", fetch.sha256(wheel)) == wheel


def test_wheel_member():
    wheel = zip_of({"data/file": CONTENT, "other": b"other"})
    assert archive.wheel_member(wheel, "data/file", len(CONTENT)) == CONTENT


@pytest.mark.parametrize("name", ["file", "data/file/", "/data/file", "DATA/FILE"])
def test_wheel_member_wants_the_exact_name(name):
    with pytest.raises(SourceError, match="no item named"):
        archive.wheel_member(zip_of({"data/file": CONTENT}), name, 1000)


def test_wheel_member_over_its_limit():
    with pytest.raises(SourceError, match="12 bytes, at most 11"):
        archive.wheel_member(zip_of({"file": CONTENT}), "file", 11)


def test_wheel_member_of_damaged_wheels():
    wheel = zip_of({"file": CONTENT})
    altered = bytearray(wheel)
    altered[36] ^= 0xFF
    for damaged in (b"", b"no zip file", wheel[:-5], bytes(altered)):
        with pytest.raises(SourceError, match="wheel member file"):
            archive.wheel_member(damaged, "file", 1000)


# Pickles


def python2_pickle(array: np.ndarray) -> bytes:
    """What Python 2 and an old NumPy write for a one-dimensional little-endian array."""
    code, content = array.dtype.str[1:].encode(), array.tobytes()
    return (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + b"K" + bytes([len(array)]) + b"\x85cnumpy\ndtype\nU\x02" + code + b"K\x00K\x01\x87R(K\x03U\x01<NNN"
        + b"J\xff\xff\xff\xff" * 2 + b"K\x00tb\x89T" + len(content).to_bytes(4, "little") + content + b"tb."
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["<f4", "<i8"])
def test_unpickle_arrays_of_python_2(dtype):
    array = np.array([0, 0.5, 200], dtype)
    read = archive.unpickle_arrays(python2_pickle(array))
    assert read.dtype == array.dtype
    assert read.tolist() == array.tolist()


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_unpickle_arrays_of_old_and_new_numpy(module):
    written = python2_pickle(np.arange(3)).replace(b"numpy.core.multiarray", module)
    assert archive.unpickle_arrays(written).tolist() == [0, 1, 2]


def test_unpickle_containers_of_arrays():
    images, labels = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([7, 8])
    ((read_images, read_labels),) = archive.unpickle_arrays(pickle.dumps(((images, labels),), protocol=4))
    assert read_images.tolist() == images.tolist()
    assert read_labels.tolist() == labels.tolist()


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_unpickle_runs_nothing_else(tmp_path):
    marker = tmp_path / "executed"
    calls = [
        Call(os.system, f"touch '{marker}'"),
        Call(subprocess.getoutput, f"touch '{marker}'"),
        Call(eval, f"open({str(marker)!r}, 'w')"),
        Call(open, str(marker), "w"),
        Call(os.mkdir, str(marker)),
        Call(np.savetxt, str(marker), [1.0]),
        Call(getattr, np.ndarray, "tofile"),
    ]
    for call in calls:
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(SourceError, match="which no array needs"):
                archive.unpickle_arrays(pickle.dumps((np.arange(3).tolist(), call), protocol))
    assert not marker.exists()


@pytest.mark.parametrize(
    "damaged",
    [b"", b"junk", pickle.dumps(np.arange(9), 4)[:-9], b"\x80\x04Pid\n.", b"cnumpy\nndarray\nK\x01\x85b."],
    ids=["empty", "junk", "truncated", "persistent", "state"],
)
def test_unpickle_refuses_damage(damaged):
    with pytest.raises(SourceError, match="pickle: "):
        archive.unpickle_arrays(damaged)


# Large files, and members of tars


def test_download_into_takes_the_first_mirror_that_is_right(tmp_path):
    gone = (tmp_path / "gone").as_uri()
    wrong, right = mirror(tmp_path, "wrong", b"another content, and longer"), mirror(tmp_path, "right", CONTENT)
    with open(tmp_path / "got", "w+b") as stream:
        fetch.download_into(stream, [gone, wrong, right, "nonsense"], SHA, limit=100)
        assert stream.read() == CONTENT


def test_download_into_comes_in_pieces_and_stops_at_its_limit(tmp_path):
    content = os.urandom(3 * fetch.MEBIBYTE + 5)
    url = mirror(tmp_path, "long", content)
    with open(tmp_path / "got", "w+b") as stream:
        fetch.download_into(stream, [url], fetch.sha256(content), limit=len(content))
        assert stream.read() == content
        with pytest.raises(SourceError, match="sent more than"):
            fetch.download_into(stream, [url], fetch.sha256(content), limit=len(content) - 1)


def test_download_into_a_full_disk_blames_no_mirror(tmp_path):
    with open("/dev/full", "w+b", buffering=0) as stream, pytest.raises(InputError, match="No space left"):
        fetch.download_into(Unseekable(stream), [mirror(tmp_path, "right", CONTENT)], SHA, limit=100)


class Unseekable:
    """A stream that can be written only: a device has no length to cut."""

    def __init__(self, stream):
        self.write = stream.write

    def seek(self, place):
        pass

    truncate = lambda self: None  # noqa: E731


def tar_of(members: list[tuple[str, bytes]], kind: bytes = tarfile.REGTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


MEMBERS = [("a/one", b"1"), ("a/two", b"22"), ("three", b"333")]


def members(content: bytes, sizes: dict[str, int]) -> list[tuple[str, bytes]]:
    return list(archive.tar_members(io.BytesIO(content), sizes))


def test_tar_members():
    assert members(tar_of(MEMBERS), {"three": 3, "a/one": 1}) == [("a/one", b"1"), ("three", b"333")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (tar_of(MEMBERS[:1]), "it lacks a/two"),
        (tar_of([*MEMBERS, MEMBERS[1]]), "a/two comes twice"),
        (tar_of([("a/one", b"1"), ("a/two", b"2")]), "a/two is no plain file of 2 bytes"),
        (tar_of([("a/one", b""), ("a/two", b"")], tarfile.SYMTYPE), "a/one is no plain file of 1 bytes"),
        (tar_of([("./a/one", b"1"), ("a//two", b"22")]), "it lacks a/one, a/two"),
        (tar_of([("a/one", b"1"), ("a/two", b"22")])[:60], "tar archive: "),
        (gzip.compress(b"no tar"), "tar archive: "),
        (b"no archive", "tar archive: "),
        (b"", "tar archive: "),
    ],
    ids=["missing", "twice", "size", "links", "other names", "cut", "no tar", "no gzip", "empty"],
)
def test_tar_members_of_other_archives(content, said):
    with pytest.raises(SourceError, match=said):
        members(content, {"a/one": 1, "a/two": 2})
