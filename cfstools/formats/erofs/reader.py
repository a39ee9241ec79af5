"""Bytes of an image to checked records, one inode at a time (composefs format, sections 1 to 4 and 10.2).

:class:`Image` trusts nothing: whatever it returns has been bounds-checked, and whatever breaks a rule is an
:class:`ImageError` that names the inode and its offset. It keeps no state that depends on the order of calls and
never follows a directory; :mod:`.walk` does that.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise
from operator import lt
from typing import TYPE_CHECKING, NamedTuple

from cfstools.errors import ImageError
from cfstools.formats.erofs import layout as fmt
from cfstools.formats.erofs.layout import BLOCK_SIZE, SLOT_SIZE, DataLayout
from cfstools.formats.escape import escape_text

if TYPE_CHECKING:
    from typing_extensions import Buffer

TYPE_MASK = 0o170000
REGULAR = 0o100000
DIRECTORY = 0o040000
SYMLINK = 0o120000
CHARACTER = 0o020000
BLOCK = 0o060000

# The xattr area of one inode and the shared xattrs it refers to. Images of the reference writer stay far below:
# it allows 32767 bytes of input and adds at most a redirect of 4096 bytes, some marks, and 8 bytes for each
# escaped key.
XATTR_BYTES_MAX = 1 << 16

_LAYOUTS = {version | kind << 1: kind for version in (0, 1) for kind in DataLayout}
_DATA_TYPES = {REGULAR: ("file contents", fmt.INLINE_MAX), SYMLINK: ("a symlink target", fmt.SYMLINK_MAX)}
_CACHED_KEYS_MAX = 1 << 16
_CACHED_AREAS_MAX = 1 << 16
_HOLE = fmt.CHUNK_HOLE
_ENTRY_HEADER_SIZE = fmt.XATTR_ENTRY.size
_unpack_entry = fmt.XATTR_ENTRY.unpack_from

Xattr = tuple[bytes, bytes, bool]  # whole key, value, whether it is stored in the shared table
DirentTuple = tuple[bytes, int, int]  # name, nid, file type


class DiskInode(NamedTuple):
    """An inode with the byte ranges that belong to it, all of them inside the image.

    ``data_start`` and ``data_size`` are the bytes in data blocks, ``tail_start`` and ``tail_size`` those behind
    the xattr area: the end of the data, or a chunk table. Offsets and sizes are in bytes from the image's start.
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
    def is_hiding(self) -> bool:
        """Whether this is a character device 0:0, which composefs only uses to hide names (section 4.7)."""
        return self.union == 0 and self.mode & TYPE_MASK == CHARACTER

    @property
    def is_chunked(self) -> bool:
        """Whether the contents are outside of the image."""
        return self.layout == DataLayout.CHUNK

    @property
    def is_spilled(self) -> bool:
        """Whether the chunk table went to a data block that nothing points to (section 10.3, Q8)."""
        return self.layout == DataLayout.CHUNK and not self.tail_size


class SharedXattr(NamedTuple):
    """An entry of the shared table: bytes ``start`` to ``end``, padding included, and what it says."""

    start: int
    end: int
    key: bytes
    value: bytes


def check_head(head: Buffer, size: int) -> None:
    """Raise ImageError where the first block of a file of *size* bytes shows that it is no whole image."""
    view = memoryview(head).cast("B")
    if len(view) < BLOCK_SIZE:
        raise ImageError(f"{len(view)} bytes are too few for an image, the smallest has {BLOCK_SIZE}")
    _read_header(view)
    _own_length(_read_superblock(view), size)


