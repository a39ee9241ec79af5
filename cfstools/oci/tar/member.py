"""What a tar reader gives: members, warnings, and the limits it holds to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from cfstools.oci.tar.layout import MemberType
from cfstools.tree.model import Xattrs


@dataclass(frozen=True, kw_only=True)
class TarLimits:
    """Named maxima of what an archive may ask for; sizes in bytes. Beyond one of them is a ``TarError``."""

    extension: int = 1 << 20  # data of one extended header (PAX records, GNU long names)
    path: int = 4096  # a member's name or a hard link's target
    component: int = 255  # one component of a path, as the kernel's NAME_MAX
    symlink: int = 4095  # a symbolic link's target
    xattr_name: int = 255
    xattr_value: int = 1 << 16
    sparse_extents: int = 1 << 18  # data regions of one sparse file
    holes: int = 64 << 30  # zeros made up for the holes of all sparse files together
    members: int = 1 << 23


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
    ``mtime_nsec`` counts up from it. ``offset`` is where the first header of the member begins.
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


def label(name: bytes) -> str:
    """*name* for a message: one line of printable ASCII, cut at 200 characters."""
    text = repr(name)[2:-1]
    return text if len(text) <= 200 else text[:199] + "…"
