"""The listings of an image's names and objects (composefs format, section 8)."""

from __future__ import annotations

from collections.abc import Iterator

from cfstools.formats.escape import escape, escape_listed
from cfstools.formats.names import iter_first_names
from cfstools.tree.model import Directory, External, Leaf, RegularFile, Symlink
from cfstools.tree.walk import iter_inodes


def ls_lines(root: Directory) -> Iterator[bytes]:
    """Yield a line for each name but the root's, each with its newline, depth-first in byte order.

    Directories end in a slash and a tab, a symlink's target follows ``->``, an external file's payload ``@``.
    Further names of an inode stand alone.
    """
    names = iter_first_names(root)
    next(names)
    for path, inode, first in names:
        yield b"%b%b\n" % (escape_listed(path), _suffix(inode) if first is None else b"")


def object_sizes(root: Directory, sizes: dict[bytes, int | None]) -> dict[bytes, int | None]:
    """Add the unescaped payloads of all external files and their sizes to *sizes*; ``None`` for one with several."""
    for inode in iter_inodes(root):
        if isinstance(inode, RegularFile) and isinstance(inode.content, External) and inode.content.payload:
            payload = inode.content.payload
            sizes[payload] = inode.size if sizes.get(payload, inode.size) == inode.size else None
    return sizes


def object_digests(root: Directory) -> set[bytes]:
    """The raw digests of all objects the tree needs, as a deferred store writer's ``commit`` takes them."""
    return {
        inode.content.digest
        for inode in iter_inodes(root)
        if isinstance(inode, RegularFile) and isinstance(inode.content, External) and inode.content.digest is not None
    }


def _suffix(inode: Directory | Leaf) -> bytes:
    match inode:
        case Directory():
            return b"/\t"
        case Symlink(target=target):
            return b"\t-> " + escape(target)
        case RegularFile(content=External(payload=payload)) if payload:
            return b"\t@ " + escape(payload)
        case _:
            return b""