def declared_length(head: Buffer) -> int | None:
    """How many bytes the image has of whose file *head* is the first block; ``None`` where that is no EROFS.

    Only the magic, the block size and the number of blocks in the superblock are looked at, and nothing is believed:
    whoever asks checks what so many bytes are.
    """
    view = memoryview(head).cast("B")
    if len(view) < BLOCK_SIZE:
        return None
    superblock = fmt.Superblock._make(fmt.SUPERBLOCK.unpack_from(view, fmt.SUPERBLOCK_OFFSET))
    if superblock.magic != fmt.EROFS_MAGIC or superblock.block_bits != fmt.BLOCK_BITS or not superblock.blocks:
        return None
    return superblock.blocks * BLOCK_SIZE


def _own_length(superblock: fmt.Superblock, length: int) -> int:
    """How long the image is of whose file *length* bytes are there."""
    own = superblock.blocks * BLOCK_SIZE
    where = f"superblock at offset {fmt.SUPERBLOCK_OFFSET:#x}"
    if own < BLOCK_SIZE:
        raise ImageError("the image has no blocks", where=where)
    if own > length:
        raise ImageError(f"the image has {own} bytes but only {length} are there: truncated", where=where)
    return own


class Image:
    """A read-only EROFS image as composefs writes it.

    *data* is the whole image, best a memory map. Its length must be what the superblock says; with *allow_tail*
    it may be longer, and what follows the image is ignored. ``length`` is the image's own length in bytes.
    Raises ImageError if header or superblock break a rule (section 10.2).
    """

    def __init__(self, data: Buffer, *, allow_tail: bool = False) -> None:
        view = memoryview(data).cast("B")
        if len(view) < BLOCK_SIZE:
            raise ImageError(f"{len(view)} bytes are too few for an image, the smallest has {BLOCK_SIZE}")
        self.data = view
        self.header = _read_header(view)
        self.superblock = _read_superblock(view)
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
        own = _own_length(self.superblock, length)
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
        """Bytes of the chunk table at *tail*: all holes, or 0 if the reference lost it in a block (Q8)."""
        form = union & 0xFFFF
        if form > fmt.CHUNK_FORMAT_BITS_MASK:
            raise ImageError(f"unknown chunk format {form:#x}")
        bits = fmt.BLOCK_BITS + form
        chunks = (size + (1 << bits) - 1) >> bits
        if not 0 < chunks <= fmt.CHUNK_ENTRIES_MAX:
            raise ImageError(f"external file of {size} bytes in {chunks} chunks; 1 to 1024 chunks are allowed")
        table = chunks * len(_HOLE)
        # Shifting by whole slots makes room for every shorter table, so that only these go to a block.
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
        """Offset and length of each piece of a directory's data that has names of its own (section 3.3)."""
        end = inode.data_start + inode.data_size
        for start in range(inode.data_start, end, BLOCK_SIZE):
            yield start, min(BLOCK_SIZE, end - start)
        if inode.tail_size:
            yield inode.tail_start, inode.tail_size

    def dirents(self, inode: DiskInode) -> Iterator[DirentTuple]:
        """The entries of a directory, ``.`` and ``..`` among them, as (name, nid, file type) in byte order.

        A block's entries come after all of the block was checked (section 10.2); nids are not looked at.
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
        """The xattrs of an inode: inline entries in stored order, then shared ones in stored order (section 4.4).

        The list may be shared between inodes and must not be changed.
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
        # Only areas that are nothing but references repeat; a pair that repeats is shared.
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
        """Key and value of the entry at *position* of *area*, and where the next one starts (section 4.2)."""
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
        """The shared ids of an inode whose xattrs could be read, in stored order."""
        if not inode.xattr_size:
            return ()
        count = self.data[inode.xattr_start + 4]
        return struct.unpack_from(f"<{count}I", self.data, inode.xattr_start + fmt.XATTR_HEADER_SIZE)

    def shared_xattr(self, identifier: int) -> SharedXattr:
        """The entry of the shared table that *identifier* stands for (section 4.3, rule 5)."""
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
        # Entries of an image do not overlap, so that together they cannot be longer than it.
        self._shared_budget -= end - start
        if self._shared_budget < 0:
            raise ImageError("shared xattrs overlap")
        xattr = self._shared[identifier] = (key, value, True)
        return xattr

    def file_data(self, inode: DiskInode) -> bytes:
        """The bytes of an inode that are in the image: inline contents, a symlink target, directory data."""
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
    """How messages name the place of an inode."""
    return f"inode {nid} at offset {nid * SLOT_SIZE:#x}"


