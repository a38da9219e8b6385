"""Write published.md, "Published and measured", from the stored outcomes in results/.

python docs/make_published.py             the page anew
python docs/make_published.py FOLDER...   first store what these folders of `hyperstack reproduce` hold
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from hyperstack.experiments.experiment import load, names
from hyperstack.experiments.verdicts import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, RULE
from hyperstack.reports.text import number
from hyperstack.schedule import CONSTANT
from hyperstack_cli.published import difference, measured, part_line, plus_minus, scale_line
from hyperstack_cli.standing import errors, starts_of, summary

HERE = Path(__file__).parent
STORED, TARGET = HERE / "results", HERE / "published.md"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE)
HEAD = """\
# Published and measured

What the source documents claim in their tables, and what came out when their experiments were run again with
`hyperstack reproduce`; and [a comparison](#rivals) of our own. This page is made of the outcomes stored in
`docs/results/`:

```bash
hyperstack reproduce clip-table-2 --out reproduced/table-2
python docs/make_published.py reproduced/table-2
```
"""
LEFT_OUT = "left out by --part"


def outcomes() -> list[dict[str, Any]]:
    """The stored outcomes, in the order of their names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(STORED.glob("*.json"))]


def table(head: list[str], rows: list[list[str]], right: range) -> str:
    """A Markdown table, the columns of `right` with their figures to the right."""
    rule = ["---:" if i in right else "---" for i in range(len(head))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *rows])


def counts(found: dict[str, Any]) -> Counter[str]:
    """How often each verdict was given, to figures and to claims; a comparison has none."""
    judged = [part for part in found["parts"] if "rows" in part]
    return Counter(each["verdict"] for part in judged for each in (*part["rows"], *part["claims"]))


def parts_of(found: dict[str, Any]) -> list[str]:
    """The parts that an outcome is of, where others were left out by the command."""
    some = any(each["why"] == LEFT_OUT for each in found["not_run"])
    return [part["name"] for part in found["parts"]] if some else []


