"""A byte source read once, in pieces, with the current piece at hand."""

from __future__ import annotations

from collections.abc import Iterator

from cfstools.streams.buffered import Read

Chunk = bytes | memoryview

READ_SIZE = 1 << 18
_ZEROS = bytes(READ_SIZE)


class Stream:
    """A buffer over ``read(n)``, which gives 1 to *n* bytes, or none at the end."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._buffer = b""
        self._at = 0  # position in the buffer
        self._base = 0  # offset of the buffer in the stream

    @property
    def offset(self) -> int:
        """Bytes of the stream consumed so far."""
        return self._base + self._at

    def _refill(self) -> bool:
        """Replace the used-up buffer by what comes next; whether anything came."""
        self._base += len(self._buffer)
        self._at = 0
        self._buffer = self._read(READ_SIZE)
        return bool(self._buffer)

    def _gather(self, count: int) -> bool:
        """Have *count* bytes in one piece at the current position; whether the stream had them."""
        have = len(self._buffer) - self._at
        if have >= count:
            return True
        parts = [self._buffer[self._at :]]
        while have < count:
            part = self._read(READ_SIZE)
            if not part:
                break
            parts.append(part)
            have += len(part)
        self._base += self._at
        self._at = 0
        self._buffer = b"".join(parts)
        return have >= count


def hole(count: int) -> Iterator[Chunk]:
    """*count* zeros, as pieces of contents."""
    while count > 0:
        step = min(count, READ_SIZE)
        yield _ZEROS if step == READ_SIZE else memoryview(_ZEROS)[:step]
        count -= step
