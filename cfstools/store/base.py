"""The protocols ``Store`` and ``Object``, open objects, and the names of objects on disk."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Literal, Protocol

from cfstools.errors import Exhausted, StoreError, is_exhausted, os_error
from cfstools.linux.files import close
from cfstools.verity.object_id import digest_at

FsVerity = Literal["off", "auto", "require"]
"""Whether to enable fs-verity on new objects: never, where the file system supports it, or always or fail."""

LOCK_NAME = b".mkcfs-lock"
"""The lock file of a store."""

KEPT_NAME = b".mkcfs-images"
"""The record in a store of the images that the last collection kept."""

NEW_KEPT_NAME = KEPT_NAME + b".new"
"""The record while it is being written."""

STAGE_PREFIX = b".mkcfs-tmp-"
"""Name prefix of directories of temporaries, and of prefix directories until they have their mode and owner."""

Sync = Literal["auto", "batch", "object", "none"]
"""How new objects are synced before they get names: by one ``syncfs`` for each batch, one ``fsync`` for each object,
whichever is likely faster (``auto``), or not at all."""

_PREFIX = re.compile(rb"[0-9a-f]{2}")


class Object(Protocol):
    """One object, open for reading until :meth:`close`. Thread-safe."""

    @property
    def size(self) -> int:
        """Length in bytes when the object was opened."""

    @property
    def checked(self) -> bool:
        """Whether the store compares the contents with the digest: reads then give the right bytes or raise.

        Whoever reads such an object need not hash it again.
        """

    def read(self, offset: int, count: int) -> bytes:
        """Read *count* bytes at *offset*, fewer only at the end. Raises ``InputError``."""

    def fileno(self) -> int | None:
        """The descriptor of the object's file, closed with the object; ``None`` if it is not in a file."""

    def close(self) -> None:
        """Close the object. Closing twice is allowed."""


class Store(Protocol):
    """Read-only access to objects by digest. Implementations are thread-safe.

    The digest alone names an object; the hash algorithm matters only to those who check the contents.
    """

    def size(self, digest: bytes) -> int | None:
        """The object's length in bytes, ``None`` if missing. Does not read the contents."""

    def open(self, digest: bytes) -> Object:
        """Open the object without checking it; the caller closes it. Raises ``ObjectMissing``, ``StoreError``."""

    def open_path(self, path: bytes) -> Object:
        """Open the file at *path* below the store, for images that record no digest.

        Leading slashes are ignored; the path cannot leave the store. Raises as :meth:`open` does.
        """

    def objects(self) -> Iterator[bytes]:
        """Yield the digest of each object once, in byte order."""

    def describe(self, digest: bytes) -> str:
        """The object's location for messages, whether the object exists or not."""


class FileObject:
    """An object in the open file *fd* of *size* bytes; takes over the descriptor.

    *checked*: it was compared with its digest, and nobody else can write to the file.
    """

    __slots__ = ("_fd", "checked", "size")

    def __init__(self, fd: int, size: int, *, checked: bool = False) -> None:
        self._fd = fd
        self.size = size
        self.checked = checked

    def read(self, offset: int, count: int) -> bytes:
        """Read *count* bytes at *offset*, fewer only at the end. Raises ``InputError``."""
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
    """An object in memory; *checked* if it was compared with its digest."""

    __slots__ = ("_data", "checked", "size")

    def __init__(self, data: bytes, *, checked: bool = False) -> None:
        self._data = data
        self.size = len(data)
        self.checked = checked

    def read(self, offset: int, count: int) -> bytes:
        """Read *count* bytes at *offset*, fewer only at the end."""
        return self._data[offset : offset + count]

    def fileno(self) -> None:
        """``None``: there is no file."""
        return

    def close(self) -> None:
        """Do nothing: no file is open."""


def contains(store: Store, digest: bytes) -> bool:
    """Whether the store has the object; does not read the contents."""
    return store.size(digest) is not None


def is_prefix(name: bytes) -> bool:
    """Whether *name* is a prefix directory's: two hexadecimal digits."""
    return _PREFIX.fullmatch(name) is not None


def digest_of(prefix: bytes, name: bytes) -> bytes | None:
    """The digest of the object at ``prefix/name``, ``None`` if that is no object's path."""
    return digest_at(b"%b/%b" % (prefix, name))


def split_digest(digest: bytes) -> tuple[bytes, bytes]:
    """Directory and file name of an object (composefs format, section 5.2)."""
    text = digest.hex().encode()
    return text[:2], text[2:]


def store_error(error: OSError, what: str, subject: str, *, hint: str | None = None) -> StoreError | Exhausted:
    """Translate an ``OSError`` that stopped *what* on the store or object *subject*."""
    kind = Exhausted if is_exhausted(error) else StoreError
    return kind(f"{what}: {error.strerror or error}", subject=subject, hint=hint)
