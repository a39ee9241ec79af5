"""A store in memory, for programs that make images without keeping objects, and for tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cfstools.errors import ObjectMissing
from cfstools.store.base import BytesObject, digest_of
from cfstools.text import shown_path
from cfstools.verity import DEFAULT, Params, digest_bytes

if TYPE_CHECKING:
    from typing_extensions import Buffer


class MemoryStore:
    """A store of bytes in memory, for tests and for trees that a program makes up."""

    def __init__(self) -> None:
        self._objects: dict[bytes, bytes] = {}
        self._others: dict[bytes, bytes] = {}

    def add(self, data: Buffer, params: Params = DEFAULT) -> bytes:
        """Keep *data* and return its digest."""
        kept = bytes(data)
        digest = digest_bytes(kept, params)
        self._objects[digest] = kept
        return digest

    def put(self, path: bytes, data: Buffer) -> None:
        """Keep *data* at *path*, for images that record no digest."""
        self._others[path] = bytes(data)

    def size(self, digest: bytes) -> int | None:
        """The object's length in bytes, ``None`` if missing."""
        data = self._objects.get(digest)
        return None if data is None else len(data)

    def open(self, digest: bytes) -> BytesObject:
        """Open the object; raises ``ObjectMissing``."""
        data = self._objects.get(digest)
        if data is None:
            raise ObjectMissing("no such object", subject=self.describe(digest))
        return BytesObject(data)

    def open_path(self, path: bytes) -> BytesObject:
        """Open what was put at *path*; raises ``ObjectMissing``."""
        path = path.lstrip(b"/")
        data = self._others.get(path)
        if data is not None:
            return BytesObject(data)
        digest = digest_of(*path.split(b"/")) if path.count(b"/") == 1 else None
        if digest is None:
            raise ObjectMissing("no such object", subject=shown_path(path))
        return self.open(digest)

    def objects(self) -> Iterator[bytes]:
        """Yield all digests in byte order."""
        return iter(sorted(self._objects))

    def describe(self, digest: bytes) -> str:
        """Name the object by its digest: it has no path."""
        return f"object {digest.hex()} in memory"
