"""From a tree to dump text (composefs format, section 6.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import assert_never

from cfstools import native
from cfstools.errors import TreeError
from cfstools.formats.erofs.dirents import directory_size
from cfstools.formats.escape import escape, escape_optional
from cfstools.formats.names import iter_first_names
from cfstools.tree.model import (
    KINDS,
    NO_XATTRS,
    Content,
    Device,
    Directory,
    Entry,
    External,
    Fifo,
    Leaf,
    RegularFile,
    Socket,
    Symlink,
    Unread,
    Xattrs,
)
from cfstools.tree.walk import linked_inodes

_UNSET = b"-"
_REMEMBERED = 1 << 10
_REMEMBERED_SIZE_MAX = 1 << 12
_PIECE = 1 << 20
_HIDING_NAMES = frozenset(b"%02x" % number for number in range(256))


def print_dump(root: Directory, *, directory_sizes: Callable[[Directory], int] | None = None) -> Iterator[bytes]:
    """Yield the dump of *root*, a line for each name, each with its newline.

    Xattrs come in the order of their mapping. An inode is described in full where it is met first, further
    names refer to that one. ``directory_sizes`` says how long the data of a directory is where it is known;
    without, it is what the image of this tree will have. Raises :class:`TreeError` for contents not read yet.
    """
    line = _Lines(directory_sizes or _ImageSizes(root)).line
    for path, inode, first in iter_first_names(root):
        yield line(path, inode, first)


def dump_text(root: Directory) -> Iterator[bytes]:
    """The same text in pieces of many lines, which takes less time."""
    lines = _Lines(_ImageSizes(root))
    firsts: dict[Leaf, bytes | None] = dict.fromkeys(linked_inodes(root))
    # Directories that are open: what is left of their entries, the last first, and how much of the path is theirs.
    stack: list[tuple[list[tuple[bytes, Entry]], int]] = [([(b"", root)], 0)]
    path = bytearray()
    while stack:
        text = native.print_entries(stack, path, firsts, lines.line, _xattrs_text, NO_XATTRS, KINDS, _PIECE)
        if not text:
            yield from print_dump(root)
            return
        yield text


class _Lines:
    """Prints one line after another."""

    def __init__(self, sizes: Callable[[Directory], int]) -> None:
        self._sizes = sizes
        self._remembered: dict[int, tuple[Xattrs, bytes]] = {}

    def line(self, path: bytes, inode: Directory | Leaf, first: bytes | None) -> bytes:
        """The line of one name, with its newline."""
        if isinstance(inode, Directory):
            size, rdev, payload, content, digest = self._sizes(inode), 0, _UNSET, _UNSET, _UNSET
            nlink = 2 + sum([type(entry) is Directory for entry in inode.entries.values()])
        else:
            size, rdev, payload, content, digest = _data(inode, path)
            nlink = inode.nlink
        return b"%b %d %b%o %d %d %d %d %d.%d %b %b %b%b\n" % (
            escape(path),
            size,
            b"" if first is None else b"@",
            inode.mode,
            nlink,
            inode.uid,
            inode.gid,
            rdev,
            inode.mtime_sec,
            inode.mtime_nsec,
            payload if first is None else escape(first),
            content,
            digest,
            self._xattrs(inode.xattrs) if inode.xattrs else b"",
        )

    def _xattrs(self, xattrs: Xattrs) -> bytes:
        # Mappings are shared between inodes; holding on to one keeps its id from being used again.
        known = self._remembered.get(id(xattrs))
        if known is None:
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            known = xattrs, _xattrs_text(xattrs)
            if len(known[1]) <= _REMEMBERED_SIZE_MAX:
                self._remembered[id(xattrs)] = known
        return known[1]


def directory_data_size(directory: Directory, *, is_root: bool = False) -> int:
    """Bytes of data that *directory* will have in an image (composefs format, section 3.2).

    The root has 256 more names there, which hide the directories of an object store (section 4.7).
    """
    names = {*directory.entries, b".", b".."}
    return directory_size(names | _HIDING_NAMES if is_root else names)


class _ImageSizes:
    """The size of each directory in the image of a tree."""

    def __init__(self, root: Directory) -> None:
        self._root = root

    def __call__(self, directory: Directory) -> int:
        return directory_data_size(directory, is_root=directory is self._root)


def _data(inode: Leaf, path: bytes) -> tuple[int, int, bytes, bytes, bytes]:
    """What a line says in SIZE, RDEV, PAYLOAD, CONTENT and DIGEST."""
    match inode:
        case RegularFile(size=size, content=content):
            return size, 0, *_contents(content, path)
        case Symlink(target=target):
            return len(target), 0, escape_optional(target), _UNSET, _UNSET
        case Device(size=size, rdev=rdev):
            return size, rdev, _UNSET, _UNSET, _UNSET
        case Fifo(size=size) | Socket(size=size):
            return size, 0, _UNSET, _UNSET, _UNSET
        case _:
            assert_never(inode)


def _contents(content: Content, path: bytes) -> tuple[bytes, bytes, bytes]:
    """PAYLOAD, CONTENT and DIGEST of a regular file."""
    match content:
        case External(digest=digest, payload=payload):
            return escape_optional(payload or None), _UNSET, _UNSET if digest is None else digest.hex().encode()
        case Unread():
            raise TreeError("the contents were not read yet", where=escape(path).decode())
        case _:
            return _UNSET, escape_optional(content or None), _UNSET


def _xattrs_text(xattrs: Xattrs) -> bytes:
    return b"".join([b" %b=%b" % (escape(k, equals=True), escape(v, equals=True)) for k, v in xattrs.items()])
