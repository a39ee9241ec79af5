"""``mkcfs extract`` and ``mkcfs cat``."""

from __future__ import annotations

import os
import sys
from typing import Unpack

import click

from cfstools import api
from cfstools.api.cat import cat as read_file
from cfstools.cli.output import print_json, size_text
from cfstools.cli.params import PATH, examples, json_option, store_option, xattr_policy
from cfstools.cli.remote_stores import StoreNetworkWords, readable_stores, store_network_options
from cfstools.cli.session import Session
from cfstools.errors import UsageError
from cfstools.text import counted


@click.command(
    epilog=examples(
        "mkcfs extract image.cfs restored --store ./objects",
        "mkcfs extract image.cfs etc-only --store ./objects --path /etc",
        "mkcfs extract image.cfs shared --store ./objects --hardlink --no-owner --skip-xattrs",
    )
)
@click.argument("image", type=PATH)
@click.argument("directory", metavar="DIR", type=PATH)
@store_option("Take file contents from here; may be given again.")
@click.option(
    "--path", "paths", metavar="PATH", multiple=True, type=PATH, help="Only this, with all below; repeatable."
)
@click.option("--reflink", is_flag=True, help="Clone objects, and fail where the file system cannot.")
@click.option("--hardlink", is_flag=True, help="Link to objects whose owner, mode and attributes fit; copy the others.")
@click.option("--copy", is_flag=True, help="Copy objects, and do not try to clone them.")
@click.option("--no-owner", is_flag=True, help="Leave owners as the system sets them for new files.")
@click.option("--skip-xattrs", "--no-xattrs", "skip_xattrs", is_flag=True, help="Leave out extended attributes.")
@click.option("--user-xattrs", is_flag=True, help="Put only user.* extended attributes on disk.")
@click.option("--skip-devices", is_flag=True, help="Leave out device nodes.")
@click.option("--sync", is_flag=True, help="Have all on stable storage before DIR appears.")
@click.option("--shared", is_flag=True, help="As root, extract also where other users may write.")
@click.option("-j", "--threads", type=click.IntRange(min=1), metavar="N", help="Worker threads (default: all CPUs).")
@store_network_options
@json_option
@click.pass_obj
def extract(
    session: Session,
    *,
    image: bytes,
    directory: bytes,
    stores: list[bytes],
    paths: tuple[bytes, ...],
    reflink: bool,
    hardlink: bool,
    copy: bool,
    no_owner: bool,
    skip_xattrs: bool,
    user_xattrs: bool,
    skip_devices: bool,
    sync: bool,
    shared: bool,
    threads: int | None,
    as_json: bool,
    **network: Unpack[StoreNetworkWords],
) -> None:
    """Extract IMAGE to the directory DIR, which must not exist or must be empty.

    Contents are compared with the image as they are copied, and DIR appears once all of it is right; an existing DIR,
    which may be a mount point, is filled where it is. Objects are cloned where the file system can, else copied.

    Root gets the tree as it is. Other users get what they can hold: without owners, device nodes and attributes that
    are reserved for root, and without setuid and setgid bits of files that change owner. What was left out is listed.

    As root, DIR and all that leads to it must belong to root, and only root may write there (or, as in /tmp, others
    only what is theirs). With --shared other users may; they can then take DIR away or put something else there
    meanwhile, but never lead what is written elsewhere.

    With --hardlink, files share the inode of their object and have its modification time. Writing to one of them
    in place damages the store.
    """
    report = api.extract(
        image,
        directory,
        stores=readable_stores(stores, network),
        options=api.ExtractOptions(
            contents=_copy_mode(reflink=reflink, hardlink=hardlink, copy=copy),
            xattrs=xattr_policy(skip=skip_xattrs, user=user_xattrs),
            owners=not no_owner,
            devices=not skip_devices,
            paths=paths,
            sync=sync,
            shared=shared,
        ),
        threads=threads or len(os.sched_getaffinity(0)),
        progress=session.progress(),
    )
    for left in report.left_out:
        session.warn(f"left out: {left.what} of {counted(left.count, 'name')}, first {left.first}")
    if as_json:
        print_json(report.to_dict())
    session.summary(_summary(report))


def _copy_mode(*, reflink: bool, hardlink: bool, copy: bool) -> api.CopyMode:
    if reflink + hardlink + copy > 1:
        raise UsageError("--reflink, --hardlink and --copy are three different ways: choose one")
    if reflink:
        return api.CopyMode.REFLINK
    if hardlink:
        return api.CopyMode.HARDLINK
    return api.CopyMode.COPY if copy else api.CopyMode.AUTO


def _summary(report: api.ExtractReport) -> str:
    counts = [
        f"{report.directories} directories",
        counted(report.files, "file"),
        counted(report.symlinks, "symlink"),
        counted(report.special_files, "special file"),
        counted(report.hard_links, "hard link"),
    ]
    sizes = [
        f"{size_text(report.bytes_copied)} copied",
        f"{size_text(report.bytes_cloned)} cloned",
        f"{size_text(report.bytes_linked)} linked",
    ]
    return f"{report.directory}: {', '.join(counts)}; {', '.join(sizes)}"


@click.command(epilog=examples("mkcfs cat image.cfs /etc/hostname --store ./objects"))
@click.argument("image", type=PATH)
@click.argument("path", type=PATH)
@store_option("Take the contents from here; may be given again.")
@store_network_options
def cat(*, image: bytes, path: bytes, stores: list[bytes], **network: Unpack[StoreNetworkWords]) -> None:
    """Print the contents of the file at PATH in IMAGE.

    Symbolic links are followed inside the image. Nothing is printed before the whole was compared with the image.
    """
    stream = sys.stdout.buffer
    for piece in read_file(image, path, stores=readable_stores(stores, network)):
        stream.write(piece)
    stream.flush()
