"""Options of verbs that mount: what must hold of an image, where writes go, which ids there are in namespaces."""

from __future__ import annotations

import os
from collections.abc import Callable

import click

from cfstools.cli.params import PATH, F, store_option
from cfstools.errors import UsageError
from cfstools.mount.choose import Check
from cfstools.mount.inside.ids import IdChoice, Namespaces

STORE_OPTIONS = (
    store_option("Take file contents from here; of several, the first that has an object counts."),
    click.option("--rw", is_flag=True, help="Take writes, which go to --upper."),
    click.option("--upper", type=PATH, metavar="DIR", help="Keep what is written here."),
    click.option("--work", type=PATH, metavar="DIR", help="Empty directory on the file system of --upper."),
)
CHECK_OPTION = click.option(
    "--check",
    type=click.Choice([check.value for check in Check]),
    help="Compare contents with the image ourselves: every block that is served, an object when it is opened, all "
    "objects first, or never (default: read where a process serves, else off).",
)
_TOOLS = ("newuidmap", "newgidmap")


def check_upper(*, rw: bool, upper: bytes | None, work: bytes | None) -> None:
    """Raise UsageError for options of ``STORE_OPTIONS`` that mean nothing together."""
    if rw and (upper is None or work is None):
        raise UsageError("--rw needs --upper and --work: writes have to go somewhere")
    if upper is not None and not rw:
        raise UsageError("--upper only has a meaning with --rw")


def expected_options(verb: str) -> tuple[Callable[[F], F], Callable[[F], F]]:
    """``--digest`` and ``--key``, whose help begins with *verb*; they arrive as ``digest`` and ``keys``."""
    return (
        click.option("--digest", metavar="HEX", help=f"{verb} only an image with this fs-verity digest."),
        click.option(
            "--key",
            "keys",
            type=PATH,
            multiple=True,
            metavar="PUB",
            help=f"{verb} only an image signed with this key (of several, one is enough).",
        ),
    )


def map_option(prefix: str = "") -> Callable[[F], F]:
    """``--map``; arrives as ``ids``. The help begins with *prefix*."""
    text = (
        "be root in there with the ids of /etc/subuid and /etc/subgid, root alone, or yourself; auto takes the first "
        "where there are such ids, and makes no user namespace for who may mount without."
    )
    return click.option(
        "--map",
        "ids",
        type=click.Choice([choice.value for choice in IdChoice]),
        default=IdChoice.AUTO.value,
        show_default=True,
        help=prefix + text if prefix else text.capitalize(),
    )


def namespaces_of(ids: str) -> Namespaces:
    """What ``--map`` says, with the tools on ``PATH``."""
    tools = [found for found in map(program, _TOOLS) if found is not None]
    helpers = (tools[0], tools[1]) if len(tools) == len(_TOOLS) else None
    return Namespaces(ids=IdChoice(ids), helpers=helpers)


def program(name: str) -> bytes | None:
    """The path of a program on ``PATH``, ``None`` if it is not there."""
    # Not shutil.which(): its module loads all kinds of compression.
    paths = (os.path.join(directory, name) for directory in os.get_exec_path())
    found = next((path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK)), None)
    return None if found is None else os.path.abspath(os.fsencode(found))
