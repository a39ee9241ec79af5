"""Change the attributes of an inode through an ``O_PATH`` descriptor, whatever happens to its names.

For inodes that cannot be opened otherwise without side effects: symbolic links, devices, FIFOs, sockets. Functions use
only the descriptor; if the kernel lacks the system call, they use the descriptor's link in /proc.
"""

from __future__ import annotations

import ctypes
import errno
import os

_AT_EMPTY_PATH = 0x1000
# linux/unistd.h; the same number on every architecture that matters. Since Linux 6.6.
_SYS_FCHMODAT2 = 452
# An unknown call gives EPERM from a seccomp filter and ENOSYS from an older kernel, an unknown flag EINVAL.
_NO_CALL = frozenset({errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.ENOENT})


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_Times = _Timespec * 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.fchownat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_int]
_libc.utimensat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int]


def pin(dirfd: int, name: bytes) -> int:
    """Open *name* in *dirfd* with ``O_PATH``; a symbolic link is not followed."""
    return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dirfd)


def pinned_path(fd: int) -> bytes:
    """A path to the inode of *fd*. A symbolic link that *fd* holds is not followed."""
    return b"/proc/self/fd/%d" % fd


def chown(fd: int, uid: int, gid: int) -> None:
    """Change the owner."""
    if _libc.fchownat(fd, b"", uid, gid, _AT_EMPTY_PATH):
        _settle(lambda: os.chown(pinned_path(fd), uid, gid))


def chmod(fd: int, mode: int) -> None:
    """Change the mode of anything but a symbolic link."""
    if _libc.syscall(
        ctypes.c_long(_SYS_FCHMODAT2), ctypes.c_int(fd), b"", ctypes.c_uint(mode), ctypes.c_int(_AT_EMPTY_PATH)
    ):
        _settle(lambda: os.chmod(pinned_path(fd), mode))


def utime(fd: int, time_ns: int) -> None:
    """Set the times of access and modification."""
    time = _Timespec(*divmod(time_ns, 1_000_000_000))
    times = _Times(time, time)
    if _libc.utimensat(fd, b"", ctypes.byref(times), _AT_EMPTY_PATH):
        _settle(lambda: os.utime(pinned_path(fd), ns=(time_ns, time_ns)))


def setxattr(fd: int, key: bytes, value: bytes) -> None:
    """Set an extended attribute. Needs /proc."""
    os.setxattr(pinned_path(fd), key, value)


def _settle(other_way: object) -> None:
    """Call *other_way* if the kernel lacks the system call; else raise its error."""
    number = ctypes.get_errno()
    if number not in _NO_CALL:
        raise OSError(number, os.strerror(number))
    assert callable(other_way)
    try:
        other_way()
    except FileNotFoundError:  # there is no /proc
        raise OSError(number, os.strerror(number)) from None
