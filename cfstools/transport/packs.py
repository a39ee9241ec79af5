"""Objects that lie in large blobs, such as the layers of an image, read as ranges of these."""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import NamedTuple

from cfstools.errors import ContentsWrong, NoRanges, NotFound
from cfstools.streams.buffered import BufferedReader, Read, read_up_to
from cfstools.transport.base import Open, Span
from cfstools.transport.fetch import FetchRequest, Taker
from cfstools.transport.plan import RangeRequest, Wanted, plan, plan_whole
from cfstools.transport.reading import DEFAULT_RULES, SpanReader
from cfstools.transport.retry import REAL_TIME, Clock, RetryRules

CONNECTIONS = 8  # ranges are large

_LENGTH = 4  # bytes of a length in a table of frames
_TABLES = 64  # that are kept


class Blob(NamedTuple):
    """A blob: what messages call it, its size, and how spans of it are opened, in the order in which it is tried."""

    name: str
    size: int
    openers: Sequence[Open]


class Location(NamedTuple):
    """Where the stored form of an object lies: in which blob, which bytes of it."""

    blob: int
    span: Span


class _Run:
    """What was planned together, and what came of it."""

    def __init__(self, sizes: dict[bytes, int], missing: Callable[[], Mapping[bytes, int]] | None) -> None:
        self.sizes = sizes
        self._missing = missing
        self.given: set[bytes] = set()  # to the taker, whatever came of it
        self.whole: set[int] = set()  # blobs that were read as a whole

    def missing(self) -> Mapping[bytes, int]:
        """What is worth taking out of a blob that is read as a whole."""
        if self._missing is not None:
            self.sizes = dict(self._missing())
        return self.sizes


class PackRequest(NamedTuple):
    """One range of a blob, and what it was planned with."""

    ranged: RangeRequest
    run: _Run

    @property
    def keys(self) -> tuple[bytes, ...]:
        """What it brings."""
        return self.ranged.keys

    @property
    def size(self) -> int:
        """How many bytes it fetches."""
        return self.ranged.size

    @property
    def requests(self) -> int:
        """It is one."""
        return 1


class Frames(NamedTuple):
    """How parts of an object are had: where in its blob the table lies, and how much of the object a frame has.

    The table has the length of each frame in four bytes, little endian; the Merkle leaves of the object follow it.
    """

    table: Span
    piece: int


def as_it_is(read: Read) -> Read:
    """Objects that are stored as they are."""
    return read


