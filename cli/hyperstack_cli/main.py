"""`hyperstack`: finds the verbs, and turns deliberate errors into messages and exit codes.

Exit codes: 0 done, 1 the run failed, 2 the input is wrong, 130 interrupted.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import io
import pkgutil
import sys

import click

from hyperstack_cli import verbs
from hyperstack_cli.screen import silence

INTERRUPTED = 130
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # what a terminal or a disk says that takes no more output


class Verbs(click.Group):
    """The files in `verbs`, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The name of each verb."""
        return sorted(module.name for module in pkgutil.iter_modules(verbs.__path__))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of a verb, or None."""
        if name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"{verbs.__name__}.{name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that `args` begins with; an error that names the nearest one where there is none."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            close = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            if not close:
                raise
            raise click.UsageError(f"{error.message} Did you mean {close[0]!r}?", ctx) from None

    def invoke(self, ctx: click.Context) -> object:
        """Run the verb; that the reader of its output left, as in `hyperstack export RUN | head`, is no failure."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            silence(sys.stdout)
            return 0


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog="`hyperstack VERB --help` explains each verb, with examples.",
)
@click.version_option(package_name="hyperstack", message="%(prog)s %(version)s")
def cli() -> None:
    """Stack optimizers: each level learns the hyperparameters of the one below.

    \b
    hyperstack train mnist                       train a small network on MNIST
    hyperstack train mnist --stack "Adam / SGD"  with a stack of your own
    hyperstack inspect RUN                       what the tower did in that run
    """


def main() -> None:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an α on a screen without one is no reason to fail
    try:
        code = cli.main(prog_name="hyperstack", standalone_mode=False)
    except click.exceptions.Abort:
        code = INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except Exception as error:
        code = _exit_code(error)
    sys.exit(code if isinstance(code, int) else 0)


def _exit_code(error: Exception) -> int:
    """Say what went wrong; what is no deliberate error of hyperstack, and no full disk, is raised again."""
    errors = sys.modules.get("hyperstack.errors")  # without importing torch to find out
    if errors is not None and isinstance(error, errors.HyperstackError):
        click.echo(f"hyperstack: {error}", err=True)
        return int(error.exit_code)
    if isinstance(error, OSError) and error.errno in FULL:
        silence(sys.stdout)
        click.echo(f"hyperstack: cannot write the output: {error.strerror}", err=True)
        return 1
    raise error
