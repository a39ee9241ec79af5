"""Pull readers: the one buffer that everything which looks ahead in a stream stands on.

A stream is a function ``read(n)`` that gives 1 to *n* bytes, or none at the end. :class:`BufferedReader` puts a buffer
over one; readers of formats (tar, compressed streams) and producers that give pieces of their own size (decoders, a
thread that reads ahead) are subclasses, which touch the buffer itself where a call for each field would cost too much.
"""

from __future__ import annotations

from collections.abc import Callable

Read = Callable[[int], bytes]

# Smaller pieces make threads wait more often for the interpreter: each piece is handed over under the GIL.
READ_SIZE = 1 << 18


class BufferedReader:
    """A buffer over ``read(n)``. A subclass that makes its pieces itself overrides :meth:`_fetch`."""

    def __init__(self, read: Read | None = None) -> None:
        self._read = read
        self._buffer = b""
        self._at = 0  # position in the buffer
        self._base = 0  # offset of the buffer in the stream

    @property
    def offset(self) -> int:
        """Offset in the stream of the next byte."""
        return self._base + self._at

    @property
    def received(self) -> int:
        """Bytes taken from the stream below, those still in the buffer included."""
        return self._base + len(self._buffer)

    def read(self, count: int) -> bytes:
        """The next bytes, at most *count*; none only at the end."""
        if self._at == len(self._buffer) and not self._refill():
            return b""
        start = self._at
        piece = self._buffer[start : start + count]  # the whole buffer is not copied
        self._at = start + len(piece)
        return piece

    def unread(self, count: int) -> None:
        """Put back the last *count* bytes of what :meth:`read` gave last."""
        self._at -= count

    def peek(self, count: int) -> bytes:
        """The next *count* bytes without taking them; fewer only at the end."""
        self._gather(count)
        return self._buffer[self._at : self._at + count]

    def _fetch(self) -> bytes:
        """The next piece of the stream; none at the end."""
        assert self._read is not None
        return self._read(READ_SIZE)

    def _refill(self) -> bool:
        """Replace the used-up buffer by what comes next; whether anything came."""
        buffer = self._fetch()
        self._base += len(self._buffer)
        self._at = 0
        self._buffer = buffer
        return bool(buffer)

    def _gather(self, count: int) -> bool:
        """Have *count* bytes in one piece at the current position; whether the stream had them."""
        have = len(self._buffer) - self._at
        if have >= count:
            return True
        if have == 0:
            if not self._refill():
                return False
            have = len(self._buffer)
        parts = [self._buffer[self._at :]]
        try:
            while have < count and (part := self._fetch()):
                parts.append(part)
                have += len(part)
        finally:  # what came before an error stays readable
            self._base += self._at
            self._at = 0
            self._buffer = b"".join(parts)
        return have >= count


def read_up_to(read: Read, count: int) -> bytes:
    """The next *count* bytes that *read* gives; fewer only at the end."""
    parts = []
    while count and (part := read(min(count, 1 << 20))):
        parts.append(part)
        count -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