def parse_dirents(block: bytes) -> tuple[list[DirentTuple], int]:
    """The entries of one directory block or tail, and where the last name ends (section 3.3).

    Raises ImageError for offsets, names or an order that section 10.2 forbids.
    """
    if len(block) < fmt.DIRENT.size:
        raise ImageError(f"directory block of {len(block)} bytes")
    first = fmt.DIRENT.unpack_from(block)[1]
    if not first or first % fmt.DIRENT.size or first > len(block):
        raise ImageError(f"the first name is at {first}, in a block of {len(block)} bytes")
    nids, offsets, types = zip(*fmt.DIRENT.iter_unpack(block[:first]), strict=True)
    end = block.find(b"\0", offsets[-1])
    if end < 0:
        end = len(block)
    bounds = (*offsets, end)
    if not all(map(lt, bounds, bounds[1:])):
        raise ImageError("name offsets do not rise inside of the block, or a name is empty")
    names = [block[start:stop] for start, stop in pairwise(bounds)]
    text = block[first:end]
    if b"/" in text or b"\0" in text or max(map(len, names)) > fmt.NAME_MAX:
        bad = next(name for name in names if b"/" in name or b"\0" in name or len(name) > fmt.NAME_MAX)
        raise ImageError(f"{escape_text(bad)} cannot be a file name")
    if not all(map(lt, names, names[1:])):
        late = next(right for left, right in pairwise(names) if left >= right)
        raise ImageError(f"name {escape_text(late)} is not in order")
    return list(zip(names, nids, types, strict=True)), end


def _read_header(data: memoryview) -> fmt.ComposefsHeader:
    header = fmt.ComposefsHeader._make(fmt.COMPOSEFS_HEADER.unpack_from(data, fmt.HEADER_OFFSET))
    where = "composefs header at offset 0x0"
    if header.magic != fmt.COMPOSEFS_MAGIC:
        raise ImageError(f"magic {header.magic:#010x} is not {fmt.COMPOSEFS_MAGIC:#010x}: not composefs", where=where)
    if header.header_version != fmt.COMPOSEFS_HEADER_VERSION:
        raise ImageError(f"unknown header version {header.header_version}", where=where)
    if header.flags & ~fmt.HEADER_FLAG_HAS_ACL:
        raise ImageError(f"unknown flags {header.flags:#x}", where=where)
    if header.composefs_version > fmt.MAX_COMPOSEFS_VERSION:
        raise ImageError(f"unknown composefs version {header.composefs_version}; 0 and 1 are known", where=where)
    return header


def _read_superblock(data: memoryview) -> fmt.Superblock:
    superblock = fmt.Superblock._make(fmt.SUPERBLOCK.unpack_from(data, fmt.SUPERBLOCK_OFFSET))
    where = f"superblock at offset {fmt.SUPERBLOCK_OFFSET:#x}"
    if superblock.magic != fmt.EROFS_MAGIC:
        raise ImageError(f"magic {superblock.magic:#010x} is not {fmt.EROFS_MAGIC:#010x}: not EROFS", where=where)
    if superblock.block_bits != fmt.BLOCK_BITS:
        raise ImageError(f"blocks of 2^{superblock.block_bits} bytes; composefs has 2^{fmt.BLOCK_BITS}", where=where)
    if superblock.feature_incompat:
        raise ImageError(f"unknown incompatible features {superblock.feature_incompat:#x}", where=where)
    if superblock.ext_slots or superblock.meta_block:
        raise ImageError("superblock extensions or inodes in another place than composefs has them", where=where)
    return superblock
