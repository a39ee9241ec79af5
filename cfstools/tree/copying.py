"""Trees made of other trees: copies, selected parts, and hard links set right after a merge."""

from __future__ import annotations

from collections.abc import Iterable

from cfstools.errors import InputError
from cfstools.tree.model import Directory, Entry, HardLink, Leaf, copy_of
from cfstools.tree.resolve import shown


def copy_tree(root: Directory) -> Directory:
    """Copy every inode, with the same hard links; contents and xattr mappings are shared with *root*."""
    leaves: dict[Leaf, Leaf] = {}

    def copy_leaf(inode: Leaf) -> Leaf:
        known = leaves.get(inode)
        if known is None:
            known = leaves[inode] = copy_of(inode)
        return known

    top = copy_of(root, entries={})
    pending = [(root, top)]
    while pending:
        old, new = pending.pop()
        entries = new.entries
        for name, entry in old.entries.items():
            if isinstance(entry, Directory):
                below = entries[name] = copy_of(entry, entries={})
                pending.append((entry, below))
            elif isinstance(entry, HardLink):
                entries[name] = HardLink(copy_leaf(entry.inode))
            else:
                entries[name] = copy_leaf(entry)
    return top


def take_attributes(directory: Directory, other: Directory) -> None:
    """Give *directory* the mode, owner, time and extended attributes of *other*; its entries stay."""
    directory.mode = other.mode
    directory.uid, directory.gid = other.uid, other.gid
    directory.mtime_sec, directory.mtime_nsec = other.mtime_sec, other.mtime_nsec
    directory.xattrs = other.xattrs


def select(root: Directory, paths: Iterable[bytes]) -> Directory:
    """A tree of only what is at or below *paths*, with the directories on the way but not their other entries.

    It shares the inodes of *root*; only directories on the way are copied. A hard link may have its primary name
    outside of the selection. Symbolic links are not followed. Raises :class:`InputError` for a missing path.
    """
    top = copy_of(root, entries={})
    for path in paths:
        names = [name for name in path.split(b"/") if name]
        if not names:
            return root
        _add(top, root, names, path)
    return top


def _add(copy: Directory, source: Directory, names: list[bytes], path: bytes) -> None:
    """Put the entry that *names* lead to in *source* into *copy*, with the directories on the way."""
    for name in names[:-1]:
        below = _entry(source, name, path)
        if not isinstance(below, Directory):
            raise InputError("not a directory on the way", where=shown(path.lstrip(b"/")))
        kept = copy.entries.get(name)
        if not isinstance(kept, Directory):
            kept = copy.entries[name] = copy_of(below, entries={})
        copy, source = kept, below
    entry = _entry(source, names[-1], path)
    if copy is not source:  # else the whole directory was selected before
        copy.entries[names[-1]] = entry


def _entry(directory: Directory, name: bytes, path: bytes) -> Entry:
    entry = directory.entries.get(name)
    if entry is None:
        raise InputError("no such name in the image", where=shown(path.lstrip(b"/")))
    return entry


def settle_links(root: Directory) -> None:
    """Make the first name of each inode, depth-first in byte order, its primary name, and set its link count.

    For trees that were merged or filtered: there any name of an inode may be the inode itself or a :class:`HardLink`,
    and the primary name may be missing.
    """
    seen: set[int] = set()
    pending = [(root.entries, iter(sorted(root.entries)))]
    while pending:
        entries, names = pending[-1]
        for name in names:
            entry = entries[name]
            if isinstance(entry, Directory):
                pending.append((entry.entries, iter(sorted(entry.entries))))
                break
            inode: Leaf = entry.inode if isinstance(entry, HardLink) else entry
            if id(inode) in seen:
                inode.nlink += 1
                if entry is inode:
                    entries[name] = HardLink(inode)
            else:
                inode.nlink = 1
                seen.add(id(inode))
                if entry is not inode:
                    entries[name] = inode
        else:
            pending.pop()
