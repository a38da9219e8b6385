"""A sweep folder: what a sweep leaves behind, and the only place that knows its file names.

sweep.json          what was asked for, last
cells/HASH.json     the result of each cell, named by its stack and seed, written as it ends
results.json        all of them, and results.csv, one line a cell; written at the end of each sitting
lock                held by the process that sweeps; the system lets go of it when that process ends
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from hyperstack.errors import InputError, RunError, write_error
from hyperstack.sweep.grid import Cell
from hyperstack.sweep.planning import SweepPlan
from hyperstack.telemetry.runfolder import RunFolder, check_holds, write_whole

Result = dict[str, Any]
NAME_A_SWEEP = "name a folder that hyperstack sweep made"


@dataclass(frozen=True)
class SweepFolder:
    """The files of the sweep that lies in `path`."""

    path: Path

    @classmethod
    def create(cls, path: Path, plan: SweepPlan) -> SweepFolder:
        """A new sweep folder; one that exists with anything in it is an InputError."""
        folder = cls(RunFolder.create(path).path)
        folder.begin(plan)
        return folder

    @classmethod
    def existing(cls, path: Path) -> SweepFolder:
        """A folder that holds a sweep; anything else is an InputError."""
        check_holds(path, "sweep", "sweep.json", instead=NAME_A_SWEEP)
        return cls(path)

    def begin(self, plan: SweepPlan) -> None:
        """Note what is asked for."""
        self._make(self.path / "cells")
        self._write("sweep.json", json.dumps(plan.as_dict(), indent=2, ensure_ascii=False) + "\n")

    def read_plan(self) -> SweepPlan:
        """What was asked for."""
        try:
            return SweepPlan.of(json.loads((self.path / "sweep.json").read_text(encoding="utf-8")))
        except OSError as error:
            why = str(error.strerror)
            raise InputError(f"cannot read {self.path / 'sweep.json'}", why=why, instead=NAME_A_SWEEP) from None
        except (ValueError, RecursionError, TypeError) as error:
            raise InputError(
                f"{self.path / 'sweep.json'} is damaged", why=str(error).splitlines()[0], instead=NAME_A_SWEEP
            ) from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While it is entered, no other process can enter it; an InputError where one has."""
        try:
            file = (self.path / "lock").open("a")
        except OSError as error:
            raise write_error(self.path / "lock", error) from None
        with file:
            self._lock(file)
            yield

    def _lock(self, file: TextIO) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"another sweep is at work in {self.path}", instead="wait until it has ended, or choose another --out"
            ) from None

    def write(self, cell: Cell, result: Result) -> None:
        """The result of a cell, as a whole or not at all."""
        name = hashlib.sha256(f"{cell.seed} {cell.stack}".encode()).hexdigest()[:16]
        self._write(f"cells/{name}.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")

    def results(self, plan: SweepPlan, cells: Sequence[Cell]) -> dict[int, Result]:
        """The results that there are, by the place of their cell, which may have been another in a smaller sweep.

        What is none is passed over, and made again.
        """
        stored = {}
        for path in (self.path / "cells").glob("*.json"):
            with suppress(OSError, ValueError, RecursionError, LookupError, TypeError):
                result = json.loads(path.read_text(encoding="utf-8"))
                stored[result["stack"], result["seed"], result["epochs_planned"]] = result
        texts: dict[Any, str] = {}  # a stack takes a hundred times as long as its seeds
        found = {}
        for i, cell in enumerate(cells if stored else ()):
            if (bound := (cell.template, cell.values)) not in texts:
                texts[bound] = str(cell.stack)
            if (key := (texts[bound], cell.seed, plan.epochs)) in stored:
                found[i] = stored[key]
        return found

    def conclude(self, cells: Sequence[Cell], results: dict[int, Result]) -> None:
        """All results in two files, for other programs."""
        rows = [{"template": c.template, **dict(c.values), **results[i]} for i, c in enumerate(cells) if i in results]
        self._write("results.json", json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
        buffer = io.StringIO()
        names = list(dict.fromkeys(name for cell in cells for name, _ in cell.values))
        columns = ["template", *names, "stack", "seed", "epochs", "steps", "train_loss", "test_error", "diverged"]
        writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self._write("results.csv", buffer.getvalue())

    def _make(self, path: Path) -> None:
        try:
            path.mkdir(exist_ok=True)
        except OSError as error:
            raise write_error(path, error) from None

    def _write(self, name: str, text: str) -> None:
        target = self.path / name
        try:
            write_whole(target, text.encode())
        except OSError as error:
            raise RunError(
                str(write_error(target, error).what),
                why=str(error.strerror),
                instead="make room and go on with --resume: no finished cell is lost",
            ) from None
