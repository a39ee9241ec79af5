"""Tar headers by hand, for archives that no writer makes."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest

from cfstools.errors import TarError
from cfstools.formats.tar import Member, TarReader, TarWarning
from cfstools.streams.limits import TarLimits

USTAR = b"ustar\x0000"
GNU = b"ustar  \0"
V7 = bytes(8)
END = bytes(1024)


def octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)


def binary(value: int, width: int) -> bytes:
    """GNU base-256."""
    number = bytearray((value % (1 << (8 * width))).to_bytes(width, "big"))
    number[0] |= 0x80
    return bytes(number)


def header(
    name: bytes = b"f",
    kind: bytes = b"0",
    size: int | bytes = 0,
    *,
    mode: bytes = b"0000644\0",
    uid: bytes = b"0000000\0",
    gid: bytes = b"0000000\0",
    mtime: bytes = b"00000000001\0",
    link: bytes = b"",
    magic: bytes = USTAR,
    major: bytes = b"0000000\0",
    minor: bytes = b"0000000\0",
    prefix: bytes = b"",
    tail: bytes = b"",
    signed: bool = False,
    checksum: bytes | None = None,
) -> bytes:
    """One header block with the checksum it needs."""
    size = octal(size, 12) if isinstance(size, int) else size
    block = name.ljust(100, b"\0") + mode + uid + gid + size + mtime + b" " * 8 + kind
    block += link.ljust(100, b"\0") + magic + bytes(64) + major + minor + prefix.ljust(155, b"\0")
    block += tail.rjust(12, b"\0")
    assert len(block) == 512
    total = sum(byte - 256 if signed and byte > 127 else byte for byte in block)
    return block[:148] + (b"%06o\0 " % total if checksum is None else checksum) + block[156:]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def file(name: bytes, data: bytes, **fields: bytes) -> bytes:
    return header(name, b"0", len(data), **fields) + padded(data)  # type: ignore[arg-type]


def record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(b"%d" % length) + len(rest) != length:
        length += 1
    return b"%d" % length + rest


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    return raw_pax(b"".join(record(key, value) for key, value in records), kind)


def raw_pax(data: bytes, kind: bytes = b"x") -> bytes:
    return header(b"PaxHeaders/f", kind, len(data)) + padded(data)


def gnu_long(kind: bytes, text: bytes) -> bytes:
    return header(b"././@LongLink", kind, len(text), magic=GNU) + padded(text)


def read(
    data: bytes,
    *,
    source: Callable[[int], bytes] | None = None,
    limits: TarLimits | None = None,
    skip_unknown: bool = False,
    warnings: list[TarWarning] | None = None,
) -> list[tuple[Member, bytes]]:
    """All members with their contents."""
    reader = TarReader(
        source or io.BytesIO(data).read,
        limits=limits,
        skip_unknown=skip_unknown,
        on_warning=None if warnings is None else warnings.append,
    )
    return [(member, b"".join(reader.iter_content(member))) for member in reader]


def one(data: bytes, **options: TarLimits) -> Member:
    """The only member of an archive made of *data* and end blocks."""
    ((member, _),) = read(data + END, **options)  # type: ignore[arg-type]
    return member


def error(data: bytes, **options: TarLimits) -> str:
    """The error that reading *data* and end blocks ends with."""
    with pytest.raises(TarError) as raised:
        read(data + END, **options)  # type: ignore[arg-type]
    assert raised.value.where is not None
    assert raised.value.where.startswith("offset 0x")
    return str(raised.value)
