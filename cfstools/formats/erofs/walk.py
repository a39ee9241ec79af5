"""Walk all names of an image, depth-first in byte order (composefs format, section 10.2).

The walk is iterative, and the size of the image bounds its work: a directory that is reached again (a cycle, a hard
link) is an error, and so are inodes whose ranges together are larger than the image, because ranges must not overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from cfstools.errors import ImageError
from cfstools.formats.erofs import layout as fmt
from cfstools.formats.erofs.dirents import DirentTuple
from cfstools.formats.erofs.layout import FileType
from cfstools.formats.erofs.reader import DIRECTORY, TYPE_MASK, DiskInode, Image
from cfstools.formats.escape import show_path

Report = Callable[[ImageError], None]


class Step(NamedTuple):
    """One name: ``depth`` is 0 for the root, ``first`` tells whether this is the first name of the inode."""

    depth: int
    name: bytes
    inode: DiskInode
    first: bool


class Walk:
    """Iterates over the :class:`Step` of every name but ``.`` and ``..``, the root first.

    With *filters* only these children of the root are visited. With *report* the walk calls it for each ImageError and
    continues after what is broken; without it the first error is raised.
    """

    def __init__(self, image: Image, *, filters: Collection[bytes] | None = None, report: Report | None = None) -> None:
        self._image = image
        self._filters = filters
        self._report = report
        self._names = [b""]
        self._met = bytearray(image.length // fmt.SLOT_SIZE // 8 + 1)
        self._budget = image.length

    def path(self) -> str:
        """The path of the current step, escaped as in a dump; the front of a very long one is cut off."""
        return show_path(reversed(self._names))

    def located(self, error: ImageError) -> ImageError:
        """Add the current path to the place of *error*."""
        error.where = f"{error.where} ({self.path()})"
        return error

    def fail(self, error: ImageError) -> None:
        """Add the current path to *error*, which names an inode, and report it; raise it without a ``report``."""
        if self._report is None:
            raise self.located(error)
        self._report(self.located(error))

    def __iter__(self) -> Iterator[Step]:
        root = self._image.root
        self._names = [b""]
        names = self._names
        self._meet(root)
        yield Step(0, b"", root, first=True)
        stack = [self._children(root, root.nid)]
        parents = [root.nid]
        names.append(b"")
        while stack:
            entry = next(stack[-1], None)
            if entry is None:
                stack.pop()
                parents.pop()
                names.pop()
                continue
            name = names[-1] = entry[0]
            if self._filters is not None and len(stack) == 1 and name not in self._filters:
                continue
            try:
                inode = self._entry_inode(entry)
                first = self._meet(inode)
            except ImageError as error:
                self.fail(error)
                if self._budget < 0:
                    return
                continue
            yield Step(len(stack), name, inode, first)
            if inode.mode & TYPE_MASK == DIRECTORY:
                stack.append(self._children(inode, parents[-1]))
                parents.append(inode.nid)
                names.append(b"")

    def _entry_inode(self, entry: DirentTuple) -> DiskInode:
        _, nid, file_type = entry
        inode = self._image.inode(nid)
        actual = fmt.FILE_TYPE_OF_MODE[inode.mode >> 12]
        if actual != file_type:
            raise ImageError(f"the directory entry says file type {file_type}, the inode {actual}", where=inode.where)
        return inode

    def _meet(self, inode: DiskInode) -> bool:
        """Mark *inode* as met; returns whether it was new. Raises ImageError for directories met again and overlaps."""
        nid = inode.nid
        bit = 1 << (nid & 7)
        if self._met[nid >> 3] & bit:
            if inode.mode & TYPE_MASK == DIRECTORY:
                raise ImageError("the directory is reached a second time", where=inode.where)
            return False
        self._met[nid >> 3] |= bit
        self._budget -= inode.tail_start - inode.offset + inode.tail_size + inode.data_size
        if self._budget < 0:
            raise ImageError("inodes overlap: together they are larger than the image", where=inode.where)
        return True

    def _children(self, inode: DiskInode, parent: int) -> Iterator[DirentTuple]:
        """Yield the entries of a directory except ``.`` and ``..``, which are checked."""
        dots = {b".": inode.nid, b"..": parent}
        wrong = []
        try:
            for entry in self._image.dirents(inode):
                if entry[0] not in dots:
                    yield entry
                elif entry[1:] != (dots.pop(entry[0]), FileType.DIRECTORY):
                    wrong.append(f"{entry[0].decode()!r} is inode {entry[1]} of file type {entry[2]}, the wrong one")
        except ImageError as error:
            self._names[-1] = b""
            self.fail(error)
        else:
            wrong.extend(f"the directory has no entry {name.decode()!r}" for name in dots)
        self._names[-1] = b""
        for what in wrong:
            self.fail(ImageError(what, where=inode.where))
