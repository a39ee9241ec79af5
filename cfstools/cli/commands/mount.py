"""``mkcfs mount`` and ``mkcfs umount``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from cfstools import api
from cfstools.cli.lazy_options import LazyWords, lazy_options, lazy_stores
from cfstools.cli.mount_options import (
    CHECK_OPTION,
    STORE_OPTIONS,
    check_upper,
    expected_options,
    map_option,
    namespaces_of,
    program,
)
from cfstools.cli.output import print_json
from cfstools.cli.params import PATH, GroupedCommand, examples, json_option, option_group, public_keys
from cfstools.cli.session import Session
from cfstools.errors import UsageError
from cfstools.mount import HelperOptions, Layers, OverlayVerity, parse_options
from cfstools.mount.choose import Check, Method
from cfstools.mount.options import SETTINGS
from cfstools.verity import ObjectId

if TYPE_CHECKING:
    from typing_extensions import Unpack

FUSERMOUNT = "fusermount3"


class _Words(LazyWords):
    """What click hands over for the options."""

    stores: list[bytes]
    digest: str | None
    keys: tuple[bytes, ...]
    verity: str | None
    check: str | None
    method: str
    ids: str
    rw: bool
    upper: bytes | None
    work: bytes | None
    allow_other: bool
    foreground: bool
    log: bytes | None
    fake: bool
    sloppy: bool


class _MountCommand(GroupedCommand):
    """Takes options of its own also as words of ``-o``: ``-o lazy=PLACE`` is ``--lazy PLACE``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments, those in ``-o`` first, so that others overrule them."""
        parsed, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        settings = _settings(parsed.get("options") or (), sloppy=bool(parsed.get("sloppy")))
        return super().parse_args(ctx, [*settings, *args])


_CHECK_OPTIONS = (
    *expected_options("Mount"),
    click.option(
        "--verity",
        type=click.Choice(["auto", "require", "off"]),
        help="Have the kernel check objects when they are opened (default auto: if image and file systems allow).",
    ),
    CHECK_OPTION,
)
_METHOD_OPTIONS = (
    click.option(
        "--method",
        type=click.Choice([method.value for method in Method]),
        default=Method.AUTO.value,
        show_default=True,
        help="Mount by the kernel's EROFS and overlay, by overlay alone, by a process that serves the files, or in a "
        "namespace, with DIR as symbolic link to it; auto takes the first of these that is allowed and seen by all.",
    ),
    map_option("For the method link: "),
    click.option("--allow-other", is_flag=True, help="Let other users look into a mount that is served."),
    click.option("--foreground", is_flag=True, help="Stay until the mount is gone."),
    click.option(
        "--log",
        type=PATH,
        metavar="FILE",
        help="Append what the processes behind the mount say to this file (default: the system's log).",
    ),
)


@click.command(
    cls=_MountCommand,
    epilog=examples(
        "mkcfs mount image.cfs mnt --store ./objects",
        "mkcfs mount image.cfs mnt --store ./objects --key release.pub",
        "mkcfs mount image.cfs mnt --store ./objects --rw --upper upper --work work",
        "mkcfs mount image.cfs mnt --store ./objects --method fuse",
        "mkcfs mount image.cfs mnt --store ./objects --lazy https://example.com/images/objects",
        "mkcfs mount docker://registry.example/app:2 mnt --store ./objects --key release.pub",
        "mkcfs mount image.cfs mnt -o basedir=./objects,tryverity,ro,noexec",
    ),
)
@click.argument("image", type=PATH)
@click.argument("directory", metavar="DIR", type=PATH)
@option_group("Store options", *STORE_OPTIONS)
@option_group("Check options", *_CHECK_OPTIONS)
@option_group("Method options", *_METHOD_OPTIONS)
@lazy_options
@click.option(
    "-o",
    "options",
    multiple=True,
    metavar="OPTIONS",
    help="Options as mount.composefs takes them, joined by commas; a backslash escapes.",
)
@click.option("--fake", is_flag=True, hidden=True, help="Do all but mount: -f of mount(8).")
@click.option("--sloppy", is_flag=True, hidden=True, help="Pass unknown words of -o over: -s of mount(8).")
@json_option
@click.pass_context
def mount(
    context: click.Context,
    *,
    image: bytes,
    directory: bytes,
    options: tuple[str, ...],
    as_json: bool,
    **words: Unpack[_Words],
) -> None:
    """Mount IMAGE, with the contents of files from stores, on DIR.

    IMAGE is a file, or a pushed image as pull takes it (docker://HOST/NAME, oci:DIR, a URL), whose objects are then
    fetched when they are read. Root mounts with the kernel alone; for others a process serves the files.

    With --digest or --key the image is checked before anything in it is interpreted, and the file that was checked is
    the one that is mounted. With --verity require, the kernel also has to enforce the contents of that file, and of
    every object that is opened.

    In an image that was checked with neither, the kernel ignores set-user-ID bits and file capabilities and opens no
    device nodes, unless -o suid,dev says otherwise.

    The options of -o are basedir=, digest=, verity, tryverity, idmap=, ro, rw, upperdir=, workdir=, nosuid, suid,
    nodev, dev, noexec, exec, noatime and atime, and lazy=, method=, key= and others as the options above.
    """
    session: Session = context.obj
    more = parse_options(_joined(options), sloppy=words["sloppy"])
    layers = _layers(words, more)

    def ready(report: api.MountReport) -> None:
        if as_json:
            print_json(report.to_dict())
        session.summary(_summary(report))
        _notify()

    api.mount(
        image,
        directory,
        layers=layers,
        digest=_digest(words["digest"], more),
        keys=public_keys(words["keys"]),
        verity=_verity(words["verity"], more),
        scratch=os.environb.get(b"TMPDIR") or None,
        protection=api.Protection(nosuid=more.nosuid, nodev=more.nodev, noexec=more.noexec),
        method=Method(words["method"]),
        check=None if words["check"] is None else Check(words["check"]),
        lazy=lazy_stores(context, words, image),
        serving=api.Serving(
            foreground=words["foreground"],
            log=words["log"],
            allow_other=words["allow_other"],
            helper=program(FUSERMOUNT),
            on_ready=ready,
        ),
        namespaces=namespaces_of(words["ids"]),
        warn=session.warn,
        dry_run=words["fake"],
    )


@click.command(epilog=examples("mkcfs umount mnt"))
@click.argument("directory", metavar="DIR", type=PATH)
def umount(*, directory: bytes) -> None:
    """Unmount the image that is mounted on DIR. Anything else that is mounted there stays."""
    api.umount(directory, helper=program(FUSERMOUNT))


def _joined(options: Sequence[str]) -> bytes:
    return b",".join(os.fsencode(text) for text in options)


def _settings(options: Sequence[str], *, sloppy: bool) -> list[str]:
    """The words of ``-o`` that the command has options for, as arguments."""
    words: list[str] = []
    for name, value in parse_options(_joined(options), sloppy=sloppy).settings:
        option = f"--{name.replace('_', '-')}"
        words.append(f"{option}={os.fsdecode(value)}" if name in SETTINGS and value is not None else option)
    return words


def _notify() -> None:
    """Tell the service manager that waits for it that the mount is there."""
    address = os.environb.get(b"NOTIFY_SOCKET")
    if address:
        from cfstools.linux.processes import send_datagram

        send_datagram(address, b"READY=1")


def _layers(words: _Words, more: HelperOptions) -> Layers:
    rw, upper, work = words["rw"], words["upper"], words["work"]
    check_upper(rw=rw, upper=upper, work=work)
    if rw and more.writable is False:
        raise UsageError("--rw and -o ro contradict each other")
    upper = _one("--upper", upper, "upperdir=", more.upper)
    return Layers(
        stores=(*words["stores"], *more.stores),
        upper=upper,
        work=_one("--work", work, "workdir=", more.work),
        idmap=more.idmap,
        writable=upper is not None and more.writable is not False,  # mount(8) says rw wherever nothing is said
        noatime=bool(more.noatime),
    )


def _one(option: str, value: bytes | None, other: str, other_value: bytes | None) -> bytes | None:
    if value is not None and other_value is not None:
        raise UsageError(f"{option} and -o {other} say the same thing twice: choose one")
    return other_value if value is None else value


def _digest(digest: str | None, more: HelperOptions) -> ObjectId | None:
    if digest is not None and more.digest is not None:
        raise UsageError("--digest and -o digest= say the same thing twice: choose one")
    # An empty digest= asks for checked objects and no more, as it does with mount.composefs.
    text = digest if digest is not None else more.digest or None
    return None if text is None else ObjectId.parse(text)


def _verity(verity: str | None, more: HelperOptions) -> api.VerityMode:
    if verity is not None and more.objects is not None:
        raise UsageError("--verity contradicts verity, tryverity and digest= of -o: choose one")
    match more.objects:
        case OverlayVerity.REQUIRE:
            return api.VerityMode.REQUIRE
        case OverlayVerity.TRY:
            return api.VerityMode.TRY
        case _:
            return api.VerityMode(verity or "auto")


def _summary(report: api.MountReport) -> str:
    words = ["read-write" if report.writable else "read-only"]
    words.append("objects checked by the kernel" if report.objects_checked else _check_word(report.check))
    words += [name for name in ("nosuid", "nodev", "noexec") if getattr(report, name)]
    if report.loop:
        words.append("on a loop device")
    if report.method != Method.KERNEL.value:
        words.append(f"by {report.method}")
    if report.pid is not None:
        words.append(f"kept by process {report.pid}")
    if report.lazy:
        words.append(f"missing objects from {', '.join(report.lazy)}")
    words += [f"{one.what} left out: {one.count}" for one in report.left_out]
    return f"{report.directory}: {report.image} mounted, {', '.join(words)}"


def _check_word(check: str) -> str:
    match Check(check):
        case Check.READ:
            return "contents checked when they are read"
        case Check.OPEN:
            return "objects checked when they are opened"
        case Check.FIRST:
            return "objects checked before"
        case Check.OFF:
            return "objects not checked"
