"""Add the contents of one object that arrive in pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfstools.lifetime import Closable
from cfstools.store.write.publisher import Publisher, StoredObject
from cfstools.store.write.scratch import Temporary
from cfstools.verity import MerkleHasher, Params, digest_bytes

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Contents up to this size are buffered, so that nothing is written for an object that exists already.
SMALL = 1 << 20


def add_small(publisher: Publisher, data: Buffer, params: Params) -> StoredObject:
    """Add contents in memory."""
    digest = digest_bytes(data, params)
    size = memoryview(data).nbytes
    if publisher.seen(digest, size):
        return publisher.count_shared(digest, size)
    temporary = publisher.create()
    try:
        publisher.write(temporary, data)
    except BaseException:
        publisher.drop(temporary)
        raise
    return publisher.accept(temporary, digest, looked_up=True)


class ObjectStream(Closable):
    """The contents of one object, written in pieces; made by :meth:`StoreWriter.open_stream`. Not thread-safe.

    Up to 1 MiB is buffered in memory, more goes to a temporary. Closing it before :meth:`finish` drops the contents.
    """

    def __init__(self, publisher: Publisher, params: Params) -> None:
        self._publisher = publisher
        self._params = params
        self._memory = bytearray()
        self._hasher: MerkleHasher | None = None
        self._temporary: Temporary | None = None

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return len(self._memory) if self._hasher is None else self._hasher.size

    def write(self, data: Buffer) -> None:
        """Append *data*."""
        if self._hasher is None and len(self._memory) + memoryview(data).nbytes <= SMALL:
            self._memory += data
            return
        hasher, temporary = self._spill()
        hasher.update(data)
        self._publisher.write(temporary, data)

    def write_hole(self, size: int) -> None:
        """Append *size* zeros as a hole."""
        if self._hasher is None and len(self._memory) + size <= SMALL:
            self._memory += bytes(size)
            return
        hasher, temporary = self._spill()
        hasher.update_zeros(size)
        temporary.skip(size)

    def _spill(self) -> tuple[MerkleHasher, Temporary]:
        """Move the buffered contents to a temporary."""
        if self._hasher is None or self._temporary is None:
            self._hasher, self._temporary = MerkleHasher(self._params), self._publisher.create()
            if self._memory:
                self._hasher.update(self._memory)
                self._publisher.write(self._temporary, self._memory)
                self._memory = bytearray()
        return self._hasher, self._temporary

    def digest(self) -> bytes:
        """The digest of what was written so far."""
        return digest_bytes(self._memory, self._params) if self._hasher is None else self._hasher.digest()

    def finish(self) -> StoredObject:
        """Add the complete contents."""
        if self._hasher is None:
            return add_small(self._publisher, self._memory, self._params)
        temporary, self._temporary = self._temporary, None
        assert temporary is not None
        return self._publisher.accept(temporary, self._hasher.digest())

    def close(self) -> None:
        """Drop the contents, unless :meth:`finish` has added them."""
        if self._temporary is not None:
            self._publisher.drop(self._temporary)
            self._temporary = None
