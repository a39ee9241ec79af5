"""``mkcfs completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from cfstools.cli.output import write_lines
from cfstools.cli.params import examples


@click.command(epilog=examples("mkcfs completion bash", "mkcfs completion zsh"))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, *, shell: str) -> None:
    """Print the completion script for SHELL.

    Have the shell evaluate it at start-up, for instance with `eval "$(mkcfs completion bash)"` in ~/.bashrc.
    """
    maker = get_completion_class(shell)
    assert maker is not None
    script = maker(ctx.find_root().command, {}, "mkcfs", "_MKCFS_COMPLETE").source()
    write_lines([script.encode() + b"\n"])
