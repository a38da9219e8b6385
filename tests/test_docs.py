"""The pages say what is so: their code runs, their output is what comes out, their links lead somewhere,
and nothing that a user can name goes unmentioned.
"""

import io
import json
import re
import runpy
import shlex
import sys
import types
import xml.etree.ElementTree
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import click
import pytest
from scripts import script

import hyperstack as hs
from hyperstack import tasks
from hyperstack.wrapper import WRAPPERS
from hyperstack_cli.main import cli, main

ROOT = Path(__file__).parent.parent
MADE = ("make_console", "make_results", "make_picture", "make_screens", "make_published")
console, results, picture, screens, published = map(script, MADE)

PAGES = console.pages()
TEXTS = {page: page.read_text() for page in PAGES}
ALL = "\n".join(TEXTS.values())
LINKED = [page for page in [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"] if page.exists()]
SLOW = console.SLOW


def name_of(page):
    return page.relative_to(ROOT).as_posix()


each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def blocks(page, kind):
    return [block for block in console.FENCE.finditer(TEXTS[page]) if block["kind"] == kind]


def test_every_block_has_a_language_and_every_note_is_known():
    for page in PAGES:
        found = list(console.FENCE.finditer(TEXTS[page]))
        assert 2 * len(found) == len(re.findall("^```", TEXTS[page], re.MULTILINE)), page
        for block in found:
            assert block["kind"] in ("python", "console", "bash", "text", "json"), (page, block["kind"])
            allowed = {"console": (None, SLOW), "bash": (None, "setup: use", "setup: test")}
            assert block["note"] in allowed.get(block["kind"], (None,)), (page, block["note"])


def test_each_setup_command_stands_once_in_the_readme():
    notes = [block["note"] for block in blocks(ROOT / "README.md", "bash")]
    assert (notes.count("setup: use"), notes.count("setup: test")) == (1, 1)


# ---- code


@pytest.fixture
def visitor(tmp_path, monkeypatch):
    """A module in a folder of its own, whose rules, transforms and tasks are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("a_page_of_the_docs")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    registries = (hs.RULES, hs.TRANSFORMS, tasks.TASKS)
    before = [dict(registry) for registry in registries]
    yield vars(module)
    for registry, known in zip(registries, before, strict=True):
        registry.clear()
        registry.update(known)


def run(page, visitor, chosen):
    for block in chosen:
        line = TEXTS[page].count("\n", 0, block.start("body"))
        exec(compile("\n" * line + block["body"], str(page), "exec"), visitor)


@each_page
def test_the_code_runs(page, visitor):
    run(page, visitor, blocks(page, "python"))


def test_the_rule_of_the_examples(visitor):
    runpy.run_path(ROOT / "examples" / "custom_rule.py", run_name="__main__")


def test_the_task_of_the_examples():
    runpy.run_path(ROOT / "examples" / "custom_task.py", run_name="__main__")


@pytest.mark.slow
def test_the_loop_of_the_examples():
    runpy.run_path(ROOT / "examples" / "mnist_loop.py", run_name="__main__")


def test_examples_are_short():
    for path in (ROOT / "examples").glob("*.py"):
        assert len(path.read_text().splitlines()) < 40, path.name


# ---- output


def in_this_process(commands):
    """What each command writes. A process for each would take seconds to import torch."""
    code, found = 0, []
    for command in commands:
        if command == "echo $?":
            found.append(f"{code}\n")
            continue
        program, verb, *arguments = shlex.split(command)
        assert program == "hyperstack", f"{command}: run it under <!-- {SLOW} -->"
        assert verb in ("explain", "rules"), f"{command}: not the same each time; run it under <!-- {SLOW} -->"
        with pytest.MonkeyPatch.context() as patch, io.StringIO() as screen:
            patch.setattr(sys, "argv", [program, verb, *arguments])
            patch.setenv("COLUMNS", "80")
            patch.delenv("FORCE_COLOR", raising=False)
            with redirect_stdout(screen), redirect_stderr(screen), pytest.raises(SystemExit) as end:
                main()
            code, output = end.value.code, screen.getvalue()
        found.append(output)
    return found


@each_page
def test_the_output_shown_is_what_comes_out(page):
    """Where this fails: python docs/make_console.py."""
    assert console.renewed(TEXTS[page], False, in_this_process) == TEXTS[page]


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if f"<!-- {SLOW} -->\n" in TEXTS[p]], ids=name_of)
def test_the_output_of_training_is_what_comes_out_up_to_numbers(page):
    """Where this fails: python docs/make_console.py --slow."""
    assert console.masked(console.renewed(TEXTS[page], True)) == console.masked(TEXTS[page])


def test_numbers_are_masked_and_nothing_else():
    assert console.masked("x 0.50, 1.2e-07 after 1,175 steps: mnist-001, 0.lr = -3 %") == [
        *["x", "N,", "N", "after", "N", "steps:", "mnist-001,", "N.lr", "=", "N", "%"]
    ]
    assert console.masked("on 2026-11-22 23:07 UTC ▁▂ █  0.5") == ["on", "WHEN", "CURVE", "N"]


# ---- tables and pictures


def test_every_table_has_its_place_and_every_place_its_table():
    held = [name for _, name in results.places()]
    assert sorted(held) == sorted(results.TABLES)
    for page in PAGES:
        found = results.PLACE.findall(TEXTS[page])
        assert len(found) == TEXTS[page].count("<!-- results:") == TEXTS[page].count("<!-- end of results -->")
    assert " ± " in results.PLACE.search(ALL)[0]


@pytest.mark.slow
def test_published_and_measured_is_what_is_stored():
    """Where this fails: python docs/make_published.py."""
    assert published.TARGET.read_text(encoding="utf-8") == published.page()
    assert published.outcomes()
    for found in published.outcomes():
        assert published.page().count(f"\n## {found['experiment']}\n") == 1
        assert all(f"### {published.part_line(part)}\n" in published.page() for part in found["parts"])


def test_outcomes_of_parts_of_a_comparison_share_a_section(tmp_path, monkeypatch):
    whole = next(each for each in published.outcomes() if "source" not in each)
    assert published.parts_of(whole) == [part["name"] for part in whole["parts"]]
    ended = {**whole["parts"][0], "name": "elsewhere", "cells_done": whole["parts"][0]["cells"]}
    other = {**whole, "parts": [ended], "share": 0.1, "note": "It is another."}
    monkeypatch.setattr(published, "STORED", tmp_path / "results")
    monkeypatch.setattr(published, "TARGET", tmp_path / "page.md")
    for i, each in enumerate((whole, other)):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "results.json").write_text(json.dumps(each))
    published.main([str(tmp_path / "0"), str(tmp_path / "1")])
    page = (tmp_path / "page.md").read_text()
    assert page.count(f"\n## {whole['experiment']}\n") == 1
    said = sorted(["elsewhere 10 %", f"{whole['parts'][0]['name']} {100 * whole['share']:.3g} %"])
    assert ", ".join(said) in page
    assert page.count("0.1 of the work. **It is another.**") == 1


def test_a_terminal_is_read_as_it_looks():
    written = "one\r\ntwo\r\n\x1b[?25l\x1b[1A\x1b[2Kdeux\r\nthree\r\n\x1b[1mfour\x1b[0m"
    assert picture.screen(written) == ["one", "deux", "three", "\x1b[1mfour\x1b[0m"]


def test_the_picture_is_a_terminal_that_trained():
    root = xml.etree.ElementTree.parse(picture.TARGET).getroot()
    shown = " ".join("".join(root.itertext()).split())
    assert "$hyperstack train mnist" in shown  # the prompt is a piece of its own
    assert "test error" in shown
    assert "url(" not in re.sub(r"url\(#", "", picture.TARGET.read_text()), "the picture loads something from outside"


def test_the_screens_are_those_of_the_table_and_fit():
    page = ROOT / "docs" / "screens.md"
    shown = [block["body"].splitlines() for block in blocks(page, "text")]
    expected = [(f"$ {screen.command}", width) for screen in screens.SCREENS for width in screens.WIDTHS]
    assert [lines[0] for lines in shown] == [command for command, _ in expected]
    for lines, (_, width) in zip(shown, expected, strict=True):
        assert max(map(len, lines[1:])) <= width
        assert len(lines) > 5
    assert "\x1b" not in TEXTS[page]


@pytest.mark.slow
def test_the_screens_are_what_the_verbs_show_up_to_numbers():
    """Where this fails: python docs/make_screens.py."""
    assert screens.masked(screens.page()) == screens.masked(screens.TARGET.read_text())


# ---- links


def headings(text):
    """The anchors of a page, as GitHub makes them."""
    lines = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = [a or b for a, b in re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text)]
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{name_of(page)} links to {target}"
        assert ROOT in there.parents, f"{name_of(page)} links out of the tree: {target}"
        if anchor:
            assert anchor in headings(there.read_text()), f"{name_of(page)} links to {target}"


def test_every_page_is_linked_from_the_readme():
    for page in PAGES[1:]:
        assert f"]({name_of(page)})" in TEXTS[PAGES[0]]


def test_the_map_names_every_file():
    tree = next(block["body"] for block in blocks(ROOT / "README.md", "text") if "hyperstack/" in block["body"])
    packages = ("hyperstack", "hyperstack/telemetry", "hyperstack/reports", "cli/hyperstack_cli")
    for folder in (*packages, "examples", "docs"):
        for path in (ROOT / folder).iterdir():
            if path.suffix in (".py", ".md", ".svg", "") and not path.name.startswith(("_", ".")):
                assert path.name in tree, f"the README's map lacks {name_of(path)}"


def test_the_cpu_build_named_is_the_one_tested_with():
    pinned = re.search(r"^torch==[\d.]+", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert f"pip install {pinned[0]} --index-url" in TEXTS[ROOT / "README.md"]


# ---- nothing goes unmentioned


def options():
    for verb in cli.list_commands(None):
        for parameter in cli.get_command(None, verb).params:
            if isinstance(parameter, click.Option):
                yield from (f"{verb}: {option}" for option in parameter.opts)


NAMED = {
    "public": hs.__all__,
    "rule": {**hs.RULES, **WRAPPERS},
    "hyperparameter": {
        name for rule in (*hs.RULES.values(), *WRAPPERS.values()) for name in (*rule.hyperparameters, *rule.options)
    },
    "transform": hs.TRANSFORMS,
    "task": tasks.TASKS,
    "verb": [f"hyperstack {verb}" for verb in cli.list_commands(None)],
    "method": [name for name, f in vars(hs.HyperOptimizer).items() if callable(f) and not name.startswith("_")],
}


@pytest.mark.parametrize("kind", NAMED)
def test_everything_is_mentioned(kind):
    missing = [name for name in NAMED[kind] if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", ALL)]
    assert not missing, f"the docs say nothing of these: {missing}"


def test_every_option_is_described_with_its_verb():
    text = TEXTS[ROOT / "docs" / "command-line.md"]
    parts = re.split(r"^## hyperstack (\w+)\n", text, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    for named in options():
        verb, option = named.split(": ")
        assert option in sections.get(verb, ""), f"command-line.md says nothing of {option} under hyperstack {verb}"
