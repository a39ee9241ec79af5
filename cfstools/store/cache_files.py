"""The files of the digest cache: one for each mounted volume and digest algorithm, in a directory of the user's own.

A file is a header and, by rising inode number, a record (``native.KNOWN_RECORD``) and a digest for each file
remembered. It is read whole, written whole beside the old one, and renamed. It means nothing after the next boot, so
it is in the machine's byte order and never synced. What another user could have made or could change is passed over, as
is whatever has not the form of a cache; nothing here waits for anyone for long.
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

# Magic and version, checksum of all that follows, number of the algorithm; the volume: id of the boot, kind, device,
# fsid, instance; the offset of the clock; how many records.
_HEADER = struct.Struct("=8sII36s4xQQQQqQ")
_CHECKED = 12  # where the checksum, and all that it covers, begins and ends
_MAGIC = b"cfsdgst3"
_NAME = re.compile(rb"([0-9a-f-]{36})\.[0-9a-f.]{1,70}\.[0-9]{1,3}")
_TEMPORARY = re.compile(rb"\.tmp-[0-9a-f]{16}")

MAX_RECORDS = 1 << 21
# What all files together may take, how many there may be, and how long those of another boot (of another machine with
# the same home, or a container that has its own) and of killed writers stay.
_MAX_BYTES = 512 << 20
_MAX_FILES = 64
_FOREIGN_NS = 7 * 86_400 * 10**9
_TEMPORARY_NS = 3600 * 10**9
_MAX_NAMES = 10_000
_LOCK_TRIES = 20
_LOCK_PAUSE = 0.01

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Shelf(NamedTuple):
    """Whose records are meant: those of one volume and algorithm."""

    volume: Volume
    algorithm: Algorithm

    @property
    def name(self) -> bytes:
        """The name of the file."""
        boot, kind, device, fsid, instance = self.volume
        return boot + b".%x.%x.%x.%x.%d" % (kind, device, fsid, instance, self.algorithm.number)

    @property
    def record_size(self) -> int:
        """The bytes that a file remembered takes."""
        return native.KNOWN_RECORD.size + self.algorithm.digest_size


class Records(NamedTuple):
    """Records as ``native.match_stamps`` takes them, and the highest offset the clock had when one of them was made."""

    clock: int
    data: memoryview[int]


def open_directory(path: bytes) -> int | None:
    """The directory at *path*, made, with the one it lies in, if it is not there; ``None`` if it is not ours alone.

    Raises ``OSError``.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    path = path.rstrip(b"/") or b"/"  # a link with a slash behind it would be followed
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
    """Whether nobody but this user (and root) can have written to it. Access lists show in the bits of the group."""
    return status.st_uid == os.geteuid() and not status.st_mode & _OTHERS_WRITE


def read(directory: int, shelf: Shelf, clock: int) -> Records | None:
    """The records on the *shelf*; ``None`` if there are none that can be believed. *clock* is its offset now.

    Raises ``OSError``.
    """
    data = _read_file(directory, shelf)
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
        # Nor ever again: changes may have been made meanwhile, at times that were there before.
        os.unlink(shelf.name, dir_fd=directory)
        return None
    return Records(made, records)


def is_credible(made: int, clock: int) -> bool:
    """Whether what was remembered at the offset *made* of the clock can be believed at its offset *clock*.

    A leap second may come in between: it is less than by how much files must be older than the time they were read.
    """
    return clock >= made - 1_500_000_000


def _read_file(directory: int, shelf: Shelf) -> bytes | None:
    try:
        fd = os.open(shelf.name, _READ, dir_fd=directory)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not _is_ours(status) or status.st_nlink != 1:
            return None
        if not _HEADER.size <= status.st_size <= _HEADER.size + MAX_RECORDS * shelf.record_size:
            return None
        data = os.pread(fd, status.st_size, 0)
        return data if len(data) == status.st_size else None
    finally:
        close(fd)


def write(directory: int, shelf: Shelf, records: Records) -> None:
    """Put *records* onto the *shelf*, in one step, and drop what is old of all shelves. Raises ``OSError``."""
    _tidy(directory, shelf, _HEADER.size + records.data.nbytes)
    count = records.data.nbytes // shelf.record_size
    header = _HEADER.pack(_MAGIC, 0, shelf.algorithm.number, *shelf.volume, records.clock, count)
    checksum = zlib.crc32(records.data, zlib.crc32(header[_CHECKED:]))
    name = b".tmp-" + os.urandom(8).hex().encode()
    fd = os.open(name, _WRITE, 0o600, dir_fd=directory)
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
    """Keep other builds from writing, if they leave off soon; else go on: at worst what they remember is lost."""
    for _ in range(_LOCK_TRIES):
        try:
            lock(directory, exclusive=True, wait=False)
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE)
        except OSError:
            break  # without a lock
        else:
            break
    try:
        yield
    finally:
        with suppress(OSError):
            unlock(directory)


def _tidy(directory: int, shelf: Shelf, size: int) -> None:
    """Remove files of other boots and of killed writers, then the oldest, until *size* more bytes fit for *shelf*."""
    now = time.time_ns()
    kept: list[tuple[int, int, bytes]] = []
    for name in map(os.fsencode, os.listdir(directory)[:_MAX_NAMES]):
        is_cache = _NAME.fullmatch(name)
        if name == shelf.name or not (is_cache or _TEMPORARY.fullmatch(name)):
            continue  # what else is there is none of ours
        with suppress(OSError):
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            lasting = _TEMPORARY_NS if is_cache is None else _FOREIGN_NS
            is_alive = is_cache is not None and is_cache[1] == shelf.volume.boot
            if not is_alive and now - status.st_mtime_ns > lasting:
                os.unlink(name, dir_fd=directory)
            else:
                kept.append((status.st_mtime_ns, status.st_size, name))
    kept.sort()
    total = size + sum(one[1] for one in kept)
    while kept and (total > _MAX_BYTES or len(kept) >= _MAX_FILES):
        _, freed, name = kept.pop(0)
        total -= freed
        with suppress(OSError):
            os.unlink(name, dir_fd=directory)


__all__ = ["MAX_RECORDS", "Records", "Shelf", "alone", "is_credible", "open_directory", "read", "write"]
