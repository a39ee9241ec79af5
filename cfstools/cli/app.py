"""The command table, loaded verb by verb, and the one place where errors become lines and exit codes."""

from __future__ import annotations

import gc
import importlib
import itertools
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import click

from cfstools import __version__
from cfstools.cli.output import open_streams, print_lines, tell, tell_lines, tell_traceback
from cfstools.cli.session import Session
from cfstools.cli.symlinks import link_hint
from cfstools.errors import CfsError, Interrupted, UsageError, exit_codes

_PIPE_CLOSED = 1

# Verb to the module that holds it and its one-line help, so that listing verbs imports none of them.
VERBS: dict[str, tuple[str, str]] = {
    "build": ("build", "Turn a directory, a container image or a dump into a composefs image."),
    "inspect": ("inspect", "Say what an image is: versions, digest, counts, sizes."),
    "verify": ("verify", "Check an image: signature, structure, and every object it needs."),
    "sign": ("sign", "Sign an image, or remove its signature."),
    "keygen": ("keygen", "Make a key to sign images with."),
    "ls": ("listing", "List the names in an image."),
    "dump": ("listing", "Print an image as composefs-dump(5) text."),
    "objects": ("listing", "List the objects images need, or those missing from stores."),
    "digest": ("digest", "Print fs-verity digests of files."),
    "extract": ("extract", "Extract an image to a directory."),
    "cat": ("extract", "Print the contents of a file in an image."),
    "mount": ("mount", "Mount an image with the kernel, as root."),
    "umount": ("mount", "Unmount an image."),
    "diff": ("diff", "Say what changed from one image, directory or dump to another."),
    "store": ("store", "Care for an object store: check it, collect garbage, count."),
    "completion": ("completion", "Print the shell completion script."),
}


class _Stopped(BaseException):
    """A signal asked us to stop; unwinding removes temporaries. Not KeyboardInterrupt, which click answers itself."""


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
    from cfstools.cli.versions import version_text

    print_lines(version_text(__version__).split("\n"))
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


def run(arguments: Sequence[str] | None = None) -> int:
    """Run ``mkcfs`` and return its exit code; nothing raises out of here but a defect under ``--debug``."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    open_streams()
    # Trees are millions of small objects without cycles: the cyclic collector would go through them over and over.
    gc.disable()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        _choose_loops()
        # A verb that did its work and found something wrong leaves with ``ctx.exit(code)``, which comes back here.
        code = mkcfs.main(arguments, prog_name="mkcfs", standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # only newer versions of click have it
            tell_lines(error.format_message().split("\n"))
            return error.exit_code
        verb = error.ctx.info_name if error.ctx is not None and error.ctx.parent is not None else None
        hint = f"mkcfs {verb} --help" if verb else "mkcfs --help"
        return _report(UsageError(error.format_message(), subject=verb, hint=hint), debug=_wants_debug(arguments))
    except BrokenPipeError:
        # The reader of our output has gone; there is nobody left to tell. Keep the interpreter from flushing again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    except (CfsError, _Stopped, click.Abort, MemoryError, OSError) as error:
        return _report(error, debug=_wants_debug(arguments))
    return code if isinstance(code, int) else 0


def _choose_loops() -> None:
    """Take the hot loops that ``MKCFS_NATIVE`` names, for comparisons. Raises UsageError and Unsupported."""
    wanted = os.environ.get("MKCFS_NATIVE")
    if wanted:
        from cfstools import native

        native.use(wanted)


def _wants_debug(arguments: Sequence[str]) -> bool:
    """Whether ``--debug`` was given; looked for in the arguments because an error may come before click parsed it."""
    return "--debug" in itertools.takewhile(lambda word: word != "--", arguments)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise _Stopped


def _report(error: BaseException, *, debug: bool) -> int:
    if debug:
        tell_traceback(error)
    match error:
        case CfsError():
            shown: CfsError = error
        case MemoryError():
            shown = CfsError("out of memory")
        case OSError():
            # Output streams (a full disk behind a redirection); everything else is translated where it happens.
            shown = CfsError(f"cannot write output: {error.strerror}")
        case _:
            shown = Interrupted("interrupted")
    tell(f"mkcfs: {shown}")
    for hint in (shown.hint or link_hint(shown), *getattr(error, "__notes__", ())):
        if hint:
            tell(f"hint: {hint}")
    return shown.exit_code
