"""Iterate over a tree: all entries, all inodes, or one entry by its path.

Every order is depth-first with names in byte order, a directory before its entries. Nothing recurses, so only memory
limits the depth of a tree.
"""

from __future__ import annotations

from collections.abc import Iterator

from cfstools.tree.model import Directory, Entry, HardLink, Leaf


def iter_entries(root: Directory) -> Iterator[tuple[bytes, bytes, Entry]]:
    """Yield ``(path, name, entry)`` for every name of the tree; the root comes first as ``(b"/", b"", root)``.

    Paths start with ``/``. The entries of a directory are read when the iterator resumes after yielding it: the caller
    may change ``entries`` of the directory just yielded, but of no earlier one.
    """
    yield b"/", b"", root
    # Keep only the length of the path for each open directory: whole paths would take memory quadratic in the depth.
    open_directories: list[tuple[list[tuple[bytes, Entry]], int]] = []
    prefix = b"/"
    items = sorted(root.entries.items(), reverse=True)
    while True:
        while items:
            name, entry = items.pop()
            path = prefix + name
            yield path, name, entry
            if type(entry) is Directory and entry.entries:
                open_directories.append((items, len(prefix)))
                prefix = path + b"/"
                items = sorted(entry.entries.items(), reverse=True)
        if not open_directories:
            return
        items, length = open_directories.pop()
        prefix = prefix[:length]


def iter_names(root: Directory) -> Iterator[tuple[Directory, bytes, Entry]]:
    """Yield ``(parent, name, entry)`` for every name but the root's, without building paths.

    The caller may replace the entry just yielded by one that is not a directory.
    """
    stack: list[tuple[Directory, bytes, Entry]] = []
    pop = stack.pop
    directory = root
    while True:
        stack += [(directory, name, entry) for name, entry in sorted(directory.entries.items(), reverse=True)]
        while stack:
            item = pop()
            yield item
            entry = item[2]
            if type(entry) is Directory:
                directory = entry
                break
        else:
            return


def iter_directories(root: Directory) -> Iterator[Directory]:
    """Yield every directory, the root first; cheaper than :func:`iter_entries`, because it builds no paths."""
    stack = [root]
    pop = stack.pop
    while stack:
        directory = pop()
        yield directory
        children = [name for name, entry in directory.entries.items() if type(entry) is Directory]
        children.sort(reverse=True)
        for name in children:
            child = directory.entries[name]
            if type(child) is Directory:
                stack.append(child)


def iter_inodes(root: Directory) -> Iterator[Directory | Leaf]:
    """Yield every inode once, at its primary name; the root first."""
    stack: list[Directory | Leaf] = [root]
    pop = stack.pop
    while stack:
        inode = pop()
        yield inode
        if type(inode) is Directory:
            entries = inode.entries
            stack += [entry for _, entry in sorted(entries.items(), reverse=True) if not isinstance(entry, HardLink)]


def inode_of(entry: Entry) -> Directory | Leaf:
    """The inode of an entry, be it the inode itself or a hard link."""
    return entry.inode if isinstance(entry, HardLink) else entry


def lookup(root: Directory, path: bytes) -> Entry | None:
    """Find the entry at *path*, or ``None``.

    Slashes at either end and repeated ones do not matter, an empty path is the root. Symbolic links are not
    followed and ``.`` and ``..`` are not special: a path through any of them is not found.
    """
    entry: Entry | None = root
    for name in path.split(b"/"):
        if name:
            if type(entry) is not Directory:
                return None
            entry = entry.entries.get(name)
    return entry


def linked_inodes(root: Directory) -> set[Leaf]:
    """The inodes with more than one name."""
    return {
        entry.inode
        for directory in iter_directories(root)
        for entry in directory.entries.values()
        if type(entry) is HardLink
    }


def iter_first_names(root: Directory) -> Iterator[tuple[bytes, Directory | Leaf, bytes | None]]:
    """Yield ``(path, inode, first)`` for every name, depth-first in byte order, the root as ``b"/"``.

    ``first`` is ``None`` at the first name of an inode, be it the primary one or not, and the path of that name at all
    later ones (composefs format, section 6.4). The tree must not change meanwhile.
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
