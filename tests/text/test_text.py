"""Bytes shown to people: nothing that disturbs a line stays, and the name can be had back."""

from __future__ import annotations

import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfstools.formats.escape import unescape
from cfstools.text import counted, printable, quoted, shown_path, without_secrets

# Every kind of character that is not printed, by an example or all of them.
HOSTILE = [
    *map(chr, range(0x20)),
    *map(chr, range(0x7F, 0xA1)),
    "\u00ad",
    "\u034f",
    "\u061c",
    "\u115f",
    "\u1680",
    "\u180e",
    *map(chr, range(0x2000, 0x2010)),
    *map(chr, range(0x2028, 0x2030)),
    *map(chr, range(0x205F, 0x2070)),
    "\u2800",
    "\u3000",
    "\u3164",
    "\ud800",
    "\udfff",
    "\ue000",
    "\ufe0f",
    "\ufeff",
    "\uffa0",
    "\ufff9",
    "\uffff",
    "\U000e0001",
    "\U000e0041",
    "\U000e0100",
    "\U0010ffff",
    "\u0378",
]


def recovered(text: str) -> bytes:
    """The bytes that a shown name stands for."""
    return unescape(text.encode("utf-8"))


@pytest.mark.parametrize("char", HOSTILE, ids=lambda char: f"{ord(char):04x}")
def test_what_is_not_printed(char: str) -> None:
    if char == " ":
        assert printable(char) == char
        return
    shown = printable(f"a{char}b")
    assert shown.isascii()
    assert shown.isprintable()
    assert recovered(shown) == f"a{char}b".encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("value", range(256))
def test_every_byte_comes_back(value: int) -> None:
    name = b"a%cb" % value
    shown = shown_path(name)
    assert recovered(shown) == name
    assert shown.isprintable()
    assert shown == printable(shown)


@given(st.binary() | st.text().map(str.encode))
def test_names_come_back(name: bytes) -> None:
    shown = shown_path(name)
    assert recovered(shown) == name
    assert shown_path(shown) == shown
    shown.encode("utf-8")


def test_every_character_is_shown_or_escaped() -> None:
    unsafe = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}
    for number in range(sys.maxunicode + 1):
        char = chr(number)
        if printable(char) == char:
            assert char == " " or unicodedata.category(char) not in unsafe
        elif unicodedata.category(char) not in unsafe:
            assert char in HOSTILE or unicodedata.category(char) in ("Mn", "Lo"), hex(number)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"plain name", "plain name"),
        ("Grüße 日本 👍".encode(), "Grüße 日本 👍"),
        (b"a\\x80", r"a\\x80"),
        (b"a\x80", r"a\x80"),
        ("a\x80".encode(), r"a\xc2\x80"),
        (b"\n\r\t\\", r"\n\r\t\\"),
        (b"\x1b[2J", r"\x1b[2J"),
        ("\u202e".encode(), r"\xe2\x80\xae"),
    ],
)
def test_names_as_they_are_shown(name: bytes, shown: str) -> None:
    assert shown_path(name) == shown


def test_text_that_is_shown_already() -> None:
    assert shown_path(r"a\x80") == r"a\x80"
    assert shown_path(Path("plain name\\")) == "plain name\\"
    assert printable("a\nb\udc80") == r"a\nb\x80"


def test_quoted() -> None:
    assert quoted("it's\n\\") == r"'it\x27s\n\\'"
    assert quoted("x" * 151) == "'" + "x" * 147 + "...'"
    assert quoted("x" * 150) == "'" + "x" * 150 + "'"


def test_counted() -> None:
    assert [counted(number, "object") for number in (0, 1, 2)] == ["0 objects", "1 object", "2 objects"]
    assert [counted(number, "directory", "directories") for number in (1, 2)] == ["1 directory", "2 directories"]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("no URL: a?b@c", "no URL: a?b@c"),
        ("https://h/p?X-Amz-Signature=1 failed", "https://h/p failed"),
        ("'https://user:word@h:1/p/@x?q'", "'https://h:1/p/@x'"),
        ("https://u:p/w@h?q", "https://u:p/w@h"),
        ("https://user:word@h?q", "https://h"),
        ("from https://a/?x=1 to http://b:c@d/e?y=2#f, twice", "from https://a/ to http://d/e twice"),
        ("see <s3://k@b/?k>", "see <s3://b/>"),
        ("://?", "://"),
    ],
)
def test_urls_are_shown_without_what_may_be_secret(given: str, shown: str) -> None:
    assert without_secrets(given) == shown
