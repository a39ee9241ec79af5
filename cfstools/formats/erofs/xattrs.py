"""Extended attributes as the writer stores them: prefixes, name filter, shared table (composefs format, section 4)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from cfstools.formats.erofs import layout as fmt
from cfstools.formats.erofs.layout import BLOCK_SIZE, XattrIndex

Pair = tuple[bytes, bytes]  # a whole xattr key and its value

_PRIME1 = 0x9E3779B1
_PRIME2 = 0x85EBCA77
_PRIME3 = 0xC2B2AE3D
_PRIME4 = 0x27D4EB2F
_PRIME5 = 0x165667B1
_MASK = 0xFFFFFFFF
_STRIPE = struct.Struct("<4I")
_WORD = struct.Struct("<I")

# The reference tries the prefixes in this order, and never writes index 5 (lustre).
_WRITTEN_PREFIXES = [
    (fmt.XATTR_PREFIXES[index], index)
    for index in (
        XattrIndex.USER,
        XattrIndex.ACL_ACCESS,
        XattrIndex.ACL_DEFAULT,
        XattrIndex.TRUSTED,
        XattrIndex.SECURITY,
    )
]


def split_key(key: bytes) -> tuple[XattrIndex, bytes]:
    """The prefix index and the stored name of a whole key (section 4.1)."""
    for prefix, index in _WRITTEN_PREFIXES:
        if key.startswith(prefix):
            return index, key[len(prefix) :]
    return XattrIndex.NONE, key


def filter_bit(index: int, name: bytes) -> int:
    """The bit of the name filter that an xattr of this name clears (section 4.4)."""
    return 1 << (xxh32(name, (fmt.XATTR_FILTER_SEED + index) & 0xFFFFFFFF) & 31)


def entry_bytes(index: int, name: bytes, value: bytes) -> bytes:
    """One xattr entry, padded to a multiple of 4 (section 4.2)."""
    entry = fmt.XATTR_ENTRY.pack(len(name), index, len(value)) + name + value
    return entry + bytes(-len(entry) % fmt.XATTR_UNIT)


def sharing_order(pair: Pair) -> tuple[bytes, int, bytes]:
    """Sort key of the shared table, which is in descending order (section 4.3)."""
    key, value = pair
    return key, len(value), value


class XattrTable:
    """The xattrs of one image: the pairs to share, and the size and bytes of each inode's xattr area.

    Call :meth:`fix` with the end of the inodes before :meth:`area`: shared ids depend on the start of the table.
    """

    def __init__(self, areas: Iterable[Sequence[Pair]]) -> None:
        counts: dict[Pair, int] = {}
        seen = counts.get
        for area in areas:
            for pair in area:
                counts[pair] = seen(pair, 0) + 1
        self._keys: dict[bytes, tuple[XattrIndex, bytes, int]] = {}
        offset = 0
        entries = []
        self._shared: dict[Pair, int] = {}
        repeated = [pair for pair, count in counts.items() if count > 1]
        for pair in sorted(repeated, key=sharing_order, reverse=True):
            index, name, _ = self._key(pair[0])
            entry = entry_bytes(index, name, pair[1])
            self._shared[pair] = offset
            entries.append(entry)
            offset += len(entry)
        self.shared_bytes = b"".join(entries)
        self._ids: dict[Pair, int] = {}

    def _key(self, key: bytes) -> tuple[XattrIndex, bytes, int]:
        known = self._keys.get(key)
        if known is None:
            index, name = split_key(key)
            known = self._keys[key] = (index, name, filter_bit(index, name))
        return known

    def area_size(self, xattrs: Sequence[Pair]) -> int:
        """Size in bytes of an inode's xattr area: header, references, inline entries (section 4.4)."""
        references = 0
        inline = 0
        for pair in xattrs:
            if pair in self._shared and references < fmt.XATTR_SHARED_MAX:
                references += 1
            else:
                inline += (fmt.XATTR_ENTRY.size + len(self._key(pair[0])[1]) + len(pair[1]) + 3) & -4
        # The limit on the xattrs of an inode keeps this far below the maximum of i_xattr_icount.
        return fmt.XATTR_HEADER_SIZE + fmt.XATTR_UNIT * references + inline

    def fix(self, meta_end: int) -> None:
        """Compute the shared ids for a table that starts at *meta_end* (section 4.3, rule 5)."""
        base = meta_end % BLOCK_SIZE
        self._ids = {pair: (base + offset) // fmt.XATTR_UNIT for pair, offset in self._shared.items()}

    def area(self, xattrs: Sequence[Pair]) -> bytes:
        """The bytes of an inode's xattr area; *xattrs* are sorted by key."""
        name_filter = 0xFFFFFFFF
        references: list[int] = []
        entries = []
        for pair in xattrs:
            index, name, bit = self._key(pair[0])
            name_filter &= ~bit
            shared = self._ids.get(pair)
            if shared is not None and len(references) < fmt.XATTR_SHARED_MAX:
                references.append(shared)
            else:
                entries.append(entry_bytes(index, name, pair[1]))
        return b"".join(
            [
                fmt.XATTR_HEADER.pack(name_filter, len(references)),
                struct.pack(f"<{len(references)}I", *references),
                *entries,
            ]
        )


def xxh32(data: bytes, seed: int) -> int:
    """The 32-bit xxHash of *data*, of which the name filter is made (section 4.4). Names are at most 255 bytes long."""
    length = len(data)
    position = 0
    if length >= _STRIPE.size:
        lanes = [seed + _PRIME1 + _PRIME2, seed + _PRIME2, seed, seed - _PRIME1]
        while position + _STRIPE.size <= length:
            words = _STRIPE.unpack_from(data, position)
            lanes = [
                _rotate((lane + word * _PRIME2) & _MASK, 13) * _PRIME1 & _MASK
                for lane, word in zip(lanes, words, strict=True)
            ]
            position += _STRIPE.size
        value = sum(_rotate(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True))
    else:
        value = seed + _PRIME5
    value = (value + length) & _MASK
    while position + _WORD.size <= length:
        (word,) = _WORD.unpack_from(data, position)
        value = _rotate((value + word * _PRIME3) & _MASK, 17) * _PRIME4 & _MASK
        position += _WORD.size
    for byte in data[position:]:
        value = _rotate((value + byte * _PRIME5) & _MASK, 11) * _PRIME1 & _MASK
    value = (value ^ (value >> 15)) * _PRIME2 & _MASK
    value = (value ^ (value >> 13)) * _PRIME3 & _MASK
    return value ^ (value >> 16)


def _rotate(value: int, bits: int) -> int:
    return ((value << bits) | (value >> (32 - bits))) & _MASK
