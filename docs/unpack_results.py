"""Make a folder that a stored comparison goes on from, with more seeds perhaps, where nobody has its runs any more.

    python docs/unpack_results.py docs/results/auto.conv.json FOLDER
    python docs/unpack_results.py docs/results/auto.conv.json FOLDER auto "auto SGD"    without these entrants' runs
    hyperstack reproduce auto --out FOLDER --resume --seeds 5

Of a run there is what an outcome says of it: its stack, seed and error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from hyperstack.experiments import experiment
from hyperstack.experiments.comparison import START, Comparison, Contest
from hyperstack.experiments.work import Asked, Piece
from hyperstack.sweep.folder import SweepFolder


def unpack(found: dict[str, Any], folder: Path, without: list[str]) -> int:
    """Write the runs of an outcome as sweeps below a new folder; how many there are."""
    whole = experiment.load(found["experiment"])
    stored = {part["name"]: part for part in found["parts"]}
    if not isinstance(whole, Comparison) or any(part["epochs"] != part["epochs_published"] for part in found["parts"]):
        sys.exit(f"{whole.name} is no comparison that was run at full length")
    if folder.exists():
        sys.exit(f"{folder} exists already: name another folder")
    seeds = max(len(part["seeds"]) for part in found["parts"])
    asked = Asked(whole.name, 1.0, seeds, list(stored), "cpu", found["note"])
    known: list[tuple[Piece, dict[str, Any]]] = []
    for part in asked.chosen(whole):
        assert isinstance(part, Contest)
        entrants = {each["label"]: each for each in stored[part.name]["entrants"] if each["label"] not in without}
        named = [each for each in part.entrants if each.label in entrants]
        own = {place: entrants[each.label] for each in named for place in part.sweeps_of(each)}
        known += [(piece, own[piece.folder]) for piece in asked.pieces(part) if piece.folder in own]
    for piece, entrant in known:
        if (piece.plan.stacks, piece.plan.schedule) != ([entrant["stack"]], entrant["schedule"]):
            sys.exit(f"{entrant['label']} is another stack by now: name it, to leave it out")
    folder.mkdir(parents=True)
    asked.write(folder)
    return sum(_write(piece, entrant, folder) for piece, entrant in known)


def _write(piece: Piece, entrant: dict[str, Any], folder: Path) -> int:
    """The runs of one entrant, but those of which it is not known whether they diverged."""
    if piece.best_of and piece.best_of.left(folder):
        return 0  # it is not known yet which they would be
    piece = piece.tuned(folder)
    target = SweepFolder(folder / piece.folder)
    target.path.mkdir(parents=True)
    target.begin(piece.plan)
    rows = {row["start"]: row for row in entrant["rows"] if row["diverged"] in (0, len(row["figures"]))}
    count = 0
    for cell in piece.plan.cells():
        row = rows.get(dict(cell.values)[START], {"figures": {}})
        if (error := row["figures"].get(str(cell.seed))) is not None:
            run = {"stack": str(cell.stack), "seed": cell.seed, "epochs_planned": piece.plan.epochs}
            target.write(cell, {**run, "test_error": error / 100, "diverged": bool(row["diverged"])})
            count += 1
    return count


if __name__ == "__main__":
    source, target, *without = sys.argv[1:]
    print(unpack(json.loads(Path(source).read_text(encoding="utf-8")), Path(target), without), "runs")
