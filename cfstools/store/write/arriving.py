"""Objects that arrive from elsewhere: each is compared with its digest before the store gets it."""

from __future__ import annotations

from threading import Lock

from cfstools.errors import ContentsWrong
from cfstools.store.write.stream import SMALL
from cfstools.store.write.writer import StoreWriter
from cfstools.streams.buffered import Read, read_up_to
from cfstools.verity import digest_bytes

_BATCH_BYTES = 1 << 20
_BATCH_OBJECTS = 256
_PIECE = 1 << 18


class ArrivingObjects:
    """Takes objects for *writer*, from several threads; call :meth:`finish` at the end, then commit the writer.

    Small objects wait until there is a batch of them. What has another digest or length leaves nothing behind.
    """

    def __init__(self, writer: StoreWriter) -> None:
        self._writer = writer
        self._lock = Lock()
        self._arena = bytearray()
        self._objects: list[tuple[bytes, int, int]] = []

    def take(self, key: bytes, size: int, read: Read) -> None:
        """Take the object whose digest is *key*, of *size* bytes.

        Raises ``ContentsWrong`` for other contents, ``StoreError``, and what *read* raises.
        """
        if size > SMALL:
            self._stream(key, size, read)
            return
        data = read_up_to(read, size + 1)
        if len(data) != size:
            raise _wrong_length(size, len(data))
        if digest_bytes(data, self._writer.params) != key:
            raise ContentsWrong("the contents do not have the digest of the object")
        with self._lock:
            # Blocks of an arena are hashed where they lie, so contents start at one.
            self._objects.append((key, size, len(self._arena)))
            self._arena += data
            self._arena += bytes(-size % self._writer.params.block_size)
            full = len(self._arena) >= _BATCH_BYTES or len(self._objects) >= _BATCH_OBJECTS
            batch = self._taken() if full else None
        if batch is not None:
            self._writer.add_hashed(*batch)

    def finish(self) -> None:
        """Give the writer what waits. Raises ``StoreError``."""
        with self._lock:
            batch = self._taken()
        self._writer.add_hashed(*batch)

    def _taken(self) -> tuple[bytearray, list[tuple[bytes, int, int]]]:
        batch = self._arena, self._objects
        self._arena, self._objects = bytearray(), []
        return batch

    def _stream(self, key: bytes, size: int, read: Read) -> None:
        with self._writer.open_stream() as stream:
            while stream.size <= size and (piece := read(min(_PIECE, size + 1 - stream.size))):
                stream.write(piece)
            if stream.size != size:
                raise _wrong_length(size, stream.size)
            if stream.digest() != key:
                raise ContentsWrong("the contents do not have the digest of the object")
            stream.finish()


def _wrong_length(size: int, found: int) -> ContentsWrong:
    return ContentsWrong(f"the contents have {'more' if found > size else found} bytes instead of {size}")
