"""Files without names, clones, whole-file-system syncs and opening below a directory.

Every function raises plain ``OSError``; callers translate it, knowing what they were doing. What a kernel or
file system does not offer is told apart from failure by the return value.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from cfstools.linux.ioctl import IOC_WRITE, ioctl_number

if TYPE_CHECKING:
    from typing_extensions import Buffer

FICLONE = ioctl_number(IOC_WRITE, 0x94, 9, 4)  # linux/fs.h: _IOW(0x94, 9, int)

_AT_EMPTY_PATH = 0x1000
_PATH_MAX = 4096
_RENAME_NOREPLACE = 1

_SMALL_HOLE = 65536
_MAKES_UP_TIMES = frozenset({0x65735546, 0x01021997})  # FUSE, 9p
# ext2 to ext4, xfs, btrfs, f2fs, tmpfs: a page written to, also through a map, is no hole there from then on. Others
# have reported holes where there was data, and a digest must never depend on that.
_TELLS_HOLES = frozenset({0xEF53, 0x58465342, 0x9123683E, 0xF2F52010, 0x01021994})

# linux/openat2.h; the system call has this number on every architecture that matters (all since 5.6 share it).
_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_RESOLVE = _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH
_OPEN_HOW = struct.Struct("=QQQ")  # flags, mode, resolve
_WRITE_AND_WAIT = 0x1 | 0x2 | 0x4  # of sync_file_range: wait before, write, wait after

# The answers of kernels and file systems that do not have what was asked for.
_NO_TMPFILE = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL})
_NO_CLONE = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EPERM, errno.ETXTBSY}
)
_NO_RENAME = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
# A seccomp filter that does not know openat2 answers EPERM.
_NO_OPENAT2 = frozenset({errno.ENOSYS, errno.EPERM})

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syncfs.argtypes = [ctypes.c_int]
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_libc.fstatfs.argtypes = [ctypes.c_int, ctypes.c_void_p]
_libc.linkat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
# Not every C library has it.
_renameat2 = getattr(_libc, "renameat2", None)
_libc.syscall.restype = ctypes.c_long


def _fail(name: bytes | None = None) -> OSError:
    number = ctypes.get_errno()
    if name is None:
        return OSError(number, os.strerror(number))
    return OSError(number, os.strerror(number), name)


def open_tmpfile(dirfd: int, mode: int = 0o600) -> int | None:
    """A new file without a name on the file system of *dirfd*, open for reading and writing.

    ``None`` where files without names are not supported. The file is gone when it is closed, unless it was given
    a name (:func:`link_tmpfile`).
    """
    try:
        return os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=dirfd)
    except OSError as error:
        if error.errno in _NO_TMPFILE:
            return None
        raise


def unnamed_file(dirfd: int, prefix: bytes) -> int:
    """A new file on the file system of *dirfd* that no name leads to, open for reading and writing, mode 0600.

    Where files without names are not supported it has one for a moment, which begins with *prefix*.
    """
    fd = open_tmpfile(dirfd)
    if fd is not None:
        return fd
    name = prefix + os.urandom(8).hex().encode()
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=dirfd)
    try:
        os.unlink(name, dir_fd=dirfd)
    except BaseException:
        close(fd)
        raise
    return fd


def link_tmpfile(fd: int, dirfd: int, name: bytes) -> None:
    """Give the file *fd* the *name* below *dirfd*; ``FileExistsError`` when the name is taken."""
    try:
        os.link(b"/proc/self/fd/%d" % fd, name, dst_dir_fd=dirfd, follow_symlinks=True)
    except FileNotFoundError:
        # Either the directory is missing or /proc is not mounted; this way (for the privileged) tells.
        if _libc.linkat(fd, b"", dirfd, name, _AT_EMPTY_PATH):
            raise _fail(name) from None


def rename_noreplace(src_dirfd: int, src: bytes, dst_dirfd: int, dst: bytes) -> None:
    """Rename without replacing: ``FileExistsError`` when *dst* is taken.

    Without renameat2(2) by link and unlink; a directory, which cannot be linked, then replaces an empty one that comes
    at the same moment.
    """
    if _renameat2 is not None:
        if not _renameat2(src_dirfd, src, dst_dirfd, dst, _RENAME_NOREPLACE):
            return
        error = _fail(dst)
        if error.errno not in _NO_RENAME:
            raise error
    try:
        os.link(src, dst, src_dir_fd=src_dirfd, dst_dir_fd=dst_dirfd, follow_symlinks=False)
    except PermissionError:
        # The kernel looked whether the name is taken before it refused.
        if not stat.S_ISDIR(os.lstat(src, dir_fd=src_dirfd).st_mode):
            raise
        os.rename(src, dst, src_dir_fd=src_dirfd, dst_dir_fd=dst_dirfd)
    else:
        os.unlink(src, dir_fd=src_dirfd)


def close(fd: int) -> None:
    """Close *fd*, whatever the kernel says: it is closed then as well, and must not be closed a second time.

    Not for files that were written to and are not synced: there it may say that contents did not arrive.
    """
    with suppress(OSError):
        os.close(fd)


def syncfs(fd: int) -> None:
    """Bring everything on the file system that holds *fd* to stable storage."""
    if _libc.syncfs(fd):
        raise _fail()


def write_back(fd: int) -> None:
    """Have the kernel write the changed pages of the file *fd*, and wait for that, but not for the disk's own cache.

    Afterwards every page that a program has mapped is clean, and the next store to it is seen. Raises ``OSError``.
    """
    # Twice: btrfs hands pages to a thread that compresses them, and only then are they under way.
    for _ in range(2):
        if _libc.sync_file_range(fd, 0, 0, _WRITE_AND_WAIT):
            raise _fail()


def dirty_bytes() -> int:
    """How much was written that is not on any disk yet, by whichever program; 0 where the kernel does not say."""
    try:
        with open("/proc/meminfo", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return 0
    found = [line.split() for line in lines if line.startswith((b"Dirty:", b"Writeback:"))]
    return sum(int(words[1]) << 10 for words in found if len(words) > 1 and words[1].isdigit())


def filesystem_type(fd: int) -> int:
    """The magic number (linux/magic.h) of the file system that holds *fd*."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.fstatfs(fd, buffer):
        raise _fail()
    # The first member of struct statfs, a long on most machines; its magic numbers all have 32 bits.
    magic: int = ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF
    return magic


