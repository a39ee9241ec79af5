"""The list of image formats, and which of them a file has."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from cfstools.errors import UsageError
from cfstools.formats.base import HEAD, Format, OpenImage
from cfstools.formats.composefs.format import ComposefsFormat

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from cfstools.tree import Directory

COMPOSEFS = ComposefsFormat()
FORMATS: list[Format] = [COMPOSEFS]
"""All of them. A file that none recognises is opened as the first, which reports what is wrong with it."""

# Formats that cannot be read here: offset and bytes of their magic number, and what they are.
_UNKNOWN = ((4, b"\x9a\x62\x78\xc0", "the first composefs patches"),)


def recognise(head: Buffer) -> Format | None:
    """The format of the image in a file that starts with *head*; ``None`` if it is not an image."""
    start = bytes(memoryview(head)[:HEAD])
    return next((one for one in FORMATS if one.recognises(start)), None)


def open_image(data: Buffer, *, allow_tail: bool = False) -> OpenImage:
    """Open the image in *data*, of any format; see :meth:`Format.open`. Raises ImageError."""
    return (recognise(data) or FORMATS[0]).open(data, allow_tail=allow_tail)


def read_tree(data: Buffer, filters: Collection[bytes] = (), *, allow_tail: bool = False) -> Directory:
    """The tree of the image in *data*; with *filters* only these children of its root.

    Raises ImageError, and UsageError for a filter that is a path.
    """
    check_filters(filters)
    return open_image(data, allow_tail=allow_tail).tree(frozenset(filters) or None)


def check_filters(filters: Collection[bytes]) -> None:
    """Raise UsageError for a filter that is a path."""
    for name in filters:
        if b"/" in name:
            from cfstools.formats.escape import escape_text

            raise UsageError(f"filter {escape_text(name)} is a path; only names in the root can be chosen")


def why_in_doubt(head: bytes) -> str:
    """Why a file that starts with *head* and is not recognised may be or have been an image; empty if it cannot be."""
    for offset, magic, what in _UNKNOWN:
        if head[offset : offset + len(magic)] == magic:
            return f"looks like an image in the format of {what}, which is not known here"
    if not head:
        return "is empty, and may have been an image"
    if not any(head):
        return "starts with nothing but zeros, and may have been an image"
    return next(filter(None, (one.doubt(head) for one in FORMATS)), "")


def declared_length(head: bytes) -> int | None:
    """The length of the image whose file starts with *head*; ``None`` if no format can tell."""
    recognised = recognise(head)
    if recognised is not None:
        return recognised.length(head)
    return next((length for one in FORMATS if (length := one.length(head)) is not None), None)


def check_head(head: bytes, size: int) -> None:
    """Raise ImageError if *head* shows that a file of *size* bytes is not a whole image."""
    (recognise(head) or FORMATS[0]).length(head, size)
