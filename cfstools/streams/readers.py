"""Readers in the middle of a stream: one hashes what passes, one reads ahead in a thread."""

from __future__ import annotations

import hashlib
import queue
import threading
from types import TracebackType
from typing import Self

from cfstools.streams.buffered import READ_SIZE, BufferedReader, Read

_DEPTH = 4


class HashingReader:
    """Passes a stream through and hashes it: ``size`` and :meth:`hexdigest` hold for what has been read.

    *algorithms* are hashlib's names. To hash a whole stream, read until ``read`` gives nothing.
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


class ReadAhead(BufferedReader):
    """Reads a stream in a thread, so that decompression and hashing overlap with the work on the contents.

    At most *depth* pieces of 256 KiB wait. What the source raises is raised by :meth:`read` at the same
    place, and again on later calls. The thread starts with the first read; close it, best with ``with``:
    afterwards the source is not read any more.
    """

    def __init__(self, read: Read, *, depth: int = _DEPTH) -> None:
        super().__init__()
        self._source = read
        self._pieces: queue.Queue[bytes | BaseException] = queue.Queue(depth)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._ended = False
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread and wait for it. What it has read and nobody has asked for is lost."""
        self._stopping.set()
        self._ended = True
        thread = self._thread
        while thread is not None and thread.is_alive():
            try:  # a thread that waits for room finds it
                self._pieces.get_nowait()
            except queue.Empty:
                thread.join(0.01)

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
        while piece and not isinstance(piece, BaseException) and not self._stopping.is_set():
            try:
                piece = self._source(READ_SIZE)
            except BaseException as error:  # noqa: BLE001 (it is raised again where the stream is read)
                piece = error
            self._pieces.put(piece)