def overview(found: list[dict[str, Any]]) -> str:
    """One row an experiment."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for each in found:
        by_name.setdefault(each["experiment"], []).append(each)
    rows = []
    for name in names():
        experiment = load(name)
        link = f"[`{name}`](#{name})" if name in by_name else f"`{name}`"
        stored = by_name.get(name, [])
        given = sum(map(counts, stored), Counter[str]())
        share = ", ".join(" ".join([*parts_of(each), f"{100 * each['share']:.3g} %"]) for each in stored)
        share = share or "not run yet"
        rows.append([link, experiment.title, share, *(str(given[verdict]) if given else "" for verdict in VERDICTS)])
    return table(["experiment", "what it is", "work done", *VERDICTS], rows, range(2, 6))


def sections(found: list[dict[str, Any]]) -> list[str]:
    """Each outcome; those of parts of one comparison in one section."""
    published = [section(each) for each in found if "source" in each]
    compared: dict[str, list[dict[str, Any]]] = {}
    for each in found:
        if "source" not in each:
            compared.setdefault(each["experiment"], []).append(each)
    return [*published, *(comparison(own) for own in compared.values())]


def comparison(stored: list[dict[str, Any]]) -> str:
    """A comparison, of which some parts may have been run by a command of their own."""
    first = stored[0]
    blocks = [f"## {first['experiment']}", f"{first['title']}.", "How it is measured:"]
    blocks.append("\n".join(f"- {line}" for line in first["rule"]))
    for found in stored:
        for part in found["parts"]:
            blocks.append(f"### {part_line(part)}")
            blocks.append(" ".join([f"{scale_line(found).capitalize()}.", *noted(found)]))
            blocks.append(f"```bash\n{found['command']}\n```")
            blocks.append("\n".join(f"- {code(each)}" for each in part["entrants"]))
            blocks.append(f"{found['measure'].capitalize()}, {found['unit']}, by λ; * where runs diverged:")
            tables = (errors(part, starts_of(part), found["digits"]), summary(part, found["digits"]))
            blocks += [table(rows[0], rows[1:], range(1, len(rows[0]))) for rows in tables]
            blocks.append("\n".join(f"- {sentence}" for sentence in part["says"]))
        left = [each for each in found["not_run"] if each["why"] != LEFT_OUT]
        blocks += ["Not run:", "\n".join(f"- {not_run(each)}" for each in left)] if left else []
    blocks += ["Remarks:", "\n".join(f"- {remark}" for remark in first["remarks"])]
    return "\n\n".join(blocks)


def code(entrant: dict[str, Any]) -> str:
    """An entrant, its stack set as code."""
    course = "" if entrant["schedule"] == CONSTANT else f", schedule `{entrant['schedule']}`"
    return f"{entrant['label']}: `{entrant['stack']}`{course}"


def noted(found: dict[str, Any]) -> list[str]:
    """The note of an outcome, if it has one."""
    return [f"**{found['note']}**"] if found["note"] else []


def section(found: dict[str, Any]) -> str:
    """A published experiment."""
    source = found["source"]
    said = [f'{source["authors"]}, "{source["title"]}", {source["place"]}. {scale_line(found).capitalize()}.']
    said += noted(found)
    command = f"```bash\n{found['command']}\n```"
    blocks = [f"## {found['experiment']}", f"{found['title']}.", " ".join(said), command]
    for part in found["parts"]:
        blocks.append(f"### {part_line(part)}")
        blocks.append("\n".join(f"- {series['label']}: `{series['stack']}`" for series in part["series"]))
        blocks.append(figures(part, found))
        if part["claims"]:
            blocks.append(claims(part))
    if found["not_run"]:
        blocks.append("Not run:")
        blocks.append("\n".join(f"- {not_run(each)}" for each in found["not_run"]))
    blocks.append("Remarks:")
    blocks.append("\n".join(f"- {remark}" for remark in found["remarks"]))
    return "\n\n".join(blocks)


def figures(part: dict[str, Any], found: dict[str, Any]) -> str:
    """Published and measured, side by side."""
    name = next((series["name"] for series in part["series"] if series["name"]), "")
    rows = []
    for row in part["rows"]:
        value = "" if row["value"] is None else number(row["value"])
        published = "" if row["published"] is None else f"{row['published']:.{found['digits']}f}"
        allowed = "" if row["allowed"] is None else f"± {row['allowed']:.{found['digits']}f}"
        rows.append([row["series"], value, published, measured(row, found["digits"]), allowed, row["verdict"] or ""])
    head = ["", name, "published", f"measured {found['measure']}, {found['unit']}", "allowed", "verdict"]
    return table(head, rows, range(1, 5))


def claims(part: dict[str, Any]) -> str:
    """The comparisons."""
    rows = []
    for claim in part["claims"]:
        gain = "" if claim["mean"] is None else f"{claim['mean']:.2f}{plus_minus(claim['half'])}"
        rows.append([claim["says"], gain, claim["verdict"]])
    return table(["claim", difference(part["claims"]), "verdict"], rows, range(1, 2))


def not_run(each: dict[str, Any]) -> str:
    """A row that was not run."""
    published = f" (published: {each['published']})" if each["published"] else ""
    return f"{each['row']}{published}: {each['why']}"


def page() -> str:
    """The whole page."""
    found = outcomes()
    rule = "\n".join(f"- {line}" for line in RULE)
    blocks = [HEAD, overview(found), "", "## How verdicts are given", "", rule, ""]
    return "\n".join(blocks) + "".join(f"\n{each}\n" for each in sections(found))


def main(folders: list[str]) -> None:
    """Store the outcomes of these folders, and write the page."""
    STORED.mkdir(exist_ok=True)
    for folder in folders:
        source = Path(folder) / "results.json"
        found = json.loads(source.read_text(encoding="utf-8"))
        name = ".".join([found["experiment"], *parts_of(found)])
        shutil.copyfile(source, STORED / f"{name}.json")
    TARGET.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
