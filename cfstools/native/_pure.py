"""The hot loops in Python: what the functions do, and what runs without the extension."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from cfstools.native import _known, _names
from cfstools.native._known import find_object

if TYPE_CHECKING:
    import hashlib

    from typing_extensions import Buffer

# device, inode, size, mtime in nanoseconds, ctime in nanoseconds
Stamp = tuple[int, int, int, int, int]
# contents of a small file; (digest, size, place in the arena or -1: the store has it); None: left to the caller
Digested = bytes | tuple[bytes, int, int] | None

find_objects = _known.find_objects
list_objects = _known.list_objects
merge_records = _known.merge_records
stat_names = _names.stat_names

_HOLE = 65536
_ZEROS = bytes(_HOLE)
_PATH_MAX = 4096
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_PIECE = 1 << 18
_MOMENT = 0.05  # seconds between two looks for signals
_TOGETHER = 256  # objects that are checked at least


def _hasher(algorithm: str, data: bytes = b"") -> hashlib._Hash:
    import hashlib  # noqa: PLC0415 - it loads the system's library, which the C copy does without

    return hashlib.new(algorithm, data)


def _close(fd: int) -> None:
    """Close *fd* and ignore errors, as the C copy does: no file that is kept was written through it."""
    with suppress(OSError):
        os.close(fd)


def hash_blocks(algorithm: str, data: Buffer, block_size: int, salt_prefix: bytes) -> bytes:
    """Digests of each *block_size* block of *data*, one after another; the last block is zero padded.

    ``salt_prefix`` (already padded, or empty) is hashed before each block. No data gives no digest. Raises
    ``BufferError`` if ``data`` is not contiguous.
    """
    view = memoryview(data)
    if not view.c_contiguous:
        raise BufferError("data to hash is not contiguous")
    if not view.nbytes:
        return b""
    if view.format != "B" or view.ndim != 1:
        view = view.cast("B")
    start = _hasher(algorithm, salt_prefix).copy
    whole = len(view) // block_size * block_size
    digests = []
    for offset in range(0, whole, block_size):
        block = start()
        block.update(view[offset : offset + block_size])
        digests.append(block.digest())
    if whole < len(view):
        block = start()
        block.update(view[whole:])
        missing = block_size - (len(view) - whole)
        while missing > 0:
            block.update(_ZEROS[:missing])
            missing -= len(_ZEROS)
        digests.append(block.digest())
    return b"".join(digests)


def digest_files(  # noqa: PLR0917 - called as the C copy is, by position
    root_fd: int,
    files: Sequence[tuple[bytes, Stamp | None]],
    arena: Buffer,
    algorithm: str,
    block_size: int,
    salt_prefix: bytes,
    descriptor: bytes,
    inline_limit: int,
    store_fd: int,
    prefixes: Buffer,
) -> list[Digested]:
    """Read *files* below *root_fd* one after another into the writable *arena* and compute their fs-verity digests.

    A file is its path and the stamp it must have before and after reading, or ``None``. The result for each: its
    contents if they are no longer than *inline_limit*; else digest, size and the place of the contents in the arena, or
    -1 if the store (*store_fd*, -1: none) has an object of this digest and size; ``None`` if the caller must read the
    file: errors, symbolic links in the path, another stamp, an empty file, a full arena, an object of another size.
    *descriptor* is that of an empty file without a root hash; *prefixes* are 256 ints: descriptors of the store's
    directories, -1 for those that are not open.
    """
    view = memoryview(arena).cast("B")
    used = 0
    results: list[Digested] = []
    for path, stamp in files:
        data = _read_file(root_fd, path, stamp, len(view) - used, block_size)
        if data is None:
            results.append(None)
        elif len(data) <= inline_limit:
            results.append(data)
        else:
            view[used : used + len(data)] = data
            digest = _file_digest(algorithm, data, block_size, salt_prefix, descriptor)
            there = find_object(store_fd, prefixes, digest, len(data)) if store_fd >= 0 else 0
            results.append(None if there < 0 else (digest, len(data), -1 if there else used))
            used += _padded(len(data), block_size)
    return results


def digest_spans(  # noqa: PLR0917 - likewise
    arena: Buffer,
    spans: Sequence[tuple[int, int]],
    algorithm: str,
    block_size: int,
    salt_prefix: bytes,
    descriptor: bytes,
    store_fd: int,
    prefixes: Buffer,
) -> list[Digested]:
    """The fs-verity digests of contents that lie in *arena*, in the form of :func:`digest_files`.

    A span is offset and size; each begins with a block, and zeros follow it up to the end of its last block.
    """
    view = memoryview(arena).cast("B")
    for offset, size in spans:
        if offset < 0 or size <= 0 or offset % block_size or offset + _padded(size, block_size) > len(view):
            raise ValueError("a span is empty, is outside of the arena, or does not begin with a block")
    results: list[Digested] = []
    for offset, size in spans:
        digest = _file_digest(algorithm, view[offset : offset + size], block_size, salt_prefix, descriptor)
        there = find_object(store_fd, prefixes, digest, size) if store_fd >= 0 else 0
        results.append(None if there < 0 else (digest, size, -1 if there else offset))
    return results


def _padded(size: int, block_size: int) -> int:
    return -(-size // block_size) * block_size


def _read_file(root_fd: int, path: bytes, stamp: Stamp | None, room: int, block_size: int) -> bytes | None:
    """The contents of a file that has its *stamp*, is not empty and fits *room*; ``None`` otherwise."""
    try:
        fd = _open_below(root_fd, path)
    except (OSError, ValueError):
        return None
    try:
        before = os.fstat(fd)
        found = _stamp_of(before)
        if not stat.S_ISREG(before.st_mode) or (stamp is not None and found != tuple(stamp)):
            return None
        if not before.st_size or _padded(before.st_size, block_size) >= room:
            return None
        data = os.pread(fd, before.st_size + 1, 0)
        if len(data) != before.st_size or _stamp_of(os.fstat(fd)) != found:
            return None
    except OSError:
        return None
    else:
        return data
    finally:
        _close(fd)


def _read_object(directory: int, name: bytes, size: int) -> bytes | None:
    """At most one byte more than *size*; ``None`` for what cannot be read."""
    try:
        fd = os.open(name, _FILE, dir_fd=directory)
    except OSError:
        return None
    try:
        return os.pread(fd, size + 1, 0)
    except OSError:
        return None
    finally:
        _close(fd)


def _stamp_of(status: os.stat_result) -> Stamp:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _open_below(root_fd: int, path: bytes) -> int:
    """Open *path* without following any link, one name after another."""
    *parents, name = path.split(b"/")
    if len(path) >= _PATH_MAX or not name or b".." in parents or b"" in parents:
        raise OSError(errno.EXDEV, "not a plain relative path")
    here = root_fd
    try:
        for parent in parents:
            there = os.open(parent, _DIRECTORY, dir_fd=here)
            if here != root_fd:
                _close(here)
            here = there
        return os.open(name, _FILE, dir_fd=here)
    finally:
        if here != root_fd:
            _close(here)


def _file_digest(algorithm: str, data: Buffer, block_size: int, salt_prefix: bytes, descriptor: bytes) -> bytes:
    size = memoryview(data).nbytes
    root = hash_blocks(algorithm, data, block_size, salt_prefix)
    length = _hasher(algorithm).digest_size
    while len(root) > length:
        root = hash_blocks(algorithm, root, block_size, salt_prefix)
    text = descriptor[:8] + size.to_bytes(8, "little") + root + descriptor[16 + length :]
    return _hasher(algorithm, text).digest()


def digest_range(  # noqa: PLR0917 - likewise
    algorithm: str, fd: int, offset: int, length: int, block_size: int, salt_prefix: bytes, copy_fd: int
) -> tuple[bytes, int, int, int]:
    """Digests of the blocks in *length* bytes of *fd* from *offset* on, the number of bytes read, and two zeros.

    The last block is zero padded. Unless *copy_fd* is -1, the bytes are also written to the same place of that file, as
    by :func:`write_sparse`. After an error in reading the third value is its number, the second is its place, and there
    are no digests; after an error in writing the fourth value is its number.
    """
    piece = max(_PIECE, block_size)
    digests = []
    done = 0
    while done < length:
        wanted = min(piece, length - done)
        data, unread = _read_piece(fd, wanted, offset + done)
        if unread:
            return b"", done + len(data), unread, 0
        if not data:
            break
        digests.append(hash_blocks(algorithm, data, block_size, salt_prefix))
        if copy_fd >= 0:
            try:
                write_sparse(copy_fd, data, offset + done)
            except OSError as error:
                return b"".join(digests[:-1]), done, 0, error.errno or errno.EIO
        done += len(data)
        if len(data) < wanted:
            break
    return b"".join(digests), done, 0, 0


def _read_piece(fd: int, size: int, offset: int) -> tuple[bytes, int]:
    """Read *size* bytes, fewer at the end of the file or after an error, whose number is the second value."""
    data = b""
    try:
        while len(data) < size and (more := os.pread(fd, size - len(data), offset + len(data))):
            data = data + more if data else more
    except OSError as error:
        return data, error.errno or errno.EIO
    return data, 0


def write_sparse(fd: int, data: Buffer, offset: int) -> bool:
    """Write *data* to this place of a new file, where nothing was written yet.

    Zeros that fill a unit of 64 KiB of the file are not written, so that they become a hole. Returns whether *data*
    ends with such a hole: then the file may be too short.
    """
    view = memoryview(data).cast("B")
    written = at = 0  # written, or left out
    while at < len(view):
        end = min(len(view), at + _HOLE - (offset + at) % _HOLE)
        if view[at] == 0 and view[at:end] == _ZEROS[: end - at]:
            _write_all(fd, view[written:at], offset + written)
            written = end
        at = end
    _write_all(fd, view[written:], offset + written)
    return 0 < written == len(view)


def _write_all(fd: int, view: memoryview, offset: int) -> None:
    while view:
        done = os.pwrite(fd, view, offset)
        view = view[done:]
        offset += done


def check_objects(  # noqa: PLR0917 - likewise
    prefixes: Buffer,
    digests: Buffer,
    ends: Buffer,
    first: int,
    end: int,
    arena: Buffer,
    algorithm: str,
    block_size: int,
    salt_prefix: bytes,
    descriptor: bytes,
) -> bytes:
    """A byte for each object from *first* on: 1 if contents of its size and digest can be read, else 0.

    Returns after a moment and some hundred objects, so that the caller can look whether to go on to *end*. *digests*
    lie back to back; *ends* are unsigned numbers of eight bytes, the total size of the objects up to and including
    each. *prefixes* are the descriptors of a store's directories. An object that is below a directory that is not open,
    is empty, or does not fit a quarter of the writable *arena* gets 0 as well.
    """
    directories = memoryview(prefixes).cast("B").cast("i")
    sums = memoryview(ends).cast("B").cast("Q")
    length = _hasher(algorithm).digest_size
    limit = memoryview(arena).nbytes // 4
    if len(descriptor) != 256 or len(directories) != 256 or block_size <= 0:
        raise ValueError("descriptor, prefixes or block size of a wrong size")
    if memoryview(digests).nbytes // length != len(sums) or not 0 <= first <= end <= len(sums):
        raise ValueError("there are no such objects")
    found = bytearray()
    until = time.monotonic() + _MOMENT
    for number in range(first, end):
        digest = bytes(memoryview(digests).cast("B")[number * length : (number + 1) * length])
        size = sums[number] - (sums[number - 1] if number else 0)
        directory = directories[digest[0]]
        is_right = False
        if directory >= 0 and 0 < size <= limit:
            data = _read_object(directory, digest.hex().encode()[2:], size)
            if data is not None and len(data) == size:
                actual = _file_digest(algorithm, data, block_size, salt_prefix, descriptor)
                is_right = actual == digest
        found.append(is_right)
        if len(found) >= _TOGETHER and time.monotonic() > until:
            break
    return bytes(found)


def write_files(directory: int, arena: Buffer, spans: Sequence[tuple[int, int]], mode: int, number: int) -> list[int]:
    """Write these spans (offset, size) of *arena* to new files in *directory*, and return their descriptors.

    The files have no names or, if *number* is not negative, are named by numbers from it on. Stops at an error and
    returns fewer descriptors: the caller repeats that file, and reports the error.
    """
    view = memoryview(arena).cast("B")
    if any(not 0 <= offset <= len(view) or not 0 <= size <= len(view) - offset for offset, size in spans):
        raise ValueError("a span is outside of the arena")
    fds: list[int] = []
    for offset, size in spans:
        name, flags = b".", os.O_TMPFILE
        if number >= 0:
            name, flags = b"%d" % (number + len(fds)), os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            fd = os.open(name, flags | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=directory)
        except OSError:
            break
        try:
            if write_sparse(fd, view[offset : offset + size], 0):
                os.ftruncate(fd, size)
        except OSError:
            _close(fd)
            if number >= 0:
                with suppress(OSError):
                    os.unlink(name, dir_fd=directory)
            break
        fds.append(fd)
    return fds


def link_files(links: Sequence[tuple[int, int, bytes]]) -> list[int]:
    """Link files without names (descriptor, directory, name); 0 or the error number for each.

    Raises ``ValueError`` for a name with a NUL byte, and links no file then.
    """
    if any(b"\0" in name for _, _, name in links):
        raise ValueError("embedded null byte")
    errors = []
    for fd, directory, name in links:
        try:
            os.link(b"/proc/self/fd/%d" % fd, name, dst_dir_fd=directory, follow_symlinks=True)
        except OSError as error:
            errors.append(error.errno or errno.EIO)
        else:
            errors.append(0)
    return errors
