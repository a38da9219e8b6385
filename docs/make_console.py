"""Renew what the console blocks of README.md and docs/ show.

    python docs/make_console.py            the commands whose output is always the same
    python docs/make_console.py --slow     and those that train

In a ```console block a line that begins with `$ ` is a command, and what follows is what it writes. A block under
`<!-- test: slow -->` trains; its numbers may differ from machine to machine. tests/test_docs.py holds the pages to it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent
NOTE = r"(?:<!-- (?P<note>(?:test|setup): [^\n]*?) -->\n+)?"
FENCE = re.compile(rf"^{NOTE}```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
WHEN = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d \w+")
CURVE = re.compile(r"[▁-█](?:[▁-█ ]*[▁-█])?")
NUMBER = re.compile(r"(?<![\w.-])-?\d+(?:[,.]\d+)*(?:e[-+]?\d+)?")
SLOW = "test: slow"


def pages() -> list[Path]:
    """README.md and the pages of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def in_a_shell(commands: Iterable[str]) -> list[str]:
    """What each of these commands writes, one after another in a folder of their own, 80 columns wide."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
    code, found = 0, []
    with tempfile.TemporaryDirectory() as folder:
        for command in commands:
            run = subprocess.run(
                ["bash", "-c", command.replace("$?", str(code))],
                cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            )  # fmt: skip
            code = run.returncode
            found.append(run.stdout)
    return found


def commands(body: str) -> list[str]:
    """The commands of a console block."""
    return [line.removeprefix("$ ") for line in body.splitlines() if line.startswith("$ ")]


def renewed(text: str, slow: bool, answer: Callable[[list[str]], list[str]] = in_a_shell) -> str:
    """A page with the output of its console blocks, slow ones or the others, as it is now."""
    blocks = [m for m in FENCE.finditer(text) if m["kind"] == "console" and (m["note"] == SLOW) is slow]
    asked = [commands(block["body"]) for block in blocks]
    answers = iter(answer([command for block in asked for command in block]) if asked else [])
    for block, wanted in reversed([(b, [(c, next(answers)) for c in cs]) for b, cs in zip(blocks, asked, strict=True)]):
        body = "".join(f"$ {command}\n{_trimmed(output)}" for command, output in wanted)
        text = text[: block.start("body")] + body + text[block.end("body") :]
    return text


def masked(text: str) -> list[str]:
    """The words of a text, its numbers, dates and curves left open, so that two runs of one command can be compared."""
    return NUMBER.sub("N", CURVE.sub("CURVE", WHEN.sub("WHEN", text))).split()


def _trimmed(output: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in output.splitlines())


def main(arguments: list[str]) -> None:
    """Renew every page."""
    for page in pages():
        text = new = page.read_text()
        for slow in (False, True)[: 1 + ("--slow" in arguments)]:
            new = renewed(new, slow)
        if new != text:
            page.write_text(new)
            print(f"renewed {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main(sys.argv[1:])
