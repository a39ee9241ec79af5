"""Lookups instead of reading: objects in a store, and files in the records of a digest cache."""

from __future__ import annotations

import os
import re
import stat
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

_DIGEST_MAX = 64
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_HEX = re.compile(rb"(?:[0-9a-f]{2})+")

# A known file: inode, size, mtime and ctime in nanoseconds, when it was seen, in any unit, and for whom it has no
# extended attributes (0: not known); its digest follows.
KNOWN_RECORD = struct.Struct("=QqqqII")
_SEEN = slice(32, 36)


def find_object(store_fd: int, prefixes: Buffer, digest: bytes, size: int) -> int:
    """1: the object is there, 0: it is not, -1: something else is there, or an error."""
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


def find_objects(  # noqa: PLR0917 - called as the C copy is, by position
    prefixes: Buffer, digests: Buffer, ends: Buffer, first: int, end: int, length: int
) -> bytes:
    """A byte for each object from *first* up to *end*: 1 if it is a regular file of its size, else 0.

    Nothing is read. The objects are those of ``check_objects``, with digests of *length* bytes. An object that is
    below a directory that is not open gets 0 as well.
    """
    directories = memoryview(prefixes).cast("B").cast("i")
    sums = memoryview(ends).cast("B").cast("Q")
    packed = memoryview(digests).cast("B")
    if len(directories) != 256:
        raise ValueError("there must be 256 prefixes")
    if not 2 <= length <= _DIGEST_MAX or packed.nbytes // length != len(sums) or not 0 <= first <= end <= len(sums):
        raise ValueError("there are no such objects")
    found = bytearray(end - first)
    for number in range(first, end):
        digest = bytes(packed[number * length : (number + 1) * length])
        size = sums[number] - (sums[number - 1] if number else 0)
        if directories[digest[0]] >= 0:
            found[number - first] = find_object(-1, prefixes, digest, size) == 1
    return bytes(found)


def list_objects(directory: int, prefix: int, sizes: bytes, columns: int) -> tuple[list[bytes], bytes, list[bytes]]:
    """The objects below *directory*, which is that of digests whose first byte is *prefix*, and all other names.

    The first value has their digests, the last one the other names, both in byte order. In between are numbers of eight
    bytes: the sizes of all objects, then their blocks of 512 bytes, then their ctimes in nanoseconds; without *columns*
    (0 instead of 3) none of them, and most files are not looked at. Objects are regular files whose names are the rest
    of a digest, of one of *sizes* bytes. What vanishes meanwhile is left out. Raises ``OSError`` when the directory
    cannot be listed.
    """
    digests: list[bytes] = []
    numbers: list[tuple[int, int, int]] = []
    others: list[bytes] = []
    own = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        for name in sorted(map(os.fsencode, os.listdir(own))):
            rest = bytes.fromhex(name.decode()) if _HEX.fullmatch(name) else b""
            try:
                status = os.stat(name, dir_fd=own, follow_symlinks=False) if rest and len(rest) + 1 in sizes else None
            except FileNotFoundError:
                continue
            except OSError:
                status = None
            if status is not None and stat.S_ISREG(status.st_mode):
                digests.append(bytes([prefix]) + rest)
                numbers.append((status.st_size, status.st_blocks, status.st_ctime_ns))
            else:
                others.append(name)
    finally:
        os.close(own)
    told = [number for column in zip(*numbers, strict=True) for number in column] if columns else []
    return digests, struct.pack(f"={len(told)}q", *told), others


def merge_records(records: Buffer, made: Buffer, digest_size: int, oldest: int) -> bytes:
    """Merge the new records *made*, in any order, into *records*.

    A record is a ``KNOWN_RECORD`` and a digest of a multiple of 8 bytes. Records lie back to back, sorted by inode
    number; anything else counts as no records. Of several records with one inode number the last counts, and new ones
    before old ones. Old ones that were seen before *oldest* are dropped.
    """
    inodes, size = index_records(records, digest_size)
    view = memoryview(records)
    latest = {inode: number for number, inode in enumerate(index_records(made, digest_size)[0])}
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


def index_records(records: Buffer, digest_size: int) -> tuple[memoryview[int], int]:
    """The inode numbers of *records*, none if they are malformed, and the size of a record."""
    size = KNOWN_RECORD.size + digest_size
    view = memoryview(records)
    if not 0 < digest_size <= _DIGEST_MAX or digest_size % 8 or view.nbytes % size or not view.nbytes:
        return memoryview(b"").cast("Q"), size
    return view.cast("B").cast("Q")[:: size // 8], size


def _kept(view: memoryview[int], start: int, size: int, oldest: int) -> memoryview[int]:
    record = view[start : start + size]
    return record if _seen(record) >= oldest else record[:0]


def _seen(record: memoryview[int]) -> int:
    return int.from_bytes(record[_SEEN], sys.byteorder)
