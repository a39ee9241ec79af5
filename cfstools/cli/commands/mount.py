"""``mkcfs mount`` and ``mkcfs umount``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from cfstools import api
from cfstools.cli.output import print_json
from cfstools.cli.params import PATH, examples, json_option, store_option
from cfstools.cli.session import Session
from cfstools.errors import UsageError
from cfstools.mount import HelperOptions, Layers, ObjectCheck, parse_options
from cfstools.verity import ObjectId

if TYPE_CHECKING:
    from cfstools.signing.keys import PublicKey


@click.command(
    epilog=examples(
        "mkcfs mount image.cfs mnt --store ./objects",
        "mkcfs mount image.cfs mnt --store ./objects --key release.pub",
        "mkcfs mount image.cfs mnt --store ./objects --rw --upper upper --work work",
        "mkcfs mount image.cfs mnt -o basedir=./objects,tryverity,ro,noexec",
    )
)
@click.argument("image", type=PATH)
@click.argument("directory", metavar="DIR", type=PATH)
@store_option("Take file contents from here; of several, the first that has an object counts.")
@click.option("--digest", metavar="HEX", help="Mount only an image with this fs-verity digest.")
@click.option(
    "--key",
    "keys",
    type=PATH,
    multiple=True,
    metavar="PUB",
    help="Mount only an image signed with this key (of several, one is enough).",
)
@click.option(
    "--verity",
    type=click.Choice(["auto", "require", "off"]),
    help="Have the kernel check objects when they are opened (default auto: if image and file systems allow).",
)
@click.option("--rw", is_flag=True, help="Take writes, which go to --upper.")
@click.option("--upper", type=PATH, metavar="DIR", help="Keep what is written here.")
@click.option("--work", type=PATH, metavar="DIR", help="Empty directory on the file system of --upper.")
@click.option(
    "-o",
    "options",
    multiple=True,
    metavar="OPTIONS",
    help="Options as mount.composefs takes them, joined by commas; a backslash escapes.",
)
@json_option
@click.pass_obj
def mount(
    session: Session,
    *,
    image: bytes,
    directory: bytes,
    stores: list[bytes],
    digest: str | None,
    keys: tuple[bytes, ...],
    verity: str | None,
    rw: bool,
    upper: bytes | None,
    work: bytes | None,
    options: tuple[str, ...],
    as_json: bool,
) -> None:
    """Mount IMAGE, with the contents of files from stores, on DIR.

    With --digest or --key the image is checked before anything in it is interpreted, and the file that was checked is
    the one that is mounted. With --verity require, the kernel also has to enforce the contents of that file, and of
    every object that is opened. Only root can mount.

    In an image that was checked with neither, the kernel ignores set-user-ID bits and file capabilities and opens no
    device nodes, unless -o suid,dev says otherwise.

    The options of -o are basedir=, digest=, verity, tryverity, idmap=, ro, rw, upperdir=, workdir=, nosuid, suid,
    nodev, dev, noexec and exec.
    """
    more = parse_options(b",".join(os.fsencode(text) for text in options))
    if rw and (upper is None or work is None):
        raise UsageError("--rw needs --upper and --work: writes have to go somewhere")
    if upper is not None and not rw:
        raise UsageError("--upper only has a meaning with --rw")
    if rw and more.writable is False:
        raise UsageError("--rw and -o ro contradict each other")
    upper = _one("--upper", upper, "upperdir=", more.upper)
    report = api.mount(
        image,
        directory,
        layers=Layers(
            stores=(*stores, *more.stores),
            upper=upper,
            work=_one("--work", work, "workdir=", more.work),
            idmap=more.idmap,
            writable=upper is not None if more.writable is None else more.writable,
        ),
        digest=_digest(digest, more),
        keys=_load_keys(keys),
        verity=_verity(verity, more),
        protection=api.Protection(nosuid=more.nosuid, nodev=more.nodev, noexec=more.noexec),
    )
    if as_json:
        print_json(report.to_dict())
    session.summary(_summary(report))


@click.command(epilog=examples("mkcfs umount mnt"))
@click.argument("directory", metavar="DIR", type=PATH)
def umount(*, directory: bytes) -> None:
    """Unmount the image that is mounted on DIR. Anything else that is mounted there stays."""
    api.umount(directory)


def _one(option: str, value: bytes | None, other: str, other_value: bytes | None) -> bytes | None:
    if value is not None and other_value is not None:
        raise UsageError(f"{option} and -o {other} say the same thing twice: choose one")
    return other_value if value is None else value


def _digest(digest: str | None, more: HelperOptions) -> bytes | None:
    if digest is not None and more.digest is not None:
        raise UsageError("--digest and -o digest= say the same thing twice: choose one")
    # An empty digest= asks for checked objects and no more, as it does with mount.composefs.
    text = digest if digest is not None else more.digest or None
    return None if text is None else ObjectId.parse(text).digest


def _verity(verity: str | None, more: HelperOptions) -> api.VerityMode:
    if verity is not None and more.objects is not None:
        raise UsageError("--verity contradicts verity, tryverity and digest= of -o: choose one")
    match more.objects:
        case ObjectCheck.REQUIRE:
            return api.VerityMode.REQUIRE
        case ObjectCheck.TRY:
            return api.VerityMode.TRY
        case _:
            return api.VerityMode(verity or "auto")


def _load_keys(paths: tuple[bytes, ...]) -> list[PublicKey]:
    if not paths:
        return []
    from cfstools.api.keys import read_public_key

    return [read_public_key(path) for path in paths]


def _summary(report: api.MountReport) -> str:
    words = ["read-write" if report.writable else "read-only"]
    words.append("objects checked by the kernel" if report.objects_checked else "objects not checked")
    words += [name for name in ("nosuid", "nodev", "noexec") if getattr(report, name)]
    if report.loop:
        words.append("on a loop device")
    return f"{report.directory}: {report.image} mounted, {', '.join(words)}"
