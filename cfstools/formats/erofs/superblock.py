"""The first block of an image: composefs header and superblock, checked (composefs format, sections 1.2 to 1.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfstools.errors import ImageError
from cfstools.formats.erofs import layout as fmt
from cfstools.formats.erofs.layout import BLOCK_SIZE

if TYPE_CHECKING:
    from typing_extensions import Buffer


def check_head(head: Buffer, size: int) -> None:
    """Raise ImageError if *head*, the first block of a file of *size* bytes, shows that this is no whole image."""
    view = memoryview(head).cast("B")
    read_header(view)
    image_length(read_superblock(view), size)


def declared_length(head: Buffer) -> int | None:
    """The size in bytes that the superblock in *head*, a file's first block, claims; ``None`` if this is no EROFS.

    Only magic, block size and number of blocks are looked at. The claim is not checked: the caller must do that.
    """
    view = memoryview(head).cast("B")
    if len(view) < BLOCK_SIZE:
        return None
    superblock = fmt.Superblock._make(fmt.SUPERBLOCK.unpack_from(view, fmt.SUPERBLOCK_OFFSET))
    if superblock.magic != fmt.EROFS_MAGIC or superblock.block_bits != fmt.BLOCK_BITS or not superblock.blocks:
        return None
    return superblock.blocks * BLOCK_SIZE


def image_length(superblock: fmt.Superblock, length: int) -> int:
    """The image's own size in bytes. Raises ImageError where the file has only *length* bytes, fewer than that."""
    own = superblock.blocks * BLOCK_SIZE
    where = f"superblock at offset {fmt.SUPERBLOCK_OFFSET:#x}"
    if own < BLOCK_SIZE:
        raise ImageError("the image has no blocks", where=where)
    if own > length:
        raise ImageError(f"the image has {own} bytes but only {length} are there: truncated", where=where)
    return own


def read_header(data: memoryview) -> fmt.ComposefsHeader:
    """The composefs header of an image. Raises ImageError for one that we do not know, and for less than a block."""
    if len(data) < BLOCK_SIZE:
        raise ImageError(f"{len(data)} bytes are too few for an image, the smallest has {BLOCK_SIZE}")
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


def read_superblock(data: memoryview) -> fmt.Superblock:
    """The EROFS superblock. Raises ImageError for features that composefs does not use."""
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
