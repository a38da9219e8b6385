"""Files out of a gzipped tar, by their names and sizes; nothing is written where the archive says."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from hyperstack.tasks.fetch import SourceError

__all__ = ["tar_members"]


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
