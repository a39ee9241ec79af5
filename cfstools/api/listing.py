"""Verbs ``ls``, ``dump`` and ``objects``: what images hold, in the line formats of ``composefs-info``."""

from __future__ import annotations

import stat
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from cfstools.formats.dump.print import dump_text, ls_text
from cfstools.formats.escape import escape_text
from cfstools.lifetime import keep_until_exit
from cfstools.report import Report
from cfstools.sources.image_file import load_image, load_objects
from cfstools.tree import (
    Device,
    Directory,
    External,
    HardLink,
    Leaf,
    Located,
    Piece,
    RegularFile,
    Symlink,
    Unread,
)
from cfstools.tree.objects import PackedObjects, payload_sizes, unpacked_objects
from cfstools.tree.walk import inode_of, iter_entries, linked_inodes

if TYPE_CHECKING:
    from cfstools.store.open import StorePlace


class PieceReport(Report):
    """A piece of a file's contents that lie inside blobs; ``blob`` is ``None`` for a hole and 0 for the image itself.

    ``offset`` and ``length`` are in bytes of the blob; ``payload`` and ``digest`` name it as an object.
    """

    length: int
    blob: int | None
    offset: int | None
    payload: str | None
    digest: str | None


class EntryReport(Report):
    """One name of an image. Text is escaped as in dump texts; ``link_to`` is the first name of a hard link."""

    path: str
    type: str
    mode: str
    uid: int
    gid: int
    nlink: int
    mtime_sec: int
    mtime_nsec: int
    size: int | None = None
    target: str | None = None
    rdev: int | None = None
    payload: str | None = None
    digest: str | None = None
    content: str | None = None
    pieces: tuple[PieceReport, ...] | None = None
    link_to: str | None = None
    xattrs: dict[str, str] | None = None


class ObjectReport(Report):
    """An object that images need."""

    payload: str


def _trees(images: Sequence[bytes], filters: Collection[bytes]) -> Iterator[Directory]:
    """Yield the tree of each image; the last one may be kept until exit."""
    for left, image in zip(range(len(images) - 1, -1, -1), images, strict=True):
        root = load_image(image, filters)
        if not left:
            keep_until_exit(root)
        yield root


def ls(images: Sequence[bytes], *, filters: Collection[bytes] = ()) -> Iterator[bytes]:
    """Lines as ``composefs-info ls`` prints them, image after image, in pieces of whole lines."""
    for root in _trees(images, filters):
        yield from ls_text(root)


def dump(images: Sequence[bytes], *, filters: Collection[bytes] = ()) -> Iterator[bytes]:
    """Composefs-dump(5) text as ``composefs-info dump`` prints it, image after image, in pieces of whole lines."""
    for root in _trees(images, filters):
        yield from dump_text(root)


def objects(
    images: Sequence[bytes],
    *,
    filters: Collection[bytes] = (),
    missing_from: Sequence[StorePlace] | None = None,
) -> list[bytes]:
    """Sorted unique object paths the images need; with *missing_from*, only those in none of these stores.

    An object is there if the first store that has anything at its path has a regular file of the right size, which is
    what ``verify`` without its contents looks at.
    """
    sizes: dict[bytes, int | None] = {}
    packed: list[PackedObjects] = []
    for some in _trees(images, filters) if filters else map(load_objects, images):
        if isinstance(some, Directory):
            payload_sizes(some, sizes)
        else:
            packed.append(some)
    if missing_from is None:
        return sorted({*sizes, *(path for one in packed for path, _ in unpacked_objects(one))})
    from cfstools.store.chain import missing_objects

    return missing_objects(missing_from, sizes, packed)


def entries(images: Sequence[bytes], *, filters: Collection[bytes] = ()) -> Iterator[EntryReport]:
    """Every name of the images as a report, depth-first in byte order."""
    for root in _trees(images, filters):
        yield from entries_below(root)


def entries_below(root: Directory, start: bytes = b"/") -> Iterator[EntryReport]:
    """The name *start* of a tree and every name below it as a report, depth-first in byte order."""
    start = b"/" + b"/".join(filter(None, start.split(b"/")))
    prefix = start if start == b"/" else start + b"/"
    linked: set[Directory | Leaf] = {*linked_inodes(root)}
    first_names: dict[Directory | Leaf, str] = {}
    for path, _, entry in iter_entries(root):
        text = escape_text(path)
        inode = inode_of(entry)
        link_to = None
        if inode in linked:
            link_to = first_names.get(inode) if isinstance(entry, HardLink) else None
            first_names.setdefault(inode, text)
        if path == start or path.startswith(prefix):
            yield _entry_report(text, inode, link_to)


_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character-device",
    stat.S_IFBLK: "block-device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def type_name(mode: int) -> str:
    """The kind of an inode in words, by its mode."""
    return _TYPES[stat.S_IFMT(mode)]


def _entry_report(path: str, inode: Directory | Leaf, link_to: str | None) -> EntryReport:
    size = target = rdev = payload = digest = content = pieces = None
    match inode:
        case RegularFile():
            size = inode.size
            match inode.content:
                case External(payload=name, digest=raw):
                    payload, digest = _text(name), _hex(raw)
                case bytes() as data:
                    content = _text(data)
                case Located() as located:
                    pieces = tuple(map(_piece_report, located.pieces))
                case Unread():
                    pass
        case Symlink():
            target = _text(inode.target)
        case Device():
            rdev = inode.rdev
        case _:
            pass
    return EntryReport(
        path=path,
        type=type_name(inode.mode),
        mode=f"{stat.S_IMODE(inode.mode):04o}",
        uid=inode.uid,
        gid=inode.gid,
        nlink=inode.nlink,
        mtime_sec=inode.mtime_sec,
        mtime_nsec=inode.mtime_nsec,
        size=size,
        target=target,
        rdev=rdev,
        payload=payload,
        digest=digest,
        content=content,
        pieces=pieces,
        link_to=link_to,
        xattrs={escape_text(key): escape_text(value) for key, value in inode.xattrs.items()},
    )


def _piece_report(piece: Piece) -> PieceReport:
    length, blob, offset = piece
    if blob is None:
        return PieceReport(length=length, blob=None, offset=None, payload=None, digest=None)
    return PieceReport(
        length=length, blob=blob.number, offset=offset, payload=_text(blob.payload), digest=_hex(blob.digest)
    )


def _hex(digest: bytes | None) -> str | None:
    return digest.hex() if digest else None


def _text(data: bytes | None) -> str | None:
    return None if data is None else escape_text(data)
