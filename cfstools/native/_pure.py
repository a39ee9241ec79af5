"""The hot loops in Python: what they mean, and what runs where the C copy was not built."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from cfstools.native import _known, _names, _trees
from cfstools.native._known import find_object

if TYPE_CHECKING:
    import hashlib

    from typing_extensions import Buffer

# device, inode, size, mtime in nanoseconds, ctime in nanoseconds
Stamp = tuple[int, int, int, int, int]
# contents of a small file; or digest, size and place in the arena (-1: the store has it); or nothing
Digested = bytes | tuple[bytes, int, int] | None

encode_tree = _trees.encode_tree
parse_lines = _trees.parse_lines
read_tree = _trees.read_tree
print_entries = _trees.print_entries
needed_objects = _trees.needed_objects
list_names = _names.list_names
stat_names = _names.stat_names
take_entries = _names.take_entries
match_stamps = _known.match_stamps
merge_records = _known.merge_records

_HOLE = 65536
_ZEROS = bytes(_HOLE)
_PATH_MAX = 4096
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_PIECE = 1 << 18


def _hasher(algorithm: str, data: bytes = b"") -> hashlib._Hash:
    import hashlib  # noqa: PLC0415 - it loads the system's library, which the C copy does without

    return hashlib.new(algorithm, data)


def _close(fd: int) -> None:
    """Close *fd*, whatever the kernel says, as the C copy does; nothing that was written is closed here and kept."""
    with suppress(OSError):
        os.close(fd)


def hash_blocks(algorithm: str, data: Buffer, block_size: int, salt_prefix: bytes) -> bytes:
    """Digests of each *block_size* block of *data*, one after another; the last block is zero padded.

    ``salt_prefix`` (already padded, or empty) goes before each block. No data gives no digest. ``data`` must be
    contiguous, else ``BufferError``.
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

    A file is its path and the stamp it must have before and after it was read, or ``None``. The result for each:
    its contents if they are no longer than *inline_limit*; else digest, size and where in the arena the contents
    lie, or -1 if the store (*store_fd*, -1: none) has an object of this digest and size; ``None`` for what cannot
    be done here, whatever the reason: symbolic links on the way, other stamps, empty files, no room left in the
    arena, an object of another size. *descriptor* is that of an empty file without a root hash, *prefixes* are 256
    ints: descriptors of the directories of the store that are open already, else -1.
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


def give_contents(
    files: list[Any], digested: list[Digested | Any], kinds: tuple[type, ...]
) -> tuple[int, int, int, int, int]:
    """Make what :func:`digest_files` gave the ``content`` of *files*, with an ``External`` of *kinds* for each digest.

    Where it gave nothing a file is left as it is; contents of any other kind are taken as they are. Returns how many
    files lie outside of the image and their bytes, how many inside and their bytes, and how many are empty.
    """
    external = kinds[7]
    outside = outside_bytes = inside = inside_bytes = empty = 0
    for file, one in zip(files, digested, strict=True):
        if one is None:
            continue
        size = file.size
        if isinstance(one, bytes):
            inside += size != 0
            inside_bytes += size
            empty += size == 0
        else:
            outside += 1
            outside_bytes += size
        file.content = external(one[0], _object_path(one[0])) if isinstance(one, tuple) else one
    return outside, outside_bytes, inside, inside_bytes, empty


def _object_path(digest: bytes) -> bytes:
    name = digest.hex().encode()
    return b"%b/%b" % (name[:2], name[2:])


