"""What the kernel says about the names in a directory, in Python (part of ``_pure``)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import Any

from cfstools.native._trees import Pairs

# mode, link count, owner, group, device number, device, inode, size, mtime and ctime in seconds and nanoseconds,
# attributes (None: there are none, False: to be read by the caller), target of a symbolic link
NameStatus = tuple[int, int, int, int, int, int, int, int, int, int, int, int, Pairs | bool | None, bytes | None]

# the classes of inodes, of stamps, no attributes, attributes by pairs, whether times are 0, which names may be links
# (0: none, 1: those with a link count over 1, 2: any)
Maker = tuple[tuple[type, ...], type, Any, dict[Pairs, Any], bool, int]


def list_names(directory: int) -> list[bytes]:
    """The names in *directory* but ``.`` and ``..``, in byte order. Raises ``OSError``."""
    return sorted(map(os.fsencode, os.listdir(directory)))


def stat_names(
    directory: int,
    names: Sequence[bytes],
    xattrs: bool,  # noqa: FBT001
    prefix: bytes,  # noqa: ARG001
    maker: Maker,  # noqa: ARG001
) -> list[NameStatus | Any]:
    """What the kernel says about *names* in *directory*, without following links; ``None`` where it says nothing.

    Attributes (with *xattrs*) are in the order of the kernel and only those of what is no directory; a directory
    has ``None``. Instead of what the kernel says there may be the inode made of it, where that takes no more than
    *maker*, the path of which begins with *prefix*; the truth is ``cfstools.sources.inodes``, and here none is made.
    *maker* holds the classes of inodes, that of stamps, the empty mapping, the mappings of attributes by what the
    kernel says of them, whether times are 0, and which names may be links: of these no inode is made.
    """
    return [_stat_name(directory, name, xattrs=xattrs) for name in names]


def take_entries(  # noqa: PLR0917 - likewise
    names: list[bytes],
    met: list[Any],
    first: int,
    entries: dict[bytes, Any],
    files: list[Any],
    kinds: tuple[type, ...],
) -> int:
    """Put what was *met* into *entries* under its name, from place *first* up to what is no file or symbolic link.

    Files that are not empty are added to *files*. Returns the place at which that ended.
    """
    _, regular, symlink, *_ = kinds
    for place in range(first, len(met)):
        inode = met[place]
        kind = type(inode)
        if kind is not regular and kind is not symlink:
            return place
        entries[names[place]] = inode
        if kind is regular and inode.size:
            files.append(inode)
    return max(first, len(met))


def _stat_name(directory: int, name: bytes, *, xattrs: bool) -> NameStatus | None:
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        target = os.readlink(name, dir_fd=directory) if stat.S_ISLNK(status.st_mode) else None
    except OSError:
        return None
    found = _xattrs(directory, name) if xattrs and not stat.S_ISDIR(status.st_mode) else None
    return (
        status.st_mode,
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        status.st_rdev,
        status.st_dev,
        status.st_ino,
        status.st_size,
        *divmod(status.st_mtime_ns, 1_000_000_000),
        *divmod(status.st_ctime_ns, 1_000_000_000),
        found,
        target,
    )


def _xattrs(directory: int, name: bytes) -> Pairs | bool | None:
    path = b"/proc/self/fd/%d/%b" % (directory, name)
    try:
        keys = [os.fsencode(key) for key in os.listxattr(path, follow_symlinks=False)]
    except OSError as error:
        return None if error.errno == errno.EOPNOTSUPP else False
    try:
        return tuple([(key, os.getxattr(path, key, follow_symlinks=False)) for key in keys]) or None
    except OSError:
        return False
