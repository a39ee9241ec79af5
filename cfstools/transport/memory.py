"""A place in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cfstools.errors import InputError
from cfstools.streams.buffered import Read
from cfstools.transport.base import Span, check_name, pieces


class MemoryTarget:
    """Named bytes in a dictionary, in which every change is one step."""

    def __init__(self, contents: Mapping[str, bytes] | None = None) -> None:
        self._contents = dict(contents or {})

    def size(self, name: str) -> int | None:
        """Length in bytes, or ``None``."""
        data = self._contents.get(check_name(name))
        return None if data is None else len(data)

    def read(self, name: str, span: Span) -> bytes:
        """The bytes of a span, as many as are there."""
        data = self._contents.get(check_name(name))
        if data is None:
            raise InputError("not found", subject=self.describe(name))
        return data[span.offset : span.offset + span.size]

    def describe(self, name: str) -> str:
        """The name, as one in memory."""
        return f"memory:{name}"

    def close(self) -> None:
        """Nothing is held but memory."""

    def put(self, name: str, read: Read, size: int) -> None:
        """Store what *read* gives."""
        self._contents[check_name(name)] = b"".join(pieces(read, size, self.describe(name)))

    def names(self) -> Iterator[str]:
        """All names."""
        return iter(list(self._contents))
