"""The status of names in a directory, and inodes made of it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Buffer

Pairs = tuple[tuple[bytes, bytes], ...]
# mode, link count, owner, group, device number, device, inode, size, mtime and ctime in seconds and nanoseconds,
# attributes (None: there are none, False: to be read by the caller), target of a symbolic link
NameStatus = tuple[int, int, int, int, int, int, int, int, int, int, int, int, Pairs | bool | None, bytes | None]

# records of a digest cache, the device they are for, size of a digest, size up to which no record counts, when a record
# must have been seen, for whom it must have no attributes; digests, ends and heads of those that were found
Recall = tuple["Buffer", int, int, int, int, int, bytearray, bytearray, bytearray]
# the classes of inodes, of stamps, no attributes, attributes by pairs, whether times are 0, which names may be links
# (0: none, 1: those with a link count over 1, 2: any), which files need not be read
Maker = tuple[tuple[type, ...], type, Any, dict[Pairs, Any], bool, int, Recall | None]


def stat_names(
    directory: int,
    names: Sequence[bytes],
    xattrs: bool,  # noqa: FBT001
    prefix: bytes,  # noqa: ARG001
    maker: Maker,  # noqa: ARG001
) -> list[NameStatus | Any]:
    """The status of *names* in *directory*, without following links; ``None`` for a name that cannot be read.

    Attributes (with *xattrs*) are in the order of the kernel; directories have ``None``. In place of a status the C
    copy returns the inode for it, whose path begins with *prefix*, where *maker* has all that takes; Python makes
    inodes in ``cfstools.sources.inodes`` only. *maker* holds the classes of inodes, that of stamps, the empty mapping,
    the known mappings of attributes by their pairs, whether times are 0, and which names may be hard links: no inode
    is made for these. An inode has ``External`` contents if a record of the digest cache says which, and, where
    attributes are to be read, that there are none: then they are not listed. Of each such file its digest is appended
    to *digests*, the total size of these files up to and including it (8 bytes) to *ends*, and its ``KNOWN_RECORD`` to
    *heads*.
    """
    return [_stat_name(directory, name, xattrs=xattrs) for name in names]


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
