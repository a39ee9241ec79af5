"""Cached bytes under keys of 32 bytes, each in a file of the user's cache directory.

The rules are those of the digest cache (docs/store.md, "The digest cache"): directory and files belong to this user,
and nobody else may write to them. A damaged or planted file is a cache miss. Nothing here blocks or raises.
"""

from __future__ import annotations

import os
import re
import struct
import time
import zlib
from contextlib import suppress

from cfstools.lifetime import Closable
from cfstools.linux.files import close, write_all
from cfstools.store.cache import files

MAX_FILE = 64 << 20
MAX_BYTES = 512 << 20
MAX_FILES = 4096
_MAGIC = b"cfslayr1"
_HEADER = struct.Struct("<8sI32s")
_NAME = re.compile(rb"layer-[0-9a-f]{64}")
_TEMPORARY = re.compile(rb"\.layer-[0-9a-f]{16}")
_TEMPORARY_NS = 3600 * 10**9
_MAX_NAMES = 20_000


class RememberedBlobs(Closable):
    """A cache in *directory*; several threads and processes may use it at once."""

    def __init__(self, directory: bytes) -> None:
        self._fd: int | None = None
        with suppress(OSError):
            self._fd = files.open_directory(directory)

    def find(self, key: bytes) -> bytes | None:
        """The bytes stored under *key*; ``None`` on a cache miss."""
        if self._fd is None:
            return None
        try:
            data = files.read_own(self._fd, _name(key), _HEADER.size, _HEADER.size + MAX_FILE)
        except OSError:
            return None
        if data is None:
            return None
        magic, checksum, stored = _HEADER.unpack_from(data)
        body = data[_HEADER.size :]
        if magic != _MAGIC or stored != key or checksum != zlib.crc32(body, zlib.crc32(key)):
            return None
        with suppress(OSError):
            os.utime(_name(key), dir_fd=self._fd, follow_symlinks=False)  # eviction is by time of last use
        return body

    def keep(self, key: bytes, body: bytes) -> None:
        """Store *body* under *key*, unless it is larger than ``MAX_FILE``."""
        if self._fd is None or len(body) > MAX_FILE:
            return
        header = _HEADER.pack(_MAGIC, zlib.crc32(body, zlib.crc32(key)), key)
        temporary = b".layer-" + os.urandom(8).hex().encode()
        try:
            self._tidy(len(header) + len(body))
            fd = os.open(temporary, files.WRITE, 0o600, dir_fd=self._fd)
            try:
                write_all(fd, header)
                write_all(fd, body)
            finally:
                os.close(fd)
            os.rename(temporary, _name(key), src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except OSError:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=self._fd)

    def close(self) -> None:
        """Close the directory."""
        if self._fd is not None:
            close(self._fd)
            self._fd = None

    def _tidy(self, size: int) -> None:
        """Remove stale temporaries, then the least recently used files until *size* more bytes fit."""
        assert self._fd is not None
        now = time.time_ns()
        kept: list[tuple[int, int, bytes]] = []
        for name in map(os.fsencode, os.listdir(self._fd)[:_MAX_NAMES]):
            is_temporary = _TEMPORARY.fullmatch(name) is not None
            if not is_temporary and not _NAME.fullmatch(name):
                continue  # what else is there is none of ours
            with suppress(OSError):
                status = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
                if not is_temporary:
                    kept.append((status.st_mtime_ns, status.st_size, name))
                elif now - status.st_mtime_ns > _TEMPORARY_NS:
                    os.unlink(name, dir_fd=self._fd)
        files.evict(self._fd, kept, size, MAX_BYTES, MAX_FILES)


def _name(key: bytes) -> bytes:
    return b"layer-" + key.hex().encode()
