r"""Escape bytes and text from outside for messages and JSON, and count nouns.

Printable characters stay as they are; of all others, each UTF-8 byte is written as ``\n``, ``\r``, ``\t`` or ``\xHH``.
Not printable are control characters, line and paragraph separators, all spaces but U+0020, characters that change the
writing direction or have no width, private and unassigned characters, and bytes that are not UTF-8.

:func:`shown_path` converts the bytes of a name and doubles backslashes, so that the conversion is reversible (the
escapes are those of a dump text). :func:`printable` makes any text safe to print in a line and keeps backslashes, so
that printable text does not change.
"""

from __future__ import annotations

import os

_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}

# Invisible, though Python calls them printable: Unicode's Default_Ignorable_Code_Point, and the Braille blank.
# No regular expression: compiling one takes longer than everything else here at start-up.
_IGNORABLE = (range(0x180B, 0x1810), range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0))
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0").union(
    chr(code) for codes in _IGNORABLE for code in codes
)


def shown_path(name: str | bytes | os.PathLike[str]) -> str:
    r"""A name as text for messages and JSON; different bytes give different texts.

    A ``str`` counts as text that was converted already: only unprintable characters are escaped.
    """
    raw = os.fspath(name)
    if isinstance(raw, bytes):
        raw = raw.decode("utf-8", "surrogateescape").replace("\\", "\\\\")
    return printable(raw)


def printable(text: str) -> str:
    """*text* with all unprintable characters escaped; the result can be encoded as UTF-8."""
    if text.isprintable() and (text.isascii() or _INVISIBLE.isdisjoint(text)):
        return text
    return "".join([char if is_printable(char) else escaped(char) for char in text])


def is_printable(char: str) -> bool:
    """Whether a character stays as it is."""
    return char.isprintable() and char not in _INVISIBLE


def escaped(text: str) -> str:
    r"""Escape every character by its UTF-8 bytes, a surrogate by the byte that it stands for if it does."""
    return "".join([_NAMED.get(char) or "".join([f"\\x{byte:02x}" for byte in _encoded(char)]) for char in text])


def _encoded(char: str) -> bytes:
    if "\udc80" <= char <= "\udcff":
        return char.encode("utf-8", "surrogateescape")
    return char.encode("utf-8", "surrogatepass")


def quoted(text: str, limit: int = 150) -> str:
    """Text from outside in quotes for a message, truncated to *limit* characters."""
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    inner = printable(cut.replace("\\", "\\\\").replace("'", "\\x27"))
    return f"'{inner}'"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """*number* and its noun: ``1 object``, ``2 objects``, ``3 directories``."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"


def without_secrets(text: str) -> str:
    """*text* without the user names, passwords and queries of the URLs in it, where credentials travel."""
    if "://" not in text:
        return text
    first, *others = text.split("://")
    return "://".join([first, *map(_without_query, others)])


def _without_query(rest: str) -> str:
    """What follows ``://`` up to the next one: a URL's rest, and more text after it."""
    end = min((at for at in map(rest.find, " \t\n\r\"'<>\\^`{|}") if at >= 0), default=len(rest))
    url, after = rest[:end], rest[end:]
    authority, slash, path = url.partition("/")
    if "?" in authority or "#" in authority:
        authority, slash, path = url, "", ""
    authority = authority.rpartition("@")[2]
    return (authority + slash + path).partition("?")[0] + after
