"""Make docs/train.svg: run `hyperstack train mnist` in a terminal of 80 columns, and draw what it shows.

Run it as `python docs/make_picture.py`, on a machine that has nothing else to do: the picture holds the time.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

WIDTH, HEIGHT = 80, 40
TARGET = Path(__file__).with_name("train.svg")
COMMAND = ["hyperstack", "train", "mnist"]
THEME = TerminalTheme(
    (24, 26, 33),
    (214, 218, 228),
    [
        (70, 76, 92),
        (240, 113, 120),
        (142, 201, 121),
        (235, 190, 110),
        (106, 165, 255),
        (199, 146, 234),
        (100, 200, 210),
        (214, 218, 228),
    ],
)
# The page that holds the picture may load no fonts, so these are the reader's own.
FONT = "ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def run(command: list[str], folder: str, width: int = WIDTH, height: int = HEIGHT) -> str:
    """Everything that `command` writes to a terminal of `width` x `height`, control sequences included."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    env = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    env = {name: value for name, value in env.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, cwd=folder, env=env)
    os.close(child)
    found = b""
    while True:
        try:
            part = os.read(parent, 65536)
        except OSError:  # Linux's word for the end
            break
        if not part:
            break
        found += part
    os.close(parent)
    if process.wait():
        sys.exit(f"{' '.join(command)} failed:\n{found.decode()}")
    return found.decode()


def screen(written: str) -> list[str]:
    """The lines that are left on the screen: colours stay, moves of the cursor are carried out.

    Knows what rich's live display uses: new line, carriage return, line up, erase line.
    """
    lines, row = [""], 0
    for token in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", written):
        if token == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif token.endswith("A") and token.startswith("\x1b"):
            row -= int(token[2:-1] or 1)
        elif token.endswith("K") and token.startswith("\x1b"):
            lines[row] = ""
        elif token != "\r" and not re.match(r"\x1b\[\?", token):
            lines[row] += token
    return lines


def draw(lines: list[str]) -> str:
    """The lines as an SVG of a terminal window."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in lines:
        console.print(Text.from_ansi(line), overflow="crop", no_wrap=True)
    svg = console.export_svg(title=" ".join(COMMAND), theme=THEME, unique_id="train", font_aspect_ratio=0.6)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;]*;", f"font-family: {FONT};", svg)
    return re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE).rstrip() + "\n"


def main() -> None:
    """Run, draw, write."""
    with tempfile.TemporaryDirectory() as folder:
        lines = screen(run(COMMAND, folder))
    while lines and not lines[-1].strip():
        lines.pop()
    prompt = "\x1b[1;32m$\x1b[0m "
    TARGET.write_text(draw([prompt + "\x1b[1m" + " ".join(COMMAND) + "\x1b[0m", *lines]))
    print(f"{TARGET}: {len(lines)} lines")


if __name__ == "__main__":
    main()
