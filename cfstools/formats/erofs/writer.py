"""Write nodes, in breadth-first order, as an image (composefs format, sections 1 to 4).

:func:`place` decides every size and offset; :meth:`Placed.chunks` then yields the bytes from front to back, so the
image is never in memory as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from cfstools.errors import TreeError
from cfstools.formats.erofs import layout as fmt
from cfstools.formats.erofs.dirents import group_names, groups_extent
from cfstools.formats.erofs.layout import BLOCK_SIZE, SLOT_SIZE, DataLayout
from cfstools.formats.erofs.xattrs import Pair, XattrTable
from cfstools.values import Value

_TYPE_MASK = 0o170000
_DIRECTORY = 0o040000
_SYMLINK = 0o120000
_DEVICES = (0o020000, 0o060000)
_U16 = 0xFFFF
_U32 = 0xFFFFFFFF
_CHUNK_TARGET = 1 << 20  # join the pieces of an image into chunks of about this many bytes
_ZEROS = bytes(BLOCK_SIZE)


@dataclass(slots=True, eq=False, kw_only=True)
class Node:
    """One inode in breadth-first order, with the fields that :func:`place` fills in.

    ``size`` decides the width of the inode (composefs format, section 2.5); of fifos, sockets and devices it is not
    stored. ``data`` is inline content or a symlink target, ``None`` for a file with its contents outside the image;
    ``children`` are the names of a directory in byte order, including ``.`` and ``..``.
    """

    mode: int
    nlink: int
    uid: int
    gid: int
    mtime_sec: int
    mtime_nsec: int
    xattrs: Sequence[Pair]
    size: int = 0
    rdev: int = 0
    data: bytes | None = b""
    children: list[tuple[bytes, Node]] | None = None
    # Filled in by the writer.
    xattr_size: int = 0
    compact: bool = False
    blocks: int = 0
    tail: int = 0
    offset: int = 0
    first_block: int = 0
    ranges: list[tuple[int, int]] | None = None  # a directory's groups of names, as slices of ``children``


def round_up(value: int, unit: int) -> int:
    """The smallest multiple of *unit*, a power of two, that is at least *value*."""
    return (value + unit - 1) & -unit


def chunk_geometry(size: int) -> tuple[int, int]:
    """Chunk bits and number of chunk entries of an external file of *size* > 0 bytes (section 2.4).

    Raises TreeError for a size that needs more than 1024 entries.
    """
    bits = min(max((size - 1).bit_length(), fmt.BLOCK_BITS), fmt.CHUNK_BITS_MAX)
    chunks = (size + (1 << bits) - 1) >> bits
    if chunks > fmt.CHUNK_ENTRIES_MAX:
        raise TreeError(f"file of {size} bytes is too large: at most 2^53 bytes can be described")
    return bits, chunks


class Placed(Value):
    """An image with every byte decided: its size, and its bytes in order."""

    nodes: Sequence[Node]
    header: fmt.ComposefsHeader
    superblock: fmt.Superblock
    table: XattrTable
    meta_end: int
    size: int

    @property
    def inode_count(self) -> int:
        """The number of inodes."""
        return len(self.nodes)

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes from front to back, in chunks of about 1 MiB; the last may be smaller, even empty."""
        pieces: list[bytes] = []
        pending = 0
        for piece in self._pieces():
            pieces.append(piece)
            pending += len(piece)
            if pending >= _CHUNK_TARGET:
                yield b"".join(pieces)
                pieces.clear()
                pending = 0
        yield b"".join(pieces)

    def _pieces(self) -> Iterator[bytes]:
        yield fmt.COMPOSEFS_HEADER.pack(*self.header)
        yield bytes(fmt.SUPERBLOCK_OFFSET - fmt.COMPOSEFS_HEADER.size)
        yield fmt.SUPERBLOCK.pack(*self.superblock)
        yield from self._inodes()
        yield self.table.shared_bytes
        end = self.meta_end + len(self.table.shared_bytes)
        yield bytes(round_up(end, BLOCK_SIZE) - end)
        for node in self.nodes:
            if node.blocks:
                yield from _blocks(node)

    def _inodes(self) -> Iterator[bytes]:
        position = fmt.FIRST_INODE_OFFSET
        area = self.table.area
        for number, node in enumerate(self.nodes):
            if node.offset > position:
                yield _ZEROS[: node.offset - position]
            yield _inode(node, number)
            position = node.offset + (32 if node.compact else 64)
            if node.xattr_size:
                yield area(node.xattrs)
                position += node.xattr_size
            if node.tail:
                yield _tail(node)
                position += node.tail
        yield _ZEROS[: self.meta_end - position]


def place(nodes: Sequence[Node], header: fmt.ComposefsHeader) -> Placed:
    """Decide the sizes, widths, offsets and block numbers of all *nodes*, which are in breadth-first order."""
    minimum = min((node.mtime_sec, node.mtime_nsec) for node in nodes)
    table = XattrTable(node.xattrs for node in nodes if node.xattrs)
    for node in nodes:
        _measure(node, table, minimum)
    meta_end = _place_inodes(nodes)
    table.fix(meta_end)
    block = round_up(meta_end + len(table.shared_bytes), BLOCK_SIZE) >> fmt.BLOCK_BITS
    for node in nodes:
        if node.blocks:
            node.first_block = block
            block += node.blocks
    superblock = fmt.Superblock(
        magic=fmt.EROFS_MAGIC,
        checksum=0,
        feature_compat=fmt.FEATURE_COMPAT,
        block_bits=fmt.BLOCK_BITS,
        ext_slots=0,
        root_nid=nodes[0].offset // SLOT_SIZE,
        inode_count=len(nodes),
        build_time_sec=minimum[0],
        build_time_nsec=minimum[1],
        blocks=block & _U32,
        meta_block=0,
        xattr_block=meta_end >> fmt.BLOCK_BITS,
        uuid=b"",
        volume_name=b"",
        feature_incompat=0,
    )
    return Placed(
        nodes=nodes,
        header=header,
        superblock=superblock,
        table=table,
        meta_end=meta_end,
        size=block << fmt.BLOCK_BITS,
    )


