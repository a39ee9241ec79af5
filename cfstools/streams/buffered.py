"""A compressed stream, read once, with a little look-ahead."""

from __future__ import annotations

from collections.abc import Callable

from cfstools.errors import CompressionError

Read = Callable[[int], bytes]

# Smaller pieces are a stage of work that ends too soon: each end is a wait for the interpreter.
READ_SIZE = 1 << 18


class ByteSource:
    """A buffer over ``read(n)``, which gives 1 to *n* bytes, or none at the end."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._buffer = b""
        self._at = 0
        self.received = 0  # bytes read so far

    @property
    def offset(self) -> int:
        """Where in the stream the next byte stands."""
        return self.received - len(self._buffer) + self._at

    @property
    def where(self) -> str:
        """The offset for a message."""
        return f"compressed offset {self.offset:#x}/{self.offset}"

    def some(self, count: int) -> bytes:
        """The next bytes, at most *count*; none at the end."""
        if self._at == len(self._buffer):
            self._buffer = self._more()
            self._at = 0
        start = self._at
        piece = self._buffer[start : start + count]
        self._at = start + len(piece)
        return piece

    def give_back(self, count: int) -> None:
        """Put back the last *count* bytes of what :meth:`some` gave last."""
        self._at -= count

    def peek(self, count: int) -> bytes:
        """The next *count* bytes without taking them; fewer at the end."""
        while len(self._buffer) - self._at < count:
            more = self._more()
            if not more:
                break
            self._buffer = self._buffer[self._at :] + more
            self._at = 0
        return self._buffer[self._at : self._at + count]

    def take(self, count: int, what: str) -> bytes:
        """Exactly *count* bytes of a *what*; :class:`CompressionError` if the stream ends before."""
        start = self._at
        if start + count <= len(self._buffer):
            self._at = start + count
            return self._buffer[start : start + count]
        parts = []
        missing = count
        while missing:
            part = self.some(missing)
            if not part:
                raise CompressionError(f"the stream ends inside a {what}", where=self.where)
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def take_until(self, end: bytes, limit: int, what: str) -> bytes:
        """All bytes up to and with *end*, at most *limit*; :class:`CompressionError` if it does not come."""
        text = bytearray()
        while not text.endswith(end):
            if len(text) >= limit:
                raise CompressionError(f"a field of a {what} is longer than {limit} bytes", where=self.where)
            text += self.take(1, what)
        return bytes(text)

    def skip(self, count: int, what: str) -> None:
        """Pass over *count* bytes of a *what*."""
        while count:
            part = self.some(count)
            if not part:
                raise CompressionError(f"the stream ends inside a {what}", where=self.where)
            count -= len(part)

    def _more(self) -> bytes:
        more = self._read(READ_SIZE)
        self.received += len(more)
        return more


def pass_padding(source: ByteSource, what: str) -> None:
    """Pass over zeros to the end, as block devices and tapes leave them behind a *what*; nothing else may follow."""
    while True:
        where = source.where
        part = source.some(READ_SIZE)
        if not part:
            return
        if part.count(0) != len(part):
            raise CompressionError(f"something else follows the {what}", where=where)
