"""The files of the digest cache: one for each mounted volume and digest algorithm, in a private directory.

A cache file has a header, then a record (``native.KNOWN_RECORD``) and a digest for each cached file, in ascending order
of inode numbers. It is read whole, and replaced by rename. It is useless after a reboot, so it is in native byte order
and never synced. Files that another user could have made or could change are ignored, as are malformed ones. Nothing
here blocks for long.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from cfstools import native
from cfstools.linux.files import close, write_all
from cfstools.linux.locks import lock, unlock

if TYPE_CHECKING:
    from cfstools.linux.volume import Volume
    from cfstools.verity import Algorithm

# Magic and version, checksum of all that follows, algorithm number; the volume: boot id, kind, device, fsid, instance;
# clock offset; number of records.
_HEADER = struct.Struct("=8sII36s4xQQQQqQ")
_CHECKED = 12  # the checksum covers everything from this offset on
_MAGIC = b"cfsdgst4"
_NAME = re.compile(rb"([0-9a-f-]{36})\.[0-9a-f.]{1,70}\.[0-9]{1,3}")
_TEMPORARY = re.compile(rb"\.tmp-[0-9a-f]{16}")

MAX_RECORDS = 1 << 21
# Limits of all cache files together: bytes, number, and age of those from another boot (another machine with the same
# home directory, or a container with a boot id of its own) and of temporaries of killed writers.
_MAX_BYTES = 512 << 20
_MAX_FILES = 64
_FOREIGN_NS = 7 * 86_400 * 10**9
_TEMPORARY_NS = 3600 * 10**9
_MAX_NAMES = 10_000
_LOCK_TRIES = 20
_LOCK_PAUSE = 0.01

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


Version = tuple[int, ...]
"""Inode number, size, mtime and ctime of a file, whose contents are never changed in place."""


class Shelf(NamedTuple):
    """The key of a cache file: volume and digest algorithm."""

    volume: Volume
    algorithm: Algorithm

    @property
    def name(self) -> bytes:
        """The name of the file."""
        boot, kind, device, fsid, instance = self.volume
        return boot + b".%x.%x.%x.%x.%d" % (kind, device, fsid, instance, self.algorithm.number)

    @property
    def record_size(self) -> int:
        """The size in bytes of a record with its digest."""
        return native.KNOWN_RECORD.size + self.algorithm.digest_size


class Records(NamedTuple):
    """Records as ``native.merge_records`` takes them, and the largest clock offset at which one of them was made.

    *version* is that of the file that they were read from.
    """

    clock: int
    data: memoryview[int]
    version: Version | None = None


def open_directory(path: bytes) -> int | None:
    """Open the directory *path*, creating it and its parent if missing; ``None`` if other users can write to it.

    Raises ``OSError``.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    path = path.rstrip(b"/") or b"/"  # a trailing slash would follow a link
    try:
        fd = os.open(path, flags)
    except FileNotFoundError:
        for made in (os.path.dirname(path) or b".", path):
            with suppress(FileExistsError):
                os.mkdir(made, 0o700)
        fd = os.open(path, flags)
    if _is_ours(os.fstat(fd)):
        return fd
    close(fd)
    return None


def _is_ours(status: os.stat_result) -> bool:
    """Whether only this user (and root) could write to it. ACLs show in the group bits."""
    return status.st_uid == os.geteuid() and not status.st_mode & _OTHERS_WRITE


def read(directory: int, shelf: Shelf, clock: int, before: Records | None = None) -> Records | None:
    """Read the records of *shelf*; ``None`` if there are no valid ones. *clock* is the clock offset now.

    *before* are those read earlier, which are not read again if nobody replaced them. Raises ``OSError``.
    """
    version = _version_of(directory, shelf.name)
    if before is not None and version is not None and before.version == version and is_credible(before.clock, clock):
        return before
    data = read_own(directory, shelf.name, _HEADER.size, _HEADER.size + MAX_RECORDS * shelf.record_size)
    if data is None:
        return None
    magic, checksum, algorithm, *volume, made, count = _HEADER.unpack_from(data)
    if (magic, algorithm, tuple(volume)) != (_MAGIC, shelf.algorithm.number, tuple(shelf.volume)):
        return None
    view = memoryview(data)
    records = view[_HEADER.size :]
    if records.nbytes != count * shelf.record_size or zlib.crc32(view[_CHECKED:]) != checksum:
        return None
    if not is_credible(made, clock):
        # The clock was set back: files may have changed at times that occurred before, so drop the records for good.
        os.unlink(shelf.name, dir_fd=directory)
        return None
    return Records(made, records, version)


