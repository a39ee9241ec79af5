"""A store in a directory: ``DIR/ab/cdef…``, as the composefs C tools lay it out (composefs format, section 5.2).

Symbolic links below the store are never followed, and only regular files are objects. Other names are ignored: they
belong to someone else.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate

from cfstools import native
from cfstools.errors import ObjectMissing, StoreError
from cfstools.lifetime import Closable
from cfstools.linux import files
from cfstools.linux.paths import UntrustedPath, open_directory
from cfstools.store.base import KEPT_NAME, LOCK_NAME, FileObject, digest_of, is_prefix, split_digest, store_error
from cfstools.store.lockfile import acquire
from cfstools.store.sharing import make_prefix
from cfstools.verity import object_path

_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Never block on a planted FIFO or acquire a controlling terminal.
OBJECT_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class DirectoryStore(Closable):
    """The objects below the directory *path*; with ``create`` a missing directory and its parents are made.

    Raises ``StoreError`` when *path* is not a usable directory. Descriptors stay open until :meth:`close`.
    """

    def __init__(self, path: str | bytes, *, create: bool = False) -> None:
        self.path = os.fsdecode(path)
        self._untrusted: UntrustedPath | None = None  # set if another user's link led here
        self.fd = self._open(os.fsencode(path), create=create)
        # Open directories by prefix, kept until close() so that no thread sees a descriptor number reused.
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
        except UntrustedPath as untrusted:
            self._untrusted = untrusted
            if create:
                self._refuse_untrusted()
            return self._open_to_look(path)
        except (FileExistsError, NotADirectoryError) as error:
            raise StoreError("an object store must be a directory", subject=self.path) from error
        except OSError as error:
            raise store_error(error, what, self.path) from error

    def _open_to_look(self, path: bytes) -> int:
        """Follow links of any user: a reader only trusts contents whose digest it has checked."""
        try:
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise store_error(error, "cannot open the store", self.path) from error

    def _refuse_untrusted(self) -> None:
        """Raise ``StoreError`` if another user's link led here: nothing must be written or removed then."""
        if self._untrusted is not None:
            untrusted = self._untrusted
            raise StoreError(
                untrusted.about(os.fsencode(self.path)), subject=self.path, hint=untrusted.hint
            ) from untrusted

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
        """The object's length in bytes, ``None`` if missing; ``StoreError`` if its name is not a regular file."""
        prefix, name = split_digest(digest)
        fd = self._prefixes.get(prefix)
        try:
            if fd is not None:
                # The usual case, inlined because it runs once for every file.
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

    def lacks(self, objects: Sequence[tuple[bytes, int]]) -> set[bytes]:
        """The digests of those *objects* (digest, size) that are not there, or not as regular files of that size."""
        if not objects:
            return set()
        ends = array("Q", accumulate([size for _, size in objects]))
        digests = b"".join([digest for digest, _ in objects])
        found = native.find_objects(self.prefix_fds, digests, ends, 0, len(objects), len(objects[0][0]))
        left = [one for one, is_there in zip(objects, found, strict=True) if not is_there]
        return {digest for digest, size in left if self.keeps_prefixes or not self._has(digest, size)}

    def _has(self, digest: bytes, size: int) -> bool:
        try:
            return self.size(digest) == size
        except StoreError:
            return False

    def size_at(self, path: bytes) -> int | None:
        """The length of the regular file at *path* as an image names it; -1 for other files, ``None`` if missing.

        Follows no links. Raises ``StoreError`` if the lookup fails.
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
                return -1  # a component is not a directory
            if error.errno in (errno.ENAMETOOLONG, errno.EXDEV, errno.EINVAL):
                return None  # no file can have this name
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
        """Open the regular file at *path* below the store, following no links; raises as :meth:`open` does."""
        path = path.lstrip(b"/")
        subject = os.path.join(self.path, os.fsdecode(path))
        return _open_object(lambda: files.open_below(self.fd, path, OBJECT_FLAGS), subject)

    def objects(self) -> Iterator[bytes]:
        """Yield the digests of all objects in byte order; other names are skipped."""
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
        # scandir moves the descriptor's position, so give it a new one; names then come as str.
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
        """Whether the descriptors of :meth:`prefix_fd` stay open until :meth:`close` for all 256 prefixes."""
        return self._keep == 256

    def is_empty(self) -> bool:
        """Whether the directory is empty, apart from the lock and the record of the last collection."""
        return not set(self._names(self.fd)) - {LOCK_NAME, KEPT_NAME}

    def has_prefixes(self) -> bool:
        """Whether the store has any prefix directory."""
        return any(map(is_prefix, self._names(self.fd)))

    @property
    def prefix_fds(self) -> array[int]:
        """The descriptors of the prefix directories by number (0 to 255), -1 where missing, for native functions.

        The first access opens all existing directories: opening one for every object takes twice as long.
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
        """Open the directory of the objects whose digests start with *prefix*. Raises plain ``OSError``."""
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
                # Another thread was faster: use its descriptor.
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
        """Hold the store's lock: shared to add objects, ``exclusive`` to remove them.

        Yields whether the lock is held: ``False`` if the file system has no locks, or if a shared lock is wanted by a
        user without write access. Without ``wait``, raises ``StoreBusy`` if another process holds the lock. The kernel
        releases the lock when the process ends.
        """
        self._refuse_untrusted()
        fd = acquire(self.fd, self.path, exclusive=exclusive, wait=wait)
        try:
            yield fd is not None
        finally:
            if fd is not None:
                files.close(fd)


def _open_object(opener: Callable[[], int], subject: str) -> FileObject:
    """Call *opener*, translate its errors, and refuse anything but a regular file."""
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
