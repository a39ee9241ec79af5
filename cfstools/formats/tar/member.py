"""What a tar reader yields: members, their contents in chunks, and warnings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from cfstools.formats.tar.layout import MemberType
from cfstools.streams.buffered import READ_SIZE
from cfstools.tree.model import Xattrs

Chunk = bytes | memoryview

_ZEROS = bytes(READ_SIZE)


class SparseMap(NamedTuple):
    """Where a sparse file has data: (offset, length) in ascending order; everything else is zeros."""

    extents: tuple[tuple[int, int], ...]
    size: int


class TarWarning(NamedTuple):
    """Something that was accepted although other tools may read it differently."""

    where: str
    what: str


@dataclass(slots=True, eq=False)
class Member:
    """One member of an archive.

    ``name`` and ``linkname`` are the bytes of the archive, not normalised. ``mode`` has permission bits only
    (07777). ``size`` is the size of the expanded contents, 0 for all but files. ``mtime_sec`` is signed,
    ``mtime_nsec`` counts up from it. ``offset`` is where the member's first header starts. ``acls`` are access control
    lists from PAX records, as text; their keys are ``access``, ``default`` or ``ace``.
    """

    name: bytes
    type: MemberType
    mode: int
    uid: int
    gid: int
    size: int
    mtime_sec: int
    mtime_nsec: int
    linkname: bytes
    devmajor: int
    devminor: int
    xattrs: Xattrs
    offset: int
    sparse: SparseMap | None
    acls: Mapping[bytes, bytes] | None = None


def label(name: bytes) -> str:
    """*name* for a message: one line of printable ASCII, at most 200 characters."""
    text = repr(name)[2:-1]
    return text if len(text) <= 200 else text[:199] + "…"


def hole(count: int) -> Iterator[Chunk]:
    """Yield *count* zeros in chunks."""
    while count > 0:
        step = min(count, READ_SIZE)
        yield _ZEROS if step == READ_SIZE else memoryview(_ZEROS)[:step]
        count -= step


def filled(regions: Iterator[Chunk | int]) -> Iterator[Chunk]:
    """Yield *regions* with each hole replaced by chunks of zeros."""
    for region in regions:
        if isinstance(region, int):
            yield from hole(region)
        else:
            yield region
