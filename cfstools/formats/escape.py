r"""The escapes of dump and listing text (composefs format, sections 6.2, 6.4 and 8).

Text is bytes in which backslash, control, space and non-ASCII bytes are written ``\\``, ``\n``, ``\r``, ``\t``
or ``\xHH``. A field that consists of one raw dash means "not set".
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from cfstools.errors import DumpError

_NAMED = {b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r", b"\t": b"\\t"}
_PLAIN = range(0x21, 0x7F)
_PATH_SHOWN = 4096


def _table(*, plain: bytes = b"", escaped: bytes = b"") -> list[bytes]:
    """The text of every byte value; *plain* bytes stand for themselves too, *escaped* ones do not."""
    table = []
    for value in range(256):
        byte = bytes((value,))
        if byte in _NAMED:
            table.append(_NAMED[byte])
        elif (value in _PLAIN or byte in plain) and byte not in escaped:
            table.append(byte)
        else:
            table.append(b"\\x%02x" % value)
    return table


_FIELD = _table()
_XATTR = _table(escaped=b"=")
_LISTED = _table(plain=b" ")
_odd_in_field = re.compile(rb"[^!-\[\]-~]").search
_odd_in_xattr = re.compile(rb"[^!-<>-\[\]-~]").search
_odd_in_listed = re.compile(rb"[^ -\[\]-~]").search

_UNESCAPED = {text: bytes((value,)) for value, text in enumerate(_FIELD) if len(text) > 1}
_UNESCAPED.update(
    (b"\\x" + first + second, bytes((int(first + second, 16),)))
    for first in (b"%c" % digit for digit in b"0123456789abcdefABCDEF")
    for second in (b"%c" % digit for digit in b"0123456789abcdefABCDEF")
)
_ESCAPE = re.compile(rb"\\(?:x[0-9a-fA-F]{0,2}|.|)", re.DOTALL)


def escape(data: bytes, *, equals: bool = False) -> bytes:
    """The text of *data* in a dump line; *equals* also escapes ``=``, as names and values of xattrs need."""
    if equals:
        return b"".join([_XATTR[byte] for byte in data]) if _odd_in_xattr(data) else data
    return b"".join([_FIELD[byte] for byte in data]) if _odd_in_field(data) else data


def escape_text(data: bytes) -> str:
    """The same as text, for messages and reports."""
    return escape(data).decode("ascii")


def escape_optional(data: bytes | None) -> bytes:
    """The text of a field that may be unset: a dash for ``None``, the escaped dash for a real one."""
    if data is None:
        return b"-"
    return b"\\x2d" if data == b"-" else escape(data)


def escape_listed(path: bytes) -> bytes:
    """The text of a path in a listing, where a space stays a space."""
    return b"".join([_LISTED[byte] for byte in path]) if _odd_in_listed(path) else path


def unescape(field: bytes) -> bytes:
    """The bytes that *field* stands for.

    Raises :class:`DumpError`, without a place, for a backslash that starts none of the known escapes.
    """
    return _ESCAPE.sub(_one_byte, field) if b"\\" in field else field


def _one_byte(match: re.Match[bytes]) -> bytes:
    text = match[0]
    byte = _UNESCAPED.get(text)
    if byte is None:
        raise DumpError(_complaint(text))
    return byte


def _complaint(text: bytes) -> str:
    if text == b"\\":
        return "nothing follows the backslash"
    if text.startswith(b"\\x"):
        return "an escape \\x needs two hexadecimal digits"
    return f"unknown escape \\{escape(text[1:]).decode()}"


def show_path(names: Iterator[bytes]) -> str:
    """Path text of the *names* from the last one up to the root (whose name is empty)."""
    parts: list[bytes] = []
    size = 0
    for name in names:
        if name:
            parts.append(name)
            size += len(name) + 1
            if size > _PATH_SHOWN:
                return ".../" + escape_text(b"/".join(parts[::-1]))
    return "/" + escape_text(b"/".join(parts[::-1]))
