"""``mkcfs run``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from cfstools import api
from cfstools.cli.app import IGNORED_AT_START
from cfstools.cli.lazy_options import LazyWords, lazy_options, lazy_stores
from cfstools.cli.mount_options import (
    CHECK_OPTION,
    STORE_OPTIONS,
    check_upper,
    expected_options,
    map_option,
    namespaces_of,
)
from cfstools.cli.output import print_json, tell
from cfstools.cli.params import PATH, GroupedCommand, examples, json_option, option_group, public_keys
from cfstools.cli.session import Session
from cfstools.errors import UsageError
from cfstools.mount import Layers
from cfstools.mount.choose import Check, Method
from cfstools.text import printable, shown_path
from cfstools.verity import ObjectId

if TYPE_CHECKING:
    from typing_extensions import Unpack

_METHODS = (Method.AUTO, Method.OVERLAY, Method.FUSE)
_COMMAND = "cfstools.command"


class _Words(LazyWords):
    """What click hands over for the options."""

    chroot: bool
    stores: list[bytes]
    rw: bool
    upper: bytes | None
    work: bytes | None
    digest: str | None
    keys: tuple[bytes, ...]
    verity: str
    check: str | None
    method: str
    ids: str
    log: bytes | None


class _RunCommand(GroupedCommand):
    """Leaves all words behind the first ``--`` to the command that is run."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words before ``--``."""
        own, command = args, []
        if "--" in args:
            place = args.index("--")
            own, command = args[:place], args[place + 1 :]
        ctx.meta[_COMMAND] = command
        return super().parse_args(ctx, own)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """The words of the line of usage."""
        return [*super().collect_usage_pieces(ctx), "-- COMMAND [ARG]..."]


_PLACE_OPTIONS = (
    click.option("--chroot", is_flag=True, help="Show the image as root directory instead of on DIR."),
    map_option(),
    click.option(
        "--method",
        type=click.Choice([method.value for method in _METHODS]),
        default=Method.AUTO.value,
        show_default=True,
        help="Put names into memory below the kernel's overlay, or serve the files by a process; auto takes the first "
        "where the kernel lets users (Linux 6.16).",
    ),
)
_CHECK_OPTIONS = (
    *expected_options("Use"),
    click.option(
        "--verity",
        type=click.Choice(["auto", "require", "off"]),
        default="auto",
        show_default=True,
        help="Have the kernel check objects when they are opened; auto: if image and file systems allow.",
    ),
    CHECK_OPTION,
)


@click.command(
    cls=_RunCommand,
    epilog=examples(
        "mkcfs run image.cfs mnt --store ./objects -- ls mnt",
        "mkcfs run image.cfs --chroot --store ./objects -- /bin/sh",
        "mkcfs run image.cfs mnt --store ./objects --key release.pub --map same -- cat mnt/etc/hostname",
        "mkcfs run image.cfs --chroot --store ./objects --rw --upper upper --work work -- /bin/sh",
    ),
)
@click.argument("image", type=PATH)
@click.argument("directory", metavar="[DIR]", type=PATH, required=False)
@option_group("Namespace options", *_PLACE_OPTIONS)
@option_group("Store options", *STORE_OPTIONS)
@option_group("Check options", *_CHECK_OPTIONS)
@lazy_options
@click.option(
    "--log",
    type=PATH,
    metavar="FILE",
    help="Append what the process that serves files says to this file (default: the system's log).",
)
@json_option
@click.pass_context
def run(
    context: click.Context, *, image: bytes, directory: bytes | None, as_json: bool, **words: Unpack[_Words]
) -> None:
    """Run COMMAND where IMAGE is mounted on DIR, or is the root directory. It needs no root.

    Nobody but the command and its children sees the mount, and it ends with them. The command is in a user namespace
    of its own, where it is root unless --map says otherwise; outside it has no more rights than its caller. It is no
    container: processes, network and other files are those of the caller.

    With --digest or --key the image is checked before anything in it is interpreted. IMAGE and the options about
    stores and objects are those of mount. With --chroot, /dev, /proc, /sys and /etc/resolv.conf are those of the caller
    where the image has such places.

    The exit code is that of the command, 128 and the number of the signal that ended it, 127 if it was not found and
    126 if it could not be started. With --json the document follows what the command printed.
    """
    session: Session = context.obj
    command = [os.fsencode(word) for word in context.meta[_COMMAND]]
    if not command:
        raise UsageError("there is no command to run: put it behind --")
    if words["chroot"] == (directory is not None):
        raise UsageError("the image is shown either on DIR or, with --chroot, as root directory")
    report = api.run(
        image,
        command,
        environment=dict(os.environb),
        ignored=IGNORED_AT_START,
        directory=directory,
        layers=_layers(words),
        digest=None if words["digest"] is None else ObjectId.parse(words["digest"]),
        keys=public_keys(words["keys"]),
        verity=api.VerityMode(words["verity"]),
        scratch=os.environb.get(b"TMPDIR") or None,
        method=Method(words["method"]),
        check=None if words["check"] is None else Check(words["check"]),
        lazy=lazy_stores(context, words, image),
        # Not for nothing: what it takes from is what serves mounts, and takes longer to load than to mount without.
        serving=None if words["log"] is None else api.Serving(log=words["log"]),
        namespaces=namespaces_of(words["ids"]),
        started=lambda report: session.detail(*_lines(report)),
        warn=session.warn,
    )
    if report.not_started is not None:
        tell(f"mkcfs: {shown_path(command[0])}: {printable(report.not_started)}")
    if as_json:
        print_json(report.to_dict())
    context.exit(report.exit_code or 0)


def _layers(words: _Words) -> Layers:
    rw, upper, work = words["rw"], words["upper"], words["work"]
    check_upper(rw=rw, upper=upper, work=work)
    return Layers(stores=tuple(words["stores"]), upper=upper, work=work, writable=rw)


def _lines(report: api.RunReport) -> list[str]:
    """What the user may want to know before the command starts."""
    place = "as root directory" if report.directory is None else f"on {report.directory}"
    words = ["read-write" if report.writable else "read-only", f"method {report.method}"]
    if report.map is not None:
        words.append(f"ids {report.map}")
    words.append("objects checked by the kernel" if report.objects_checked else f"check {report.check}")
    left_out = ", ".join(f"{one.what}: {one.count}" for one in report.left_out)
    return [f"{report.image} {place}, {', '.join(words)}", *([f"left out: {left_out}"] if left_out else [])]
