"""A store in memory, for programs that make images without keeping objects, and for tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cfstools.errors import ObjectMissing
from cfstools.store.base import store_error
from cfstools.verity import DEFAULT, Params, digest_bytes

if TYPE_CHECKING:
    from typing_extensions import Buffer


class MemoryStore:
    """Objects held as bytes."""

    def __init__(self) -> None:
        self._objects: dict[bytes, bytes] = {}

    def add(self, data: Buffer, params: Params = DEFAULT) -> bytes:
        """Keep *data* and return its digest."""
        kept = bytes(data)
        digest = digest_bytes(kept, params)
        self._objects[digest] = kept
        return digest

    def size(self, digest: bytes) -> int | None:
        """The object's length, ``None`` when it is not there."""
        data = self._objects.get(digest)
        return None if data is None else len(data)

    def open(self, digest: bytes) -> int:
        """A descriptor of a memory file with the contents; raises ``ObjectMissing``."""
        data = self._objects.get(digest)
        if data is None:
            raise ObjectMissing("no such object", subject=self.describe(digest))
        try:
            fd = os.memfd_create(digest.hex(), os.MFD_CLOEXEC)
            with open(os.dup(fd), "wb") as file:
                file.write(data)
            os.lseek(fd, 0, os.SEEK_SET)
        except OSError as error:
            raise store_error(error, "cannot open the object", self.describe(digest)) from error
        return fd

    def objects(self) -> Iterator[bytes]:
        """All digests in order."""
        return iter(sorted(self._objects))

    def describe(self, digest: bytes) -> str:
        """The digest: there is no path."""
        return f"object {digest.hex()} in memory"
