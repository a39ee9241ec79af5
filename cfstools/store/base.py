"""What every object store can do, objects that are open, and the names of objects on disk."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Literal, Protocol

from cfstools.errors import Exhausted, StoreError, is_exhausted, os_error
from cfstools.linux.files import close

FsVerity = Literal["off", "auto", "require"]
"""Whether fs-verity is turned on for new objects: never, where the file system has it, or else that is an error."""

LOCK_NAME = b".mkcfs-lock"
"""The file in a store that is locked."""

KEPT_NAME = b".mkcfs-images"
"""The file in a store that says which images the last collection kept."""

NEW_KEPT_NAME = KEPT_NAME + b".new"
"""The same while it is written."""

STAGE_PREFIX = b".mkcfs-tmp-"
"""How directories of temporaries in a store are called, and directories of objects until they have their rights."""

Sync = Literal["auto", "batch", "object", "none"]
"""How new objects are brought to stable storage before they get names: with one ``syncfs`` for a batch, an ``fsync``
for each object, whichever is likely to be faster, or not at all."""

_PREFIX = re.compile(rb"[0-9a-f]{2}")
# The rest of a SHA-256 or SHA-512 digest, lower case.
_REST = re.compile(rb"(?:[0-9a-f]{62}|[0-9a-f]{126})")


class Object(Protocol):
    """The contents of one object, open for reading until :meth:`close`. May be read from several threads."""

    @property
    def size(self) -> int:
        """How many bytes there were when it was opened."""

    def read(self, offset: int, count: int) -> bytes:
        """Up to *count* bytes from *offset* on, fewer only at the end. Raises ``InputError`` when reading fails."""

    def fileno(self) -> int | None:
        """A descriptor of the file with the contents, which closes with the object; ``None`` where there is none."""

    def close(self) -> None:
        """Give up what is open. Closing twice is allowed."""


class Store(Protocol):
    """Objects by digest, read only. Implementations may be used from several threads.

    The digest alone names an object, as the path does that is made of it: its algorithm is for those who check.
    """

    def size(self, digest: bytes) -> int | None:
        """The object's length in bytes, ``None`` when it is not there. Its contents are not looked at."""

    def open(self, digest: bytes) -> Object:
        """The object, not checked; the caller closes it. Raises ``ObjectMissing``, ``StoreError``."""

    def open_path(self, path: bytes) -> Object:
        """What is at *path* below the store, for images that name no digest.

        Slashes before the path do not matter; it never leads out of the store. Raises as :meth:`open` does.
        """

    def objects(self) -> Iterator[bytes]:
        """The digests of all objects, each once, in byte order."""

    def describe(self, digest: bytes) -> str:
        """The object's place in words for messages, whether it is there or not."""


class FileObject:
    """An object in the file *fd*, which closes with it; *size* is the file's."""

    __slots__ = ("_fd", "size")

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self.size = size

    def read(self, offset: int, count: int) -> bytes:
        """Up to *count* bytes from *offset* on. Raises ``InputError``."""
        try:
            data = os.pread(self._fd, count, offset)
            while len(data) < count and offset + len(data) < self.size:
                more = os.pread(self._fd, count - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise os_error(error, "cannot read") from error
        return data

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def close(self) -> None:
        """Close the file. Closing twice is allowed."""
        if self._fd >= 0:
            close(self._fd)
            self._fd = -1


class BytesObject:
    """An object that is *data*."""

    __slots__ = ("_data", "size")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read(self, offset: int, count: int) -> bytes:
        """Up to *count* bytes from *offset* on."""
        return self._data[offset : offset + count]

    def fileno(self) -> None:
        """There is no file."""
        return

    def close(self) -> None:
        """Nothing is open."""


def contains(store: Store, digest: bytes) -> bool:
    """Whether the object is there (its contents are not looked at)."""
    return store.size(digest) is not None


def is_prefix(name: bytes) -> bool:
    """Whether *name* is that of a directory with objects."""
    return _PREFIX.fullmatch(name) is not None


def digest_of(prefix: bytes, name: bytes) -> bytes | None:
    """The digest whose object is ``prefix/name``, ``None`` when these are not an object's names."""
    if is_prefix(prefix) and _REST.fullmatch(name):
        return bytes.fromhex((prefix + name).decode())
    return None


def split_digest(digest: bytes) -> tuple[bytes, bytes]:
    """Directory and file name of an object (composefs format, section 5.2)."""
    text = digest.hex().encode()
    return text[:2], text[2:]


def store_error(error: OSError, what: str, subject: str, *, hint: str | None = None) -> StoreError | Exhausted:
    """Translate an ``OSError`` met while doing *what* to the store or object *subject*."""
    kind = Exhausted if is_exhausted(error) else StoreError
    return kind(f"{what}: {error.strerror or error}", subject=subject, hint=hint)
