"""Digests of files, of which large ones are hashed by several threads, and files in which digests are written down."""

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
from cfstools.errors import CfsError, InputError, SourceChanged, UsageError, naming, os_error
from cfstools.linux.contents import read_small
from cfstools.linux.files import close, data_ranges, has_changed
from cfstools.progress import SILENT, Stage
from cfstools.text import shown_path
from cfstools.threadpool import give_up_if_stopped, map_ahead
from cfstools.verity.algorithm import DEFAULT, Params
from cfstools.verity.merkle import MerkleHasher
from cfstools.verity.object_id import ObjectId

MAX_DIGEST_FILE = 1 << 20
READ_SIZE = 1 << 20
SEGMENT = 8 << 20
"""Threads hash a large file in segments of this size, in bytes."""


def hash_fd(
    fd: int, params: Params = DEFAULT, *, threads: int = 1, copy_fd: int = -1, progress: Stage = SILENT
) -> tuple[bytes, int]:
    """The fs-verity digest of all of *fd*, and its size in bytes.

    A pipe is read from its current position; for files the file offset is neither used nor moved. With *threads*, a
    large file is hashed by that many threads. The contents are also written to *copy_fd*, a new file, if given; holes
    and long runs of zeros become holes there. Holes that the file system reports are not read. ``progress`` is advanced
    in bytes and not finished. Raises InputError if reading fails, CopyFailed if writing fails, and SourceChanged if the
    size or mtime changed meanwhile, unless there is a copy (then the digest is that of the copy).
    """
    try:
        before = os.fstat(fd)
        is_regular = stat.S_ISREG(before.st_mode)
        if not is_regular or SEGMENT % params.block_size:
            found = _hash_stream(fd, params, copy_fd, progress)
        else:
            found = _hash_file(fd, params, threads, copy_fd, progress)
        # Not the ctime: it also changes when an object is linked under another name.
        changed = is_regular and copy_fd < 0 and has_changed(fd, before, status=False)
    except CopyFailed:
        raise
    except OSError as error:
        raise os_error(error, "cannot read") from error
    if changed:
        raise SourceChanged("changed while it was read")
    return found


class CopyFailed(OSError):
    """Writing the copy failed; ``errno`` says why."""


class _Piece(NamedTuple):
    """A part of a file: whole blocks, except the last part."""

    offset: int
    size: int
    is_hole: bool


def _pieces(fd: int, size: int, block_size: int) -> Iterator[_Piece]:
    """Yield the pieces of a file of *size* bytes, then further ones without end: the caller stops at the end of file.

    The file may have grown. Only whole blocks without data count as a hole.
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
    for offset in count(at, SEGMENT):  # pragma: no branch - the caller stops at the end of file
        yield _Piece(offset, SEGMENT, is_hole=False)


def _hash_file(fd: int, params: Params, threads: int, copy_fd: int, progress: Stage) -> tuple[bytes, int]:
    hasher = MerkleHasher(params)
    for hashes, met in hashed_pieces(fd, params, threads=threads, copy_fd=copy_fd):
        if hashes is None:
            hasher.update_zeros(met)
        else:
            hasher.update_hashed(hashes, met)
        progress.advance(met)
        give_up_if_stopped()
    if copy_fd >= 0:
        _set_size(copy_fd, hasher.size)
    return hasher.digest(), hasher.size


def hashed_pieces(
    fd: int, params: Params, *, threads: int = 1, copy_fd: int = -1
) -> Iterator[tuple[bytes | None, int]]:
    """The pieces of the regular file *fd* from front to back: the hashes of their blocks, and their lengths in bytes.

    Only the last piece may end inside a block. A hole has ``None`` instead of hashes. Pieces are hashed ahead by
    *threads*, and also written to *copy_fd*, unless that is -1. Raises as :func:`hash_fd`, and OSError.
    """
    segment = partial(_segment, fd, params, copy_fd)
    size = os.fstat(fd).st_size
    threads = min(threads, size // SEGMENT + 1)
    pieces = _pieces(fd, size, params.block_size)
    # The first piece that is not full ends the file, which may have another size by now.
    with closing(map_ahead(segment, pieces, threads=threads, ahead=2, name="hash")) as segments:
        for piece, hashes, met in segments:
            yield None if piece.is_hole else hashes, met
            if met < piece.size:
                break


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
    """Extend a copy that ends with a hole to its full size."""
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
        fd = -1
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            before = os.fstat(fd)
            digest, _size = hash_fd(fd, params, threads=threads, progress=progress)
            if stat.S_ISREG(before.st_mode) and has_changed(fd, before):
                raise SourceChanged("changed while it was read")
            return digest
        except OSError as error:
            raise os_error(error, "cannot open" if fd < 0 else "cannot read") from error
        finally:
            if fd >= 0:
                close(fd)


def read_digest_file(path: bytes, image: bytes) -> ObjectId:
    """The fs-verity digest of *image* that the text file *path* holds.

    Each line is a digest, with or without ``sha256:`` or ``sha512:`` before it and the name of a file behind it, as
    ``fsverity digest`` prints it. Of several lines the one for a file named like *image* counts. Raises InputError if
    there is not exactly one.
    """
    with naming(path):
        data = read_small(path, MAX_DIGEST_FILE + 1)
        if len(data) > MAX_DIGEST_FILE:
            raise InputError(f"is too large for a file of digests: at most {MAX_DIGEST_FILE} bytes")
        lines = [line.strip() for line in data.splitlines() if line.strip()]
        if len(lines) > 1:
            wanted = os.path.basename(image)
            lines = [line for line in lines if _file_name(line) == wanted]
        if not lines:
            raise InputError(f"has no line for {shown_path(os.path.basename(image))}")
        found = {_object_id(line) for line in lines}
        if len(found) > 1:
            raise InputError(f"has several digests for {shown_path(os.path.basename(image))}")
        return found.pop()


def _file_name(line: bytes) -> bytes:
    _, _, name = line.partition(b" ")
    return os.path.basename(name.strip().removeprefix(b"*"))


def _object_id(line: bytes) -> ObjectId:
    try:
        return ObjectId.parse(line.partition(b" ")[0].decode("ascii", "replace"))
    except UsageError as error:
        raise InputError(error.what) from None
