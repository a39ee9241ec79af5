"""How reliable inode numbers, link counts and times are on a file system, and how to tell inodes apart without them.

Functions raise plain ``OSError``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import time
from enum import Enum
from typing import NamedTuple

from cfstools.linux.files import filesystem_type

_AT_SYMLINK_NOFOLLOW = 0x100
_AT_NO_AUTOMOUNT = 0x800
_AT_EMPTY_PATH = 0x1000
_AT_STATX_FORCE_SYNC = 0x2000
_AT_HANDLE_FID = 0x200

_STATX_BASIC = 0x7FF
_STATX_MNT_ID = 0x1000
# linux/stat.h: struct statx up to the mount's number; the padding is left out.
_STATX = struct.Struct("=IIQIIIHxxQQQQqIxxxxqIxxxxqIxxxxqIxxxxIIIIQ104x")

_OVERLAY, _FUSE, _NFS = 0x794C7630, 0x65735546, 0x6969

_TRUE = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # xfs
        0x9123683E,  # btrfs: each subvolume has a device number of its own
        0xF2F52010,  # f2fs
        0x01021994,  # tmpfs
        0x858458F6,  # ramfs
        0xE0F5E1E2,  # erofs: the number is the inode's place
        0x2FC12FC1,  # zfs
        0x3153464A,  # jfs
        0x52654973,  # reiserfs
        0x3434,  # nilfs2
        0x24051905,  # ubifs
    }
)
# The maker of a squashfs image chooses the numbers; on bcachefs copies in snapshots share an inode number.
_COUNTED = frozenset({_OVERLAY, 0x73717368, 0xCA451A4E})
# Invented times may have a resolution of a second.
_LOOKS, _PAUSE = 23, 0.05
# File systems whose file handles contain more than the inode number.
_HANDLED = frozenset({_OVERLAY, _FUSE, _NFS})
_MAX_HANDLE = 128
_HANDLE_HEADER = struct.Struct("=Ii")  # bytes, type
_NO_HANDLE = frozenset(
    {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EACCES, errno.EOVERFLOW, errno.ESTALE}
)

_libc = ctypes.CDLL(None, use_errno=True)
# Not every C library has them.
_statx = getattr(_libc, "statx", None)
_name_to_handle_at = getattr(_libc, "name_to_handle_at", None)


class Numbers(Enum):
    """How reliable a file system's inode numbers, link counts and times are."""

    TRUE = "of the disk"
    """Names with the same device and inode number are hard links, and link counts are correct."""

    COUNTED = "checked"
    """Different files may share an inode number; link counts and times come from the kernel."""

    INVENTED = "invented"
    """A server answers: link counts may be correct only after all names were looked up, times may be invented."""


def numbers_of(fd: int) -> Numbers:
    """Classify the file system of *fd*; an unknown one counts as ``INVENTED``."""
    kind = filesystem_type(fd)
    if kind in _TRUE:
        return Numbers.TRUE
    return Numbers.COUNTED if kind in _COUNTED else Numbers.INVENTED


class Look(NamedTuple):
    """The result of statx(2), from the file system instead of the kernel's cache."""

    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    mount: int | None
    """The number of the mount; ``None`` for kernels before 5.8."""


def look(dirfd: int, name: bytes = b"") -> Look:
    """Call statx(2) on *name* in *dirfd* without following a link; an empty name means *dirfd* itself.

    If the C library has no statx(2), call fstatat(2), whose answer may be cached.
    """
    if _statx is None:
        return _from_stat(os.stat(name, dir_fd=dirfd, follow_symlinks=False) if name else os.fstat(dirfd))
    buffer = ctypes.create_string_buffer(256)
    flags = _AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT | _AT_EMPTY_PATH | _AT_STATX_FORCE_SYNC
    if _statx(dirfd, name, flags, _STATX_BASIC | _STATX_MNT_ID, buffer):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    (mask, _, _, nlink, uid, gid, mode, inode, size, _, _, *rest) = _STATX.unpack_from(buffer)
    (_, _, _, _, csec, cnsec, msec, mnsec, rmajor, rminor, major, minor, mount) = rest
    return Look(
        mode=mode,
        nlink=nlink,
        uid=uid,
        gid=gid,
        rdev=os.makedev(rmajor, rminor),
        device=os.makedev(major, minor),
        inode=inode,
        size=size,
        mtime_ns=msec * 10**9 + mnsec,
        ctime_ns=csec * 10**9 + cnsec,
        mount=mount if mask & _STATX_MNT_ID else None,
    )


def makes_times_up(fd: int) -> bool:
    """Whether the times of *fd* change with every call, as some FUSE and network file systems answer.

    Asks for about a second. A file that another program keeps changing looks the same.
    """
    if numbers_of(fd) is not Numbers.INVENTED:
        return False
    before = look(fd)
    for _ in range(_LOOKS):
        now = look(fd)
        if (before.mtime_ns, before.ctime_ns) != (now.mtime_ns, now.ctime_ns):
            return True
        time.sleep(_PAUSE)
    return False


def makes_numbers_up(fd: int) -> bool:
    """Whether the inode number of *fd* changes with every call, as on some FUSE file systems."""
    return numbers_of(fd) is Numbers.INVENTED and look(fd).inode != look(fd).inode


def was_mounted(dir_fd: int, name: bytes, fd: int) -> bool:
    """Whether opening *name* as *fd* mounted a file system there (autofs), and it is still mounted."""
    there, opened = look(dir_fd, name), look(fd)
    if opened.mount is None or opened.mount == look(dir_fd).mount:
        return False
    return (there.device, there.inode, there.mount) == (opened.device, opened.inode, opened.mount)


def _from_stat(status: os.stat_result) -> Look:
    return Look(
        mode=status.st_mode,
        nlink=status.st_nlink,
        uid=status.st_uid,
        gid=status.st_gid,
        rdev=status.st_rdev,
        device=status.st_dev,
        inode=status.st_ino,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
        mount=None,
    )


def file_handle(fd: int) -> bytes | None:
    """The kernel's file handle of *fd*, or ``None`` if it would contain no more than the inode number.

    Equal handles mean one inode; on FUSE, different ones may still mean one file.
    """
    if _name_to_handle_at is None or filesystem_type(fd) not in _HANDLED:
        return None
    mount = ctypes.c_int()
    buffer = ctypes.create_string_buffer(_HANDLE_HEADER.size + _MAX_HANDLE)
    number = 0
    # Kernels before 6.5 do not know the flag, and only give handles that can be opened.
    for flags in (_AT_HANDLE_FID, 0):
        _HANDLE_HEADER.pack_into(buffer, 0, _MAX_HANDLE, 0)
        if not _name_to_handle_at(fd, b"", buffer, ctypes.byref(mount), flags | _AT_EMPTY_PATH):
            size, _ = _HANDLE_HEADER.unpack_from(buffer)
            return buffer.raw[: _HANDLE_HEADER.size + size]
        number = ctypes.get_errno()
        if number != errno.EINVAL:
            break
    if number not in _NO_HANDLE:
        raise OSError(number, os.strerror(number))
    return None
