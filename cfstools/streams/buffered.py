"""The buffered reader on which all stream readers are built.

A stream is a function ``read(n)`` that returns 1 to *n* bytes, or none at the end. :class:`BufferedReader` adds a
buffer. Its subclasses are readers of formats (tar, compressed streams) and producers of pieces (decoders, read-ahead);
they access the buffer directly where a call for each field would be too slow.
"""

from __future__ import annotations

from collections.abc import Callable

Read = Callable[[int], bytes]

READ_SIZE = 1 << 18
"""The usual size of a piece, in bytes."""


class BufferedReader:
    """A buffer over ``read(n)``, which is asked for *piece* bytes.

    A subclass that produces pieces itself overrides :meth:`_fetch`.
    """

    def __init__(self, read: Read | None = None, piece: int = READ_SIZE) -> None:
        self._read = read
        self._piece = piece
        self._buffer = b""
        self._at = 0  # position in the buffer
        self._base = 0  # offset of the buffer in the stream

    @property
    def offset(self) -> int:
        """Offset of the next byte in the stream."""
        return self._base + self._at

    @property
    def received(self) -> int:
        """Bytes read from the underlying stream, including those still buffered."""
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
        """Put back the last *count* bytes that :meth:`read` returned."""
        self._at -= count

    def peek(self, count: int) -> bytes:
        """The next *count* bytes without consuming them; fewer only at the end."""
        self._gather(count)
        return self._buffer[self._at : self._at + count]

    def _fetch(self) -> bytes:
        """The next piece of the stream; none at the end."""
        assert self._read is not None
        return self._read(self._piece)

    def _refill(self) -> bool:
        """Replace the consumed buffer by the next piece; return ``False`` at the end."""
        buffer = self._fetch()
        self._base += len(self._buffer)
        self._at = 0
        self._buffer = buffer
        return bool(buffer)

    def _gather(self, count: int) -> bool:
        """Buffer *count* contiguous bytes from the current position; return ``False`` if the stream has fewer."""
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
        finally:  # bytes before an error stay readable
            self._base += self._at
            self._at = 0
            self._buffer = b"".join(parts)
        return have >= count


def read_up_to(read: Read, count: int) -> bytes:
    """Call *read* until it has returned *count* bytes; fewer only at the end."""
    parts = []
    while count and (part := read(min(count, 1 << 20))):
        parts.append(part)
        count -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
