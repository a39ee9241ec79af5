"""The group of all verbs, as click parses them; each verb is loaded when it is called."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import click

from cfstools.cli.app import VERBS, print_versions
from cfstools.cli.output import tell_lines
from cfstools.cli.session import Session
from cfstools.errors import Interrupted, UsageError, exit_codes


class _Verbs(click.Group):
    """A group that imports a verb's module when the verb is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"cfstools.cli.commands.{VERBS[cmd_name][0]}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        _let_talk(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, text) for verb, (_, text) in VERBS.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in exit_codes().items()])


def _let_talk(command: click.Command) -> None:
    """Give a command the options that say how much to tell; they may stand before the verb or behind it."""
    known = {parameter.name for parameter in command.params}
    command.params += [option for option in _talk_options() if option.name not in known]
    if isinstance(command, click.Group):
        for below in command.commands.values():
            _let_talk(below)


def _talk_options() -> list[click.Option]:
    return [
        _talk_option(["-v", "--verbose"], "Say more on standard error.", lambda session: session.louder()),
        _talk_option(
            ["-q", "--quiet"], "Say nothing but errors on standard error.", lambda session: session.silenced()
        ),
        _talk_option(["--debug"], "Show a traceback with an error.", lambda session: session),
    ]


def _talk_option(names: list[str], text: str, change: Callable[[Session], Session]) -> click.Option:
    def callback(ctx: click.Context, _param: click.Parameter, value: int) -> None:
        top = ctx.find_root()
        for _ in range(value):
            top.obj = change(top.ensure_object(Session))
        ctx.obj = top.obj

    return click.Option(names, count=True, expose_value=False, is_eager=True, callback=callback, help=text)


def _print_version(ctx: click.Context, _param: click.Parameter, value: Any) -> None:
    if not value or ctx.resilient_parsing:
        return
    print_versions()
    ctx.exit()


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Print versions."
)
@click.pass_context
def mkcfs(ctx: click.Context) -> None:
    """Build, inspect, sign and verify composefs images.

    A composefs image is a small read-only manifest of a root file system: every name, mode, owner, extended attribute
    and link, and for each file the fs-verity digest of its contents, which are kept in an object store.
    """
    ctx.ensure_object(Session)


_let_talk(mkcfs)


def call(arguments: Sequence[str]) -> int:
    """Parse the words, call their verb and return its exit code. Raises UsageError for wrong words, and Interrupted."""
    try:
        # A verb that did its work and found something wrong leaves with ``ctx.exit(code)``, which comes back here.
        code = mkcfs.main(arguments, prog_name="mkcfs", standalone_mode=False)
    except click.UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # only newer versions of click have it
            tell_lines(error.format_message().split("\n"))
            return error.exit_code
        verb = error.ctx.info_name if error.ctx is not None and error.ctx.parent is not None else None
        hint = f"mkcfs {verb} --help" if verb else "mkcfs --help"
        raise UsageError(error.format_message(), subject=verb, hint=hint) from None
    except click.Abort:
        raise Interrupted("interrupted") from None
    return code if isinstance(code, int) else 0
