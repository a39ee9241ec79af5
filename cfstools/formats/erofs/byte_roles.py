"""What single bytes of an image are for: where two images first differ, and in which field."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from cfstools.errors import ImageError
from cfstools.formats.base import Region
from cfstools.formats.erofs import layout as fmt
from cfstools.formats.erofs.regions import RegionKind, regions

if TYPE_CHECKING:
    from typing_extensions import Buffer

_STEP = 1 << 16
RESERVED = "reserved"


class ByteRole(NamedTuple):
    """What the byte at ``offset`` is for: ``kind`` of its range, ``None`` if unknown, and all of it in words."""

    offset: int
    kind: Enum | None
    text: str


def first_difference(one: memoryview, other: memoryview) -> int | None:
    """Offset of the first byte that differs: the end of the shorter one if that agrees; ``None`` if both agree."""
    shorter = min(len(one), len(other))
    for start in range(0, shorter, _STEP):
        end = min(start + _STEP, shorter)
        left, right = bytes(one[start:end]), bytes(other[start:end])
        if left != right:
            return start + next(index for index in range(end - start) if left[index] != right[index])
    return None if len(one) == len(other) else shorter


def role_of(data: Buffer, offset: int) -> ByteRole:
    """Say what the byte at *offset* is for. Of an image that is too broken to read, only the offset is known."""
    at = f"{offset:#x}"
    try:
        region = next((region for region in regions(data) if region.start <= offset < region.end), None)
    except ImageError:
        region = None
    if region is None:
        return ByteRole(offset, None, at)
    return ByteRole(offset, region.kind, f"{at} in {_words(region, offset - region.start)}")


def _words(region: Region, offset: int) -> str:
    match region.kind:
        case RegionKind.HEADER:
            return f"the {region.label}, field {_field(_HEADER, offset)}"
        case RegionKind.SUPERBLOCK:
            return f"the {region.label}, field {_field(_SUPERBLOCK, offset)}"
        case RegionKind.INODE:
            compact = region.end - region.start == fmt.COMPACT_INODE.size
            field = _field(_COMPACT_INODE if compact else _EXTENDED_INODE, offset)
            return f"inode {region.nid}, the {region.label}, field {field}"
        case kind:
            return f"the {kind.value} ({region.label})"


def _ends(fields: Sequence[str], record: struct.Struct) -> list[tuple[int, str]]:
    """The end offset and the name of each field of a record."""
    names = iter(fields)
    ends = []
    position = 0
    for token in re.findall(r"\d*[A-Za-z]", record.format):
        position += struct.calcsize("<" + token)
        ends.append((position, RESERVED if token.endswith("x") else next(names)))
    return ends


def _field(ends: list[tuple[int, str]], offset: int) -> str:
    return next(name for end, name in ends if offset < end)


_HEADER = _ends(fmt.ComposefsHeader._fields, fmt.COMPOSEFS_HEADER)
_SUPERBLOCK = _ends(fmt.Superblock._fields, fmt.SUPERBLOCK)
_COMPACT_INODE = _ends(fmt.CompactInode._fields, fmt.COMPACT_INODE)
_EXTENDED_INODE = _ends(fmt.ExtendedInode._fields, fmt.EXTENDED_INODE)