def _padded(size: int, block_size: int) -> int:
    return -(-size // block_size) * block_size


def _read_file(root_fd: int, path: bytes, stamp: Stamp | None, room: int, block_size: int) -> bytes | None:
    """The contents of a file that is what it should be, not empty, and fits."""
    try:
        fd = _open_below(root_fd, path)
    except (OSError, ValueError):
        return None
    try:
        before = os.fstat(fd)
        met = _stamp_of(before)
        if not stat.S_ISREG(before.st_mode) or (stamp is not None and met != tuple(stamp)):
            return None
        if not before.st_size or _padded(before.st_size, block_size) >= room:
            return None
        data = os.pread(fd, before.st_size + 1, 0)
        if len(data) != before.st_size or _stamp_of(os.fstat(fd)) != met:
            return None
    except OSError:
        return None
    else:
        return data
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
    """Digests of the blocks in *length* bytes of *fd* from *offset* on, how many bytes there were, and two zeros.

    The last block is zero padded. What is read is also written to the same place of *copy_fd*, as by
    :func:`write_sparse`, unless that is -1. An error ends the work: the third value is its number if reading failed,
    and then there are no digests, and the second tells where it did; the fourth is its number if writing failed.
    """
    piece = max(_PIECE, block_size)
    digests = []
    met = 0
    while met < length:
        wanted = min(piece, length - met)
        data, unread = _read_piece(fd, wanted, offset + met)
        if unread:
            return b"", met + len(data), unread, 0
        if not data:
            break
        digests.append(hash_blocks(algorithm, data, block_size, salt_prefix))
        if copy_fd >= 0:
            try:
                write_sparse(copy_fd, data, offset + met)
            except OSError as error:
                return b"".join(digests[:-1]), met, 0, error.errno or errno.EIO
        met += len(data)
        if len(data) < wanted:
            break
    return b"".join(digests), met, 0, 0


def _read_piece(fd: int, size: int, offset: int) -> tuple[bytes, int]:
    """Up to *size* bytes, less only at the end or because of an error, whose number is the second value."""
    data = b""
    try:
        while len(data) < size and (more := os.pread(fd, size - len(data), offset + len(data))):
            data = data + more if data else more
    except OSError as error:
        return data, error.errno or errno.EIO
    return data, 0


def write_sparse(fd: int, data: Buffer, offset: int) -> bool:
    """Write *data* to this place of a new file, where nothing was written yet.

    Where nothing but zeros belongs to a unit of 64 KiB of the file they are left out, so that they become holes.
    Returns whether that was so at the end of *data*: then the file may be too short yet.
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
    """For each object from *first* up to *end* a byte: 1 if it is a regular file of its size and digest, else 0.

    *digests* lie one behind the other; *ends* are unsigned numbers of eight bytes, how many bytes the objects have
    together up to and including each. Those of a store are found below its *prefixes*. Whatever is below a directory
    that is not open, is empty, or too large for a quarter of the writable *arena* gets 0 as well.
    """
    directories = memoryview(prefixes).cast("B").cast("i")
    sums = memoryview(ends).cast("B").cast("Q")
    length = _hasher(algorithm).digest_size
    limit = memoryview(arena).nbytes // 4
    if len(descriptor) != 256 or len(directories) != 256 or block_size <= 0:
        raise ValueError("descriptor, prefixes or block size of a wrong size")
    if memoryview(digests).nbytes // length != len(sums) or not 0 <= first <= end <= len(sums):
        raise ValueError("there are no such objects")
    found = bytearray(end - first)
    for number in range(first, end):
        digest = bytes(memoryview(digests).cast("B")[number * length : (number + 1) * length])
        size = sums[number] - (sums[number - 1] if number else 0)
        directory = directories[digest[0]]
        if directory >= 0 and 0 < size <= limit:
            data = _read_file(directory, digest.hex().encode()[2:], None, size + 2 * block_size, block_size)
            if data is not None and len(data) == size:
                met = _file_digest(algorithm, data, block_size, salt_prefix, descriptor)
                found[number - first] = met == digest
    return bytes(found)


def write_files(directory: int, arena: Buffer, spans: Sequence[tuple[int, int]], mode: int, number: int) -> list[int]:
    """New files in *directory* that hold these spans (offset, size) of *arena*: their descriptors.

    They have no names, or are named by numbers from *number* on if that is not negative. There are fewer of them than
    spans when one could not be written: then the caller finds out why.
    """
    view = memoryview(arena).cast("B")
    fds: list[int] = []
    for offset, size in spans:
        if not 0 <= offset <= len(view) or not 0 <= size <= len(view) - offset:
            raise ValueError("a span is outside of the arena")
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
    """Give files without names (descriptor, directory, name) their names; for each 0 or the error number.

    A name with a zero in it is a ``ValueError``, and none is given then.
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


def rename_files(
    directory: int,  # noqa: ARG001
    renames: Sequence[tuple[bytes, int, bytes]],
) -> list[int]:
    """Give files in *directory* (old name, directory, name) their names; for each 0 or the error number.

    A name that is taken is an error. Here the caller is told that there is no such call: it has other ways.
    """
    if any(b"\0" in old or b"\0" in name for old, _, name in renames):
        raise ValueError("embedded null byte")
    return [errno.ENOSYS] * len(renames)
