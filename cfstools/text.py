r"""Bytes and text from outside as people and JSON get them, and counted nouns.

One rule: printable characters stay as they are; of all else, each byte of its UTF-8 is written ``\n``, ``\r``, ``\t``
or ``\xHH``. Not printable are control characters, line and paragraph separators, all spaces but the common one, what
turns the direction of writing, what has no width, private and unassigned characters, and bytes that are not UTF-8.

:func:`shown_path` makes text of a name's bytes and doubles each backslash in it, so the name can be had back from the
text (the escapes are those of a dump text). :func:`printable` makes text fit to be printed in a line and leaves
backslashes alone, so that it changes nothing in what is already fit.
"""

from __future__ import annotations

import os

_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}

# Without width or ink though Python calls them printable: Default_Ignorable_Code_Point of Unicode, and Braille blank.
# No pattern: compiling one takes longer than everything else here at the start of a command.
_IGNORABLE = (range(0x180B, 0x1810), range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0))
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0").union(
    chr(code) for codes in _IGNORABLE for code in codes
)


def shown_path(name: str | bytes | os.PathLike[str]) -> str:
    r"""A name as text for people and for JSON; the text of bytes names them uniquely.

    A ``str`` is taken for text that is already shown: only what is not printable is escaped.
    """
    raw = os.fspath(name)
    if isinstance(raw, bytes):
        raw = raw.decode("utf-8", "surrogateescape").replace("\\", "\\\\")
    return printable(raw)


def printable(text: str) -> str:
    """*text* with everything that could disturb a line of output escaped; the result can be encoded as UTF-8."""
    if text.isprintable() and (text.isascii() or _INVISIBLE.isdisjoint(text)):
        return text
    return "".join([char if is_printable(char) else escaped(char) for char in text])


def is_printable(char: str) -> bool:
    """Whether a character stays as it is."""
    return char.isprintable() and char not in _INVISIBLE


def escaped(text: str) -> str:
    r"""Every character as the escapes of its UTF-8 bytes; surrogates as the bytes Python hides in them, or as UTF-8."""
    return "".join([_NAMED.get(char) or "".join([f"\\x{byte:02x}" for byte in _encoded(char)]) for char in text])


def _encoded(char: str) -> bytes:
    if "\udc80" <= char <= "\udcff":
        return char.encode("utf-8", "surrogateescape")
    return char.encode("utf-8", "surrogatepass")


def quoted(text: str, limit: int = 150) -> str:
    """Text from outside in quotes as part of one line, cut where it would drown the message."""
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    inner = printable(cut.replace("\\", "\\\\").replace("'", "\\x27"))
    return f"'{inner}'"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """*number* and its noun: ``1 object``, ``2 objects``, ``3 directories``."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"
