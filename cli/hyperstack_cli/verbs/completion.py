"""`hyperstack completion`: the script that lets a shell complete hyperstack's commands."""

from __future__ import annotations

import click

EPILOG = """\b
To have it in every new shell, once:
  bash   hyperstack completion bash > ~/.hyperstack-completion.bash
         echo 'source ~/.hyperstack-completion.bash' >> ~/.bashrc
  zsh    hyperstack completion zsh > ~/.hyperstack-completion.zsh
         echo 'source ~/.hyperstack-completion.zsh' >> ~/.zshrc
         (in ~/.zshrc it stands behind: autoload -U compinit && compinit)
  fish   hyperstack completion fish > \\
           ~/.config/fish/completions/hyperstack.fish

\b
Examples:
  hyperstack completion bash
  eval "$(hyperstack completion bash)"
  hyperstack completion zsh
  hyperstack completion fish

\b
Exit status: 0 done, 2 wrong input.
"""


@click.command(short_help="Print a script for shell completion.", epilog=EPILOG)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the script that makes SHELL complete what hyperstack understands: verbs, options and their values, the
    names of tasks, and run folders, which are those that hold a plan.json, up to three folders further down.

    The script asks hyperstack itself, so it need not be renewed with a new version. bash must be 4.4 or newer.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    root = context.find_root()
    click.echo(kind(root.command, {}, "hyperstack", "_HYPERSTACK_COMPLETE").source())
