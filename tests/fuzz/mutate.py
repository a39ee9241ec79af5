"""Changes to inputs that get past the first checks: fields of their formats instead of any bytes."""

from __future__ import annotations

import random
import struct

TAR_TARGETS = frozenset({"tar", "layer"})

_BLOCK = 512
_CHECKSUM = slice(148, 156)
_NUMBERS = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0xFFF,
    0x1000,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFF,
    2**63 - 1,
    2**64 - 1,
)


def fix_tar(data: bytes) -> bytes:
    """Right checksums for all that looks like a tar header."""
    fixed = bytearray(data)
    for at in range(0, len(fixed) - _BLOCK + 1, _BLOCK):
        header = fixed[at : at + _BLOCK]
        if header[257:262] == b"ustar":
            header[_CHECKSUM] = b" " * 8
            fixed[at : at + _BLOCK] = header
            fixed[at + _CHECKSUM.start : at + _CHECKSUM.stop] = b"%06o\0 " % sum(header)
    return bytes(fixed)


def change(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """One to four changes: bits, whole little-endian numbers, lines and pieces that move, parts of another input."""
    made = bytearray(data or b"\0")
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(made))
        match chance.randrange(8):
            case 0 | 1:
                made[at] ^= 1 << chance.randrange(8)
            case 2:
                made[at] = chance.randrange(256)
            case 3:
                width, form = chance.choice(((2, "<H"), (4, "<I"), (8, "<Q")))
                at -= at % width
                number = chance.choice(_NUMBERS) & ((1 << 8 * width) - 1)
                made[at : at + width] = struct.pack(form, number)
            case 4:
                size = min(chance.choice((1, 4, 32, 512)), len(made) - at)
                piece = made[at : at + size]
                del made[at : at + size]
                to = chance.randrange(len(made) + 1)
                made[to:to] = piece * chance.choice((0, 1, 2))
            case 5:
                other = chance.choice(others)
                start = chance.randrange(len(other) + 1)
                size = chance.choice((1, 8, 64, 512))
                made[at : at + size] = other[start : start + size]
            case 6:
                del made[chance.randrange(len(made)) :]
            case _:
                lines = bytes(made).split(b"\n")
                lines.insert(chance.randrange(len(lines) + 1), chance.choice(lines))
                made = bytearray(b"\n".join(lines))
        made = made or bytearray(b"\0")
    return bytes(made)


def mutated(target: str, data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """An input for *target* made of another one; archives get past the checksums of their headers."""
    made = change(data, chance, others)
    return fix_tar(made) if target in TAR_TARGETS else made
