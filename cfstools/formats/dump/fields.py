"""Single fields of a dump line: numbers, texts and extended attributes (composefs format, section 6.2).

Every function raises :class:`DumpError` without the place; the caller adds line and field.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from cfstools.errors import DumpError, TreeError
from cfstools.formats.escape import escape, unescape
from cfstools.tree.model import NO_XATTRS, Xattrs
from cfstools.tree.xattrs import XattrBuilder

# The fields in order; the rest of the line is extended attributes.
PATH, SIZE, MODE, NLINK, UID, GID, RDEV, MTIME, PAYLOAD, CONTENT, DIGEST, XATTRS = range(12)
NAMES = ("PATH", "SIZE", "MODE", "NLINK", "UID", "GID", "RDEV", "MTIME", "PAYLOAD", "CONTENT", "DIGEST", "xattrs")
COUNT = XATTRS

MAX_XATTR_TEXT = 65535

U32_MAX = 2**32 - 1
_U64 = 2**64 - 1
_SIGN = 2**63

_SAFE_DIGITS = 19  # a decimal number of at most so many digits is below 2^64
_MAX_DIGITS = 22  # those of 2^64 - 1 in octal; a number with more digits is larger, in either base
_MAX_SHOWN = 40
# Like strtoull: skip leading white space and zeros.
_DECIMAL = re.compile(rb"[\t\v\f\r]*+([+-]?)0*+([0-9]*+)")
_OCTAL = re.compile(rb"[\t\v\f\r]*+([+-]?)0*+([0-7]*+)")

T = TypeVar("T")


class Remembered(dict[bytes, T]):
    """A cache of *parse* for at most *entries* fields of at most *length* bytes each."""

    def __init__(self, parse: Callable[[bytes], T], *, entries: int, length: int) -> None:
        super().__init__()
        self._parse = parse
        self._entries = entries
        self._length = length

    def __missing__(self, field: bytes) -> T:
        value = self._parse(field)
        if len(field) <= self._length:
            if len(self) >= self._entries:
                self.clear()
            self[field] = value
        return value


def show(field: bytes) -> str:
    """*field* in quotes for a message, truncated if it is long."""
    text = escape(field[:_MAX_SHOWN]).decode()
    return f"'{text}...'" if len(field) > _MAX_SHOWN else f"'{text}'"


def parse_decimal(field: bytes) -> int:
    """An unsigned 64-bit number in base 10, read as C's ``strtoull`` does: a minus wraps, too large values saturate."""
    if len(field) <= _SAFE_DIGITS and field.isdigit():
        return int(field)
    return _parse(field, _DECIMAL, 10)


def parse_octal(field: bytes) -> int:
    """As :func:`parse_decimal`, in base 8."""
    return _parse(field, _OCTAL, 8)


def _parse(field: bytes, pattern: re.Pattern[bytes], base: int) -> int:
    match = pattern.fullmatch(field)
    if match is None or not field[-1:].isdigit():
        raise DumpError(f"{show(field)} is not a number in base {base}")
    sign, digits = match.groups()
    if len(digits) > _MAX_DIGITS:
        return _U64
    value = int(digits or b"0", base)
    if value > _U64:
        return _U64
    return -value & _U64 if sign == b"-" else value


def parse_u32(field: bytes) -> int:
    """The low 32 bits of a number in base 10."""
    return parse_decimal(field) & U32_MAX


def parse_time(field: bytes) -> tuple[int, int]:
    """Signed 64-bit seconds and unsigned 32-bit nanoseconds of ``SEC.NSEC``; both parts are required.

    The second part is a number of nanoseconds, not a fraction: ``1.5`` is one second and five nanoseconds.
    """
    seconds, dot, nanoseconds = field.partition(b".")
    if not dot:
        raise DumpError(f"{show(field)} is not SECONDS.NANOSECONDS")
    sec = parse_decimal(seconds)
    return sec - 2**64 if sec & _SIGN else sec, parse_u32(nanoseconds)


def parse_text(field: bytes) -> bytes:
    """The unescaped field up to the first NUL: paths, payloads, digests and keys are C strings."""
    return unescape(field).partition(b"\0")[0] if b"\\" in field else field


def parse_xattrs(text: bytes) -> Xattrs:
    """Parse extended attributes, ``KEY=VALUE KEY=VALUE…`` with at most one trailing space.

    A repeated key replaces the value and moves to the end. Their space is limited (section 10.1).
    """
    if len(text) > MAX_XATTR_TEXT:
        raise DumpError(f"{len(text)} bytes of extended attributes, at most {MAX_XATTR_TEXT} are allowed")
    fields = text.split(b" ")
    if not fields[-1]:
        fields.pop()
    if not fields:
        return NO_XATTRS
    builder = XattrBuilder()
    for field in fields:
        key, equals, value = field.partition(b"=")
        if not equals:
            raise DumpError(f"{show(field)} is not KEY=VALUE")
        try:
            builder.set(parse_text(key), unescape(value))
        except TreeError as error:
            raise DumpError(error.what) from None
    return builder.build()
