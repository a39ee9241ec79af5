"""From a tree to the lines of dumps and listings (composefs format, sections 6.4 and 8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import assert_never

from cfstools import native
from cfstools.errors import TreeError
from cfstools.formats.erofs.dirents import directory_size
from cfstools.formats.escape import escape, escape_listed, escape_optional
from cfstools.tree.model import (
    KINDS,
    NO_XATTRS,
    Content,
    Device,
    Directory,
    Entry,
    External,
    Fifo,
    HardLink,
    Leaf,
    Located,
    RegularFile,
    Socket,
    Symlink,
    Unread,
    Xattrs,
)
from cfstools.tree.objects import blobs_text
from cfstools.tree.walk import iter_first_names, linked_inodes

_UNSET = b"-"
_REMEMBERED = 1 << 10
_REMEMBERED_SIZE_MAX = 1 << 12
_PIECE = 1 << 20
_Line = Callable[[bytes, Directory | Leaf, bytes | None], bytes]
_MASK_NAMES = frozenset(b"%02x" % number for number in range(256))


def print_dump(root: Directory, *, directory_sizes: Callable[[Directory], int] | None = None) -> Iterator[bytes]:
    """Yield the dump of *root*, a line for each name, each with its newline.

    Xattrs are in the order of their mapping. The first name of an inode has all fields, its hard links refer to that
    name. ``directory_sizes`` gives the size of a directory's data; by default it is what an image of this tree will
    have. Raises :class:`TreeError` for contents that no field can express: unread ones, and those located in blobs.
    (Other readers would misread a new notation; for a dump of such an image, read the contents first.)
    """
    line = _Lines(directory_sizes or _ImageSizes(root)).line
    for path, inode, first in iter_first_names(root):
        yield line(path, inode, first)


def dump_text(root: Directory) -> Iterator[bytes]:
    """The same text faster, in pieces of many lines."""
    if native.print_entries is native.decline:
        return print_dump(root)
    return _native_text(root, [(b"", root)], _Lines(_ImageSizes(root)).line)


def ls_text(root: Directory) -> Iterator[bytes]:
    """The text of :func:`print_listing` faster, in pieces of whole lines."""
    if native.print_entries is native.decline:
        return print_listing(root)
    return _native_text(root, sorted(root.entries.items(), reverse=True), None)


def _native_text(root: Directory, items: list[tuple[bytes, Entry]], line: _Line | None) -> Iterator[bytes]:
    """Yield the lines of *items* in *root*, the last one first, and of all below them.

    *line* gives the line of an entry that is not ordinary in a dump; ``None`` makes a listing.
    """
    firsts: dict[Leaf, bytes | None] = dict.fromkeys(linked_inodes(root))
    # For each open directory: its remaining entries in reverse order, and the length of its path.
    stack = [(items, 0)]
    path = bytearray()
    while stack:
        text = native.print_entries(stack, path, firsts, line, _xattrs_text, NO_XATTRS, KINDS, _PIECE)
        assert text is not None  # it declines nothing: else this would not end
        yield text


class _Lines:
    """Prints lines, and caches the text of shared xattrs."""

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
        # Inodes share mappings. The reference keeps the id from being reused.
        known = self._remembered.get(id(xattrs))
        if known is None:
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            known = xattrs, _xattrs_text(xattrs)
            if len(known[1]) <= _REMEMBERED_SIZE_MAX:
                self._remembered[id(xattrs)] = known
        return known[1]


def print_listing(root: Directory) -> Iterator[bytes]:
    """Yield a line for each name but the root's, depth-first in byte order, in pieces of whole lines.

    Directories end in a slash and a tab, a symlink's target follows ``->``, an external file's payload ``@``.
    Hard links after the first name have no suffix, nor have files whose contents are in no object of their own.
    """
    linked: set[Directory | Leaf] = {*linked_inodes(root)}
    listed: set[Directory | Leaf] = set()  # of these, the inodes that had a line
    # Of open directories only the length of their text: whole texts would take room by the square of the depth.
    above: list[tuple[list[tuple[bytes, Entry]], int]] = []
    prefix = b"/"
    items = sorted(root.entries.items(), reverse=True)
    lines: list[bytes] = []
    size = 0
    while items or above:
        if not items:
            items, length = above.pop()
            prefix = prefix[:length]
            continue
        name, entry = items.pop()
        inode = entry.inode if isinstance(entry, HardLink) else entry
        text = prefix + escape_listed(name)
        line = text + (b"\n" if inode in listed else _listed_suffix(inode))
        lines.append(line)
        size += len(line)
        if inode in linked:
            listed.add(inode)
        if type(inode) is Directory:
            above.append((items, len(prefix)))
            prefix = text + b"/"
            items = sorted(inode.entries.items(), reverse=True)
        if size >= _PIECE:
            yield b"".join(lines)
            lines.clear()
            size = 0
    yield b"".join(lines)


def directory_data_size(directory: Directory, *, is_root: bool = False) -> int:
    """Size in bytes of the data that *directory* will have in an image (composefs format, section 3.2).

    The root gets 256 more names there, which mask the directories of an object store (section 4.7).
    """
    names = {*directory.entries, b".", b".."}
    return directory_size(names | _MASK_NAMES if is_root else names)


class _ImageSizes:
    """Computes the size of each directory in the image of a tree."""

    def __init__(self, root: Directory) -> None:
        self._root = root

    def __call__(self, directory: Directory) -> int:
        return directory_data_size(directory, is_root=directory is self._root)


def _data(inode: Leaf, path: bytes) -> tuple[int, int, bytes, bytes, bytes]:
    """The fields SIZE, RDEV, PAYLOAD, CONTENT and DIGEST of an inode."""
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
    """The fields PAYLOAD, CONTENT and DIGEST of a regular file."""
    match content:
        case External(digest=digest, payload=payload):
            return escape_optional(payload or None), _UNSET, _UNSET if digest is None else digest.hex().encode()
        case bytes():
            return _UNSET, escape_optional(content or None), _UNSET
        case Located():
            what = f"the contents lie in pieces of {blobs_text(content)}, which a dump text cannot say"
            raise TreeError(what, where=escape(path).decode())
        case Unread():
            raise TreeError("the contents were not read yet", where=escape(path).decode())


def _xattrs_text(xattrs: Xattrs) -> bytes:
    return b"".join([b" %b=%b" % (escape(k, equals=True), escape(v, equals=True)) for k, v in xattrs.items()])


def _listed_suffix(inode: Directory | Leaf) -> bytes:
    """The rest of a line behind the first name of *inode*."""
    if type(inode) is RegularFile:
        content = inode.content
        payload = content.payload if type(content) is External else None
        return b"\t@ %b\n" % escape(payload) if payload else b"\n"
    match inode:
        case Directory():
            return b"/\t\n"
        case Symlink(target=target):
            return b"\t-> %b\n" % escape(target)
        case _:
            return b"\n"
