"""Explain every byte of an image (composefs format, section 1.1).

:class:`ExtentMap` collects coarse ranges (an inode with its xattr area and tail, a shared xattr, the data of a file)
and finds overlaps and gaps; :func:`regions` divides them into named regions and explains the gaps.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from enum import Enum, IntEnum
from heapq import merge
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple, assert_never

from cfstools.errors import ImageError
from cfstools.formats.base import Region
from cfstools.formats.erofs import layout as fmt
from cfstools.formats.erofs.dirents import parse_dirents
from cfstools.formats.erofs.layout import BLOCK_SIZE, SLOT_SIZE
from cfstools.formats.erofs.reader import DIRECTORY, SYMLINK, DiskInode, Image, place_name
from cfstools.formats.erofs.walk import Walk
from cfstools.formats.escape import escape_text, show_path
from cfstools.text import counted

if TYPE_CHECKING:
    from typing_extensions import Buffer

_HOLES = fmt.CHUNK_HOLE * (BLOCK_SIZE // len(fmt.CHUNK_HOLE))


class RegionKind(Enum):
    """The kind of a range of bytes; the value is its name in reports.

    ``PADDING`` is all zero; bytes that nothing refers to and that are not all zero are ``UNKNOWN``.
    """

    HEADER = "composefs header"
    SUPERBLOCK = "superblock"
    INODE = "inode"
    XATTR_HEADER = "xattr header"
    XATTR_REFERENCE = "xattr reference"
    XATTR = "xattr"
    CHUNKS = "chunk table"
    DIRENTS = "directory entries"
    SYMLINK = "symlink target"
    CONTENT = "file contents"
    SHARED_XATTR = "shared xattr"
    PADDING = "padding"
    UNKNOWN = "unknown"
    APPENDED = "appended"


class Owner(IntEnum):
    """The owner of a coarse range."""

    HEAD = 0
    INODE = 1
    SHARED_XATTR = 2
    DATA = 3
    UNREFERENCED = 4  # a shared xattr that no inode refers to
    LOST_TABLE = 5  # a chunk table in a block that nothing points to (section 10.3, Q8)
    NOBODY = 6  # filler, all zero in a valid image


class Extent(NamedTuple):
    """A coarse range; ``number`` is the id of a shared xattr, or the nid of the inode that owns it."""

    start: int
    end: int
    owner: Owner
    number: int


class ExtentMap:
    """Collects the ranges of the inodes of one image. Add each inode once.

    ``references`` counts the inodes that refer to each shared xattr.
    """

    def __init__(self, image: Image) -> None:
        self._image = image
        self._nids = array("Q")
        self._data: list[Extent] = []
        self.references: dict[int, int] = {}
        self._spilled: list[int] = []

    def add(self, inode: DiskInode) -> None:
        """Add an inode whose xattrs were read without error."""
        self._nids.append(inode.nid)
        if inode.data_size:
            end = inode.data_start + inode.data_size
            self._data.append(Extent(inode.data_start, end, Owner.DATA, inode.nid))
        elif inode.is_spilled:
            self._spilled.append(inode.nid)
        references = self.references
        for identifier in self._image.shared_ids(inode):
            references[identifier] = references.get(identifier, 0) + 1

    def extents(self) -> Iterator[Extent]:
        """Yield all ranges in order of their start. Raises ImageError if two overlap."""
        previous = Extent(0, 0, Owner.HEAD, 0)
        for extent in merge(self._heads(), self._inodes(), self._shared(), sorted(self._data)):
            if extent.start < previous.end:
                raise ImageError(
                    f"{_describe(extent)} starts inside of {_describe(previous)}", where=f"offset {extent.start:#x}"
                )
            yield extent
            previous = extent

    def cover(self) -> Iterator[Extent]:
        """Yield the ranges of :meth:`extents`, and extents for all gaps between them, to the end of the image."""
        table = self._inodes_end()
        data = min((extent.start for extent in self._data), default=self._image.length)
        spilled = iter(sorted(self._spilled))
        position = 0
        end = Extent(self._image.length, self._image.length, Owner.NOBODY, 0)
        for extent in chain(self.extents(), [end]):
            start = position
            if start < table < extent.start:
                yield Extent(start, table, Owner.NOBODY, 0)
                start = table
            if table <= start < data:
                for unreferenced in self._unreferenced(start, extent.start):
                    yield unreferenced
                    start = unreferenced.end
            if start < extent.start:
                yield from self._blocks(start, extent.start, spilled)
            if extent is not end:
                yield extent
            position = extent.end

    def _inodes_end(self) -> int:
        """The end of the last inode, rounded up to slots: the start of the shared table."""
        end = self._image.inode(max(self._nids)).end
        return -(-end // SLOT_SIZE) * SLOT_SIZE

    def _unreferenced(self, start: int, end: int) -> Iterator[Extent]:
        """Yield shared xattrs without references, which exist if every inode with the pair had its references full."""
        # Two zero bytes start no entry: an entry has a name or a prefix.
        while start < end and any(self._image.data[start : start + 2]):
            try:
                entry = self._image.xattr_entry_at(start, end)
            except ImageError:
                return
            stop = min(entry.end, end)
            yield Extent(start, stop, Owner.UNREFERENCED, 0)
            start = stop

    def _blocks(self, start: int, end: int, spilled: Iterator[int]) -> Iterator[Extent]:
        """Yield a gap, split at block boundaries, because each block may be a lost chunk table."""
        while start < end:
            stop = min(start - start % BLOCK_SIZE + BLOCK_SIZE, end)
            lost = self._image.data[start:stop] == _HOLES
            nid = next(spilled, None) if lost else None
            yield Extent(start, stop, Owner.NOBODY, 0) if nid is None else Extent(start, stop, Owner.LOST_TABLE, nid)
            start = stop

    def _heads(self) -> Iterator[Extent]:
        yield Extent(fmt.HEADER_OFFSET, fmt.COMPOSEFS_HEADER.size, Owner.HEAD, 0)
        yield Extent(fmt.SUPERBLOCK_OFFSET, fmt.SUPERBLOCK_OFFSET + fmt.SUPERBLOCK.size, Owner.HEAD, 0)

    def _inodes(self) -> Iterator[Extent]:
        for nid in sorted(self._nids):
            inode = self._image.inode(nid)
            yield Extent(inode.offset, inode.end, Owner.INODE, nid)

    def _shared(self) -> Iterator[Extent]:
        for identifier in sorted(self.references):
            entry = self._image.shared_xattr(identifier)
            yield Extent(entry.start, entry.end, Owner.SHARED_XATTR, identifier)


def regions(data: Buffer, *, allow_tail: bool = False) -> Iterator[Region]:
    """Yield a named region for every byte range of an image, in order and without gaps, up to the end of *data*.

    The whole image is walked before the first region is yielded. Memory grows with the number of inodes, not with the
    size of the image. With *allow_tail*, bytes after the image are one region. Raises ImageError for what the strict
    reader refuses and for overlapping ranges.
    """
    image = Image(data, allow_tail=allow_tail)
    yield from _Namer(image).regions()
    if len(image.data) > image.length:
        yield Region(image.length, len(image.data), RegionKind.APPENDED, "behind the image", None)


class _Namer:
    """Names the ranges of one image."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._map = ExtentMap(image)
        self._names: dict[int, tuple[int, bytes]] = {}  # nid to the nid of the parent and the first name in it
        walk = Walk(image)
        parents: list[int] = []
        for depth, name, inode, first in walk:
            if first:
                try:
                    image.xattrs(inode)
                except ImageError as error:
                    raise walk.located(error) from None
                self._map.add(inode)
                del parents[depth:]
                self._names[inode.nid] = (parents[-1] if parents else inode.nid, name)
                parents.append(inode.nid)

    def regions(self) -> Iterator[Region]:
        for extent in self._map.cover():
            yield from self._extent(extent)

    def _path(self, nid: int) -> str:
        return show_path(self._ancestors(nid))

    def _ancestors(self, nid: int) -> Iterator[bytes]:
        while True:
            parent, name = self._names[nid]
            yield name
            if parent == nid:
                return
            nid = parent

    def _extent(self, extent: Extent) -> Iterator[Region]:
        start, end, owner, number = extent
        match owner:
            case Owner.HEAD:
                kind = RegionKind.SUPERBLOCK if start else RegionKind.HEADER
                yield Region(start, end, kind, kind.value, None)
            case Owner.INODE:
                yield from self._inode(self._image.inode(number))
            case Owner.SHARED_XATTR:
                yield self._shared_xattr(start, self._map.references[number])
            case Owner.UNREFERENCED:
                yield self._shared_xattr(start, 0)
            case Owner.DATA:
                yield from self._data(self._image.inode(number))
            case Owner.LOST_TABLE:
                label = f"holes of {self._path(number)}, which does not point here"
                yield Region(start, end, RegionKind.CHUNKS, label, number)
            case Owner.NOBODY:
                yield self._filler(start, end)
            case _:
                assert_never(owner)

    def _inode(self, inode: DiskInode) -> Iterator[Region]:
        path = self._path(inode.nid)
        width = "compact" if inode.compact else "extended"
        yield Region(inode.offset, inode.xattr_start, RegionKind.INODE, f"{width} inode of {path}", inode.nid)
        if inode.xattr_size:
            yield from self._xattr_area(inode, path)
        if not inode.tail_size:
            return
        if inode.is_chunked:
            label = f"{counted(inode.tail_size // len(fmt.CHUNK_HOLE), 'hole')} of {path}"
            yield Region(inode.tail_start, inode.end, RegionKind.CHUNKS, label, inode.nid)
        elif inode.kind == DIRECTORY:
            yield from self._dirents(inode, inode.tail_start, inode.end, path)
        else:
            yield Region(inode.tail_start, inode.end, _data_kind(inode), path, inode.nid)

    def _xattr_area(self, inode: DiskInode, path: str) -> Iterator[Region]:
        start = inode.xattr_start
        position = start + fmt.XATTR_HEADER_SIZE
        yield Region(start, position, RegionKind.XATTR_HEADER, f"name filter of {path}", inode.nid)
        for identifier in self._image.shared_ids(inode):
            key = escape_text(self._image.shared_xattr(identifier).key)
            end = position + fmt.XATTR_UNIT
            label = f"{key} of {path}, id {identifier:#x}"
            yield Region(position, end, RegionKind.XATTR_REFERENCE, label, inode.nid)
            position = end
        while position < inode.tail_start:
            entry = self._image.xattr_entry_at(position, inode.tail_start)
            yield Region(position, entry.end, RegionKind.XATTR, f"{escape_text(entry.key)} of {path}", inode.nid)
            position = entry.end

    def _shared_xattr(self, start: int, references: int) -> Region:
        entry = self._image.xattr_entry_at(start, self._image.length)
        label = f"{escape_text(entry.key)}, {len(entry.value)} bytes, {counted(references, 'reference')}"
        return Region(start, entry.end, RegionKind.SHARED_XATTR, label, None)

    def _data(self, inode: DiskInode) -> Iterator[Region]:
        path = self._path(inode.nid)
        end = inode.data_start + inode.data_size
        if inode.kind == DIRECTORY:
            for start in range(inode.data_start, end, BLOCK_SIZE):
                yield from self._dirents(inode, start, min(start + BLOCK_SIZE, end), path)
        else:
            yield Region(inode.data_start, end, _data_kind(inode), path, inode.nid)

    def _dirents(self, inode: DiskInode, start: int, end: int, path: str) -> Iterator[Region]:
        entries, used = parse_dirents(bytes(self._image.data[start:end]))
        names = f"{escape_text(entries[0][0])} to {escape_text(entries[-1][0])}"
        label = f"{len(entries)} entries of {path}, {names}"
        yield Region(start, start + used, RegionKind.DIRENTS, label, inode.nid)
        if start + used < end:
            yield self._filler(start + used, end)

    def _filler(self, start: int, end: int) -> Region:
        count = nonzero_bytes(self._image.data[start:end])
        if count:
            return Region(start, end, RegionKind.UNKNOWN, f"{count} of {end - start} bytes are not zero", None)
        return Region(start, end, RegionKind.PADDING, "zero", None)


def nonzero_bytes(data: memoryview) -> int:
    """The number of bytes that are not zero."""
    return len(data) - bytes(data).count(0)


def _describe(extent: Extent) -> str:
    start, end, owner, number = extent
    what = {
        Owner.HEAD: "the superblock" if start else "the composefs header",
        Owner.INODE: place_name(number),
        Owner.SHARED_XATTR: f"shared xattr {number:#x}",
        Owner.DATA: f"the data of inode {number}",
    }[owner]
    return f"{what} ({start:#x} to {end:#x})"


def _data_kind(inode: DiskInode) -> RegionKind:
    return RegionKind.SYMLINK if inode.kind == SYMLINK else RegionKind.CONTENT
