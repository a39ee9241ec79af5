"""Parameter types and options that several verbs share."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import click
from click.core import ParameterSource

from cfstools.errors import UsageError
from cfstools.store.place import local_path, split_places
from cfstools.tree.xattrs import XattrPolicy

F = TypeVar("F", bound=Callable[..., Any])


if TYPE_CHECKING:
    from cfstools.signing.keys import PublicKey

    _BytesParam = click.ParamType[bytes]
    _IntParam = click.ParamType[int]
else:  # generic only in newer versions of click
    _BytesParam = _IntParam = click.ParamType

_OCTAL = "0?[0-7]{1,3}"


class PathBytes(_BytesParam):
    """A path as the bytes the user gave, so that names which are not UTF-8 work."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        """Bytes of the argument; an empty path is a usage error."""
        path = os.fsencode(value)
        if not path:
            self.fail("the path is empty", param, ctx)
        return path

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """Let the shell complete file names."""
        return [click.shell_completion.CompletionItem(incomplete, type="file")]


class StorePaths(PathBytes):
    """One store, a path or a ``file://`` URL, or the paths of several joined by colons."""

    name = "dir"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The list of paths; empty elements and URLs of other schemes are usage errors.

        A directory whose name holds a colon wins. Raises InputError where that cannot be told.
        """
        if isinstance(value, list):
            return value
        parts = split_places(os.fsencode(value))
        if not all(parts):
            self.fail("a store's path is empty", param, ctx)
        return parts


class StorePath(PathBytes):
    """One store, a path or a ``file://`` URL."""

    name = "dir"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        """The path; a URL of another scheme is a usage error."""
        return local_path(super().convert(value, param, ctx))


class OctalMode(_IntParam):
    """Permission bits in octal."""

    name = "mode"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The bits; a usage error for what is not octal, sets more than permissions, or denies the owner reading."""
        if isinstance(value, int):
            return value
        if not re.fullmatch(_OCTAL, value):
            self.fail(f"{value!r} is not a mode in octal, 0 to 0777", param, ctx)
        mode = int(value, 8)
        if not mode & 0o400:
            self.fail(f"{value!r} keeps the owner from reading", param, ctx)
        return mode


PATH = PathBytes()
STORE = StorePath()
MODE = OctalMode()

GENERAL = "General options"
# Parameter to the heading that it stands below in the help; those without one are general.
_HEADINGS: WeakKeyDictionary[click.Parameter, str] = WeakKeyDictionary()


def option_group(heading: str, *options: Callable[[F], F]) -> Callable[[F], F]:
    """Add *options* to a command, in this order; its help (:class:`GroupedCommand`) lists them below *heading*."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
            _HEADINGS[vars(function)["__click_params__"][-1]] = heading
        return function

    return decorate


def grouped_options(command: click.Command, ctx: click.Context) -> dict[str, list[click.Option]]:
    """The options of *command* that are not hidden, by the headings of their groups; general options come last."""
    groups: dict[str, list[click.Option]] = {}
    for parameter in command.get_params(ctx):
        if isinstance(parameter, click.Option) and not parameter.hidden:
            groups.setdefault(_HEADINGS.get(parameter, GENERAL), []).append(parameter)
    groups[GENERAL] = groups.pop(GENERAL)
    return groups


class GroupedCommand(click.Command):
    """A command whose help lists its options in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each group."""
        for heading, options in grouped_options(self, ctx).items():
            with formatter.section(heading):
                formatter.write_dl([record for one in options if (record := one.get_help_record(ctx))])


def given(context: click.Context, names: Collection[str]) -> tuple[str, ...]:
    """Of the options whose parameters have these *names*, those on the command line, as they are written there."""
    return tuple(
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in names and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    )


def store_option(help_text: str) -> Callable[[F], F]:
    """``--store DIR``, repeatable, with the reference's name as a hidden alias; arrives as ``stores``."""
    return click.option(
        "--store",
        "--digest-store",
        "stores",
        type=StorePaths(),
        multiple=True,
        metavar="DIR",
        help=help_text,
        callback=_flatten,
    )


def _flatten(_ctx: click.Context, _param: click.Parameter, value: tuple[list[bytes], ...]) -> list[bytes]:
    return [path for paths in value for path in paths]


def json_option(function: F) -> F:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(function)


def json_lines_option(function: F) -> F:
    """``--json-lines``."""
    return click.option("--json-lines", "as_json", is_flag=True, help="Print one JSON document a line.")(function)


def zero_option(function: F) -> F:
    """``-z``; arrives as ``zero``."""
    return click.option("-z", "--zero", is_flag=True, help="End lines with a NUL byte, and escape nothing.")(function)


def public_keys(paths: Sequence[bytes]) -> list[PublicKey]:
    """The public keys in these files. What reads them is loaded only if there are any."""
    if not paths:
        return []
    from cfstools.signing.keys import read_public_key

    return [read_public_key(path) for path in paths]


def xattr_policy(*, skip: bool, user: bool) -> XattrPolicy:
    """What ``--skip-xattrs`` and ``--user-xattrs`` ask for. Raises UsageError for both."""
    if skip and user:
        raise UsageError("--skip-xattrs and --user-xattrs contradict each other")
    if skip:
        return XattrPolicy.NONE
    return XattrPolicy.USER if user else XattrPolicy.ALL


def examples(*lines: str) -> str:
    """The examples at the end of a verb's help; a test runs every line that starts with ``mkcfs``."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
