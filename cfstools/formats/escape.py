r"""The escapes of dump and listing text (composefs format, sections 6.2, 6.4 and 8).

Text is bytes in which backslash, control, space and non-ASCII bytes are written ``\\``, ``\n``, ``\r``, ``\t``
or ``\xHH``. A field that consists of one raw dash means "not set".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from cfstools.errors import DumpError

_NAMED = {b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r", b"\t": b"\\t"}
_NAMES = {text: byte for byte, text in _NAMED.items()}
_PATH_SHOWN = 4096

# The bytes that stand for themselves. Patterns would find the others too, but take longer to compile than a small image
# to list.
_FIELD = bytes(value for value in range(0x21, 0x7F) if value != ord("\\"))
_XATTR = _FIELD.replace(b"=", b"")
_LISTED = _FIELD + b" "
_HEX = 4  # bytes of a ``\xHH``


@cache
def _texts(plain: bytes) -> list[bytes]:
    """The text of every byte value where *plain* bytes stand for themselves."""
    texts = [b"\\x%02x" % value for value in range(256)]
    for byte, text in _NAMED.items():
        texts[ord(byte)] = text
    for value in plain:
        texts[value] = bytes((value,))
    return texts


@cache
def _escapes() -> re.Pattern[bytes]:
    return re.compile(rb"\\(?:x[0-9a-fA-F]{0,2}|.|)", re.DOTALL)


def _escaped(data: bytes, plain: bytes) -> bytes:
    if not data.translate(None, plain):
        return data
    texts = _texts(plain)
    return b"".join([texts[byte] for byte in data])


def escape(data: bytes, *, equals: bool = False) -> bytes:
    """The text of *data* in a dump line; *equals* also escapes ``=``, as names and values of xattrs need."""
    return _escaped(data, _XATTR if equals else _FIELD)


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
    return _escaped(path, _LISTED)


def unescape(field: bytes) -> bytes:
    """The bytes that *field* stands for.

    Raises :class:`DumpError`, without a place, for a backslash that starts none of the known escapes.
    """
    return _escapes().sub(_one_byte, field) if b"\\" in field else field


def _one_byte(match: re.Match[bytes]) -> bytes:
    text = match[0]
    if text in _NAMES:
        return _NAMES[text]
    if len(text) == _HEX:
        return bytes.fromhex(text[2:].decode())
    raise DumpError(_complaint(text))


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
