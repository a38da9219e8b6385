"""A run folder: what one training run leaves behind, and the only place that knows its file names.

plan.json         what was asked for, written before the first step
record.jsonl      one row a recorded step
checkpoint.pt     everything a resumed run needs, replaced as a whole
summary.json      the result, written at the end
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from hyperstack.errors import InputError, RunError
from hyperstack.telemetry.jsonl import Record, read_record


@dataclass(frozen=True)
class RunFolder:
    """The files of the run that lies in `path`."""

    path: Path

    @property
    def record(self) -> Path:
        """Where the rows are."""
        return self.path / "record.jsonl"

    @classmethod
    def check_free(cls, path: Path) -> None:
        """An InputError if anything lies in `path` already; nothing is made."""
        try:
            taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
        except OSError as error:
            raise InputError(f"cannot read {path}", why=str(error.strerror), instead="choose another --out") from None
        if taken:
            raise InputError(
                f"{path} exists already",
                why="a run is never overwritten",
                instead="choose another --out, or continue that run with --resume",
            )

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """A new, empty run folder; one that exists with anything in it is an InputError."""
        cls.check_free(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = str(error.strerror)
            raise InputError(f"cannot make the folder {path}", why=why, instead="choose another --out") from None
        return cls(path)

    @classmethod
    def next_free(cls, parent: Path, name: str) -> RunFolder:
        """The first of `parent`/`name`-001, -002, ... that is not there yet, made at once."""
        try:
            parent.mkdir(parents=True, exist_ok=True)
            for number in range(1, 1_000_000):
                path = parent / f"{name}-{number:03d}"
                try:
                    path.mkdir()
                except FileExistsError:
                    continue
                return cls(path)
        except OSError as error:
            raise InputError(
                f"cannot make a folder in {parent}", why=str(error.strerror), instead="name one with --out"
            ) from None
        raise InputError(f"{parent} is full of runs", instead="name a folder with --out")

    @classmethod
    def existing(cls, path: Path) -> RunFolder:
        """A folder that holds a run; anything else is an InputError."""
        if not path.is_dir():
            raise InputError(f"there is no run folder {path}", instead="name a folder that hyperstack train made")
        if not (path / "plan.json").exists():
            raise InputError(
                f"{path} holds no run", why="it has no plan.json", instead="name a folder that hyperstack train made"
            )
        return cls(path)

    def read_plan(self) -> dict[str, Any]:
        """What was asked for."""
        return self._read_json("plan.json")

    def read_summary(self) -> dict[str, Any] | None:
        """The result, or None where the run has not ended."""
        return self._read_json("summary.json") if (self.path / "summary.json").exists() else None

    def read_record(self) -> Record:
        """Every whole row."""
        return read_record(self.record)

    def read_checkpoint(self, device: torch.device) -> dict[str, Any]:
        """The last checkpoint, tensors on `device`."""
        path = self.path / "checkpoint.pt"
        if not path.exists():
            raise InputError(f"{self.path} has no checkpoint", instead="start the run anew in another folder")
        try:
            loaded = torch.load(path, map_location=device, weights_only=True)
            return {**loaded}
        except Exception as error:  # torch.load has no common base for what a damaged file raises
            raise InputError(
                f"{path} is damaged", why=str(error).splitlines()[0], instead="start the run anew"
            ) from None

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """`plan.json` or `summary.json`, as a whole or not at all."""
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        self._write(name, lambda file: file.write(text.encode()))

    def write_checkpoint(self, content: dict[str, Any]) -> None:
        """Replace the checkpoint, as a whole or not at all."""
        self._write("checkpoint.pt", lambda file: torch.save(content, file))

    def _write(self, name: str, write: Callable[[BinaryIO], object]) -> None:
        try:
            with tempfile.NamedTemporaryFile(dir=self.path, prefix=f".{name}-", delete=False) as file:
                try:
                    write(file)  # type: ignore[arg-type]
                    file.flush()
                    os.chmod(file.fileno(), 0o666 & ~_umask())
                    os.fsync(file.fileno())
                    os.replace(file.name, self.path / name)
                except BaseException:
                    os.unlink(file.name)
                    raise
        except OSError as error:
            raise RunError(f"cannot write {self.path / name}", why=str(error.strerror or error)) from None

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot read {path}", why=str(error.strerror)) from None
        except ValueError:
            raise InputError(f"{path} is damaged", why="it is not JSON") from None
        if not isinstance(content, dict):
            raise InputError(f"{path} is damaged", why="it is not what hyperstack wrote")
        return content


def _umask() -> int:
    """The permissions that new files are not to have; there is no way to read it but to set it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
