"""Parts of a tree, with the directories that lead to them."""

from __future__ import annotations

from collections.abc import Iterable

from cfstools.errors import InputError
from cfstools.tree.model import Directory, Entry, copy_of
from cfstools.tree.resolve import shown


def select(root: Directory, paths: Iterable[bytes]) -> Directory:
    """A tree of only what is at or below *paths*; the directories on the way are there without their other entries.

    Inodes are those of *root*, but directories on the way are copies. A hard link may have its primary name outside.
    Symbolic links are not followed. Raises :class:`InputError` for a path that is not there.
    """
    top = copy_of(root, entries={})
    for path in paths:
        names = [name for name in path.split(b"/") if name]
        if not names:
            return root
        _add(top, root, names, path)
    return top


def _add(copy: Directory, source: Directory, names: list[bytes], path: bytes) -> None:
    """Put what *names* lead to from *source* into *copy*."""
    for name in names[:-1]:
        below = _entry(source, name, path)
        if not isinstance(below, Directory):
            raise InputError("not a directory on the way", where=shown(path.lstrip(b"/")))
        kept = copy.entries.get(name)
        if not isinstance(kept, Directory):
            kept = copy.entries[name] = copy_of(below, entries={})
        copy, source = kept, below
    entry = _entry(source, names[-1], path)
    if copy is not source:  # else all of the directory was selected before
        copy.entries[names[-1]] = entry


def _entry(directory: Directory, name: bytes, path: bytes) -> Entry:
    entry = directory.entries.get(name)
    if entry is None:
        raise InputError("no such name in the image", where=shown(path.lstrip(b"/")))
    return entry
