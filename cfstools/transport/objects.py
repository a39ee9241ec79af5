"""Objects that are each a name of its own in a place, fetched one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from cfstools.errors import ContentsWrong, NetworkError, NotFound
from cfstools.streams.buffered import Read
from cfstools.transport.base import Open, Place, Span, Version
from cfstools.transport.fetch import FetchRequest, Taker
from cfstools.transport.reading import DEFAULT_RULES, SpanReader
from cfstools.transport.retry import REAL_TIME, Clock, RetryRules

MOST_IN_BATCH = 16
BATCH_BYTES = 1 << 20
CONNECTIONS = 32  # objects are small, and a round trip is long


class ObjectsRequest(NamedTuple):
    """Some objects that one thread fetches, one after the other."""

    sizes: tuple[tuple[bytes, int], ...]

    @property
    def keys(self) -> tuple[bytes, ...]:
        """The objects."""
        return tuple(key for key, _ in self.sizes)

    @property
    def size(self) -> int:
        """All of their bytes."""
        return sum(size for _, size in self.sizes)

    @property
    def requests(self) -> int:
        """One for each object."""
        return len(self.sizes)


class PlaceObjects:
    """The objects of *place*, each under the name that *name_of* gives it; *shown* is what messages call the place.

    Where there are Merkle leaves beside large ones, *leaves_of* gives their names.
    """

    connections = CONNECTIONS

    def __init__(
        self,
        place: Place,
        name_of: Callable[[bytes], str],
        shown: str,
        *,
        leaves_of: Callable[[bytes], str] | None = None,
        rules: RetryRules = DEFAULT_RULES,
        clock: Clock = REAL_TIME,
    ) -> None:
        self._place = place
        self._name_of = name_of
        self._leaves_of = leaves_of
        self._shown = shown
        self._rules = rules
        self._clock = clock

    def plan(
        self,
        wanted: Mapping[bytes, int],
        missing: Callable[[], Mapping[bytes, int]] | None = None,  # noqa: ARG002 - part of the protocol
    ) -> Sequence[ObjectsRequest]:
        """Batches of all that is wanted: whether it is there shows when it is asked for."""
        made: list[ObjectsRequest] = []
        batch: list[tuple[bytes, int]] = []
        room = BATCH_BYTES
        for key, size in sorted(wanted.items()):
            if batch and (size > room or len(batch) == MOST_IN_BATCH):
                made.append(ObjectsRequest(tuple(batch)))
                batch, room = [], BATCH_BYTES
            batch.append((key, size))
            room -= size
        if batch:
            made.append(ObjectsRequest(tuple(batch)))
        return made

    def fetch(self, request: FetchRequest, taker: Taker) -> int:
        """Fetch the objects of a batch."""
        assert isinstance(request, ObjectsRequest)
        requests = 0
        for key, size in request.sizes:
            with self.reader(key, size) as reader:
                try:
                    taker.take(key, size, reader.read)
                except NetworkError as error:
                    taker.lost(key, error)
                requests += reader.requests
        return requests

    def reader(self, key: bytes, size: int) -> SpanReader:
        """All of an object, resuming."""
        return self._reader(self._opener(self._name_of(key), size), Span(0, size))

    @contextmanager
    def leaves(self, key: bytes, size: int, length: int) -> Iterator[Read]:  # noqa: ARG002 - part of the protocol
        """The leaves of an object, where they are beside it."""
        if self._leaves_of is None:
            raise NotFound("not found", subject=self._shown)
        with self._reader(self._opener(self._leaves_of(key), length, ends=True), Span(0, length)) as reader:
            yield reader.read

    @contextmanager
    def part(self, key: bytes, size: int, span: Span) -> Iterator[Read]:
        """A part of an object."""
        with self._reader(self._opener(self._name_of(key), size), span) as reader:
            yield reader.read

    def _reader(self, opener: Open, span: Span) -> SpanReader:
        return SpanReader([opener], span, rules=self._rules, clock=self._clock)

    def describe(self) -> str:
        """What messages call it."""
        return self._shown

    def _opener(self, name: str, size: int, *, ends: bool = False) -> Open:
        """How spans of a name are opened that should have *size* bytes; *ends*: and more is an error."""
        version = Version()

        @contextmanager
        def opened(span: Span) -> Iterator[Read]:
            if span.start or span.end < size:
                with self._place.read(name, span, version) as read:
                    yield read
            else:
                with self._place.read(name, None, version) as read:
                    yield _exactly(read, size, self._place.describe(name), ends=ends)

        return opened


def _exactly(read: Read, size: int, subject: str, *, ends: bool) -> Read:
    """What *read* gives; it must not end before it gave *size* bytes, and with *ends* no later."""
    left = size

    def exact(count: int) -> bytes:
        nonlocal left
        part = read(min(count, left))
        if not part and left and count:
            raise ContentsWrong("is shorter there than it should be", subject=subject)
        left -= len(part)
        if ends and not left and read(1):
            raise ContentsWrong("is longer there than it should be", subject=subject)
        return part

    return exact
