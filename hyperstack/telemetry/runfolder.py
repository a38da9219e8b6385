"""A run folder: what one training run leaves behind, and the only place that knows its file names.

plan.json         what was asked for, written before the first step
record.jsonl      one row a recorded step
record.rows       the same as binary numbers, see `mirror`
checkpoint.pt     everything a resumed run needs, replaced as a whole
summary.json      the result, written at the end
"""

from __future__ import annotations

import io
import json
import os
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperstack.errors import InputError, write_error
from hyperstack.telemetry.jsonl import NAME_A_RUN, read_record
from hyperstack.telemetry.plan import Plan
from hyperstack.telemetry.record import Record
from hyperstack.telemetry.sinks import ANEW

if TYPE_CHECKING:
    import torch

ANOTHER, ONWARD = "choose another --out", "continue that run with --resume"
# What readers of a summary rely on; there is more in the file.
NUMBER = (float, type(None))  # null where it is not finite
SUMMARY: dict[str, type | tuple[type, ...]] = {
    "epochs": (int, type(None)),  # null where a loop of the user's own did not say
    "steps": int,
    "seconds": float,
    "train_loss": NUMBER,
    "test_error": NUMBER,
    "diverged": bool,
    "finished": bool,
}


@dataclass(frozen=True)
class RunFolder:
    """The files of the run that lies in `path`."""

    path: Path

    @property
    def record(self) -> Path:
        """Where the rows are."""
        return self.path / "record.jsonl"

    @classmethod
    def check_free(cls, path: Path, another: str = ANOTHER, onward: str = ONWARD) -> None:
        """An InputError if anything lies in `path` already; nothing is made.

        another, onward: what the error is to advise, for those who do not use the command line.
        """
        try:
            taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
        except OSError as error:
            raise InputError(f"cannot read {path}", why=str(error.strerror), instead=another) from None
        if taken:
            raise InputError(
                f"{path} exists already",
                why="a run is never overwritten",
                instead=f"{another}, or {onward}",
            )

    @classmethod
    def create(cls, path: Path, another: str = ANOTHER, onward: str = ONWARD) -> RunFolder:
        """A new, empty run folder; one that exists with anything in it is an InputError."""
        cls.check_free(path, another, onward)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = str(error.strerror)
            raise InputError(f"cannot make the folder {path}", why=why, instead=another) from None
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
        check_holds(path, "run", "plan.json", instead=NAME_A_RUN)
        return cls(path)

    def read_plan(self) -> Plan:
        """What was asked for."""
        try:
            return Plan.of(self._read_json("plan.json"))
        except ValueError as error:
            raise InputError(f"{self.path / 'plan.json'} is damaged", why=str(error), instead=NAME_A_RUN) from None

    def read_heading(self) -> dict[str, Any]:
        """What any run says of itself, `task` and `stack`; one of `hyperstack train` its whole plan."""
        heading = self._read_json("plan.json")
        if not all(isinstance(heading.get(name), str) for name in ("task", "stack")):
            raise InputError(
                f"{self.path / 'plan.json'} is damaged", why="it lacks the task or the stack", instead=NAME_A_RUN
            )
        return heading

    def read_summary(self) -> dict[str, Any] | None:
        """The result, or None where the run has not ended."""
        path = self.path / "summary.json"
        if not os.path.exists(path):
            return None
        content = self._read_json(path.name)
        wrong = [name for name, kind in SUMMARY.items() if not isinstance(content.get(name), kind)]
        if wrong:
            why = f"it lacks {', '.join(wrong)}, or holds something else there"
            raise InputError(f"{path} is damaged", why=why, instead="delete it to see the record alone")
        return content

    def read_record(self) -> Record:
        """Every whole row."""
        return read_record(self.record)

    def read_checkpoint(self, device: torch.device) -> dict[str, Any]:
        """The last checkpoint, tensors on `device`."""
        import torch

        path = self.path / "checkpoint.pt"
        if not os.path.exists(path):
            raise InputError(f"{self.path} has no checkpoint", instead=ANEW)
        try:
            loaded = torch.load(path, map_location=device, weights_only=True)
            return {**loaded}
        except Exception as error:  # torch.load has no common base for what a damaged file raises
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{path} is damaged", why=why, instead=ANEW) from None

    def begin(self, heading: dict[str, Any]) -> None:
        """Note what is asked for; a summary of how far the run came before no longer holds."""
        self._write_json("plan.json", heading)
        try:
            (self.path / "summary.json").unlink(missing_ok=True)
        except OSError as error:
            raise write_error(self.path / "summary.json", error) from None
        for leftover in self.path.glob(".*.tmp"):  # of a process that was killed while it wrote
            with suppress(OSError):
                leftover.unlink()

    def write_summary(self, content: dict[str, Any]) -> None:
        """Write the result, as a whole or not at all."""
        self._write_json("summary.json", content)

    def write_checkpoint(self, content: dict[str, Any]) -> None:
        """Replace the checkpoint, as a whole or not at all."""
        import torch

        buffer = io.BytesIO()  # written straight to a full disk, torch.save dies of an error that hides the reason
        torch.save(content, buffer)
        self._write("checkpoint.pt", buffer.getbuffer())

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        self._write(name, text.encode())

    def _write(self, name: str, content: bytes | memoryview) -> None:
        try:
            write_whole(self.path / name, content)
        except OSError as error:
            raise write_error(self.path / name, error) from None

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError
        except OSError as error:
            raise InputError(f"cannot read {path}", why=str(error.strerror), instead=NAME_A_RUN) from None
        except (ValueError, RecursionError):
            raise InputError(f"{path} is damaged", why="it is not what hyperstack wrote", instead=NAME_A_RUN) from None
        return content


def check_holds(path: Path, kind: str, name: str, instead: str) -> None:
    """An InputError unless `path` is a folder of this kind, which has a file of this name."""
    if not os.path.isdir(path):  # unlike Path.is_dir it never raises
        why = "it is not a folder" if os.path.exists(path) else "it does not exist, or may not be read"
        raise InputError(f"there is no {kind} folder {path}", why=why, instead=instead)
    if not os.path.isfile(path / name):
        raise InputError(f"{path} holds no {kind}", why=f"it has no {name}", instead=instead)


def write_whole(target: Path, content: bytes | memoryview) -> None:
    """Write or replace a file, as a whole or not at all; an OSError where that fails."""
    temporary = target.with_name(f".{target.name}-{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        with suppress(OSError):
            temporary.unlink()
