"""Flat tables of the inodes of a tree: a few numbers and bytes for each, and no Python objects.

They take at most 300 bytes for an inode beyond names, targets, attributes and small files, which are as long as in the
image. So neither the tree nor the image is needed afterwards. Names are in the records that the kernel asks for when it
reads directories, so an answer to it is a piece of the table.
"""

from __future__ import annotations

import stat
from array import array

from cfstools.errors import LimitExceeded
from cfstools.mount.fuse.base import FIRST_OFFSET, pack_entry, pack_xattrs
from cfstools.mount.fuse.layout import DIRENT_PLUS, ENTRY_SIZE, padding
from cfstools.tree import Content, Device, Directory, External, RegularFile, Symlink, Xattrs
from cfstools.verity import object_path
from cfstools.view.nodes import Node, View

_MAX_NODES = (1 << 32) - 1
_HIDDEN = b"trusted."

# How contents are noted in the table of data: the bytes themselves, a digest that says the path in the store, a digest
# and another path, and what is in no object of its own by its place in a list.
INLINE, DIGEST, NAMED, OTHER = range(4)
DIRECTORY, FILE, LINK = (stat.S_IFMT(kind) >> 12 for kind in (stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK))
_NONE = 0xFF  # instead of the length of a digest or a path that is not there


class Tables:
    """The inodes of *view* by number, from 1, the root, on; there is no inode 0.

    ``trusted.*`` attributes are left out, for the kernel shows their names to everybody; ``hidden`` counts them, and
    ``devices`` counts device nodes. Raises ``LimitExceeded`` for more than 2^32 - 1 inodes.
    """

    def __init__(self, view: View) -> None:
        self.hidden = self.devices = 0
        # For each name, those of a directory side by side and in order, the record of it as READDIRPLUS gives it, with
        # the entry of its inode; the entry of the root is before the first. And where the records begin and end.
        self.records = bytearray()
        self.begins = array("Q")
        # For each inode: where its entry is among the records, its type and how its contents are noted, the place and
        # length of what belongs to it (names of a directory, by number; target or contents in the table of data), its
        # directory if it is one itself, its attributes by number.
        self.places = array("Q", [0])
        self.kinds = bytearray(1)
        self.starts = array("Q", [0])
        self.lengths = array("Q", [0])
        self.parents = array("I", [0])
        self.xattr_numbers = array("I", [0])
        self.data = bytearray()
        self.others: list[Content] = []
        self.xattrs: list[bytes] = [b""]
        _Filling(self, view).run()


class _Filling:
    """Fills *tables* from *view*, one directory after another."""

    def __init__(self, tables: Tables, view: View) -> None:
        self._tables = tables
        self._view = view
        self._numbers: dict[Node, int] = {}  # of inodes with several names
        self._xattr_numbers: dict[bytes, int] = {b"": 0}

    def run(self) -> None:
        """Number the inodes from the root on: those in a directory together, then those below the first of them."""
        root = self._view.root
        tables = self._tables
        tables.places.append(0)
        tables.records += self._add(root, 1)
        pending = [(1, root)]
        while pending:
            number, directory = pending.pop()
            pending += reversed(self._fill(number, directory))
        tables.begins.append(len(tables.records))

    def _fill(self, number: int, directory: Directory) -> list[tuple[int, Directory]]:
        """Note the names in *directory*; return the directories among them."""
        tables, linked, below = self._tables, self._view.linked, []
        records, begins, places = tables.records, tables.begins, tables.places
        tables.starts[number] = len(begins)
        for offset, (name, node) in enumerate(self._view.children(directory), FIRST_OFFSET):
            begins.append(len(records))
            child = self._numbers.get(node, 0) if node in linked else 0
            if child:
                entry = bytes(records[places[child] : places[child] + ENTRY_SIZE])
            else:
                child = len(places)
                places.append(len(records))
                entry = self._add(node, number)
                if node in linked:
                    self._numbers[node] = child
                if isinstance(node, Directory):
                    below.append((child, node))
            records += DIRENT_PLUS.pack(entry, child, offset, len(name), tables.kinds[child] & 15)
            records += name
            records += padding(len(name))
        tables.lengths[number] = len(begins) - tables.starts[number]
        return below

    def _add(self, node: Node, parent: int) -> bytes:
        """Note an inode; its entry, which belongs to its first name."""
        tables = self._tables
        number = len(tables.kinds)
        if number > _MAX_NODES:
            raise LimitExceeded(f"has more than {_MAX_NODES} inodes")
        found = self._view.attributes(node)
        entry = pack_entry(
            number,
            mode=found.mode,
            nlink=found.nlink,
            size=found.size,
            uid=found.uid,
            gid=found.gid,
            rdev=found.rdev,
            seconds=found.mtime_sec,
            nanoseconds=found.mtime_nsec,
        )
        how, start, data = self._note(node)
        tables.kinds.append(stat.S_IFMT(found.mode) >> 12 | how << 4)
        tables.starts.append(start)
        tables.lengths.append(len(data))
        tables.data += data
        tables.parents.append(parent if isinstance(node, Directory) else 0)
        tables.xattr_numbers.append(self._xattr_number(found.xattrs))
        tables.devices += isinstance(node, Device)
        return entry

    def _note(self, node: Node) -> tuple[int, int, bytes]:
        """How the contents or target of *node* are noted, where, and the data to add there."""
        start = len(self._tables.data)
        match node:
            case Symlink():
                return INLINE, start, node.target
            case RegularFile(content=bytes() as content):
                return INLINE, start, content
            case RegularFile(content=External() as content):
                digest = content.digest
                if digest is not None and content.payload == object_path(digest):
                    return DIGEST, start, digest
                return NAMED, start, _pack_external(content)
            case RegularFile():
                self._tables.others.append(node.content)
                return OTHER, len(self._tables.others) - 1, b""
            case _:
                return INLINE, start, b""

    def _xattr_number(self, xattrs: Xattrs) -> int:
        """The number of the attributes that are shown, the same for all inodes that share them or have equal ones."""
        if not xattrs:
            return 0
        shown = {key: value for key, value in xattrs.items() if key and b"\0" not in key}
        trusted = [key for key in shown if key.startswith(_HIDDEN)]
        for key in trusted:
            del shown[key]
        self._tables.hidden += len(trusted)
        packed = pack_xattrs(shown)
        number = self._xattr_numbers.setdefault(packed, len(self._tables.xattrs))
        if number == len(self._tables.xattrs):
            self._tables.xattrs.append(packed)
        return number


def _pack_external(content: External) -> bytes:
    digest, payload = content.digest, content.payload
    lengths = bytes([_NONE if digest is None else len(digest), _NONE if payload is None else 0])
    return lengths + (digest or b"") + (payload or b"")


def unpack_external(data: bytes) -> External:
    """Contents that are noted as ``NAMED``."""
    end = 2 if data[0] == _NONE else 2 + data[0]
    return External(None if data[0] == _NONE else data[2:end], None if data[1] == _NONE else data[end:])
