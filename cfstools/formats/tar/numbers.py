"""Numbers and checksums of header blocks."""

from __future__ import annotations

from functools import lru_cache
from zlib import adler32

INT64_MAX = (1 << 63) - 1
INT64_MIN = -(1 << 63)
_BINARY = 0x80


def parse_number(field: bytes) -> int:
    """Octal digits padded with spaces and NULs, or GNU base-256 (first bit set, two's complement).

    Raises ``ValueError`` for anything else and for values outside 64 bits.
    """
    if field[0] & _BINARY:
        bits = 8 * len(field) - 1
        value = int.from_bytes(field, "big") - (1 << bits)
        if value >> (bits - 1):
            value -= 1 << bits
        if not INT64_MIN <= value <= INT64_MAX:
            raise ValueError(field)
        return value
    digits = field.strip(b" \0").partition(b"\0")[0]
    if not digits:
        return 0
    if not digits.isdigit():  # int() would take signs, underscores and prefixes
        raise ValueError(field)
    return int(digits, 8)


# Cached: modes, owners and times repeat from member to member.
cached_number = lru_cache(maxsize=4096)(parse_number)


def parse_decimal(text: bytes) -> int:
    """An unsigned decimal number below 2**63, as PAX records write it. Raises ``ValueError``."""
    if not text.isdigit() or len(text) > 20:
        raise ValueError(text)
    value = int(text)
    if value > INT64_MAX:
        raise ValueError(text)
    return value


def parse_time(text: bytes) -> tuple[int, int]:
    """``[-]SECONDS[.FRACTION]`` as (seconds, nanoseconds); digits beyond the ninth are cut. Raises ``ValueError``."""
    whole, _, fraction = text.partition(b".")
    negative = whole.startswith(b"-")
    seconds = parse_decimal(whole[1:] if negative else whole)
    if fraction and not fraction.isdigit():
        raise ValueError(text)
    nanoseconds = int(fraction[:9].ljust(9, b"0"))
    if not negative:
        return seconds, nanoseconds
    return (-seconds - 1, 1_000_000_000 - nanoseconds) if nanoseconds else (-seconds, 0)


def byte_sum(first: bytes, second: bytes, checksum: bytes) -> int:
    """Sum of a header block's bytes with the checksum field counted as eight spaces.

    The low half of an Adler-32 is one plus the sum of the bytes modulo 65521, which 256 bytes cannot reach:
    an exact sum at the speed of a library call.
    """
    # 255 = eight spaces, less the one that each Adler-32 starts from (two added, one taken away).
    return (adler32(first) & 0xFFFF) + (adler32(second) & 0xFFFF) - (adler32(checksum) & 0xFFFF) + 255


def checksum_holds(first: bytes, second: bytes, checksum: bytes) -> bool:
    """Whether the checksum field is the unsigned or (historic) signed sum of the block's bytes."""
    try:
        stated = parse_number(checksum)
    except ValueError:
        return False
    unsigned = byte_sum(first, second, checksum)
    if stated == unsigned:
        return True
    high = sum(byte > 127 for byte in first[:148] + first[156:] + second)
    return stated == unsigned - 256 * high
