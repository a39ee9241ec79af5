"""Parameter types and options that several verbs share."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cfstools.errors import UsageError
from cfstools.tree.xattrs import XattrPolicy

F = TypeVar("F", bound=Callable[..., Any])


if TYPE_CHECKING:
    _BytesParam = click.ParamType[bytes]
else:  # generic only in newer versions of click
    _BytesParam = click.ParamType


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
    """One store, or several joined by colons."""

    name = "dir"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The list of paths; empty elements are a usage error. A directory whose name holds a colon wins."""
        if isinstance(value, list):
            return value
        path = os.fsencode(value)
        if os.path.isdir(path):
            return [path]
        parts = path.split(b":")
        if not all(parts):
            self.fail("a store's path is empty", param, ctx)
        return parts


PATH = PathBytes()


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