def _measure(node: Node, table: XattrTable, minimum: tuple[int, int]) -> None:
    """Set the sizes before placement (section 2.4) and the width of the inode (section 2.5)."""
    if node.xattrs:
        node.xattr_size = table.area_size(node.xattrs)
    if node.children is not None:
        names = [name for name, _ in node.children]
        node.ranges = group_names(names)
        node.blocks, node.tail = groups_extent(names, node.ranges)
        node.size = node.blocks * BLOCK_SIZE + node.tail
    elif node.data is None:
        node.tail = 4 * chunk_geometry(node.size)[1]
    elif node.mode & _TYPE_MASK == _SYMLINK:
        node.tail = len(node.data)
    elif node.data:
        node.blocks, remainder = divmod(len(node.data), BLOCK_SIZE)
        if remainder > fmt.TAIL_MAX:
            node.blocks += 1
        else:
            node.tail = remainder
    node.compact = (
        node.nlink <= _U16
        and node.uid <= _U16
        and node.gid <= _U16
        and node.size <= _U32
        and (node.mtime_sec, node.mtime_nsec) == minimum
    )


def _place_inodes(nodes: Iterable[Node]) -> int:
    """Set the offset of every node (section 2.6); returns the end of the inodes."""
    position = fmt.FIRST_INODE_OFFSET
    for node in nodes:
        start = (position + SLOT_SIZE - 1) & -SLOT_SIZE
        head = (32 if node.compact else 64) + node.xattr_size
        if node.tail:
            start = _fit_tail(node, start, head)
        node.offset = start
        position = start + head + node.tail
    return round_up(position, SLOT_SIZE)


def _fit_tail(node: Node, start: int, head: int) -> int:
    """Choose the offset of a node so that its tail crosses no block boundary, or move the tail to a data block."""
    if node.mode & _TYPE_MASK == _SYMLINK:
        total = head + node.tail
        crosses = start // BLOCK_SIZE != (start + total - 1) // BLOCK_SIZE
        if total >= BLOCK_SIZE:
            node.blocks, node.tail = 1, 0
        # As in the reference, the total still counts a target that was moved: that leaves the inode block aligned.
        return round_up(start, BLOCK_SIZE) if crosses else start
    room = BLOCK_SIZE - (start + head) % BLOCK_SIZE
    if room >= node.tail:
        return start
    shift = round_up(room, SLOT_SIZE)
    if node.tail <= BLOCK_SIZE - (start + head + shift) % BLOCK_SIZE:
        return start + shift
    node.blocks, node.tail = node.blocks + 1, 0
    return round_up(start, BLOCK_SIZE)


def _inode(node: Node, number: int) -> bytes:
    """The 32 or 64 bytes of an inode (section 2.7)."""
    kind = node.mode & _TYPE_MASK
    union = node.rdev if kind in _DEVICES else node.first_block & _U32
    data_layout = DataLayout.INLINE if node.tail else DataLayout.PLAIN
    size = node.size if node.children is not None or node.data is None else len(node.data)
    if node.data is None:
        data_layout = DataLayout.CHUNK
        # As in the reference, the chunk format overwrites the low half of the block number of a spilled table.
        union = (union & 0xFFFF0000) | (chunk_geometry(size)[0] - fmt.BLOCK_BITS)
    count = (node.xattr_size - fmt.XATTR_HEADER_SIZE) // fmt.XATTR_UNIT + 1 if node.xattr_size else 0
    if node.compact:
        return fmt.COMPACT_INODE.pack(
            data_layout * 2, count, node.mode, node.nlink, size, union, number, node.uid, node.gid
        )
    return fmt.EXTENDED_INODE.pack(
        data_layout * 2 + 1,
        count,
        node.mode,
        size,
        union,
        number,
        node.uid,
        node.gid,
        node.mtime_sec,
        node.mtime_nsec,
        node.nlink,
    )


def _tail(node: Node) -> bytes:
    if node.children is not None:
        assert node.ranges is not None
        return _group(node.children, *node.ranges[-1])
    if node.data is None:
        return fmt.CHUNK_HOLE * (node.tail // 4)
    return node.data[len(node.data) - node.tail :]


def _group(children: Sequence[tuple[bytes, Node]], start: int, end: int) -> bytes:
    """One directory block or tail, without padding: dirents, then names (section 3.3)."""
    pack = fmt.DIRENT.pack
    types = fmt.FILE_TYPE_OF_MODE
    members = children[start:end]
    offset = len(members) * fmt.DIRENT.size
    pieces = []
    for name, child in members:
        pieces.append(pack(child.offset >> 5, offset, types[child.mode >> 12]))
        offset += len(name)
    pieces.extend([name for name, _ in members])
    return b"".join(pieces)


def _blocks(node: Node) -> Iterator[bytes]:
    """Yield the node's data blocks, padded with zeros (section 3.4)."""
    if node.children is not None:
        assert node.ranges is not None
        for start, end in node.ranges[: node.blocks]:
            yield _group(node.children, start, end).ljust(BLOCK_SIZE, b"\0")
    elif node.data is None:
        yield b"\xff" * BLOCK_SIZE
    else:
        yield node.data[: len(node.data) - node.tail].ljust(node.blocks * BLOCK_SIZE, b"\0")
