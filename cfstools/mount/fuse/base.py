"""What a FUSE mount shows: nodes by number, and the contents of files among them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Protocol

from cfstools.mount.fuse.layout import DIRENT, DIRENT_PLUS, ENTRY, SECONDS_FOREVER, padding, type_in
from cfstools.tree import Content, Xattrs

Data = bytes | memoryview
"""Bytes to be sent."""

FIRST_OFFSET = 3
"""The offset behind the first name in a directory: ``.`` and ``..`` are before it."""

_BLOCK = 4096
_SECTORS = 8  # of 512 bytes in a block
_LAST_NSEC = 10**9 - 1


class Nodes(Protocol):
    """What a FUSE mount shows. Nodes are numbered from 1, the root, to ``count``; nothing ever changes.

    A number is all there is: the server keeps no state about nodes that the kernel knows. Methods raise ``KeyError``
    for a number that is none.
    """

    count: int
    """Nodes in all."""
    size: int
    """Bytes in all, as ``statfs`` shows them."""
    has_xattrs: bool
    """Whether any node has extended attributes that are shown."""

    def find(self, node: int, name: bytes) -> int:
        """The node called *name* in the directory *node*; 0 where there is none."""

    def parent(self, node: int) -> int:
        """The directory above the directory *node*; the root's is the root. 0 for a node that is no directory."""

    def entry(self, node: int) -> bytes:
        """``struct fuse_entry_out`` of *node*."""

    def listing(self, node: int, start: int = 0) -> Iterator[tuple[bytes, int]]:
        """Names and nodes in the directory *node*, in byte order, without the first *start*; nothing for others."""

    def records(self, node: int, start: int, room: int) -> Data:
        """``struct fuse_direntplus`` of what :meth:`listing` gives, as many as *room* bytes hold.

        The offset in a record is the number of names up to and including it, with the two above them.
        """

    def target(self, node: int) -> bytes | None:
        """The target of the symbolic link *node*; ``None`` for another node."""

    def xattrs(self, node: int) -> Xattrs:
        """The extended attributes of *node* that are shown."""


class Files(Protocol):
    """Where the contents of files are."""

    count: int
    """Nodes in all, files or not."""

    def content(self, node: int) -> tuple[int, Content] | None:
        """Size in bytes and contents of the file *node*; ``None`` for a node that is no file."""


class Contents(Protocol):
    """The contents of the files of a mount, for several threads."""

    def at_hand(self, node: int, offset: int, size: int) -> Data | None:
        """The bytes that :meth:`wait` would return, if they can be had without waiting, else ``None``.

        The one thread that answers the kernel asks this first.
        """

    def wait(self, node: int, offset: int, size: int) -> Data:
        """Up to *size* bytes of the file *node* from *offset* on, fewer only at its end. May wait.

        Raises ``CfsError``, and ``OSError`` with the number that the reader gets.
        """


def packed_records(nodes: Nodes, node: int, start: int, room: int, *, plus: bool = True) -> bytes:
    """What :meth:`Nodes.records` gives, one record after another; without *plus* each as ``struct fuse_dirent``."""
    head = DIRENT_PLUS.size if plus else DIRENT.size
    records: list[bytes] = []
    for offset, (name, child) in enumerate(nodes.listing(node, start), start + FIRST_OFFSET):
        length = len(name)
        room -= head + length + (-length & 7)
        if room < 0:
            break
        entry = nodes.entry(child)
        if plus:
            records.append(DIRENT_PLUS.pack(entry, child, offset, length, type_in(entry)))
        else:
            records.append(DIRENT.pack(child, offset, length, type_in(entry)))
        records.append(name)
        records.append(padding(length))
    return b"".join(records)


def pack_entry(
    node: int,
    *,
    mode: int,
    nlink: int = 1,
    size: int = 0,
    uid: int = 0,
    gid: int = 0,
    rdev: int = 0,
    seconds: int = 0,
    nanoseconds: int = 0,
) -> bytes:
    """``struct fuse_entry_out``: all times are the one that the image has, room is counted in whole blocks.

    Nanoseconds beyond a second become the last one of it, as the kernel does.
    """
    seconds &= (1 << 64) - 1
    nanoseconds = min(nanoseconds, _LAST_NSEC)
    return ENTRY.pack(
        node,
        0,
        SECONDS_FOREVER,
        SECONDS_FOREVER,
        0,
        0,
        node,
        size,
        -(-size // _BLOCK) * _SECTORS,
        seconds,
        seconds,
        seconds,
        nanoseconds,
        nanoseconds,
        nanoseconds,
        mode,
        nlink,
        uid,
        gid,
        rdev,
        _BLOCK,
        0,
    )


_XATTR = struct.Struct("=HI")


def pack_xattrs(xattrs: Xattrs) -> bytes:
    """*xattrs* as bytes, for :func:`unpack_xattrs`."""
    return b"".join([_XATTR.pack(len(key), len(value)) + key + value for key, value in xattrs.items()])


def unpack_xattrs(packed: bytes) -> Xattrs:
    """The attributes that :func:`pack_xattrs` packed."""
    found, at = {}, 0
    while at < len(packed):
        key, value = _XATTR.unpack_from(packed, at)
        at += _XATTR.size
        found[packed[at : at + key]] = packed[at + key : at + key + value]
        at += key + value
    return found
