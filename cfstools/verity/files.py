"""Digests of files, and the names digests give to objects."""

from __future__ import annotations

import os
import re
import stat
from contextlib import closing
from functools import partial
from itertools import count

from cfstools import native
from cfstools.errors import UsageError, naming, os_error
from cfstools.linux.files import close
from cfstools.progress import SILENT, Progress
from cfstools.verity.algorithm import DEFAULT, Params
from cfstools.verity.merkle import MerkleHasher
from cfstools.workers import map_ahead

READ_SIZE = 1 << 20
SEGMENT = 8 << 20
"""A large file is hashed in pieces of so many bytes."""

_DIGEST_TEXT = re.compile(r"(?:(sha256|sha512):)?([0-9A-Fa-f]*)")
_TEXT_SIZES = {64: "sha256", 128: "sha512"}


def hash_fd(
    fd: int, params: Params = DEFAULT, *, threads: int = 1, copy_fd: int = -1, progress: Progress = SILENT
) -> tuple[bytes, int]:
    """The fs-verity digest of what *fd* holds, from its start to its end, and how many bytes that was.

    A pipe is read from where it stands; elsewhere the file offset is neither used nor moved. With *threads* a large
    file is hashed on that many processors. What a file holds is also written to *copy_fd*, a new file, if given.
    ``progress`` is only advanced, in bytes: the stage belongs to the caller. Raises ``InputError`` when reading
    fails and ``CopyFailed`` when writing does.
    """
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode) and SEGMENT % params.block_size == 0:
            return _hash_file(fd, params, threads, copy_fd, progress)
        return _hash_stream(fd, params, copy_fd, progress)
    except CopyFailed:
        raise
    except OSError as error:
        raise os_error(error, "cannot read") from error


class CopyFailed(OSError):
    """Writing the copy failed, for the reason that the error number says."""


def _hash_file(fd: int, params: Params, threads: int, copy_fd: int, progress: Progress) -> tuple[bytes, int]:
    """Hash a regular file in segments, in order, some of them ahead on other processors."""
    hasher = MerkleHasher(params)
    segment = partial(_segment, fd, params, copy_fd)
    threads = min(threads, os.fstat(fd).st_size // SEGMENT + 1)
    # The first segment that is not full is the end, wherever that was when the file was opened.
    with closing(map_ahead(segment, count(0, SEGMENT), threads=threads, ahead=2, name="hash")) as segments:
        for hashes, met in segments:
            hasher.update_hashed(hashes, met)
            progress.advance(met)
            if met < SEGMENT:
                break
    return hasher.digest(), hasher.size


def _segment(fd: int, params: Params, copy_fd: int, offset: int) -> tuple[bytes, int]:
    hashes, met, unwritten = native.digest_range(
        params.algorithm.value, fd, offset, SEGMENT, params.block_size, params.salt_prefix, copy_fd
    )
    if unwritten:
        raise CopyFailed(unwritten, os.strerror(unwritten))
    return hashes, met


def _hash_stream(fd: int, params: Params, copy_fd: int, progress: Progress) -> tuple[bytes, int]:
    hasher = MerkleHasher(params)
    buffer = bytearray(READ_SIZE)
    view = memoryview(buffer)
    seekable = _is_seekable(fd)
    while True:
        got = os.preadv(fd, [buffer], hasher.size) if seekable else os.readv(fd, [buffer])
        if not got:
            return hasher.digest(), hasher.size
        if copy_fd >= 0:
            _write_all(copy_fd, view[:got])
        hasher.update(view[:got])
        progress.advance(got)


def _write_all(fd: int, data: memoryview) -> None:
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError as error:
        raise CopyFailed(error.errno, error.strerror) from error


def digest_fd(fd: int, params: Params = DEFAULT, *, threads: int = 1, progress: Progress = SILENT) -> bytes:
    """The digest alone, as :func:`hash_fd` computes it."""
    return hash_fd(fd, params, threads=threads, progress=progress)[0]


def _is_seekable(fd: int) -> bool:
    try:
        os.lseek(fd, 0, os.SEEK_CUR)
    except OSError:
        return False
    return True


def digest_file(path: bytes | str, params: Params = DEFAULT, *, threads: int = 1, progress: Progress = SILENT) -> bytes:
    """The fs-verity digest of the file at *path* (as :func:`digest_fd`); ``InputError`` names the path."""
    with naming(path):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise os_error(error, "cannot open") from error
        try:
            return digest_fd(fd, params, threads=threads, progress=progress)
        finally:
            close(fd)


def object_path(digest: bytes) -> bytes:
    """Path of an object below its store: ``b"ab/cdef…"``, lower case (composefs format, section 5.2)."""
    text = digest.hex().encode()
    return b"%b/%b" % (text[:2], text[2:])


def parse_digest(text: str) -> bytes:
    """The digest written as *text*: 64 or 128 hexadecimal digits, with or without ``sha256:`` or ``sha512:``.

    Raises ``UsageError`` for anything else.
    """
    match = _DIGEST_TEXT.fullmatch(text)
    if not match:
        raise UsageError("not a digest: hexadecimal digits expected")
    name, digits = match.groups()
    fitting = _TEXT_SIZES.get(len(digits))
    if fitting is None:
        raise UsageError(f"not a digest: {len(digits)} hexadecimal digits instead of 64 or 128")
    if name not in (None, fitting):
        raise UsageError(f"not a digest: {len(digits)} hexadecimal digits do not fit {name}")
    return bytes.fromhex(digits)
