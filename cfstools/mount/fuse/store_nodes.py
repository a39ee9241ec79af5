"""The objects of an image as a FUSE mount that looks like a store: ``ab/cdef…``, for the last data layer of an overlay.

Only the image's objects have names, whether they are anywhere yet or not: their sizes are known from the image. All
other names never exist, and the kernel keeps that too.
"""

from __future__ import annotations

import stat
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping

from cfstools.mount.fuse.base import pack_entry, packed_records
from cfstools.mount.fuse.layout import ROOT
from cfstools.store.base import digest_of, is_prefix, split_digest
from cfstools.tree import NO_XATTRS, Content, External, Xattrs

_FIRST_PREFIX = ROOT + 1
_FIRST_OBJECT = _FIRST_PREFIX + 256


class StoreNodes:
    """The objects in *sizes*, digest to length in bytes, as files that all may read.

    Node 1 is the root, 2 to 257 are the directories ``00`` to ``ff``, and objects follow in the order of their digests.
    """

    has_xattrs = False

    def __init__(self, sizes: Mapping[bytes, int]) -> None:
        self._digests = sorted(sizes)
        self._sizes = array("Q", [sizes[digest] for digest in self._digests])
        # Where the objects of each prefix start in the list of digests.
        self._starts = [bisect_left(self._digests, bytes([prefix])) for prefix in range(256)]
        self._starts.append(len(self._digests))
        self.count = _FIRST_OBJECT - 1 + len(self._digests)
        self.size = sum(self._sizes)

    def find(self, node: int, name: bytes) -> int:
        """The node called *name* in the directory *node*; 0 where there is none."""
        prefix = self._prefix(node)
        if node == ROOT:
            number = int(name, 16) if is_prefix(name) else -1
            return _FIRST_PREFIX + number if number >= 0 and self._starts[number] < self._starts[number + 1] else 0
        digest = None if prefix is None else digest_of(b"%02x" % prefix, name)
        if digest is None:
            return 0
        at = bisect_left(self._digests, digest)
        return _FIRST_OBJECT + at if at < len(self._digests) and self._digests[at] == digest else 0

    def parent(self, node: int) -> int:
        """The directory above the directory *node*; the root's is the root. 0 for a node that is no directory."""
        return ROOT if node == ROOT or self._prefix(node) is not None else 0

    def entry(self, node: int) -> bytes:
        """``struct fuse_entry_out`` of *node*."""
        if node == ROOT or self._prefix(node) is not None:
            return pack_entry(node, mode=stat.S_IFDIR | 0o555, nlink=2)
        return pack_entry(node, mode=stat.S_IFREG | 0o444, size=self._sizes[node - _FIRST_OBJECT])

    def listing(self, node: int, start: int = 0) -> Iterator[tuple[bytes, int]]:
        """Names and nodes in the directory *node*, in byte order, without the first *start*; nothing for others."""
        prefix = self._prefix(node)
        if node == ROOT:
            starts = self._starts
            there = [number for number in range(256) if starts[number] < starts[number + 1]]
            yield from ((b"%02x" % number, _FIRST_PREFIX + number) for number in there[start:])
        elif prefix is not None:
            for at in range(self._starts[prefix] + start, self._starts[prefix + 1]):
                yield split_digest(self._digests[at])[1], _FIRST_OBJECT + at

    def records(self, node: int, start: int, room: int) -> bytes:
        """The same as records of a directory, with entries, as many as *room* bytes hold."""
        return packed_records(self, node, start, room)

    def target(self, node: int) -> None:
        """``None``: there are no symbolic links."""
        self._prefix(node)

    def xattrs(self, node: int) -> Xattrs:
        """None."""
        self._prefix(node)
        return NO_XATTRS

    def content(self, node: int) -> tuple[int, Content] | None:
        """Size in bytes and digest of the object *node*; ``None`` for a directory."""
        if node == ROOT or self._prefix(node) is not None:
            return None
        digest = self._digests[node - _FIRST_OBJECT]
        return self._sizes[node - _FIRST_OBJECT], External(digest, None)

    def _prefix(self, node: int) -> int | None:
        """The number of the prefix directory *node*; ``None`` for the root and objects. Raises KeyError."""
        if not ROOT <= node <= self.count:
            raise KeyError(node)
        return node - _FIRST_PREFIX if _FIRST_PREFIX <= node < _FIRST_OBJECT else None
