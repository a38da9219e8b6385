"""`hyperstack`: finds the verbs, and turns deliberate errors into messages and exit codes.

Exit codes: 0 done, 1 the run failed, 2 the input is wrong, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from importlib.metadata import version

import click

from hyperstack_cli import verbs

INTERRUPTED = 130


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


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("hyperstack"), message="%(prog)s %(version)s")
def cli() -> None:
    """Stack optimizers: each level learns the hyperparameters of the one below.

    \b
    hyperstack train mnist                          train a small network on MNIST
    hyperstack train mnist --stack "Adam / SGD"     with a stack of your own
    hyperstack inspect RUN                          what the tower did in that run
    """


def main() -> None:
    """Run the command line and exit."""
    try:
        code = cli.main(standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Abort:
        code = INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except BrokenPipeError:  # the reader of our output is gone, as in `hyperstack export RUN | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if not _is_deliberate(error):
            raise
        click.echo(f"hyperstack: {error}", err=True)
        code = error.exit_code  # type: ignore[attr-defined]
    sys.exit(code if isinstance(code, int) else 0)


def _is_deliberate(error: Exception) -> bool:
    """Whether the error is one of hyperstack's own, without importing torch to find out."""
    errors = sys.modules.get("hyperstack.errors")
    return errors is not None and isinstance(error, errors.HyperstackError)
