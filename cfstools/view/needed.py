"""The objects that a tree needs, and the names of the files that need each."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from cfstools import native
from cfstools.store.care.check import ObjectKey, Wanted
from cfstools.tree import Directory, RegularFile
from cfstools.tree.model import KINDS
from cfstools.tree.objects import objects_of_file
from cfstools.tree.walk import inode_of, iter_directories, iter_entries
from cfstools.verity import Algorithm, object_path

SHOWN_PATHS = 3


class Names:
    """The names of the files that need each object, found out when something is wrong. Used from several threads."""

    def __init__(self, root: Directory) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._found: dict[ObjectKey, tuple[list[bytes], int]] | None = None

    def of(self, key: ObjectKey) -> tuple[list[bytes], int]:
        """The first few paths of files with this object, and how many there are."""
        with self._lock:
            if self._found is None:
                self._found = self._find()
        return self._found[key]

    def _find(self) -> dict[ObjectKey, tuple[list[bytes], int]]:
        found: dict[ObjectKey, tuple[list[bytes], int]] = {}
        for path, _, entry in iter_entries(self._root):
            inode = inode_of(entry)
            for key in _keys(inode) if isinstance(inode, RegularFile) else ():
                paths, count = found.get(key, ([], 0))
                if count < SHOWN_PATHS:
                    paths.append(path)
                found[key] = paths, count + 1
        return found


def needed_objects(root: Directory, algorithm: Algorithm) -> Wanted:
    """Every object that the tree needs, once, in the order in which directories are met; digests of *algorithm*."""
    packed = native.needed_objects(root, KINDS, algorithm.digest_size)
    if packed is not None:
        return Wanted((), (packed[0], memoryview(packed[1]).cast("Q")))
    inodes = (entry for directory in iter_directories(root) for entry in directory.entries.values())
    return Wanted(list(dict.fromkeys(key for inode in inodes if type(inode) is RegularFile for key in _keys(inode))))


def _keys(file: RegularFile) -> Iterator[ObjectKey]:
    """What tells each object of a file from others."""
    for payload, digest, size in objects_of_file(file):
        # Leading slashes mean nothing; without a path the contents are wherever the digest says.
        path = (payload or b"").lstrip(b"/")
        if not path and digest:
            path = object_path(digest)
        if path or size:
            yield path, digest, size
