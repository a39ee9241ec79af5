"""The protocols of places, and reading from any of them: whole spans, retries, access at any offset."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from cfstools.errors import InputError, TransientError
from cfstools.streams.buffered import Read
from cfstools.text import quoted

MAX_NAME = 1024


class Span(NamedTuple):
    """A range of bytes: *size* of them from *offset* on."""

    offset: int
    size: int


class Place(Protocol):
    """Named bytes that can be read, from several threads at once.

    Names are relative paths of parts joined by ``/`` (see :func:`check_name`). Errors are :class:`InputError`, and its
    kind :class:`TransientError` where a retry may help.
    """

    def size(self, name: str) -> int | None:
        """Length in bytes; ``None`` where there is nothing of this name."""

    def read(self, name: str, span: Span) -> bytes:
        """The first bytes of a span: at least one, unless nothing is there; fewer than asked for is no error.

        Raises :class:`InputError` where there is nothing of this name.
        """

    def describe(self, name: str) -> str:
        """What messages call it: a path or a URL."""

    def close(self) -> None:
        """Release connections and descriptors."""


class Target(Place, Protocol):
    """A place that can be written to."""

    def put(self, name: str, read: Read, size: int) -> None:
        """Store the *size* bytes that *read* gives under a name, which then has all of them, or what it had before.

        Raises :class:`InputError` if *read* gives fewer or more.
        """

    def names(self) -> Iterator[str]:
        """All names, in no particular order."""


class Retry(NamedTuple):
    """How often a transient error is met in a row before it is raised; the first pause, which then doubles."""

    attempts: int = 1
    pause: float = 0.5
    sleep: Callable[[float], object] = time.sleep


ONCE = Retry()


def check_name(name: str) -> str:
    """*name*, if it is a relative path that leads nowhere else on any place. Raises :class:`InputError`."""
    if not name or len(name) > MAX_NAME or "\0" in name or any(part in {"", ".", ".."} for part in name.split("/")):
        raise InputError(f"{quoted(name)} cannot be a name in another place")
    return name


def read_some(place: Place, name: str, span: Span, retry: Retry = ONCE) -> bytes:
    """:meth:`Place.read` that tries again after transient errors."""
    pause = retry.pause
    for _ in range(retry.attempts - 1):
        try:
            return place.read(name, span)
        except TransientError:
            retry.sleep(pause)
            pause *= 2
    return place.read(name, span)


def read_whole(place: Place, name: str, span: Span, retry: Retry = ONCE) -> bytes:
    """All of a span, however many reads it takes. Raises :class:`InputError` if it is not all there.

    After an error, reading resumes where it stopped.
    """
    parts: list[bytes] = []
    offset, missing = span
    while missing:
        part = read_some(place, name, Span(offset, missing), retry)
        if not part:
            raise InputError(f"ends at {offset}, {missing} bytes are missing", subject=place.describe(name))
        parts.append(part)
        offset += len(part)
        missing -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


class PlaceAccess:
    """The bytes of one name at any offset, as :class:`cfstools.streams.spool.RandomAccess`; *place* stays open."""

    def __init__(self, place: Place, name: str, retry: Retry = ONCE) -> None:
        self._place = place
        self._name = name
        self._retry = retry

    def pread(self, count: int, offset: int) -> bytes:
        """At most *count* bytes at *offset*; none at the end."""
        return read_some(self._place, self._name, Span(offset, count), self._retry)

    def close(self) -> None:
        """Nothing: *place* is its owner's."""


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
