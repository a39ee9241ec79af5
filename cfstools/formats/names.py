"""The order in which dumps and listings name files, and which name of a file counts as its first."""

from __future__ import annotations

from collections.abc import Iterator

from cfstools.tree.model import Directory, HardLink, Leaf
from cfstools.tree.walk import iter_entries, linked_inodes


def iter_first_names(root: Directory) -> Iterator[tuple[bytes, Directory | Leaf, bytes | None]]:
    """Yield ``(path, inode, first)`` for every name, depth-first in byte order, the root as ``b"/"``.

    ``first`` is ``None`` where an inode is met for the first time, whether that is its primary name or not, and
    else the path where that was (composefs format, section 6.4). The tree must not change meanwhile.
    """
    linked: set[Directory | Leaf] = {*linked_inodes(root)}
    firsts: dict[Directory | Leaf, bytes] = {}
    for path, _, entry in iter_entries(root):
        inode = entry.inode if isinstance(entry, HardLink) else entry
        first = None
        if inode in linked:
            first = firsts.setdefault(inode, path)
            if first is path:
                first = None
        yield path, inode, first
