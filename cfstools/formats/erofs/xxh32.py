"""The 32-bit xxHash of short byte strings (composefs format, section 4.4: the xattr name filter)."""

from __future__ import annotations

import struct

_PRIME1 = 0x9E3779B1
_PRIME2 = 0x85EBCA77
_PRIME3 = 0xC2B2AE3D
_PRIME4 = 0x27D4EB2F
_PRIME5 = 0x165667B1
_MASK = 0xFFFFFFFF
_STRIPE = struct.Struct("<4I")
_WORD = struct.Struct("<I")


def _rotate(value: int, bits: int) -> int:
    return ((value << bits) | (value >> (32 - bits))) & _MASK


def xxh32(data: bytes, seed: int) -> int:
    """Hash *data* with a 32-bit *seed*; names are at most 255 bytes, so speed is no concern here."""
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
