"""The tree of an image as nodes of a FUSE mount."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from cfstools.mount.fuse.base import unpack_xattrs
from cfstools.mount.fuse.layout import ENTRY_SIZE, length_in, name_in, node_in
from cfstools.mount.fuse.tables import DIGEST, DIRECTORY, FILE, INLINE, LINK, NAMED, Tables, unpack_external
from cfstools.tree import NO_XATTRS, Content, External, Xattrs
from cfstools.view.nodes import View


class TreeNodes:
    """The nodes of *view*, which is not needed any more afterwards; names of one inode share a node.

    *size* is what ``statfs`` shows in bytes. ``trusted.*`` attributes are left out, for the kernel would show their
    names to everybody: ``hidden`` counts them, and ``devices`` the device nodes, which the kernel may not open. Raises
    ``LimitExceeded`` for more than 2^32 - 1 inodes.
    """

    def __init__(self, view: View, *, size: int = 0) -> None:
        self._tables = tables = Tables(view)
        self.size = size
        self.hidden, self.devices = tables.hidden, tables.devices
        self.count = len(tables.kinds) - 1
        self.has_xattrs = len(tables.xattrs) > 1

    def find(self, node: int, name: bytes) -> int:
        """The node called *name* in the directory *node*; 0 where there is none."""
        tables = self._tables
        if self._kind(node) != DIRECTORY:
            return 0
        start = tables.starts[node]
        end = start + tables.lengths[node]
        at = bisect_left(range(end), name, start, end, key=self._name)
        return self._child(at) if at < end and self._name(at) == name else 0

    def parent(self, node: int) -> int:
        """The directory above the directory *node*; the root's is the root. 0 for a node that is no directory."""
        return self._tables.parents[node] if self._kind(node) == DIRECTORY else 0

    def entry(self, node: int) -> bytes:
        """``struct fuse_entry_out`` of *node*."""
        self._kind(node)
        place = self._tables.places[node]
        return bytes(self._tables.records[place : place + ENTRY_SIZE])

    def listing(self, node: int, start: int = 0) -> Iterator[tuple[bytes, int]]:
        """Names and nodes in the directory *node*, in byte order, without the first *start*; nothing for others."""
        if self._kind(node) == DIRECTORY:
            tables, name = self._tables, self._name
            first = tables.starts[node]
            for at in range(first + start, first + tables.lengths[node]):
                yield name(at), self._child(at)

    def records(self, node: int, start: int, room: int) -> memoryview:
        """The same as records of a directory, with entries, as many as *room* bytes hold."""
        tables = self._tables
        if self._kind(node) != DIRECTORY:
            return memoryview(b"")
        begins, end = tables.begins, tables.starts[node] + tables.lengths[node]
        first = min(tables.starts[node] + start, end)
        behind = bisect_right(begins, begins[first] + room, first, end + 1) - 1
        return memoryview(tables.records)[begins[first] : begins[behind]]

    def target(self, node: int) -> bytes | None:
        """The target of the symbolic link *node*; ``None`` for another node."""
        return self._data(node) if self._kind(node) == LINK else None

    def xattrs(self, node: int) -> Xattrs:
        """The extended attributes of *node* that are shown."""
        self._kind(node)
        number = self._tables.xattr_numbers[node]
        return unpack_xattrs(self._tables.xattrs[number]) if number else NO_XATTRS

    def content(self, node: int) -> tuple[int, Content] | None:
        """Size in bytes and contents of the file *node*; ``None`` for a node that is no file."""
        kind = self._kind(node)
        if kind & 15 != FILE:
            return None
        return length_in(self._tables.records, self._tables.places[node]), self._content(node, kind >> 4)

    def _content(self, node: int, how: int) -> Content:
        data = self._data(node)
        if how == DIGEST:
            return External(data, None)  # the path that the digest says
        if how == NAMED:
            return unpack_external(data)
        return data if how == INLINE else self._tables.others[self._tables.starts[node]]

    def _kind(self, node: int) -> int:
        if not 0 < node < len(self._tables.kinds):
            raise KeyError(node)
        return self._tables.kinds[node]

    def _name(self, at: int) -> bytes:
        return name_in(self._tables.records, self._tables.begins[at])

    def _child(self, at: int) -> int:
        return node_in(self._tables.records, self._tables.begins[at])

    def _data(self, node: int) -> bytes:
        start = self._tables.starts[node]
        return bytes(self._tables.data[start : start + self._tables.lengths[node]])
