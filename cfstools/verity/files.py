"""Digests of files."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from itertools import count
from typing import NamedTuple

from cfstools import native
from cfstools.errors import CfsError, SourceChanged, naming, os_error
from cfstools.linux.files import close, data_ranges, state_of
from cfstools.progress import SILENT, Stage
from cfstools.verity.algorithm import DEFAULT, Params
from cfstools.verity.merkle import MerkleHasher
from cfstools.workers import give_up_if_stopped, map_ahead

READ_SIZE = 1 << 20
SEGMENT = 8 << 20
"""A large file is hashed in pieces of so many bytes."""


def hash_fd(
    fd: int, params: Params = DEFAULT, *, threads: int = 1, copy_fd: int = -1, progress: Stage = SILENT
) -> tuple[bytes, int]:
    """The fs-verity digest of what *fd* holds, from its start to its end, and how many bytes that was.

    A pipe is read from where it stands; elsewhere the file offset is neither used nor moved. With *threads* a large
    file is hashed on that many processors. What a file holds is also written to *copy_fd*, a new file, if given;
    holes and long runs of zeros become holes there. Holes that the file system tells of are not read.
    ``progress`` is only advanced, in bytes: the stage belongs to the caller. Raises ``InputError`` when reading
    fails, ``SourceChanged`` when a file got another size or mtime meanwhile, unless it is copied (the digest then is
    that of the copy), and ``CopyFailed`` when writing does.
    """
    try:
        is_regular = stat.S_ISREG(os.fstat(fd).st_mode)
        before = state_of(fd)
        if not is_regular or SEGMENT % params.block_size:
            found = _hash_stream(fd, params, copy_fd, progress)
        else:
            found = _hash_file(fd, params, threads, copy_fd, progress)
        after = state_of(fd)
    except CopyFailed:
        raise
    except OSError as error:
        raise os_error(error, "cannot read") from error
    # The ctime changes as well when an object gets another name.
    if is_regular and copy_fd < 0 and before[:2] != after[:2]:
        raise SourceChanged("changed while it was read")
    return found


class CopyFailed(OSError):
    """Writing the copy failed, for the reason that the error number says."""


class _Piece(NamedTuple):
    """A part of a file: whole blocks, but for the last part of the file."""

    offset: int
    size: int
    is_hole: bool


def _pieces(fd: int, size: int, block_size: int) -> Iterator[_Piece]:
    """A file of *size* bytes in pieces, in order, and then more in case that it is longer: whoever asks meets the end.

    Only where there are whole blocks without data there is a hole.
    """
    at = 0
    for start, end in data_ranges(fd, size):
        first, last = start - start % block_size, -(-end // block_size) * block_size
        if first > at:
            yield _Piece(at, first - at, is_hole=True)
            at = first
        for offset in range(at, last, SEGMENT):
            yield _Piece(offset, min(SEGMENT, last - offset), is_hole=False)
        at = last
    whole = size - size % block_size
    if at < whole:
        yield _Piece(at, whole - at, is_hole=True)
        at = whole
    for offset in count(at, SEGMENT):  # pragma: no branch - whoever asks meets the end
        yield _Piece(offset, SEGMENT, is_hole=False)


def _hash_file(fd: int, params: Params, threads: int, copy_fd: int, progress: Stage) -> tuple[bytes, int]:
    """Hash a regular file in segments, in order, some of them ahead on other processors."""
    hasher = MerkleHasher(params)
    segment = partial(_segment, fd, params, copy_fd)
    size = os.fstat(fd).st_size
    threads = min(threads, size // SEGMENT + 1)
    pieces = _pieces(fd, size, params.block_size)
    # The first piece that is not full is the end, wherever that was when the file was opened.
    with closing(map_ahead(segment, pieces, threads=threads, ahead=2, name="hash")) as segments:
        for piece, hashes, met in segments:
            if piece.is_hole:
                hasher.update_zeros(met)
            else:
                hasher.update_hashed(hashes, met)
            progress.advance(met)
            give_up_if_stopped()
            if met < piece.size:
                break
    if copy_fd >= 0:
        _set_size(copy_fd, hasher.size)
    return hasher.digest(), hasher.size


def _segment(fd: int, params: Params, copy_fd: int, piece: _Piece) -> tuple[_Piece, bytes, int]:
    if piece.is_hole:
        return piece, b"", piece.size
    hashes, met, unread, unwritten = native.digest_range(
        params.algorithm.value, fd, piece.offset, piece.size, params.block_size, params.salt_prefix, copy_fd
    )
    if unread:
        raise _unreadable(OSError(unread, os.strerror(unread)), piece.offset + met)
    if unwritten:
        raise CopyFailed(unwritten, os.strerror(unwritten))
    return piece, hashes, met


def _unreadable(error: OSError, offset: int) -> CfsError:
    where = None if error.errno == errno.EISDIR else f"offset {offset}"
    return os_error(error, "cannot read", where=where)


def _hash_stream(fd: int, params: Params, copy_fd: int, progress: Stage) -> tuple[bytes, int]:
    hasher = MerkleHasher(params)
    buffer = bytearray(READ_SIZE)
    view = memoryview(buffer)
    seekable = _is_seekable(fd)
    while True:
        try:
            got = os.preadv(fd, [buffer], hasher.size) if seekable else os.readv(fd, [buffer])
        except OSError as error:
            raise _unreadable(error, hasher.size) from error
        if not got:
            break
        if copy_fd >= 0:
            _copy(copy_fd, view[:got], hasher.size)
        hasher.update(view[:got])
        progress.advance(got)
        give_up_if_stopped()
    if copy_fd >= 0:
        _set_size(copy_fd, hasher.size)
    return hasher.digest(), hasher.size


def _copy(fd: int, data: memoryview, offset: int) -> None:
    try:
        native.write_sparse(fd, data, offset)
    except OSError as error:
        raise CopyFailed(error.errno, error.strerror) from error


def _set_size(fd: int, size: int) -> None:
    """Let a copy that ends with a hole be as long as it should."""
    try:
        if os.fstat(fd).st_size < size:
            os.ftruncate(fd, size)
    except OSError as error:
        raise CopyFailed(error.errno, error.strerror) from error


def _is_seekable(fd: int) -> bool:
    try:
        os.lseek(fd, 0, os.SEEK_CUR)
    except OSError:
        return False
    return True


def digest_file(path: bytes | str, params: Params = DEFAULT, *, threads: int = 1, progress: Stage = SILENT) -> bytes:
    """The fs-verity digest of the file at *path* (as :func:`hash_fd`); ``InputError`` names the path.

    It is that of one state of the file: if that changes while it is read, also its status only, that is
    ``SourceChanged``.
    """
    with naming(path):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise os_error(error, "cannot open") from error
        try:
            before = state_of(fd)
            digest, _size = hash_fd(fd, params, threads=threads, progress=progress)
            if stat.S_ISREG(os.fstat(fd).st_mode) and state_of(fd) != before:
                raise SourceChanged("changed while it was read")
        except OSError as error:
            raise os_error(error, "cannot read") from error
        else:
            return digest
        finally:
            close(fd)
