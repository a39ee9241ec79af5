"""A place in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256

from cfstools.errors import ContentsWrong, NotFound
from cfstools.streams.buffered import Read
from cfstools.transport.base import Body, BytesBody, Span, Version, check_name, pieces


class MemoryTarget:
    """Named bytes in a dictionary, in which every change is one step."""

    def __init__(self, contents: Mapping[str, bytes] | None = None) -> None:
        self._contents = dict(contents or {})

    def size(self, name: str) -> int | None:
        """Length in bytes, or ``None``."""
        data = self._contents.get(check_name(name))
        return None if data is None else len(data)

    @contextmanager
    def read(self, name: str, span: Span | None = None, version: Version | None = None) -> Iterator[Read]:
        """Read a span of it, or all."""
        data = self._contents.get(check_name(name))
        if data is None:
            raise NotFound("not found", subject=self.describe(name))
        if version is not None:
            version.check(sha256(data).hexdigest(), self.describe(name))
        span = span or Span(0, len(data))
        if span.end > len(data):
            raise ContentsWrong("is shorter there than it should be", subject=self.describe(name))
        with BytesBody(data[span.start : span.end]).open() as read:
            yield read

    def describe(self, name: str) -> str:
        """The name, as one in memory."""
        return f"memory:{name}"

    def close(self) -> None:
        """Nothing is held but memory."""

    def put(self, name: str, body: Body, *, replace: bool) -> bool:
        """Store a body."""
        if not replace and check_name(name) in self._contents:
            return False
        with body.open() as read:
            data = b"".join(pieces(read, body.size, self.describe(name)))
        if replace:
            self._contents[check_name(name)] = data
            return True
        return self._contents.setdefault(name, data) is data

    def names(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """All names below a directory with their sizes."""
        below = prefix and f"{check_name(prefix)}/"
        return ((name, len(data)) for name, data in list(self._contents.items()) if name.startswith(below))
