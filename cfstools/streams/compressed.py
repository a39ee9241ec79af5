"""The compressed input of a decoder, with offsets for error messages."""

from __future__ import annotations

from cfstools.errors import CompressionError
from cfstools.streams.buffered import READ_SIZE, BufferedReader


class CompressedInput(BufferedReader):
    """A compressed stream whose headers are parsed field by field; errors name *what* was being read."""

    @property
    def where(self) -> str:
        """The current offset for messages."""
        return f"compressed offset {self.offset:#x}/{self.offset}"

    def take(self, count: int, what: str) -> bytes:
        """Read exactly *count* bytes of a *what*; :class:`CompressionError` if the stream is truncated."""
        start = self._at
        if start + count <= len(self._buffer):
            self._at = start + count
            return self._buffer[start : start + count]
        parts = []
        missing = count
        while missing:
            part = self.read(missing)
            if not part:
                raise CompressionError(f"the stream ends inside a {what}", where=self.where)
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def take_until(self, end: bytes, limit: int, what: str) -> bytes:
        """Read up to and including *end*, at most *limit* bytes; else :class:`CompressionError`."""
        text = bytearray()
        while not text.endswith(end):
            if len(text) >= limit:
                raise CompressionError(f"a field of a {what} is longer than {limit} bytes", where=self.where)
            text += self.take(1, what)
        return bytes(text)

    def skip(self, count: int, what: str) -> None:
        """Discard *count* bytes of a *what*."""
        while count:
            part = self.read(count)
            if not part:
                raise CompressionError(f"the stream ends inside a {what}", where=self.where)
            count -= len(part)

    def skip_padding(self, what: str) -> None:
        """Discard zero padding up to the end (block devices and tapes add it after a *what*); reject other bytes."""
        while True:
            where = self.where
            part = self.read(READ_SIZE)
            if not part:
                return
            if part.count(0) != len(part):
                raise CompressionError(f"something else follows the {what}", where=where)
