"""The options that draw runs, `--plot`, `--png FILE` and `--html FILE`, and what they do."""

from __future__ import annotations

import importlib.util
import io
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from hyperstack_cli.screen import err, out

if TYPE_CHECKING:
    from hyperstack.reports.groups import Group
    from hyperstack.reports.panels import Panel
    from hyperstack.reports.run import Run

HIGH = 18  # lines of a plot in the terminal

Verb = TypeVar("Verb", bound=Callable[..., object])


def plot_options(verb: Verb) -> Verb:
    """Add `--plot` and `--png FILE` to a verb, as parameters `plot` and `png`."""
    plot = click.option("--plot", is_flag=True, help="Draw the curves in the terminal, with axes.")
    a_file = click.Path(path_type=Path)
    png = click.option("--png", type=a_file, metavar="FILE", help="Draw the curves into FILE, a new picture.")
    return plot(png(verb))


def picture_options(verb: Verb) -> Verb:
    """Add `--plot`, `--png FILE` and `--html FILE` to a verb, as parameters `plot`, `png` and `html`."""
    html = click.option(
        "--html",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Write FILE, a new page with tables and curves that needs no network.",
    )
    return plot_options(html(verb))


def one_output(plot: bool, as_json: bool) -> None:
    """Refuse to write pictures and JSON into one stream."""
    if plot and as_json:
        raise click.UsageError(
            "--plot and --json both write to standard output: choose one, or --png FILE with --json."
        )


def check_drawing(plot: bool, png: Path | None, as_json: bool) -> None:
    """Refuse before the work what could not be drawn after it: files that exist, packages that are not there."""
    from hyperstack.reports.terminal import missing

    one_output(plot, as_json)
    _check_name(png)
    check_free([png] if png is not None else [])
    for package, needed in (("uniplot", plot), ("matplotlib", png is not None)):
        if needed and importlib.util.find_spec(package) is None:
            raise missing(package)


def show_pictures(
    runs: Sequence[tuple[str, Run]],
    keys: Sequence[str] | None,
    log: bool,
    *,
    plot: bool,
    png: Path | None,
    html: Path | None,
    sentences: Sequence[str] = (),
    groups: Sequence[Group] = (),
) -> bool:
    """Draw runs, each with its label, as these options say; whether there was any to carry out.

    keys, log: as for `hyperstack.reports.panels.panels`. sentences, groups: what the figures say, and the runs whose
    figures are one, for the page.

    Raises InputError where a file exists already or what draws is not installed, RunError where the disk is full;
    then no file is left behind.
    """
    from hyperstack.reports.panels import panels

    def page() -> bytes:
        from hyperstack.reports.page import report

        return report(runs, keys, log, sentences, groups).encode()

    def made() -> Sequence[Panel]:
        return panels(runs, keys, log)

    def pictured() -> Sequence[Panel]:  # a picture has no other place for the stacks
        return panels([(f"{label}  {run.stack}", run) for label, run in runs], keys, log) if len(runs) > 1 else made()

    return show_panels(made, plot=plot, png=png, pages={html: page} if html else {}, pictured=pictured)


def show_panels(
    made: Callable[[], Sequence[Panel]],
    *,
    plot: bool,
    png: Path | None,
    pages: Mapping[Path, Callable[[], bytes]] | None = None,
    pictured: Callable[[], Sequence[Panel]] | None = None,
) -> bool:
    """Draw panels in the terminal and into a file, and write pages, as `show_pictures`.

    `made` makes the panels, `pictured` those of the file, where they are others.
    """
    pages = pages or {}
    _check_name(png)
    check_free([file for file in (png, *pages) if file is not None])
    shown = made() if plot else []
    contents: dict[Path, bytes] = {}
    if png is not None:
        from hyperstack.reports import figure

        buffer = io.BytesIO()
        figure.png((pictured or made)(), buffer)
        contents[png] = buffer.getvalue()
    contents |= {file: content() for file, content in pages.items()}
    if plot:
        from hyperstack.reports import terminal

        screen = out()
        color = screen.is_terminal and not screen.no_color and screen.color_system is not None
        ascii_only = screen.options.ascii_only
        texts = [terminal.plot(panel, screen.width, HIGH, color, ascii_only) for panel in shown]
    write_new(contents)
    if plot:
        click.echo("\n\n".join(texts), color=color)
    for file in contents:
        err().print(f"wrote {file}", soft_wrap=True)
    return plot or bool(contents)


def write_new(contents: dict[Path, bytes]) -> None:
    """Write new files, each as a whole, and all of them or none; one that exists already is an InputError."""
    from hyperstack.errors import write_error

    check_free(list(contents))
    made: list[Path] = []
    try:
        for path, content in contents.items():
            try:
                _write(path, content)
            except OSError as error:
                raise (_exists(path) if isinstance(error, FileExistsError) else write_error(path, error)) from None
            made.append(path)
    except BaseException:
        for path in made:
            with suppress(OSError):
                path.unlink()
        raise


def _write(path: Path, content: bytes) -> None:
    """Under another name first; a link to that is refused where the name is taken, and a rename would not be."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            if path.exists():
                raise FileExistsError(path) from None
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def check_free(files: list[Path]) -> None:
    """An InputError where a file exists, or is named twice, before anything is drawn."""
    from hyperstack.errors import InputError

    for file in files:
        if os.path.lexists(file):
            raise _exists(file)
        if not os.path.isdir(file.parent):
            raise InputError(f"there is no folder {file.parent}", instead="make it, or choose another file")
    if len(set(files)) < len(files):
        raise InputError(f"{files[0]} is named twice", instead="choose another file for one of them")


def _check_name(png: Path | None) -> None:
    """An InputError where a picture is named as if it were of another format."""
    from hyperstack.errors import InputError

    if png is not None and png.suffix.lower() not in ("", ".png"):
        raise InputError(f"{png} is not named as a PNG", instead=f"write --png {png.with_suffix('.png')}")


def _exists(file: Path) -> Exception:
    from hyperstack.errors import InputError

    return InputError(f"{file} exists already", instead="choose another file")