def _version_of(directory: int, name: bytes) -> Version | None:
    """The version of a file; ``None`` if there is none. Raises ``OSError``."""
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_credible(made: int, clock: int) -> bool:
    """Whether records made at clock offset *made* are valid at clock offset *clock*.

    Tolerates a leap second, which is less than the minimum age of cached files.
    """
    return clock >= made - 1_500_000_000


def read_own(directory: int, name: bytes, least: int, most: int) -> bytes | None:
    """What a file of *least* to *most* bytes holds, if only this user can have written it, else ``None``.

    Raises ``OSError``.
    """
    try:
        fd = os.open(name, _READ, dir_fd=directory)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not _is_ours(status) or status.st_nlink != 1:
            return None
        if not least <= status.st_size <= most:
            return None
        data = os.pread(fd, status.st_size, 0)
        return data if len(data) == status.st_size else None
    finally:
        close(fd)


def write(directory: int, shelf: Shelf, records: Records) -> None:
    """Replace the records of *shelf* atomically, and remove outdated cache files. Raises ``OSError``."""
    _tidy(directory, shelf, _HEADER.size + records.data.nbytes)
    count = records.data.nbytes // shelf.record_size
    header = _HEADER.pack(_MAGIC, 0, shelf.algorithm.number, *shelf.volume, records.clock, count)
    checksum = zlib.crc32(records.data, zlib.crc32(header[_CHECKED:]))
    name = b".tmp-" + os.urandom(8).hex().encode()
    fd = os.open(name, WRITE, 0o600, dir_fd=directory)
    try:
        try:
            write_all(fd, header[:8] + struct.pack("=I", checksum) + header[_CHECKED:])
            write_all(fd, records.data)
        finally:
            os.close(fd)
        os.rename(name, shelf.name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        with suppress(OSError):
            os.unlink(name, dir_fd=directory)
        raise


@contextmanager
def alone(directory: int) -> Iterator[None]:
    """Lock the cache against other writers; go on without the lock after 0.2 s: at worst their entries are lost."""
    for _ in range(_LOCK_TRIES):
        try:
            lock(directory, exclusive=True, wait=False)
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE)
        except OSError:
            break  # go on without a lock
        else:
            break
    try:
        yield
    finally:
        with suppress(OSError):
            unlock(directory)


def _tidy(directory: int, shelf: Shelf, size: int) -> None:
    """Remove files of other boots and killed writers, then the oldest, until *size* more bytes fit."""
    now = time.time_ns()
    kept: list[tuple[int, int, bytes]] = []
    for name in map(os.fsencode, os.listdir(directory)[:_MAX_NAMES]):
        is_cache = _NAME.fullmatch(name)
        if name == shelf.name or not (is_cache or _TEMPORARY.fullmatch(name)):
            continue  # not a cache file
        with suppress(OSError):
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            lasting = _TEMPORARY_NS if is_cache is None else _FOREIGN_NS
            is_alive = is_cache is not None and is_cache[1] == shelf.volume.boot
            if not is_alive and now - status.st_mtime_ns > lasting:
                os.unlink(name, dir_fd=directory)
            else:
                kept.append((status.st_mtime_ns, status.st_size, name))
    evict(directory, kept, size, _MAX_BYTES, _MAX_FILES)


def evict(directory: int, kept: list[tuple[int, int, bytes]], size: int, most_bytes: int, most_files: int) -> None:
    """Remove the oldest of the files *kept* (time, size, name) until *size* more bytes and one more file fit."""
    kept.sort()
    total = size + sum(one[1] for one in kept)
    while kept and (total > most_bytes or len(kept) >= most_files):
        _, freed, name = kept.pop(0)
        total -= freed
        with suppress(OSError):
            os.unlink(name, dir_fd=directory)


__all__ = [
    "MAX_RECORDS",
    "WRITE",
    "Records",
    "Shelf",
    "alone",
    "evict",
    "is_credible",
    "open_directory",
    "read",
    "read_own",
    "write",
]
