"""The inodes of an image about to be written: what the writer needs and nothing of where they came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Pair = tuple[bytes, bytes]  # a whole xattr key and its value


@dataclass(slots=True, eq=False, kw_only=True)
class Node:
    """One inode in breadth-first order, with the fields that :mod:`.writer` fills in while placing it.

    ``size`` is the size that decides the width of the inode (composefs format, section 2.5); for fifos, sockets
    and devices it is not what is stored. ``data`` is inline content or a symlink target, ``chunked`` marks a file
    whose contents are outside the image, ``children`` a directory's names in byte order with ``.`` and ``..``.
    """

    mode: int
    nlink: int
    uid: int
    gid: int
    mtime_sec: int
    mtime_nsec: int
    xattrs: Sequence[Pair]
    size: int = 0
    rdev: int = 0
    data: bytes = b""
    chunked: bool = False
    children: list[tuple[bytes, Node]] | None = None
    # Filled in by the writer.
    xattr_size: int = 0
    compact: bool = False
    blocks: int = 0
    tail: int = 0
    offset: int = 0
    first_block: int = 0
    ranges: list[tuple[int, int]] | None = None  # a directory's groups of names, as slices of ``children``
