"""Make docs/screens.md: what the verbs show in terminals of 80 and of 140 columns, from real runs on MNIST.

    python docs/make_screens.py

To show another verb, add a line to SCREENS. tests/test_docs.py holds the page to what comes out, up to numbers.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent
TARGET = Path(__file__).with_name("screens.md")
WIDTHS = (80, 140)
HEIGHT = 50
COLOUR = re.compile(r"\x1b\[[\d;]*m")
COURSE = re.compile(r"[▁▂▃▄▅▆▇█]+(?: +[▁▂▃▄▅▆▇█]+)*|━+")
TRAIN = "hyperstack train mnist"


@dataclass(frozen=True)
class Screen:
    """What is shown: a command, and what is said of it.

    `before`: commands that run first, unseen. `beside`: one that runs meanwhile, in `folder`.
    """

    about: str
    command: str
    before: tuple[str, ...] = ()
    beside: str = ""
    folder: str = ""


# In their order, in one folder: a screen may show what those before it made.
SCREENS = (
    Screen(
        "`train` shows the tower at work: value and hypergradient of each hyperparameter after the latest step, to "
        "what share of itself it was clipped, and below the result.",
        f'{TRAIN} --epochs 2 --stack "Adam / SGD(1e-4, clip)" --out runs/clipped',
    ),
    Screen("`inspect` shows what happened to each hyperparameter.", "hyperstack inspect runs/clipped"),
    Screen(
        "A run that measures at averages, here from a start that is far too low: `inspect` shows how its probes went.",
        "hyperstack inspect runs/auto",
        before=(f'{TRAIN} --epochs 5 --stack "auto(Adam(1e-6))" --out runs/auto --quiet',),
    ),
    Screen(
        "`compare` shows runs side by side, here three seeds each of two stacks, one epoch long. Level 1's rate is too "
        "high for the stack without `clip`.",
        "hyperstack compare runs/compared",
        before=tuple(
            f'{TRAIN} --epochs 1 --stack "{stack}" --seed {seed} --out runs/compared/{name}-{seed} --quiet'
            for name, stack in (("clip", "Adam / SGD(1e-3, clip)"), ("plain", "Adam / SGD(1e-3)"))
            for seed in range(3)
        ),
    ),
    Screen(
        "`watch` follows the run of another process, here one that trained meanwhile; this is its last view.",
        "hyperstack watch runs/watched",
        beside=f"{TRAIN} --epochs 2 --seed 1 --out runs/watched --quiet",
        folder="runs/watched",
    ),
)
HEAD = """# Screens

What the [command line](command-line.md) shows in a terminal, at 80 and at 140 columns, without its colours; nothing
depends on them. Recorded by `python docs/make_screens.py` from real runs on MNIST; times, and with them the rest of the
numbers a little, are those of that machine.
"""


def neighbour(name: str) -> ModuleType:
    """A program that lies beside this one."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recorded(width: int) -> list[str]:
    """What each of SCREENS leaves on a terminal of so many columns."""
    picture = neighbour("make_picture")
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for screen in SCREENS:
            for command in screen.before:
                subprocess.run(shlex.split(command), cwd=folder, stdout=subprocess.DEVNULL, check=True)
            beside = started(screen, Path(folder))
            written = picture.run(shlex.split(screen.command), folder, width, HEIGHT)
            if beside and beside.wait():
                sys.exit(f"{screen.beside} failed")
            lines = [COLOUR.sub("", line).rstrip() for line in picture.screen(written)]
            found.append("\n".join(lines).strip("\n"))
    return found


def started(screen: Screen, folder: Path) -> subprocess.Popen[bytes] | None:
    """The command beside a screen, once it has made its folder."""
    if not screen.beside:
        return None
    process = subprocess.Popen(shlex.split(screen.beside), cwd=folder, stdout=subprocess.DEVNULL)
    while not (folder / screen.folder).exists() and process.poll() is None:
        time.sleep(0.05)
    return process


def page() -> str:
    """The page, as it is now."""
    shown = [recorded(width) for width in WIDTHS]
    parts = [HEAD]
    for i, screen in enumerate(SCREENS):
        parts.append(f"## hyperstack {screen.command.split()[1]}\n\n{screen.about}\n")
        parts += [f"```text\n$ {screen.command}\n{texts[i]}\n```\n" for texts in shown]
    return "\n".join(parts)


def masked(text: str) -> str:
    """A page with its numbers, and the courses that are drawn, left open, so that two recordings can be compared."""
    return " ".join(neighbour("make_console").masked(COURSE.sub("COURSE", text)))


if __name__ == "__main__":
    TARGET.write_text(page())
    print(f"{TARGET}: {len(SCREENS)} screens at {' and '.join(map(str, WIDTHS))} columns")
