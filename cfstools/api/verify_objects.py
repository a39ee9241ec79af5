"""The objects an image needs, and what is wrong with them in words (part of ``verify``)."""

from __future__ import annotations

import threading

from cfstools import native
from cfstools.api.problems import Problem, ProblemKind, shown
from cfstools.store.care.check import Finding, Flaw, Key, Wanted
from cfstools.tree import Directory, External, Leaf, RegularFile
from cfstools.tree.model import KINDS
from cfstools.tree.walk import inode_of, iter_directories, iter_entries
from cfstools.verity import Algorithm, object_path

SHOWN_PATHS = 3

_KINDS_OF_FLAWS = {
    Flaw.MISSING: ProblemKind.MISSING,
    Flaw.SIZE: ProblemKind.SIZE,
    Flaw.DAMAGED: ProblemKind.DAMAGED,
    Flaw.UNREADABLE: ProblemKind.UNREADABLE,
    Flaw.UNVERIFIABLE: ProblemKind.UNVERIFIABLE,
}


class Names:
    """The names of the files that need each object, found out when something is wrong. Used from several threads."""

    def __init__(self, root: Directory) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._found: dict[Key, tuple[list[bytes], int]] | None = None

    def of(self, key: Key) -> tuple[list[bytes], int]:
        """The first few paths of files with this object, and how many there are."""
        with self._lock:
            if self._found is None:
                self._found = self._find()
        return self._found[key]

    def problem(self, finding: Finding) -> Problem:
        """What is wrong with an object, naming the files that need it."""
        paths, count = self.of(finding.key)
        return Problem(
            kind=_KINDS_OF_FLAWS[finding.flaw],
            subject=finding.place or shown(finding.key[0]),
            what=finding.what,
            paths=tuple(shown(path) for path in paths),
            path_count=count,
        )

    def _find(self) -> dict[Key, tuple[list[bytes], int]]:
        found: dict[Key, tuple[list[bytes], int]] = {}
        for path, _, entry in iter_entries(self._root):
            key = _key(inode_of(entry))
            if key is not None:
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
    found = (_key(inode) for inode in inodes if type(inode) is RegularFile)
    return Wanted(list(dict.fromkeys(key for key in found if key is not None)))


def _key(inode: Directory | Leaf) -> Key | None:
    """What tells the object of a file from others; ``None`` for what has none."""
    if not isinstance(inode, RegularFile) or not isinstance(inode.content, External):
        return None
    payload, digest = inode.content.payload or b"", inode.content.digest
    # Leading slashes mean nothing; without a path the contents are wherever the digest says.
    if payload[:1] == b"/":
        payload = payload.lstrip(b"/")
    if not payload and digest:
        payload = object_path(digest)
    return (payload, digest, inode.size) if payload or inode.size else None
