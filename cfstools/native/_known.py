"""What is known of files without reading them: objects that a store has, and what a cache remembers."""

from __future__ import annotations

import os
import stat
import struct
import sys
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from cfstools.native._pure import Stamp

# Digest, size and -1; no contents; or nothing.
Found = tuple[bytes, int, int] | bytes | None

_DIGEST_MAX = 64
_NEVER = (1 << 63) - 1
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

# A file that is known: inode, size, mtime and ctime in nanoseconds, and when it was met, in any unit; then its digest.
KNOWN_RECORD = struct.Struct("=QqqqI4x")
_MET = slice(32, 36)
_STAMP = struct.Struct("=QQqqq")


def find_object(store_fd: int, prefixes: Buffer, digest: bytes, size: int) -> int:
    """1: there, 0: not there, -1: something else or cannot tell."""
    name = digest.hex()
    opened = -1
    try:
        fd = memoryview(prefixes).cast("B").cast("i")[digest[0]]
        if fd < 0:
            fd = opened = os.open(name[:2], _DIRECTORY, dir_fd=store_fd)
        status = os.stat(name[2:], dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return 0
    except OSError:
        return -1
    finally:
        if opened >= 0:
            with suppress(OSError):
                os.close(opened)
    return 1 if stat.S_ISREG(status.st_mode) and status.st_size == size else -1


def match_stamps(  # noqa: PLR0917 - called as the C copy is, by position
    stamps: Sequence[Stamp],
    records: Buffer,
    device: int,
    digest_size: int,
    inline_limit: int,
    store_fd: int,
    prefixes: Buffer,
) -> tuple[list[Found], int, int, int, int]:
    """What *records* say of the files with these *stamps*, in the form of ``digest_files``, without a place.

    They are each a ``KNOWN_RECORD`` and a digest, of a multiple of 8 bytes, by rising inode number and without anything
    between them, else they say nothing. One counts for a file on *device*, larger than *inline_limit*, that it fits, if
    the store (*store_fd*, -1: none) has the object. Of empty files nothing has to be known. With the results come the
    oldest time when those that counted were met (a large number if there is none), how many objects the store lacks,
    how many it has, and their bytes.
    """
    inodes, size = _index(records, digest_size)
    view = memoryview(records)
    results: list[Found] = []
    oldest = _NEVER
    lost = objects = object_bytes = 0
    for stamp in stamps:
        said: Found = None
        if not _fits_record(stamp):
            pass
        elif not stamp[2]:
            said = b""
        elif stamp[0] == device and stamp[2] > inline_limit:
            number = bisect_left(inodes, stamp[1])
            record = view[number * size : (number + 1) * size] if number < len(inodes) else view[:0]
            if record and KNOWN_RECORD.unpack_from(record)[:4] == tuple(stamp[1:]):
                digest = bytes(record[KNOWN_RECORD.size :])
                if store_fd >= 0 and find_object(store_fd, prefixes, digest, stamp[2]) <= 0:
                    lost += 1
                else:
                    said = (digest, stamp[2], -1)
                    oldest = min(oldest, _met(record))
                    objects += 1
                    object_bytes += stamp[2]
        results.append(said)
    return results, oldest, lost, objects, object_bytes


def merge_records(records: Buffer, made: Buffer, digest_size: int, oldest: int) -> bytes:
    """*records* (as :func:`match_stamps` takes them) with those *made*, in any order, put in by inode number.

    Where both have an inode number, and in *made* of several, the last counts. Those of *records* met before *oldest*
    are left out.
    """
    inodes, size = _index(records, digest_size)
    view = memoryview(records)
    latest = {inode: number for number, inode in enumerate(_index(made, digest_size)[0])}
    parts: list[Buffer] = []
    at = 0
    for inode, number in sorted(latest.items()):
        while at < len(inodes) and inodes[at] < inode:
            parts.append(_kept(view, at * size, size, oldest))
            at += 1
        at += at < len(inodes) and inodes[at] == inode
        parts.append(memoryview(made)[number * size : (number + 1) * size])
    parts += [_kept(view, number * size, size, oldest) for number in range(at, len(inodes))]
    return b"".join(parts)


def _index(records: Buffer, digest_size: int) -> tuple[memoryview[int], int]:
    """The inode numbers of *records*, and the size of each; none of those without form."""
    size = KNOWN_RECORD.size + digest_size
    view = memoryview(records)
    if not 0 < digest_size <= _DIGEST_MAX or digest_size % 8 or view.nbytes % size or not view.nbytes:
        return memoryview(b"").cast("Q"), size
    return view.cast("B").cast("Q")[:: size // 8], size


def _kept(view: memoryview[int], start: int, size: int, oldest: int) -> memoryview[int]:
    record = view[start : start + size]
    return record if _met(record) >= oldest else record[:0]


def _met(record: memoryview[int]) -> int:
    return int.from_bytes(record[_MET], sys.byteorder)


def _fits_record(stamp: Stamp) -> bool:
    try:
        _STAMP.pack(*stamp)
    except struct.error:
        return False
    return True