class PackSource:
    """Objects at *where* in *blobs*, whose stored form *decode* turns into contents.

    A blob whose server gives no ranges is read once as a whole, which *warn* is told. Objects in *frames* can be had in
    parts as well.
    """

    connections = CONNECTIONS

    def __init__(
        self,
        place: str,
        blobs: Sequence[Blob],
        where: Mapping[bytes, Location],
        *,
        frames: Mapping[bytes, Frames] = {},
        decode: Callable[[Read], Read] = as_it_is,
        warn: Callable[[str], None] = lambda _text: None,
        rules: RetryRules = DEFAULT_RULES,
        clock: Clock = REAL_TIME,
    ) -> None:
        self._place = place
        self._blobs = blobs
        self._where = where
        self._frames = frames
        self._tables: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()
        self._decode = decode
        self._warn = warn
        self._rules = rules
        self._clock = clock
        self._locks = [Lock() for _ in blobs]

    def plan(
        self, wanted: Mapping[bytes, int], missing: Callable[[], Mapping[bytes, int]] | None = None
    ) -> Sequence[PackRequest]:
        """The ranges that bring what is here of *wanted*."""
        run = _Run(dict(wanted), missing)
        items = [Wanted(*self._where[key], key) for key in wanted if key in self._where]
        return [PackRequest(ranged, run) for ranged in plan(items)]

    def fetch(self, request: FetchRequest, taker: Taker) -> int:
        """Read one range."""
        assert isinstance(request, PackRequest)
        if request.ranged.blob not in request.run.whole:
            try:
                return self._read(request, taker)
            except NoRanges:
                pass
        return self._read_whole(request.ranged.blob, request.run, taker)

    @contextmanager
    def leaves(self, key: bytes, size: int, length: int) -> Iterator[Read]:
        """The leaves of an object, with the table before them, which is kept."""
        frames, location = self._found(key)
        count = self._count(frames, size)
        if frames.table.size != _LENGTH * count + length:
            raise ContentsWrong(f"the table of frames has {frames.table.size} bytes", subject=self._place)
        with self._reader(location.blob, frames.table) as reader:
            self._keep(key, read_up_to(reader.read, _LENGTH * count), location)
            yield reader.read

    @contextmanager
    def part(self, key: bytes, size: int, span: Span) -> Iterator[Read]:
        """A part of an object, out of the frames that have it."""
        frames, location = self._found(key)
        table = self._table(key, frames, location, size)
        first, last = span.start // frames.piece, -(-span.end // frames.piece)
        start = location.span.start + sum(table[:first])
        with self._reader(location.blob, Span(start, start + sum(table[first:last]))) as reader:
            read = self._decode(reader.read)
            before = BufferedReader(read)
            _skip(before, span.start - first * frames.piece)
            yield before.read

    def describe(self) -> str:
        """What messages call it."""
        return self._place

    def _found(self, key: bytes) -> tuple[Frames, Location]:
        if key not in self._where or key not in self._frames:
            raise NotFound("gives no parts of it", subject=self._place)
        return self._frames[key], self._where[key]

    @staticmethod
    def _count(frames: Frames, size: int) -> int:
        return -(-size // frames.piece)

    def _table(self, key: bytes, frames: Frames, location: Location, size: int) -> tuple[int, ...]:
        found = self._tables.get(key)
        if found is not None:
            return found
        start = frames.table.start
        length = _LENGTH * self._count(frames, size)
        with self._reader(location.blob, Span(start, start + length)) as reader:
            return self._keep(key, read_up_to(reader.read, length), location)

    def _keep(self, key: bytes, data: bytes, location: Location) -> tuple[int, ...]:
        """The lengths of the frames of an object. Raises ``ContentsWrong`` where they are not all of its bytes."""
        table = struct.unpack(f"<{len(data) // _LENGTH}I", data)
        if sum(table) != location.span.size:
            raise ContentsWrong("the table of frames is that of another object", subject=self._place)
        self._tables[key] = table
        if len(self._tables) > _TABLES:
            self._tables.popitem(last=False)
        return table

    def _reader(self, number: int, span: Span) -> SpanReader:
        return SpanReader(self._blobs[number].openers, span, rules=self._rules, clock=self._clock)

    def _read_whole(self, number: int, run: _Run, taker: Taker) -> int:
        """Read a blob from its start to its end for all that is missing of it, once; others wait for that."""
        with self._locks[number]:
            left = [Wanted(*self._where[key], key) for key in run.missing() if key in self._where]
            left = [item for item in left if item.blob == number and item.key not in run.given]
            if number in run.whole or not left:
                return 0
            run.whole.add(number)
            blob = self._blobs[number]
            self._warn(f"{blob.name}: the registry gives no ranges; fetching all {blob.size / 1e6:.1f} MB")
            (ranged,) = plan_whole(left, [each.size for each in self._blobs])
            return self._read(PackRequest(ranged, run), taker)

    def _read(self, request: PackRequest, taker: Taker) -> int:
        ranged, run = request.ranged, request.run
        at = ranged.span.start
        with self._reader(ranged.blob, ranged.span) as reader:
            # Most objects are small, and each read from the network lets other threads go first.
            stream = BufferedReader(reader.read)
            for item in ranged.items:
                _skip(stream, item.span.start - at)
                stored = _Stored(stream, item.span.size)
                if item.key not in run.given:
                    stored.start()
                    run.given.add(item.key)
                    taker.take(item.key, run.sizes[item.key], self._decode(stored.read))
                stored.finish()
                at = item.span.end
            return reader.requests


def _skip(stream: BufferedReader, count: int) -> None:
    while count and (part := stream.read(count)):
        count -= len(part)


class _Stored:
    """The stored form of one object, out of what *stream* gives."""

    def __init__(self, stream: BufferedReader, size: int) -> None:
        self._stream = stream
        self._left = size
        self._first = b""

    def start(self) -> None:
        """Read the first bytes, so that what cannot be read at all is known before anybody is given it."""
        self._first = self._stream.read(min(self._left, 1 << 16))

    def read(self, count: int) -> bytes:
        """The next bytes of it; none at its end."""
        if self._first:
            part, self._first = self._first[:count], self._first[count:]
        else:
            part = self._stream.read(min(count, self._left))
        self._left -= len(part)
        return part

    def finish(self) -> None:
        """Pass over what nobody read."""
        _skip(self._stream, self._left - len(self._first))
        self._first = b""
