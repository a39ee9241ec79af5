"""Read an image one inode at a time (composefs format, sections 1 to 4 and 10.2).

:class:`Image` trusts nothing: everything it returns was bounds-checked, and anything that breaks a rule raises an
:class:`ImageError` that names the inode and its offset. The order of calls does not matter. It does not descend into
directories; :mod:`.walk` does.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from cfstools.errors import ImageError
from cfstools.formats.erofs import layout as fmt
from cfstools.formats.erofs.dirents import DirentTuple, parse_dirents
from cfstools.formats.erofs.layout import BLOCK_SIZE, SLOT_SIZE, DataLayout
from cfstools.formats.erofs.superblock import image_length, read_header, read_superblock
from cfstools.formats.escape import escape_text

if TYPE_CHECKING:
    from typing_extensions import Buffer

TYPE_MASK = 0o170000
REGULAR = 0o100000
DIRECTORY = 0o040000
SYMLINK = 0o120000
CHARACTER = 0o020000
BLOCK = 0o060000

# Limit on the xattr area of one inode together with the shared xattrs it refers to. The reference writer stays far
# below: it accepts 32767 bytes and adds at most a redirect of 4096 bytes, some marks, and 8 bytes for each escaped key.
XATTR_BYTES_MAX = 1 << 16

_LAYOUTS = {version | kind << 1: kind for version in (0, 1) for kind in DataLayout}
_DATA_TYPES = {REGULAR: ("file contents", fmt.INLINE_MAX), SYMLINK: ("a symlink target", fmt.SYMLINK_MAX)}
_CACHED_KEYS_MAX = 1 << 16
_CACHED_AREAS_MAX = 1 << 16
_HOLE = fmt.CHUNK_HOLE
_ENTRY_HEADER_SIZE = fmt.XATTR_ENTRY.size
_unpack_entry = fmt.XATTR_ENTRY.unpack_from

Xattr = tuple[bytes, bytes, bool]  # whole key, value, whether it is stored in the shared table


class DiskInode(NamedTuple):
    """An inode and its byte ranges, all of them inside the image.

    ``data_start`` and ``data_size`` are the data blocks, ``tail_start`` and ``tail_size`` what follows the xattr area:
    the end of the data, or a chunk table. Offsets are in bytes from the start of the image.
    """

    nid: int
    offset: int
    compact: bool
    layout: DataLayout
    mode: int
    nlink: int
    size: int
    union: int
    ino: int
    uid: int
    gid: int
    mtime_sec: int
    mtime_nsec: int
    xattr_start: int
    xattr_size: int
    data_start: int
    data_size: int
    tail_start: int
    tail_size: int

    @property
    def kind(self) -> int:
        """The type bits of the mode."""
        return self.mode & TYPE_MASK

    @property
    def end(self) -> int:
        """Where the inode with its xattr area and tail ends."""
        return self.tail_start + self.tail_size

    @property
    def where(self) -> str:
        """The place for error messages: ``inode 36 at offset 0x480``."""
        return place_name(self.nid)

    @property
    def is_masking(self) -> bool:
        """Whether this is a character device 0:0, which composefs uses only to mask names (section 4.7)."""
        return self.union == 0 and self.mode & TYPE_MASK == CHARACTER

    @property
    def is_chunked(self) -> bool:
        """Whether the contents are outside the image."""
        return self.layout == DataLayout.CHUNK

    @property
    def is_spilled(self) -> bool:
        """Whether the chunk table is in a data block that nothing refers to (section 10.3, Q8)."""
        return self.layout == DataLayout.CHUNK and not self.tail_size


class SharedXattr(NamedTuple):
    """An entry of the shared table: bytes ``start`` to ``end`` with its padding, its key and its value."""

    start: int
    end: int
    key: bytes
    value: bytes


class Image:
    """A read-only EROFS image as composefs writes it.

    *data* is the whole image. Its length must be what the superblock says; with *allow_tail* it may be longer, and
    bytes after the image are ignored. ``length`` is the image's own size in bytes. Raises ImageError if header or
    superblock break a rule (section 10.2).
    """

    def __init__(self, data: Buffer, *, allow_tail: bool = False) -> None:
        view = memoryview(data).cast("B")
        self.data = view
        self.header = read_header(view)
        self.superblock = read_superblock(view)
        self.length = self._check_length(len(view), allow_tail=allow_tail)
        self.root_nid = self.superblock.root_nid
        self._xattr_base = self.superblock.xattr_block * BLOCK_SIZE
        self._keys: dict[tuple[int, bytes], bytes] = {}
        self._areas: dict[bytes, list[Xattr]] = {}
        self._shared: dict[int, Xattr] = {}
        self._shared_budget = self.length
        if self.root.kind != DIRECTORY:
            raise ImageError("the root is not a directory", where=self.root.where)

    def _check_length(self, length: int, *, allow_tail: bool) -> int:
        own = image_length(self.superblock, length)
        where = f"superblock at offset {fmt.SUPERBLOCK_OFFSET:#x}"
        if own < length and not allow_tail:
            raise ImageError(f"the image has {own} bytes but {length} are there", where=where)
        if self.superblock.xattr_block >= self.superblock.blocks:
            raise ImageError(f"the shared xattrs start at block {self.superblock.xattr_block}, outside", where=where)
        return own

    @property
    def root(self) -> DiskInode:
        """The root directory's inode."""
        return self.inode(self.root_nid)

    def inode(self, nid: int) -> DiskInode:
        """Read and check the inode *nid* (sections 2.4, 2.6, 2.7)."""
        offset = nid * SLOT_SIZE
        if not fmt.FIRST_INODE_OFFSET <= offset <= self.length - SLOT_SIZE:
            raise ImageError("there is no inode here, it is outside of the image", where=place_name(nid))
        compact = not self.data[offset] & 1
        if compact:
            form, xattrs, mode, nlink, size, union, ino, uid, gid = fmt.COMPACT_INODE.unpack_from(self.data, offset)
            seconds, nanoseconds = self.superblock.build_time_sec, self.superblock.build_time_nsec
            area = offset + fmt.COMPACT_INODE.size
        else:
            area = offset + fmt.EXTENDED_INODE.size
            if area > self.length:
                raise ImageError("the extended inode does not fit into the image", where=place_name(nid))
            form, xattrs, mode, size, union, ino, uid, gid, seconds, nanoseconds, nlink = (
                fmt.EXTENDED_INODE.unpack_from(self.data, offset)
            )
        area_size = fmt.XATTR_HEADER_SIZE + fmt.XATTR_UNIT * (xattrs - 1) if xattrs else 0
        tail = area + area_size
        try:
            layout, data_start, data_size, tail_size = self._extent(_LAYOUTS.get(form), mode, size, union, tail)
        except ImageError as error:
            error.where = place_name(nid)
            raise
        return DiskInode(
            nid,
            offset,
            compact,
            layout,
            mode,
            nlink,
            size,
            union,
            ino,
            uid,
            gid,
            seconds,
            nanoseconds,
            area,
            area_size,
            data_start,
            data_size,
            tail,
            tail_size,
        )

    def _extent(
        self, layout: DataLayout | None, mode: int, size: int, union: int, tail: int
    ) -> tuple[DataLayout, int, int, int]:
        """Data layout, start and size of the bytes in blocks, size of the tail (section 2.4)."""
        if tail > self.length:
            raise ImageError(f"the xattr area ends at {tail:#x}, outside of the image")
        if layout is None:
            raise ImageError("unknown data layout or format bits of the inode")
        if mode >> 12 not in fmt.FILE_TYPE_OF_MODE:
            raise ImageError(f"mode {mode:o} has no known file type")
        kind = mode & TYPE_MASK
        if layout == DataLayout.CHUNK:
            if kind != REGULAR:
                raise ImageError(f"chunk layout with mode {mode:o}; only regular files have it")
            return layout, 0, 0, self._chunk_table_size(size, union, tail)
        self._check_size(kind, layout, size, mode)
        if layout == DataLayout.INLINE:
            return layout, *self._inline_extent(size, union, tail)
        blocks = -(-size // BLOCK_SIZE)
        return layout, self._block_start(union, blocks), size, 0

    def _check_size(self, kind: int, layout: DataLayout, size: int, mode: int) -> None:
        if kind in _DATA_TYPES:
            what, largest = _DATA_TYPES[kind]
            if size > largest:
                raise ImageError(f"{what} of {size} bytes inside the image; at most {largest} are allowed")
            if not size and kind == SYMLINK:
                raise ImageError("the symlink has no target")
        elif kind == DIRECTORY:
            if size > self.length:
                raise ImageError(f"directory of {size} bytes in an image of {self.length}")
        elif size or layout != DataLayout.PLAIN:
            raise ImageError(f"mode {mode:o} cannot have data, but size {size} or a tail is given")

    def _inline_extent(self, size: int, union: int, tail: int) -> tuple[int, int, int]:
        tail_size = size % BLOCK_SIZE
        if not tail_size:
            raise ImageError(f"the inline layout needs a tail, but size {size} leaves none")
        if tail % BLOCK_SIZE + tail_size > BLOCK_SIZE:
            raise ImageError(f"the tail of {tail_size} bytes at {tail:#x} crosses a block boundary")
        if tail + tail_size > self.length:
            raise ImageError(f"the tail of {tail_size} bytes at {tail:#x} is outside of the image")
        blocks = size // BLOCK_SIZE
        return self._block_start(union, blocks), blocks * BLOCK_SIZE, tail_size

    def _block_start(self, first: int, blocks: int) -> int:
        if not blocks:
            return 0
        if not first or (first + blocks) * BLOCK_SIZE > self.length:
            raise ImageError(f"data blocks {first} to {first + blocks - 1} are outside of the data of the image")
        return first * BLOCK_SIZE

    def _chunk_table_size(self, size: int, union: int, tail: int) -> int:
        """Size of the chunk table at *tail*, which has only holes; 0 if the reference put it into a data block (Q8)."""
        form = union & 0xFFFF
        if form > fmt.CHUNK_FORMAT_BITS_MASK:
            raise ImageError(f"unknown chunk format {form:#x}")
        bits = fmt.BLOCK_BITS + form
        chunks = (size + (1 << bits) - 1) >> bits
        if not 0 < chunks <= fmt.CHUNK_ENTRIES_MAX:
            raise ImageError(f"external file of {size} bytes in {chunks} chunks; 1 to 1024 chunks are allowed")
        table = chunks * len(_HOLE)
        # Any shorter table fits after a shift by whole slots, so the writer moves only these to a block.
        if table > BLOCK_SIZE - tail % SLOT_SIZE:
            return 0
        if union > 0xFFFF:
            raise ImageError(f"unknown chunk format {union:#x}")
        if tail % BLOCK_SIZE + table > BLOCK_SIZE:
            raise ImageError(f"the chunk table of {table} bytes at {tail:#x} crosses a block boundary")
        if self.data[tail : tail + table] != _HOLE * chunks:
            raise ImageError(f"the chunk table at {tail:#x} points into the image or outside of it")
        return table

    def directory_blocks(self, inode: DiskInode) -> Iterator[tuple[int, int]]:
        """Yield offset and length of each directory block and of the tail; each has its own names (section 3.3)."""
        end = inode.data_start + inode.data_size
        for start in range(inode.data_start, end, BLOCK_SIZE):
            yield start, min(BLOCK_SIZE, end - start)
        if inode.tail_size:
            yield inode.tail_start, inode.tail_size

    def dirents(self, inode: DiskInode) -> Iterator[DirentTuple]:
        """Yield the entries of a directory, with ``.`` and ``..``, as (name, nid, file type) in byte order.

        Each block is checked before its first entry is yielded (section 10.2); nids are not checked.
        """
        last = b""
        for start, length in self.directory_blocks(inode):
            try:
                entries, _ = parse_dirents(bytes(self.data[start : start + length]))
                if entries[0][0] <= last:
                    raise ImageError(f"name {escape_text(entries[0][0])} is not in order after {escape_text(last)}")
            except ImageError as error:
                error.where = f"{inode.where}, directory entries at {start:#x}"
                raise
            yield from entries
            last = entries[-1][0]

    def xattrs(self, inode: DiskInode) -> list[Xattr]:
        """The xattrs of an inode in stored order: first the inline entries, then the shared ones (section 4.4).

        Do not change the list: inodes may share it.
        """
        if not inode.xattr_size:
            return []
        area = bytes(self.data[inode.xattr_start : inode.tail_start])
        known = self._areas.get(area)
        if known is not None:
            return known
        try:
            xattrs = self._parse_area(area)
        except ImageError as error:
            error.where = f"{inode.where}, xattr area at {inode.xattr_start:#x}"
            raise
        # Cache only areas of references alone: other areas do not repeat, because the writer shares repeated pairs.
        if area[4] * fmt.XATTR_UNIT + fmt.XATTR_HEADER_SIZE == len(area) and len(self._areas) < _CACHED_AREAS_MAX:
            self._areas[area] = xattrs
        return xattrs

    def _parse_area(self, area: bytes) -> list[Xattr]:
        count = area[4]
        length = len(area)
        position = fmt.XATTR_HEADER_SIZE + count * fmt.XATTR_UNIT
        if position > length:
            raise ImageError(f"{count} shared xattrs do not fit into an area of {length} bytes")
        xattrs: list[Xattr] = []
        while position < length:
            key, value, position = self._parse_entry(area, position, length)
            xattrs.append((key, value, False))
        if count:
            size = length
            for identifier in struct.unpack_from(f"<{count}I", area, fmt.XATTR_HEADER_SIZE):
                xattr = self._shared.get(identifier) or self._load_shared(identifier)
                size += len(xattr[0]) + len(xattr[1])
                xattrs.append(xattr)
            if size > XATTR_BYTES_MAX:
                raise ImageError(f"the xattrs of one inode have {size} bytes; at most {XATTR_BYTES_MAX} are allowed")
        if len(xattrs) > 1 and len({xattr[0] for xattr in xattrs}) < len(xattrs):
            raise ImageError("an xattr is there twice")
        return xattrs

    def _parse_entry(self, area: bytes | memoryview, position: int, limit: int) -> tuple[bytes, bytes, int]:
        """Key and value of the entry at *position* of *area*, and the position of the next entry (section 4.2)."""
        name_start = position + _ENTRY_HEADER_SIZE
        if name_start > limit:
            raise ImageError("the header of an xattr is cut off")
        name_length, prefix, value_length = _unpack_entry(area, position)
        value_start = name_start + name_length
        end = value_start + value_length
        if end > limit:
            raise ImageError(f"an xattr of {end - position} bytes ends outside of its area")
        name = bytes(area[name_start:value_start])
        key = self._keys.get((prefix, name)) or self._load_key(prefix, name)
        return key, bytes(area[value_start:end]), (end + 3) & -4

    def _load_key(self, prefix: int, name: bytes) -> bytes:
        if prefix not in fmt.XATTR_PREFIXES:
            raise ImageError(f"unknown xattr name prefix {prefix}")
        key = fmt.XATTR_PREFIXES[fmt.XattrIndex(prefix)] + name
        if not key:
            raise ImageError("an xattr has no name")
        if b"\0" in key:
            raise ImageError(f"the xattr name {escape_text(key)} has a NUL byte")
        if len(self._keys) < _CACHED_KEYS_MAX:
            self._keys[prefix, name] = key
        return key

    def shared_ids(self, inode: DiskInode) -> tuple[int, ...]:
        """The shared ids of an inode in stored order. Its xattrs must have been read without error."""
        if not inode.xattr_size:
            return ()
        count = self.data[inode.xattr_start + 4]
        return struct.unpack_from(f"<{count}I", self.data, inode.xattr_start + fmt.XATTR_HEADER_SIZE)

    def shared_xattr(self, identifier: int) -> SharedXattr:
        """The entry of the shared table with this id (section 4.3, rule 5)."""
        start = self._xattr_base + identifier * fmt.XATTR_UNIT
        return self.xattr_entry_at(start, self.length)

    def xattr_entry_at(self, start: int, limit: int) -> SharedXattr:
        """The xattr entry at offset *start*, which must end by *limit*."""
        try:
            if start >= limit:
                raise ImageError("it is outside of the image")
            key, value, end = self._parse_entry(self.data, start, limit)
        except ImageError as error:
            error.what = f"shared xattr at {start:#x}: {error.what}"
            raise
        return SharedXattr(start, end, key, value)

    def _load_shared(self, identifier: int) -> Xattr:
        start, end, key, value = self.shared_xattr(identifier)
        # Entries must not overlap, so all of them together are no longer than the image.
        self._shared_budget -= end - start
        if self._shared_budget < 0:
            raise ImageError("shared xattrs overlap")
        xattr = self._shared[identifier] = (key, value, True)
        return xattr

    def file_data(self, inode: DiskInode) -> bytes:
        """The data of an inode inside the image: inline contents, a symlink target, or directory data."""
        if inode.layout == DataLayout.CHUNK:
            return b""
        blocks = bytes(self.data[inode.data_start : inode.data_start + inode.data_size])
        return blocks + self.data[inode.tail_start : inode.end]

    def symlink_target(self, inode: DiskInode) -> bytes:
        """The target of a symlink, 1 to 4095 bytes without NUL."""
        target = self.file_data(inode)
        if b"\0" in target:
            raise ImageError("the symlink target has a NUL byte", where=inode.where)
        return target


def place_name(nid: int) -> str:
    """The place of an inode in messages: number and offset."""
    return f"inode {nid} at offset {nid * SLOT_SIZE:#x}"
