"""Temporaries of a store, which hold an object's contents until they are complete, durable and get their name.

*Anonymous* temporaries (``O_TMPFILE``) have no name, need a descriptor each, and vanish with the process. *Named* ones
lie in a private directory ``.mkcfs-tmp-XXXXXXXX`` of the store and need no descriptor; they are used if the file system
has no anonymous files, and for objects whose publication is decided late. A killed process leaves the directory behind;
it is stale if the store can be locked exclusively.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from cfstools import native
from cfstools.errors import StoreError
from cfstools.linux import files
from cfstools.linux import verity as kernel_verity
from cfstools.linux.paths import make_directory
from cfstools.store.base import STAGE_PREFIX, FsVerity, store_error
from cfstools.store.directory import OBJECT_FLAGS, DirectoryStore
from cfstools.verity import Params

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Left behind by killed composefs C tools.
FOREIGN_TEMPORARY_PREFIX = b".tmp"

_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def is_temporary(name: bytes) -> bool:
    """Whether *name* at the top of a store belongs to temporaries: ours, or the C tools' ``.tmpXXXXXX``."""
    return name.startswith(STAGE_PREFIX) or (name.startswith(FOREIGN_TEMPORARY_PREFIX) and len(name) == 10)


class Temporary:
    """Contents without an object name yet: an open descriptor, or, sealed, a name in the private directory."""

    __slots__ = ("_is_short", "fd", "is_durable", "name", "size")

    def __init__(self, fd: int, name: bytes | None) -> None:
        self.fd = fd
        self.name = name
        self.size = 0
        self.is_durable = False  # synced after it was sealed
        self._is_short = False  # the file lacks a hole at its end

    def write(self, data: Buffer) -> None:
        """Append *data*; long runs of zeros become holes. Raises ``OSError``."""
        self._is_short = native.write_sparse(self.fd, data, self.size)
        self.size += memoryview(data).nbytes

    def skip(self, size: int) -> None:
        """Append a hole of *size* bytes."""
        self._is_short = True
        self.size += size

    def complete(self) -> None:
        """Give the file its length, if a hole at the end has not done so. Raises ``OSError``."""
        if self._is_short:
            os.ftruncate(self.fd, self.size)
            self._is_short = False

    def close(self) -> None:
        """Close the descriptor; an anonymous temporary vanishes. ``OSError`` if contents did not arrive."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class Scratch:
    """Makes, seals, publishes and drops temporaries of *store*. Raises ``StoreError``; used from several threads."""

    def __init__(self, store: DirectoryStore, *, named: bool, mode: int, fs_verity: FsVerity, params: Params) -> None:
        self._store = store
        self.named = named
        self._mode = mode
        self._fs_verity = fs_verity
        self._params = params
        self._stage_name = b""
        self._stage_fd = -1
        self._number = 0  # of the next name
        self._closed = False
        self._lock = threading.Lock()
        # Whether files come out of the open with the wanted mode; found out with the first.
        self._mode_is_right: bool | None = None

    def create(self) -> Temporary:
        """Create a temporary, open for reading and writing. Raises ``OSError`` only for too many open files."""
        try:
            if not self.named:
                fd = files.open_tmpfile(self._store.fd, self._mode)
                if fd is not None:
                    return Temporary(fd, None)
                self.named = True
            stage = self._stage()
            name = self._new_name()
            return Temporary(os.open(name, _NEW_FILE, self._mode, dir_fd=stage), name)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            raise store_error(error, "cannot make a temporary file in the store", self._store.path) from error

    def _new_name(self) -> bytes:
        with self._lock:
            self._number += 1
            return b"%d" % (self._number - 1)

    def _stage(self) -> int:
        with self._lock:
            if self._closed:
                raise OSError(errno.EBADF, "the writer is closed")
            if self._stage_fd < 0:
                name = STAGE_PREFIX + os.urandom(8).hex().encode()
                # make_directory() checks that no other writer has replaced the directory, whose files close() deletes.
                self._stage_fd = make_directory(self._store.fd, name)
                self._stage_name = name
            return self._stage_fd

    def seal(self, temporary: Temporary) -> None:
        """Finish complete contents: set the mode, enable fs-verity if wanted, close a named temporary."""
        try:
            temporary.complete()
            if self._mode_is_right is None:
                self._mode_is_right = os.fstat(temporary.fd).st_mode & 0o7777 == self._mode
            if not self._mode_is_right:
                os.fchmod(temporary.fd, self._mode)
            if self._fs_verity != "off":
                self._enable_verity(temporary)
            if temporary.name is not None:
                temporary.close()
        except OSError as error:
            raise store_error(error, "cannot complete an object", self._store.path) from error

    def _enable_verity(self, temporary: Temporary) -> None:
        """Enable fs-verity; the kernel requires that no descriptor can write, so reopen the file for reading."""
        reader = os.open(f"/proc/self/fd/{temporary.fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            temporary.close()
        finally:
            temporary.fd = reader
        params = self._params
        try:
            kernel_verity.enable(reader, params.algorithm.number, params.block_size, params.salt)
        except OSError as error:
            if self._fs_verity == "require":
                raise StoreError(
                    f"cannot turn on fs-verity: {error.strerror}",
                    subject=self._store.path,
                    hint="the file system must have the verity feature",
                ) from error
            if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                # Not supported by this file system: do not try again.
                self._fs_verity = "off"

    def sync(self, temporary: Temporary) -> None:
        """Make the contents of a sealed temporary durable. Raises ``OSError``."""
        if temporary.fd >= 0:
            os.fsync(temporary.fd)
            return
        assert temporary.name is not None
        fd = os.open(temporary.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._stage_fd)
        try:
            os.fsync(fd)
        finally:
            files.close(fd)

    def create_many(self, arena: bytearray, spans: Sequence[tuple[int, int]]) -> list[Temporary]:
        """Write each span (offset, size) of *arena* to a temporary; the list is shorter if one failed."""
        directory, number = self._store.fd, -1
        if self.named:
            try:
                directory = self._stage()
            except OSError:
                return []  # fall back: the one-by-one path reports the error
            with self._lock:
                number, self._number = self._number, self._number + len(spans)
        temporaries = []
        fds = native.write_files(directory, arena, spans, self._mode, number)
        for place, (fd, (_, size)) in enumerate(zip(fds, spans, strict=False)):
            temporary = Temporary(fd, None if number < 0 else b"%d" % (number + place))
            temporary.size = size
            temporaries.append(temporary)
        return temporaries

    def publish(self, objects: Sequence[tuple[Temporary, bytes, bytes]]) -> list[OSError | None]:
        """Name each temporary ``prefix/name``; return an error or ``None`` for each. The temporaries are consumed.

        An existing name gives ``FileExistsError``. The contents must be durable.
        """
        try:
            if self._store.keeps_prefixes and all(temporary.name is None for temporary, _, _ in objects):
                return self._link_all(objects)
            return self._publish_each(objects)
        finally:
            for temporary, _, _ in objects:
                if temporary.fd >= 0 or temporary.name is not None:
                    self.drop(temporary)

    def _link_all(self, objects: Sequence[tuple[Temporary, bytes, bytes]]) -> list[OSError | None]:
        links = []
        for temporary, prefix, name in objects:
            try:
                with self._store.prefix_fd(prefix, create=True) as directory:
                    links.append((temporary.fd, directory, name))
            except OSError:
                # Fall back to one at a time, which reports the object that failed.
                return self._publish_each(objects)
        numbers = native.link_files(links)
        return [None if not number else OSError(number, os.strerror(number)) for number in numbers]

    def _publish_each(self, objects: Sequence[tuple[Temporary, bytes, bytes]]) -> list[OSError | None]:
        results: list[OSError | None] = []
        for prefix, some in groupby(objects, itemgetter(1)):  # they are sorted
            together = list(some)
            try:
                with self._store.prefix_fd(prefix, create=True) as directory:
                    results += [self._publish(temporary, directory, name) for temporary, _, name in together]
            except OSError as error:
                results += [error] * len(together)
        return results

    def _publish(self, temporary: Temporary, directory: int, name: bytes) -> OSError | None:
        try:
            if temporary.name is None:
                files.link_tmpfile(temporary.fd, directory, name)
            else:
                files.rename_noreplace(self._stage_fd, temporary.name, directory, name)
                temporary.name = None
        except OSError as error:
            return error
        return None

    def drop(self, temporary: Temporary) -> None:
        """Remove the temporary and its contents."""
        with suppress(OSError):
            temporary.close()
        if temporary.name is not None:
            # No error here: a directory left behind is recognised as stale later.
            self._remove(temporary.name)
            temporary.name = None

    def _remove(self, name: bytes | str) -> None:
        with suppress(OSError):
            os.unlink(name, dir_fd=self._stage_fd)

    def close(self) -> None:
        """Remove the private directory and its contents."""
        with self._lock:
            self._closed = True
            if self._stage_fd >= 0:
                # No error here: a directory left behind is recognised as stale later.
                with suppress(OSError):
                    for name in os.listdir(self._stage_fd):
                        self._remove(name)
                files.close(self._stage_fd)
                self._stage_fd = -1
                with suppress(OSError):
                    os.rmdir(self._stage_name, dir_fd=self._store.fd)


class Workbench(Scratch):
    """Named temporaries that can share an inode with an existing file and replace one: only for repairs.

    The store must be locked exclusively.
    """

    def __init__(self, store: DirectoryStore, *, mode: int, fs_verity: FsVerity, params: Params) -> None:
        super().__init__(store, named=True, mode=mode, fs_verity=fs_verity, params=params)

    def adopt(self, directory: int, name: bytes) -> Temporary:
        """Hard-link *name* in *directory* as a temporary, open for reading. Raises ``OSError``."""
        own = self._new_name()
        stage = self._stage()
        os.link(name, own, src_dir_fd=directory, dst_dir_fd=stage, follow_symlinks=False)
        try:
            return Temporary(os.open(own, OBJECT_FLAGS, dir_fd=stage), own)
        except BaseException:
            self._remove(own)
            raise

    def replace(self, temporary: Temporary, prefix: bytes, name: bytes) -> None:
        """Rename a temporary to ``prefix/name``, replacing an existing file. The temporary is consumed.

        Raises plain ``OSError``. The contents must be durable.
        """
        assert temporary.name is not None
        try:
            with self._store.prefix_fd(prefix, create=True) as directory:
                os.rename(temporary.name, name, src_dir_fd=self._stage_fd, dst_dir_fd=directory)
        finally:
            # rename(2) keeps both names of one inode, so always remove ours.
            self.drop(temporary)
