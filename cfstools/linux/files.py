"""Files without names, clones, whole-file-system syncs, opening below a directory, and how many files may be open.

Functions raise plain ``OSError``, which callers translate with their context. A missing feature of the kernel or file
system is not an error but a return value.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from cfstools.linux.libc import calls

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAX_PATH = 16384
"""The longest path below a directory that is read or written as a tree, in bytes: four times what a system call takes.
"""

# ioctl requests (asm-generic/ioctl.h): these architectures keep the direction in three bits instead of two.
_THREE_BITS = os.uname().machine.startswith(("ppc", "mips", "sparc", "alpha"))

IOC_WRITE = 4 if _THREE_BITS else 1
IOC_READ = 2


def ioctl_number(direction: int, kind: int, number: int, size: int) -> int:
    """The request *number* of the family *kind* whose argument has *size* bytes."""
    return direction << (29 if _THREE_BITS else 30) | size << 16 | kind << 8 | number


FICLONE = ioctl_number(IOC_WRITE, 0x94, 9, 4)  # linux/fs.h: _IOW(0x94, 9, int)

_AT_EMPTY_PATH = 0x1000
_PATH_MAX = 4096
_RENAME_NOREPLACE = 1

_SMALL_HOLE = 65536
_BLOCK = 512  # what st_blocks counts
_MAKES_UP_TIMES = frozenset({0x65735546, 0x01021997})  # FUSE, 9p
# ext2 to ext4, xfs, btrfs, f2fs, tmpfs: a written page, also through a mapping, is never reported as a hole. Other file
# systems have reported holes where there was data, and a digest must not depend on that.
_TELLS_HOLES = frozenset({0xEF53, 0x58465342, 0x9123683E, 0xF2F52010, 0x01021994})

# linux/openat2.h; the system call has this number on every architecture that matters (all since 5.6 share it).
_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_RESOLVE = _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH
_OPEN_HOW = struct.Struct("=QQQ")  # flags, mode, resolve
_WRITE_AND_WAIT = 0x1 | 0x2 | 0x4  # of sync_file_range: wait before, write, wait after

# Errors that mean that the kernel or file system lacks the feature.
_NO_TMPFILE = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL})
_NO_CLONE = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EPERM, errno.ETXTBSY}
)
_NO_RENAME = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
# A seccomp filter that does not know openat2 returns EPERM.
_NO_OPENAT2 = frozenset({errno.ENOSYS, errno.EPERM})


def open_tmpfile(dirfd: int, mode: int = 0o600) -> int | None:
    """Create an anonymous file on the file system of *dirfd*, open for reading and writing.

    ``None`` if anonymous files are not supported. The file vanishes when it is closed, unless :func:`link_tmpfile` has
    named it.
    """
    try:
        return os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=dirfd)
    except OSError as error:
        if error.errno in _NO_TMPFILE:
            return None
        raise


def unnamed_file(dirfd: int, prefix: bytes) -> int:
    """Create an anonymous file on the file system of *dirfd*, open for reading and writing, mode 0600.

    If anonymous files are not supported, create a file whose name begins with *prefix* and unlink it at once.
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
    """Link the anonymous file *fd* as *name* in *dirfd*; raises ``FileExistsError``."""
    try:
        os.link(b"/proc/self/fd/%d" % fd, name, dst_dir_fd=dirfd, follow_symlinks=True)
    except FileNotFoundError:
        # Either the directory is missing or /proc is not mounted: linkat(AT_EMPTY_PATH), for root only, tells.
        if calls().linkat(fd, b"", dirfd, name, _AT_EMPTY_PATH):
            raise calls().failure(name) from None


def rename_noreplace(src_dirfd: int, src: bytes, dst_dirfd: int, dst: bytes) -> None:
    """Rename without replacing; raises ``FileExistsError`` if *dst* exists.

    Without renameat2(2), link and unlink. A directory cannot be linked; renaming it could then replace an empty
    directory created at the same moment.
    """
    renameat2 = calls().renameat2
    if renameat2 is not None:
        if not renameat2(src_dirfd, src, dst_dirfd, dst, _RENAME_NOREPLACE):
            return
        error = calls().failure(dst)
        if error.errno not in _NO_RENAME:
            raise error
    try:
        os.link(src, dst, src_dir_fd=src_dirfd, dst_dir_fd=dst_dirfd, follow_symlinks=False)
    except PermissionError:
        # The kernel has checked that the name is free before it refused.
        if not stat.S_ISDIR(os.lstat(src, dir_fd=src_dirfd).st_mode):
            raise
        os.rename(src, dst, src_dir_fd=src_dirfd, dst_dir_fd=dst_dirfd)
    else:
        os.unlink(src, dir_fd=src_dirfd)


def close(fd: int) -> None:
    """Close *fd* and ignore errors: the descriptor is closed anyway, and must not be closed a second time.

    Not for written files without a sync: there an error means that data was lost.
    """
    with suppress(OSError):
        os.close(fd)


