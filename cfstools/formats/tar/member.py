"""What a tar reader gives: members, warnings, and the limits it holds to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from cfstools.formats.tar.layout import MemberType
from cfstools.tree.model import Xattrs


class SparseMap(NamedTuple):
    """Where the data of a sparse file stands: (offset, length) in ascending order; all else is zeros."""

    extents: tuple[tuple[int, int], ...]
    size: int


class TarWarning(NamedTuple):
    """Something accepted that other readers may see differently."""

    where: str
    what: str


@dataclass(slots=True, eq=False)
class Member:
    """One member of an archive.

    ``name`` and ``linkname`` are the bytes of the archive, not normalised. ``mode`` has permission bits only
    (07777). ``size`` is the size of the expanded contents, 0 for all but files. ``mtime_sec`` is signed,
    ``mtime_nsec`` counts up from it. ``offset`` is where the first header of the member begins. ``acls`` are the
    access control lists that stand in records of their own, as text, by ``access``, ``default`` or ``ace``.
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
    """*name* for a message: one line of printable ASCII, cut at 200 characters."""
    text = repr(name)[2:-1]
    return text if len(text) <= 200 else text[:199] + "…"
