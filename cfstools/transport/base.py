"""The protocols of places, names in them, and what every place needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, Protocol

from cfstools.errors import InputError, SourceChanged
from cfstools.streams.buffered import Read
from cfstools.text import quoted

MAX_NAME = 1024


class Span(NamedTuple):
    """A range of bytes: from *start* up to *end*."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return self.end - self.start


class Body(Protocol):
    """Bytes to send, which can be read again if they have to be sent again."""

    @property
    def size(self) -> int:
        """How many they are."""

    def open(self) -> AbstractContextManager[Read]:
        """Read them from the start."""


class BytesBody:
    """Bytes in memory to send."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    @contextmanager
    def open(self) -> Iterator[Read]:
        """Read them from the start."""
        at = 0

        def read(count: int) -> bytes:
            nonlocal at
            part = self._data[at : at + count]
            at += len(part)
            return part

        yield read


class Version:
    """Which version of something is being read, so that what comes after a broken connection is of the same."""

    def __init__(self) -> None:
        self.value: str | None = None

    def check(self, value: str | None, subject: str) -> None:
        """Remember what tells the version, or compare. Raises ``SourceChanged``; what tells nothing is no change."""
        if self.value is None:
            self.value = value
        elif value is not None and value != self.value:
            raise SourceChanged("changed while it was read", subject=subject)


class Place(Protocol):
    """Named bytes that can be read, from several threads at once.

    Names are relative paths of parts joined by ``/`` (see :func:`check_name`). Errors are ``InputError``: its kind
    ``TransientError`` where a retry may help, ``NotFound`` where there is nothing of a name.
    """

    def size(self, name: str) -> int | None:
        """Length in bytes; ``None`` where there is nothing of this name."""

    def read(self, name: str, span: Span | None = None, version: Version | None = None) -> AbstractContextManager[Read]:
        """Read a span of it, or all; one attempt (``reading`` resumes).

        What is read is exactly the span, or an error is raised: ``NoRanges`` where only the whole could be had. A span
        that is not there is an error. *version* is filled in by the first read it is given to, and checked by others.
        """

    def describe(self, name: str) -> str:
        """What messages call it: a path or a URL."""

    def close(self) -> None:
        """Release connections and descriptors."""


class Target(Place, Protocol):
    """A place that can be written to."""

    def put(self, name: str, body: Body, *, replace: bool) -> bool:
        """Store *body* under a name, which then has all of it, or what it had before.

        Whether it was stored: without *replace* something of this name is left as it is. Raises ``InputError`` if the
        body is not as long as it says.
        """

    def names(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """All names below the directory *prefix* (``""``: all) with their sizes, in no particular order."""


Open = Callable[[Span], AbstractContextManager[Read]]
"""Opens a span of one thing, as :meth:`Place.read` does."""


def check_name(name: str) -> str:
    """*name*, if it is a relative path that leads nowhere else on any place. Raises :class:`InputError`."""
    if not name or len(name) > MAX_NAME or "\0" in name or any(part in {"", ".", ".."} for part in name.split("/")):
        raise InputError(f"{quoted(name)} cannot be a name in another place")
    return name


def pieces(read: Read, size: int, subject: str) -> Iterator[bytes]:
    """Exactly the *size* bytes that *read* has to give. Raises :class:`InputError` if there are fewer or more."""
    left = size
    while left:
        part = read(min(left, 1 << 20))
        if not part:
            raise InputError(f"{left} of {size} bytes are missing", subject=subject)
        left -= len(part)
        yield part
    if read(1):
        raise InputError(f"has more than the {size} bytes expected", subject=subject)
