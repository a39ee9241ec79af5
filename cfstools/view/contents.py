"""The contents of a file of an image: no byte is returned before it was checked against the image."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

from cfstools.errors import CheckFailed, InputError, StoreError, raise_exhausted
from cfstools.formats.escape import escape_text
from cfstools.lifetime import Closable
from cfstools.progress import SILENT, Stage
from cfstools.store.base import FileObject, Object
from cfstools.store.care.check import digest_object, measured
from cfstools.verity import MerkleHasher, ObjectId, Params
from cfstools.verity.files import CopyFailed, hash_fd
from cfstools.view.leaves import Leaves, hash_leaves

PIECE = 1 << 20
"""The length in bytes of the pieces contents are read in."""


class Contents(Closable):
    """The contents of one file, open until :meth:`close`; use it as a context manager.

    ``size`` is what the image says, ``in_image`` whether it holds the bytes itself. *found* is read and closes with the
    contents; *wanted* is the digest it must have, ``None`` where the image names none: then only the length is
    compared. *describe* says where the object is, for messages; without it *found* holds bytes of the image itself,
    which are not compared. Objects that the store has compared are not hashed again.
    """

    def __init__(
        self,
        size: int,
        path: bytes,
        found: Object,
        wanted: ObjectId | None = None,
        describe: Callable[[], str] | None = None,
    ) -> None:
        self.size = size
        self._path = path
        self._object = found
        self._wanted = wanted
        self.in_image = describe is None
        self._describe = describe or str
        self._lock = threading.Lock()
        # Of an object that was checked for random reads: what they are compared with, nothing where the store or the
        # kernel compares.
        self._leaves: Leaves | None = None
        self._is_checked = False

    def close(self) -> None:
        """Close the object. Closing twice is allowed."""
        self._object.close()

    def fileno(self) -> int | None:
        """A descriptor of the object, whose own attributes mean nothing; ``None`` where there is no file."""
        return self._object.fileno()

    def pieces(self) -> Iterator[bytes]:
        """The contents from front to back; the last piece is given out only once the whole was found right.

        So a file of up to ``PIECE`` bytes is never given out wrong. Raises :class:`CheckFailed` where length or
        digest are not what the image says, :class:`StoreError` when reading fails.
        """
        if self.in_image:
            if self._object.size:
                yield self._object.read(0, self._object.size)
            return
        sealed = self._sealed(self._object.fileno())
        hasher = MerkleHasher(self._params)
        held = b""
        following = self._read_piece(0)
        done = 0
        while following and done < self.size:
            if held:
                yield held
            held = following
            done += len(held)
            following = self._read_piece(done)
            if not sealed:
                hasher.update(held)
        self._judge(done + len(following), None if sealed else hasher.digest())
        if held:
            yield held

    def read(self, offset: int, count: int) -> bytes:
        """Up to *count* bytes from *offset* on, fewer only at the end. May be called from several threads.

        The first call checks the whole, and every call compares what it gives out with what was checked. Raises
        :class:`CheckFailed` and :class:`StoreError`.
        """
        count = min(count, self.size - offset)
        if count <= 0:
            return b""
        if self.in_image:
            return self._object.read(offset, count)
        self.prepare()
        leaves = self._leaves
        if leaves is None:
            return self._read_all(offset, count)
        start = offset - offset % leaves.group
        end = offset + count
        data = self._read_all(start, min(end + -end % leaves.group, self.size) - start)
        self.compare(start, data)
        return data[offset - start : offset - start + count]

    def read_unchecked(self, offset: int, count: int) -> bytes:
        """As :meth:`read`, but nothing is compared except the length."""
        count = min(count, self.size - offset)
        return self._read_all(offset, count) if count > 0 else b""

    def prepare(self, *, threads: int = 1) -> None:
        """Check the whole, unless it was done before, so that random reads can be compared. Raises as :meth:`read`."""
        with self._lock:
            if self._is_checked:
                return
            self._judge(self._object.size, None)
            if not self.in_image and not self._sealed(self._object.fileno()):
                self._leaves = self._hash_leaves(threads)
            self._is_checked = True

    def _hash_leaves(self, threads: int) -> Leaves:
        try:
            leaves, digest, size = hash_leaves(self._object, self.size, self._params, threads=threads)
        except InputError as error:
            raise self._unreadable(error) from error
        self._judge(size, digest)
        return leaves

    @property
    def leaves(self) -> Leaves | None:
        """What random reads are compared with: ``None`` before the first, or where others compare."""
        return self._leaves

    @property
    def is_prepared(self) -> bool:
        """Whether :meth:`prepare` was done: reads are compared with little work, or need not be."""
        return self._is_checked

    def compare(self, start: int, data: bytes | memoryview) -> None:
        """Raise :class:`CheckFailed` unless *data* is in the object from *start* on, as it was when it was checked.

        *start* is a multiple of ``leaves.group``, and so is the end, if it is not that of the object.
        """
        if self._leaves is not None and not self._leaves.match(start, data):
            raise self._wrong("was changed after it was checked")

    def check(self, fd: int | None = None, *, progress: Stage = SILENT) -> None:
        """Raise :class:`CheckFailed` unless *fd*, a clone of the object, or else the object itself holds the contents.

        What the kernel guards with the right digest is not read. ``progress`` is advanced in bytes read.
        """
        if self.in_image:
            return
        try:
            found = self._object if fd is None else FileObject(fd, os.fstat(fd).st_size)
            self._judge(found.size, None)
            if self._wanted is not None and not self._sealed(found.fileno()):
                digest, size = digest_object(found, self.size, self._params, progress=progress)
                self._judge(size, digest)
        except (OSError, InputError) as error:
            raise self._unreadable(error) from error

    @property
    def has_holes(self) -> bool:
        """Whether the object takes less room than its length says."""
        fd = self.fileno()
        if fd is None:
            return False
        try:
            status = os.fstat(fd)
        except OSError as error:
            raise self._unreadable(error) from error
        return status.st_blocks * 512 < status.st_size

    def copy_to(self, fd: int, *, progress: Stage = SILENT) -> None:
        """Copy the object, which is a file, to *fd*, a new one, which then has its holes as well.

        Only afterwards is it known to be right: raises as :meth:`check`, and OSError for what cannot be written.
        """
        source = self.fileno()
        assert source is not None
        try:
            self._judge(os.fstat(source).st_size, None)
            digest, size = hash_fd(source, self._params, copy_fd=fd, progress=progress)
        except CopyFailed:
            raise
        except (OSError, InputError) as error:
            raise self._unreadable(error) from error
        self._judge(size, digest)

    @property
    def _params(self) -> Params:
        return self._wanted.params if self._wanted else Params()

    def _sealed(self, fd: int | None) -> bool:
        """Whether nothing is to be hashed: the store or the kernel checks every read, or there is no digest."""
        return self._wanted is None or self._object.checked or measured(fd, self._wanted)

    def _read_piece(self, offset: int) -> bytes:
        """A whole piece, less only at the end; one byte past the end tells whether the object is too long."""
        return self._read(offset, min(PIECE, self.size + 1 - offset))

    def _read_all(self, offset: int, count: int) -> bytes:
        """Exactly *count* bytes: less of an object that was right means that it was cut since."""
        data = self._read(offset, count)
        if len(data) != count:
            raise self._wrong("was cut after it was checked")
        return data

    def _read(self, offset: int, count: int) -> bytes:
        try:
            return self._object.read(offset, count)
        except InputError as error:
            cause = error.__cause__
            raise self._unreadable(cause if isinstance(cause, OSError) else error) from error

    def _judge(self, size: int, digest: bytes | None) -> None:
        """Compare the length of what was met with what the image says, and the digest, unless that is ``None``."""
        if size != self.size:
            much = f"more than {self.size}" if size > self.size else str(size)
            raise self._wrong(f"has {much} bytes instead of {self.size}")
        if digest is not None and self._wanted is not None and digest != self._wanted.digest:
            raise self._wrong(f"is damaged: its fs-verity digest is {digest.hex()}")

    def _wrong(self, how: str) -> CheckFailed:
        return CheckFailed(f"object {self._describe()} {how}", where=escape_text(self._path))

    def _unreadable(self, error: OSError | InputError) -> StoreError:
        if isinstance(error, OSError):
            raise_exhausted(error, f"object {self._describe()} cannot be read", None)
        why = str(error) if isinstance(error, InputError) else error.strerror
        return StoreError(f"object {self._describe()} cannot be read: {why}", where=escape_text(self._path))
