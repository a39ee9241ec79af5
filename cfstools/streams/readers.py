"""Readers that hash a stream, or read ahead in a thread."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from queue import SimpleQueue

from cfstools.lifetime import Closable
from cfstools.streams.buffered import READ_SIZE, BufferedReader, Read
from cfstools.threadpool import Call, ThreadPool

_BEHIND = 2
_DEPTH = 4


class _Pieces:
    """A queue from one thread to another that holds at most *depth* pieces of a stream, or the error that ends it.

    Two queues in C, of which one holds the free places: ``queue.Queue`` waits in Python code, which the threads would
    have to take turns for.
    """

    def __init__(self, depth: int) -> None:
        self._items: SimpleQueue[bytes | BaseException] = SimpleQueue()
        self._places: SimpleQueue[None] = SimpleQueue()
        for _ in range(depth):
            self._places.put(None)

    def put(self, item: bytes | BaseException) -> None:
        """Add an item, as soon as there is a place for it."""
        self._places.get()
        self._items.put(item)

    def get(self) -> bytes | BaseException:
        """Take the next item, as soon as there is one."""
        item = self._items.get()
        self._places.put(None)
        return item

    def make_room(self) -> None:
        """Let whoever waits for a place go on; one more item has room from now on."""
        self._places.put(None)


class HashingReader:
    """Hashes a stream while it is read: ``size`` and :meth:`hexdigest` are those of the bytes read so far.

    *algorithms* are names of hashlib. To hash a whole stream, read until ``read`` returns nothing.
    """

    def __init__(self, read: Read, *algorithms: str) -> None:
        self._read = read
        self._hashes = {name: hashlib.new(name) for name in algorithms or ("sha256",)}
        self._updates = [each.update for each in self._hashes.values()]
        self.size = 0

    def read(self, count: int) -> bytes:
        """The next bytes of the stream, at most *count*; none at the end."""
        data = self._read(count)
        for update in self._updates:
            update(data)
        self.size += len(data)
        return data

    def hexdigest(self, algorithm: str = "sha256") -> str:
        """Digest of all bytes read so far, in lower-case hex."""
        return self._hashes[algorithm].hexdigest()


class HashingAside(HashingReader, Closable):
    """A :class:`HashingReader` that hashes in a thread of its own, at most two pieces behind the reader.

    ``size`` is known at once; :meth:`hexdigest` and :meth:`close` wait for the thread.
    """

    def __init__(self, read: Read, *algorithms: str) -> None:
        super().__init__(read, *algorithms)
        self._thread = ThreadPool(1, "hash")
        self._behind: deque[Call[None]] = deque()

    def read(self, count: int) -> bytes:
        """The next bytes of the stream, at most *count*; none at the end."""
        data = self._read(count)
        self.size += len(data)
        if len(self._behind) == _BEHIND:
            self._behind.popleft().result()
        self._behind.append(self._thread.submit(self._update, data))
        return data

    def hexdigest(self, algorithm: str = "sha256") -> str:
        """Digest of all bytes read so far, in lower-case hex."""
        while self._behind:
            self._behind.popleft().result()
        return super().hexdigest(algorithm)

    def close(self) -> None:
        """Hash what was read, and end the thread."""
        while self._behind:
            self._behind.popleft().result()
        self._thread.close()

    def _update(self, data: bytes) -> None:
        for update in self._updates:
            update(data)


class ReadAhead(BufferedReader, Closable):
    """Reads a stream in a thread, so that decompression and hashing overlap with the work on the contents.

    At most *depth* pieces of *piece* bytes are queued. An exception of the source is raised by :meth:`read` at the same
    offset, and again on later calls. The thread starts with the first read; after :meth:`close` the source is not read
    any more.
    """

    def __init__(self, read: Read, *, depth: int = _DEPTH, piece: int = READ_SIZE) -> None:
        super().__init__(piece=piece)
        self._source = read
        self._pieces = _Pieces(depth)
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._ended = False
        self._error: BaseException | None = None

    def close(self) -> None:
        """Stop the thread and wait for it; drop the queued pieces."""
        self._stopping = self._ended = True
        if self._thread is not None:
            self._pieces.make_room()
            self._thread.join()
            self._thread = None

    def _fetch(self) -> bytes:
        if self._error is not None:
            raise self._error
        if self._ended:
            return b""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
            self._thread.start()
        piece = self._pieces.get()
        if isinstance(piece, BaseException):
            self._error = piece
            raise piece
        self._ended = not piece
        return piece

    def _run(self) -> None:
        piece: bytes | BaseException = b"more"
        while piece and not isinstance(piece, BaseException) and not self._stopping:
            try:
                piece = self._source(self._piece)
            except BaseException as error:  # noqa: BLE001 (it is raised again where the stream is read)
                piece = error
            self._pieces.put(piece)
