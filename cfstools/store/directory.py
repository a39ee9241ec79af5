"""A store in a directory: ``DIR/ab/cdef…``, as the composefs C tools lay it out (composefs format, section 5.2).

Nothing below the store is reached through a symbolic link, and only regular files are objects. Names that are
not those of objects are left alone: they belong to someone else.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from cfstools.errors import ObjectMissing, StoreError
from cfstools.linux import files
from cfstools.linux.places import Doubt, open_directory
from cfstools.store.base import KEPT_NAME, LOCK_NAME, FileObject, digest_of, is_prefix, split_digest, store_error
from cfstools.store.lockfile import acquire
from cfstools.store.sharing import make_prefix
from cfstools.verity import object_path

_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Opening must not hang on a fifo nor make a terminal ours, whatever someone planted.
OBJECT_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class DirectoryStore:
    """The objects below the directory *path*, which ``create`` makes with its parents when it is missing.

    Raises ``StoreError`` when *path* is not a directory that can be used. Holds descriptors open until
    :meth:`close`; usable as a context manager.
    """

    def __init__(self, path: str | bytes, *, create: bool = False) -> None:
        self.path = os.fsdecode(path)
        self._doubt: Doubt | None = None  # about a link that led here
        self.fd = self._open(os.fsencode(path), create=create)
        # Directories already opened, by prefix; kept open until the end so that no thread sees a number reused.
        self._prefixes: dict[bytes, int] = {}
        self._prefix_fds = array("i", [-1]) * 256
        self._opened_prefixes = False
        self._keep = min(256, files.fd_limit() // 8)
        self._lock = threading.Lock()
        self._opening = threading.Lock()

    def _open(self, path: bytes, *, create: bool) -> int:
        what = "cannot open the store"
        try:
            try:
                return open_directory(path)
            except FileNotFoundError:
                if not create:
                    raise
            what = "cannot make the store"
            return open_directory(path, make=0o755)
        except ValueError:
            raise StoreError("a path cannot contain a zero byte", subject=self.path) from None
        except Doubt as doubt:
            self._doubt = doubt
            if create:
                self._refuse_doubt()
            return self._open_to_look(path)
        except (FileExistsError, NotADirectoryError) as error:
            raise StoreError("an object store must be a directory", subject=self.path) from error
        except OSError as error:
            raise store_error(error, what, self.path) from error

    def _open_to_look(self, path: bytes) -> int:
        """Follow links of anybody: who only looks takes nothing for more than its digest says."""
        try:
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise store_error(error, "cannot open the store", self.path) from error

    def _refuse_doubt(self) -> None:
        """Raise ``StoreError`` if somebody else's link led here: nothing is to be written or removed then."""
        if self._doubt is not None:
            doubt = self._doubt
            raise StoreError(doubt.about(os.fsencode(self.path)), subject=self.path, hint=doubt.hint) from doubt

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every descriptor; the store cannot be used afterwards."""
        with self._lock:
            for fd in (*self._prefixes.values(), self.fd):
                if fd >= 0:
                    files.close(fd)
            self._prefixes.clear()
            self._prefix_fds = array("i", [-1]) * 256
            self.fd = -1

    def describe(self, digest: bytes) -> str:
        """The object's path."""
        return os.path.join(self.path, os.fsdecode(object_path(digest)))

    def size(self, digest: bytes) -> int | None:
        """The object's length, ``None`` when it is not there; ``StoreError`` when something else has its name."""
        prefix, name = split_digest(digest)
        fd = self._prefixes.get(prefix)
        try:
            if fd is not None:
                # The usual case, written out because it runs once for every file.
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            else:
                with self.prefix_fd(prefix) as fd:
                    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise store_error(error, "cannot look up the object", self.describe(digest)) from error
        if not stat.S_ISREG(status.st_mode):
            raise StoreError("not a regular file", subject=self.describe(digest))
        return status.st_size

    def look_at(self, path: bytes) -> int | None:
        """The length of the regular file at *path*, which an image names; -1 for anything else, ``None`` for nothing.

        Nothing is reached through links. Raises ``StoreError`` for what cannot be looked at.
        """
        *parents, name = [part for part in path.split(b"/") if part] or [b""]
        try:
            if len(parents) == 1 and is_prefix(parents[0]):
                with self.prefix_fd(parents[0]) as directory:
                    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            else:
                fd = files.open_below(self.fd, b"/".join([*parents, name]), os.O_PATH | os.O_NOFOLLOW)
                try:
                    status = os.fstat(fd)
                finally:
                    files.close(fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                return -1  # something that is no directory is in the place of one
            if error.errno in (errno.ENAMETOOLONG, errno.EXDEV, errno.EINVAL):
                return None  # nothing can have this name
            place = os.path.join(self.path, os.fsdecode(path.lstrip(b"/")))
            raise store_error(error, "cannot look up the object", place) from error
        return status.st_size if stat.S_ISREG(status.st_mode) else -1

    def open(self, digest: bytes) -> FileObject:
        """The object; raises ``ObjectMissing``, ``StoreError``."""
        prefix, name = split_digest(digest)

        def opener() -> int:
            with self.prefix_fd(prefix) as directory:
                return os.open(name, OBJECT_FLAGS, dir_fd=directory)

        return _open_object(opener, self.describe(digest))

    def open_path(self, path: bytes) -> FileObject:
        """What is at *path*; no link on the way is followed. Raises as :meth:`open`."""
        path = path.lstrip(b"/")
        subject = os.path.join(self.path, os.fsdecode(path))
        return _open_object(lambda: files.open_below(self.fd, path, OBJECT_FLAGS), subject)

    def objects(self) -> Iterator[bytes]:
        """The digests of all objects in order; whatever is not an object's file is passed over."""
        for prefix in sorted(name for name in self._names(self.fd) if is_prefix(name)):
            try:
                with self.prefix_fd(prefix) as fd:
                    names = sorted(self._names(fd, regular=True))
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    continue
                raise store_error(
                    error, "cannot list the store", os.path.join(self.path, os.fsdecode(prefix))
                ) from error
            for name in names:
                digest = digest_of(prefix, name)
                if digest is not None:
                    yield digest

    def _names(self, fd: int, *, regular: bool = False) -> list[bytes]:
        # scandir takes over a descriptor's position, so it gets one of its own. Of a descriptor it gives text.
        try:
            own = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
            try:
                with os.scandir(own) as entries:
                    return [
                        os.fsencode(entry.name)
                        for entry in entries
                        if not regular or entry.is_file(follow_symlinks=False)
                    ]
            finally:
                files.close(own)
        except OSError as error:
            raise store_error(error, "cannot list the store", self.path) from error

    @property
    def keeps_prefixes(self) -> bool:
        """Whether descriptors of :meth:`prefix_fd` stay open until :meth:`close`, for every prefix there can be."""
        return self._keep == 256

    def is_empty(self) -> bool:
        """Whether the directory holds nothing at all but what the care of it leaves there."""
        return not set(self._names(self.fd)) - {LOCK_NAME, KEPT_NAME}

    def has_prefixes(self) -> bool:
        """Whether there is any directory of objects."""
        return any(map(is_prefix, self._names(self.fd)))

    @property
    def prefix_fds(self) -> array[int]:
        """The descriptors of :meth:`prefix_fd` by number, -1 where there is none, as the native functions take them.

        The directories that exist are opened when this is first asked for: a function that has to open one for every
        object takes twice as long.
        """
        if not self._opened_prefixes:
            with self._opening:
                for number in range(256):
                    if len(self._prefixes) < self._keep:
                        with suppress(OSError), self.prefix_fd(b"%02x" % number):
                            pass
                self._opened_prefixes = True
        return self._prefix_fds

    @contextmanager
    def prefix_fd(self, prefix: bytes, *, create: bool = False) -> Iterator[int]:
        """The directory of the objects that start with *prefix*, open. Raises plain ``OSError``."""
        fd = self._prefixes.get(prefix)
        if fd is not None:
            yield fd
            return
        if create:
            with suppress(FileExistsError):
                make_prefix(self.fd, prefix)
        fd = os.open(prefix, os.O_PATH | _DIRECTORY, dir_fd=self.fd)
        with self._lock:
            other = self._prefixes.get(prefix)
            kept = other is not None or len(self._prefixes) < self._keep
            if other is not None:
                # Another thread was faster; its descriptor is the one that stays.
                files.close(fd)
                fd = other
            elif kept:
                self._prefixes[prefix] = fd
                self._prefix_fds[int(prefix, 16)] = fd
        try:
            yield fd
        finally:
            if not kept:
                files.close(fd)

    @contextmanager
    def locked(self, *, exclusive: bool = False, wait: bool = True) -> Iterator[bool]:
        """Hold the lock of the store: shared to add objects, ``exclusive`` to remove them.

        Yields whether the lock is held: ``False`` where the file system has no locks, and for those who may not write
        to the store and want it shared. Without ``wait`` a lock that someone else holds is ``StoreBusy``. The lock ends
        with the process.
        """
        self._refuse_doubt()
        fd = acquire(self.fd, self.path, exclusive=exclusive, wait=wait)
        try:
            yield fd is not None
        finally:
            if fd is not None:
                files.close(fd)


def _open_object(opener: Callable[[], int], subject: str) -> FileObject:
    """Call *opener*; what it opens must be a regular file."""
    try:
        fd = opener()
    except FileNotFoundError as error:
        raise ObjectMissing("no such object", subject=subject) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StoreError("not a regular file", subject=subject) from error
        raise store_error(error, "cannot open the object", subject) from error
    try:
        status = os.fstat(fd)
    except OSError as error:
        files.close(fd)
        raise store_error(error, "cannot look up the object", subject) from error
    if not stat.S_ISREG(status.st_mode):
        files.close(fd)
        raise StoreError("not a regular file", subject=subject)
    return FileObject(fd, status.st_size)