def syncfs(fd: int) -> None:
    """Sync the file system that holds *fd*."""
    if calls().syncfs(fd):
        raise calls().failure()


def write_back(fd: int) -> None:
    """Write back the dirty pages of the file *fd* and wait, without flushing the disk's cache.

    Afterwards all mapped pages are clean, so the next write to one updates the ctime. Raises ``OSError``.
    """
    # Twice: btrfs first hands pages to a compression thread, and only then starts writing them.
    for _ in range(2):
        if calls().sync_file_range(fd, 0, 0, _WRITE_AND_WAIT):
            raise calls().failure()


def dirty_bytes() -> int:
    """Dirty bytes of all programs that are not on disk yet; 0 if the kernel does not tell."""
    try:
        with open("/proc/meminfo", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return 0
    found = [line.split() for line in lines if line.startswith((b"Dirty:", b"Writeback:"))]
    return sum(int(words[1]) << 10 for words in found if len(words) > 1 and words[1].isdigit())


def filesystem_type(fd: int) -> int:
    """The magic number (linux/magic.h) of the file system that holds *fd*."""
    return calls().filesystem_type(fd)


def reflink(src_fd: int, dst_fd: int) -> bool:
    """Clone the contents of *src_fd* to *dst_fd*; ``False`` if the file systems cannot."""
    try:
        fcntl.ioctl(dst_fd, FICLONE, src_fd)
    except OSError as error:
        if error.errno in _NO_CLONE:
            return False
        raise
    return True


def has_changed(fd: int, before: os.stat_result, *, status: bool = True) -> bool:
    """Whether size, mtime or (with *status*) ctime of the file *fd* differ from *before*.

    Times do not count if the file system's server may invent them with every call.
    """
    after = os.fstat(fd)
    if after.st_size != before.st_size:
        return True
    same = after.st_mtime_ns == before.st_mtime_ns and (not status or after.st_ctime_ns == before.st_ctime_ns)
    return not same and filesystem_type(fd) not in _MAKES_UP_TIMES


def data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the data ranges (start, end) of a regular file of *size* bytes; the rest are holes, which read as zeros.

    Holes below 64 KiB count as data, and so does everything on file systems whose reports of holes are not reliable.
    The file offset is restored after each step.
    """
    if not size:
        return
    # A file with all blocks allocated has no holes.
    if os.fstat(fd).st_blocks * _BLOCK >= size or filesystem_type(fd) not in _TELLS_HOLES:
        yield 0, size
        return
    start, end = _next_range(fd, 0, size)
    while start < size:
        yield start, end
        start, end = _next_range(fd, end, size)


def _next_range(fd: int, at: int, size: int) -> tuple[int, int]:
    """The first data range at or after *at*, including small holes; *size* twice if there is none."""
    # Restored each time: the caller may stop and close the file long before the iterator is freed.
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
    """The offset of the next data or hole; *size* if there is none, also if the file was truncated meanwhile."""
    try:
        return max(offset, min(os.lseek(fd, offset, whence), size))
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size
        raise


def write_all(fd: int, data: Buffer) -> None:
    """Write all of *data*, repeating short writes."""
    view = memoryview(data)
    done = os.write(fd, view)
    while done < view.nbytes:
        done += os.write(fd, view.cast("B")[done:])


def open_beneath(dirfd: int, path: bytes, flags: int, mode: int = 0) -> int:
    """Open the relative *path* below *dirfd* without following symbolic links or leaving *dirfd*.

    A link in the path gives ``ELOOP``, an absolute path or ``..`` gives ``EXDEV``. ``mode`` is only used if *flags*
    create a file. Uses openat2(2), or opens component by component.
    """
    if path.startswith(b"/") or b".." in path.split(b"/"):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
    if b"\0" in path:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, _RESOLVE)
    while True:
        fd: int = calls().openat2(_SYS_OPENAT2, dirfd, path, how, _OPEN_HOW.size)
        if fd >= 0:
            return fd
        number = calls().get_errno()
        if number in _NO_OPENAT2:
            return _open_stepwise(dirfd, path, flags, mode)
        # EAGAIN: a concurrent rename kept the kernel from checking the path; retry.
        if number not in (errno.EINTR, errno.EAGAIN):
            raise OSError(number, os.strerror(number), path)


def open_below(dirfd: int, path: bytes, flags: int) -> int:
    """Like :func:`open_beneath` for paths of any length; an empty path means *dirfd* itself."""
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
    """Like :func:`open_beneath` for kernels without openat2: open each component without following links."""
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
        # A link instead of a directory: raise ELOOP as openat2 does.
        if stat.S_ISLNK(os.lstat(name, dir_fd=dirfd).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name) from None
        raise


def fd_limit() -> int:
    """The number of files this process may have open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if limit == resource.RLIM_INFINITY else limit


def raise_fd_limit() -> int:
    """Raise the number of files this process may have open to the hard limit; return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return fd_limit()