def reflink(src_fd: int, dst_fd: int) -> bool:
    """Make *dst_fd* share the contents of *src_fd*; ``False`` where the file system cannot."""
    try:
        fcntl.ioctl(dst_fd, FICLONE, src_fd)
    except OSError as error:
        if error.errno in _NO_CLONE:
            return False
        raise
    return True


def state_of(fd: int) -> tuple[int, int, int]:
    """Size, mtime and ctime of an open file, for a comparison before and after it is read.

    The times are 0 where a file system's server may make them up anew with every look.
    """
    status = os.fstat(fd)
    if filesystem_type(fd) in _MAKES_UP_TIMES:
        return status.st_size, 0, 0
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a regular file of *size* bytes has data: start and end of each range, in order; the rest reads as zeros.

    Holes of less than 64 KiB count as data, as does everything on file systems that are not known to tell the truth
    about holes. The file's offset is not moved between two steps.
    """
    if not size or filesystem_type(fd) not in _TELLS_HOLES:
        if size:
            yield 0, size
        return
    start, end = _next_range(fd, 0, size)
    while start < size:
        yield start, end
        start, end = _next_range(fd, end, size)


def _next_range(fd: int, at: int, size: int) -> tuple[int, int]:
    """The first range of data at or behind *at*, with what lies behind small holes; *size* twice if there is none."""
    # Set back each time: whoever stops asking may have closed the file long before the iterator goes away.
    offset = os.lseek(fd, 0, os.SEEK_CUR)
    try:
        start = following = _seek(fd, at, os.SEEK_DATA, size)
        end = start
        while following < size and (following - end < _SMALL_HOLE or end == start):
            end = _seek(fd, following, os.SEEK_HOLE, size)
            following = _seek(fd, end, os.SEEK_DATA, size) if end < size else size
        return start, end
    finally:
        os.lseek(fd, offset, os.SEEK_SET)


def _seek(fd: int, offset: int, whence: int, size: int) -> int:
    """Where the next data or hole is; *size* where there is none before, also when the file was cut meanwhile."""
    try:
        return max(offset, min(os.lseek(fd, offset, whence), size))
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size
        raise


def write_all(fd: int, data: Buffer) -> None:
    """Write all of *data*, however little the kernel takes at once."""
    view = memoryview(data)
    done = os.write(fd, view)
    while done < view.nbytes:
        done += os.write(fd, view.cast("B")[done:])


def open_beneath(dirfd: int, path: bytes, flags: int, mode: int = 0) -> int:
    """Open the relative *path* below *dirfd* without following any symbolic link, and never outside of it.

    A link on the way is ``ELOOP``, an absolute path or one with ``..`` is ``EXDEV``. ``mode`` is used only when
    *flags* create a file. Uses openat2(2), else opens component by component.
    """
    if path.startswith(b"/") or b".." in path.split(b"/"):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
    if b"\0" in path:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, _RESOLVE)
    while True:
        fd: int = _libc.syscall(
            ctypes.c_long(_SYS_OPENAT2), ctypes.c_int(dirfd), path, how, ctypes.c_size_t(_OPEN_HOW.size)
        )
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number in _NO_OPENAT2:
            return _open_stepwise(dirfd, path, flags, mode)
        # EAGAIN: something was renamed while the kernel looked; it cannot say, so ask again.
        if number not in (errno.EINTR, errno.EAGAIN):
            raise OSError(number, os.strerror(number), path)


def open_below(dirfd: int, path: bytes, flags: int) -> int:
    """:func:`open_beneath` for paths of any length; an empty path is *dirfd* itself."""
    here = dirfd
    try:
        while len(path) >= _PATH_MAX and (cut := path.rfind(b"/", 1, _PATH_MAX)) > 0:
            there = open_beneath(here, path[:cut], os.O_PATH | os.O_DIRECTORY)
            path = path[cut + 1 :]
            if here != dirfd:
                close(here)
            here = there
        return open_beneath(here, path or b".", flags)
    finally:
        if here != dirfd:
            close(here)


def _open_stepwise(dirfd: int, path: bytes, flags: int, mode: int) -> int:
    """:func:`open_beneath` for kernels without openat2: each directory on the way is opened without following."""
    *parents, last = path.rstrip(b"/").split(b"/")
    if path.endswith(b"/"):
        flags |= os.O_DIRECTORY
    here = dirfd
    try:
        for name in parents:
            if not name:
                continue
            there = _open_here(here, name, os.O_PATH | os.O_DIRECTORY, 0)
            if here != dirfd:
                close(here)
            here = there
        return _open_here(here, last, flags, mode)
    finally:
        if here != dirfd:
            close(here)


def _open_here(dirfd: int, name: bytes, flags: int, mode: int) -> int:
    try:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=dirfd)
    except NotADirectoryError:
        # A link where a directory was asked for: say so, as openat2 does.
        if stat.S_ISLNK(os.lstat(name, dir_fd=dirfd).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name) from None
        raise


def fd_limit() -> int:
    """How many files this process may hold open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if limit == resource.RLIM_INFINITY else limit


def raise_fd_limit() -> int:
    """Raise the number of files this process may hold open as far as it may; returns the limit now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return fd_limit()
