"""Contents of one object that arrive piece by piece."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from cfstools.store.publisher import Publisher, StoredObject
from cfstools.store.scratch import Temporary
from cfstools.verity import MerkleHasher, Params, digest_bytes

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Contents up to this size are held in memory, so that nothing is written for an object that is there already.
SMALL = 1 << 20


def add_small(publisher: Publisher, data: Buffer, params: Params) -> StoredObject:
    """Add contents that are in memory."""
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


class ObjectStream:
    """Contents of one object, written piece by piece; made by :meth:`StoreWriter.open_stream`.

    Up to 1 MiB is held in memory, more goes into a temporary as it comes. Leaving a ``with`` block without
    :meth:`finish` discards. Not for several threads at once.
    """

    def __init__(self, publisher: Publisher, params: Params) -> None:
        self._publisher = publisher
        self._params = params
        self._memory = bytearray()
        self._hasher: MerkleHasher | None = None
        self._temporary: Temporary | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

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
        """Append *size* zeros, which take no room in the store."""
        if self._hasher is None and len(self._memory) + size <= SMALL:
            self._memory += bytes(size)
            return
        hasher, temporary = self._spill()
        hasher.update_zeros(size)
        temporary.skip(size)

    def _spill(self) -> tuple[MerkleHasher, Temporary]:
        """Begin the temporary, with what was held in memory."""
        if self._hasher is None or self._temporary is None:
            self._hasher, self._temporary = MerkleHasher(self._params), self._publisher.create()
            if self._memory:
                self._hasher.update(self._memory)
                self._publisher.write(self._temporary, self._memory)
                self._memory = bytearray()
        return self._hasher, self._temporary

    def finish(self) -> StoredObject:
        """The contents are complete: add them."""
        if self._hasher is None:
            return add_small(self._publisher, self._memory, self._params)
        temporary, self._temporary = self._temporary, None
        assert temporary is not None
        return self._publisher.accept(temporary, self._hasher.digest())

    def discard(self) -> None:
        """Drop the contents; nothing happens after :meth:`finish`."""
        if self._temporary is not None:
            self._publisher.drop(self._temporary)
            self._temporary = None
