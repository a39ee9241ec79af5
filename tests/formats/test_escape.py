"""Escaped text: every byte, every escape, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfstools.errors import DumpError
from cfstools.formats.escape import escape, escape_listed, escape_optional, unescape


def by_the_table(byte: int, *, equals: bool = False, space: bool = False) -> bytes:
    """The rule of section 6.4 for one byte, stated plainly."""
    special = {0x5C: b"\\\\", 0x0A: b"\\n", 0x0D: b"\\r", 0x09: b"\\t"}
    if byte in special:
        return special[byte]
    if byte == 0x3D and equals:
        return b"\\x3d"
    if byte == 0x20 and space:
        return b" "
    return bytes((byte,)) if 0x21 <= byte <= 0x7E else b"\\x" + f"{byte:02x}".encode()


@pytest.mark.parametrize("byte", range(256))
def test_every_byte(byte: int) -> None:
    data = bytes((byte,))
    assert escape(data) == by_the_table(byte)
    assert escape(data, equals=True) == by_the_table(byte, equals=True)
    assert escape_listed(data) == by_the_table(byte, space=True)
    assert unescape(escape(data)) == unescape(escape(data, equals=True)) == data
    assert unescape(b"a\\x%02xb" % byte) == unescape(b"a\\x%02Xb" % byte) == b"a" + data + b"b"


@given(st.binary())
def test_unescaping_undoes_escaping(data: bytes) -> None:
    assert escape(data) == b"".join(by_the_table(byte) for byte in data)
    assert unescape(escape(data)) == data
    assert unescape(escape(data, equals=True)) == data
    assert unescape(escape_listed(data)) == data
    assert b"=" not in escape(data, equals=True)
    assert b" " not in escape(data)


@pytest.mark.parametrize(
    ("data", "text"),
    [(None, b"-"), (b"-", b"\\x2d"), (b"--", b"--"), (b"", b""), (b"a b", b"a\\x20b"), (b"usr/lib", b"usr/lib")],
)
def test_a_dash_means_not_set(data: bytes | None, text: bytes) -> None:
    assert escape_optional(data) == text


def test_raw_bytes_stand_for_themselves() -> None:
    assert unescape(b"\xff=\t-") == b"\xff=\t-"
    assert unescape(b"\\\\x41\\\\") == b"\\x41\\"


@pytest.mark.parametrize(
    ("field", "complaint"),
    [
        (b"a\\", "nothing follows the backslash"),
        (b"\\\\\\", "nothing follows the backslash"),
        (b"\\q", r"unknown escape \q"),
        (b"\\\xff", r"unknown escape \\xff"),
        (b"\\\n", r"unknown escape \\n"),
        (b"\\N", r"unknown escape \N"),
        (b"\\X41", r"unknown escape \X"),
        (b"\\0", r"unknown escape \0"),
        (b"\\x", "two hexadecimal digits"),
        (b"\\x4", "two hexadecimal digits"),
        (b"\\x4g", "two hexadecimal digits"),
        (b"\\xg4", "two hexadecimal digits"),
        (b"\\x 4", "two hexadecimal digits"),
    ],
)
def test_unknown_escapes_are_refused(field: bytes, complaint: str) -> None:
    with pytest.raises(DumpError) as caught:
        unescape(field)
    assert complaint in caught.value.what
    assert caught.value.where is None


@given(st.text("\\xntr09afAFgq ", max_size=12).map(str.encode))
def test_any_text_is_unescaped_or_refused(field: bytes) -> None:
    try:
        data = unescape(field)
    except DumpError:
        assert b"\\" in field
    else:
        assert unescape(escape(data)) == data
