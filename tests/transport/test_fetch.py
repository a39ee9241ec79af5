"""Fetching many objects: from sources that lie, fail or have only a part, with as few requests as planned."""

from __future__ import annotations

import hashlib
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from threading import Lock

import pytest

from cfstools.errors import (
    CfsError,
    CompressionError,
    ContentsWrong,
    InputError,
    NetworkError,
    NoRanges,
    NotFound,
    StoreError,
)
from cfstools.progress import SILENT
from cfstools.streams.buffered import Read, read_up_to
from cfstools.transport.base import Open, Span, Version
from cfstools.transport.faults import Faults, FaultyTarget
from cfstools.transport.fetch import FetchReport, ObjectSource, fetch_all
from cfstools.transport.memory import MemoryTarget
from cfstools.transport.objects import BATCH_BYTES, MOST_IN_BATCH, PlaceObjects
from cfstools.transport.packs import Blob, Location, PackSource
from cfstools.transport.reading import open_at
from cfstools.transport.retry import Clock, RetryRules

RULES = RetryRules(attempts=4, progress=1)
CLOCK = Clock(sleep=lambda _seconds: None)


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


CHANCE = random.Random(7)
OBJECTS = {digest(data): data for data in (CHANCE.randbytes(CHANCE.choice([1, 50, 3000, 70_000])) for _ in range(120))}
SIZES = {key: len(data) for key, data in OBJECTS.items()}


class Checked:
    """A sink that keeps what is right."""

    def __init__(self) -> None:
        self.objects: dict[bytes, bytes] = {}
        self._lock = Lock()

    def take(self, key: bytes, size: int, read: Read) -> None:
        data = read_up_to(read, size + 1)
        if digest(data) != key or len(data) != size:
            raise ContentsWrong("has another digest")
        with self._lock:
            assert key not in self.objects
            self.objects[key] = data


def name_of(key: bytes) -> str:
    return key.hex()


class Watched:
    """A place that remembers what was asked of it; with *error* it raises that."""

    def __init__(self, contents: Mapping[str, bytes], error: CfsError | None = None) -> None:
        self._target = MemoryTarget(contents)
        self._error = error
        self.asked: list[str] = []
        self.size, self.describe, self.close = self._target.size, self._target.describe, self._target.close

    def read(self, name: str, span: Span | None = None, version: Version | None = None) -> AbstractContextManager[Read]:
        self.asked.append(name)
        if self._error is not None:
            raise self._error
        return self._target.read(name, span, version)


def place(objects: Mapping[bytes, bytes], shown: str = "memory") -> tuple[PlaceObjects, Watched]:
    target = Watched({name_of(key): data for key, data in objects.items()})
    return PlaceObjects(target, name_of, shown, rules=RULES, clock=CLOCK), target


def fetched(sources: Sequence[ObjectSource], wanted: Mapping[bytes, int] = SIZES) -> tuple[Checked, FetchReport]:
    sink = Checked()
    report = fetch_all(sources, wanted, sink, connections=4, progress=SILENT)
    assert report.objects == len(sink.objects)
    assert set(report.failures) == set(wanted) - set(sink.objects)
    return sink, report


def test_all_comes_from_one_place() -> None:
    source, target = place(OBJECTS)
    sink, report = fetched([source])
    assert sink.objects == OBJECTS
    assert report.requests == len(OBJECTS) == len(target.asked)
    assert report.received == sum(SIZES.values())
    assert report.error(bytes.hex) is None
    assert fetched([source], {})[1].requests == 0


def test_a_place_that_breaks_gives_all_in_the_end() -> None:
    target = FaultyTarget(
        MemoryTarget({name_of(key): data for key, data in OBJECTS.items()}), Faults(errors=0.2, short=0.3)
    )
    source = PlaceObjects(target, name_of, "faulty", rules=RetryRules(attempts=40, progress=1), clock=CLOCK)
    assert fetched([source])[0].objects == OBJECTS
    assert target.injected["read", "short"]


def test_batches_are_bounded() -> None:
    source, _ = place({})
    wanted = {
        bytes([number]): size
        for number, size in enumerate([10] * 40 + [BATCH_BYTES * 3, BATCH_BYTES, 1, BATCH_BYTES - 1])
    }
    requests = source.plan(wanted)
    assert [key for request in requests for key in request.keys] == sorted(wanted)
    assert [len(request.keys) for request in requests] == [16, 16, 8, 1, 1, 2]
    assert max(len(request.keys) for request in requests) == MOST_IN_BATCH
    assert [request.size for request in requests] == [160, 160, 80, BATCH_BYTES * 3, BATCH_BYTES, BATCH_BYTES]


def test_what_one_place_lacks_comes_from_the_next() -> None:
    keys = sorted(OBJECTS)
    first, asked_first = place({key: OBJECTS[key] for key in keys[:50]})
    second, asked_second = place({key: OBJECTS[key] for key in keys[30:]})
    assert fetched([first, second])[0].objects == OBJECTS
    assert len(asked_first.asked) == len(OBJECTS)
    assert sorted(asked_second.asked) == [name_of(key) for key in keys[50:]]


def test_a_mirror_with_wrong_bytes_is_left_out() -> None:
    liar, asked = place({key: data[:-1] + b"!" for key, data in OBJECTS.items()}, "liar")
    good, _ = place(OBJECTS)
    assert fetched([liar, good])[0].objects == OBJECTS
    assert len(asked.asked) < 10
    sink, report = fetched([liar])
    assert sink.objects == {}
    error = report.error(bytes.hex)
    assert isinstance(error, ContentsWrong)
    assert "contents are wrong at liar" in str(error)
    assert error.exit_code == 3


def test_an_object_that_is_wrong_everywhere_names_all_places() -> None:
    key = min(OBJECTS)
    bad = {**OBJECTS, key: b"?" * SIZES[key]}
    sources = [place(bad, "https://m1.example/objects")[0], place(bad, "https://m2.example/objects")[0]]
    sink, report = fetched(sources)
    assert len(sink.objects) == len(OBJECTS) - 1
    assert str(report.error(bytes.hex)) == (
        f"object {key.hex()}: contents are wrong at https://m1.example/objects and https://m2.example/objects"
    )


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b""])
def test_lengths_are_looked_at(change: Callable[[bytes], bytes]) -> None:
    key = min(key for key in OBJECTS if SIZES[key] > 1)
    source, asked = place({**OBJECTS, key: change(OBJECTS[key])})
    sink, report = fetched([source])
    assert asked.asked.count(name_of(key)) == 1
    if key in sink.objects:  # what follows the object is not its
        assert change(b"ab") == b"abx"
    else:
        assert isinstance(report.error(bytes.hex), ContentsWrong)


def test_what_is_missing_everywhere_is_counted() -> None:
    keys = sorted(OBJECTS)
    source, _ = place({key: OBJECTS[key] for key in keys[3:]})
    sink, report = fetched([source, source])
    assert len(sink.objects) == len(keys) - 3
    assert str(report.error(bytes.hex)) == f"3 objects are missing at every place, first {keys[0].hex()}"
    _, report = fetched([source], {keys[0]: 1})
    assert str(report.error(bytes.hex)) == f"1 object is missing at every place, first {keys[0].hex()}"
    _, report = fetched([], {keys[0]: 1})
    assert isinstance(report.error(bytes.hex), InputError)


def test_a_mirror_that_is_down_is_left_out() -> None:
    for error in (NetworkError("no route", subject="m1"), InputError("disk error", subject="d1")):
        target = Watched({}, error)
        source = PlaceObjects(target, name_of, "down", rules=RULES, clock=CLOCK)
        assert fetched([source, place(OBJECTS)[0]])[0].objects == OBJECTS
        assert len(target.asked) < 12
        _, report = fetched([source])
        assert str(report.error(bytes.hex)) == str(error)


def test_what_a_sink_raises_ends_it() -> None:
    class Full(Checked):
        def take(self, key: bytes, size: int, read: Read) -> None:
            raise StoreError("no space left")

    source, asked = place(OBJECTS)
    with pytest.raises(StoreError, match="no space left"):
        fetch_all([source], SIZES, Full(), connections=2, progress=SILENT)
    assert asked.asked == []


def test_progress_is_told_of_what_arrives() -> None:
    told: list[object] = []

    class Stage:
        def advance(self, amount: int, /) -> None:
            told.append(amount)

        def finish(self) -> None:
            told.append("end")

    class Told:
        def stage(self, name: str, total: int | None, unit: str, /) -> Stage:
            told.append((name, total, unit))
            return Stage()

    keys = sorted(OBJECTS)
    first, _ = place({key: OBJECTS[key] for key in keys[1:]})
    fetch_all([first, place(OBJECTS, "m2")[0]], SIZES, Checked(), connections=1, progress=Told())
    total = sum(SIZES.values())
    assert told[0] == ("fetch", total, "B")
    assert ("fetch from m2", SIZES[keys[0]], "B") in told
    assert told.count("end") == 2
    assert sum(each for each in told if isinstance(each, int)) == total


# Packs


def packed(objects: Mapping[bytes, bytes], blobs: int = 3) -> tuple[dict[str, bytes], dict[bytes, Location]]:
    """Blobs with all objects, compressed, and where these lie."""
    made = [bytearray(b"head") for _ in range(blobs)]
    where = {}
    for number, (key, data) in enumerate(sorted(objects.items())):
        blob = made[number % blobs]
        stored = zlib.compress(data)
        where[key] = Location(number % blobs, Span(len(blob), len(blob) + len(stored)))
        blob += stored + b"tar header" * 50
    return {str(number): bytes(blob) for number, blob in enumerate(made)}, where


def inflated(read: Read) -> Read:
    stream = zlib.decompressobj()
    buffer = b""

    def decode(count: int) -> bytes:
        nonlocal buffer
        while not buffer and (part := read(1000)):
            try:
                buffer = stream.decompress(part)
            except zlib.error as error:
                raise CompressionError("damaged") from error
        part, buffer = buffer[:count], buffer[count:]
        return part

    return decode


class Ranges:
    """How spans of blobs in memory are opened, counted; *whole*: only all of one at once."""

    def __init__(self, contents: Mapping[str, bytes], *, whole: bool = False) -> None:
        self.target = MemoryTarget(contents)
        self.sizes = [len(contents[name]) for name in sorted(contents)]
        self.whole = whole
        self.asked: list[tuple[int, Span]] = []

    def opener(self, number: int) -> Open:
        opened = open_at(self.target, str(number))

        def opener(span: Span) -> AbstractContextManager[Read]:
            if self.whole and span != (0, self.sizes[number]):
                raise NoRanges("only the whole")
            self.asked.append((number, span))
            return opened(span)

        return opener

    def blobs(self, *others: Ranges) -> list[Blob]:
        return [
            Blob(f"layer {number}", size, [each.opener(number) for each in (self, *others)])
            for number, size in enumerate(self.sizes)
        ]


def pack_source(blobs: Sequence[Blob], where: Mapping[bytes, Location], warned: list[str] | None = None) -> PackSource:
    warn = (warned if warned is not None else []).append
    return PackSource("packs", blobs, where, decode=inflated, warn=warn, rules=RULES, clock=CLOCK)


def test_packs_are_read_in_few_requests() -> None:
    contents, where = packed(OBJECTS)
    ranges = Ranges(contents)
    sink, report = fetched([pack_source(ranges.blobs(), where)])
    assert sink.objects == OBJECTS
    assert report.requests == len(ranges.asked) == 3
    few = dict(list(SIZES.items())[:1])
    _, report = fetched([pack_source(ranges.blobs(), where)], few)
    assert (report.objects, report.requests) == (1, 1)


def test_an_object_that_is_wrong_does_not_spoil_those_beside_it() -> None:
    contents, where = packed(OBJECTS, blobs=1)
    spoilt = bytearray(contents["0"])
    victims = sorted(OBJECTS)[10:12]
    for victim in victims:
        spoilt[where[victim].span.start + 2] ^= 0xFF
    sink, report = fetched([pack_source(Ranges({"0": bytes(spoilt)}).blobs(), where)])
    assert set(OBJECTS) - set(sink.objects) == set(victims)
    assert isinstance(report.error(bytes.hex), ContentsWrong)
    assert fetched([pack_source(Ranges({"0": bytes(spoilt)}).blobs(), where), place(OBJECTS)[0]])[0].objects == OBJECTS


def test_a_blob_without_ranges_is_read_once_as_a_whole() -> None:
    contents, where = packed(OBJECTS)
    ranges = Ranges(contents, whole=True)
    warned: list[str] = []
    sink, report = fetched([pack_source(ranges.blobs(), where, warned)])
    assert sink.objects == OBJECTS
    assert sorted(ranges.asked) == [(number, Span(0, size)) for number, size in enumerate(ranges.sizes)]
    assert report.requests == 3
    said = [f"layer {n}: the registry gives no ranges; fetching all {ranges.sizes[n] / 1e6:.1f} MB" for n in range(3)]
    assert sorted(warned) == said


def test_a_mirror_with_ranges_comes_before_the_whole() -> None:
    contents, where = packed(OBJECTS)
    without, mirror = Ranges(contents, whole=True), Ranges(contents)
    warned: list[str] = []
    assert fetched([pack_source(without.blobs(mirror), where, warned)])[0].objects == OBJECTS
    assert warned == []
    assert without.asked == []


def test_a_map_that_lies_costs_little() -> None:
    contents, where = packed(OBJECTS, blobs=1)
    lie = Location(0, Span(0, len(contents["0"])))
    ranges = Ranges(contents)
    sink, report = fetched([pack_source(ranges.blobs(), dict.fromkeys(where, lie))])
    assert sink.objects == {}
    assert len(ranges.asked) < 12
    beyond = Location(0, Span(len(contents["0"]), len(contents["0"]) + 10))
    _, report = fetched([pack_source(ranges.blobs(), dict.fromkeys(where, beyond))])
    assert isinstance(report.error(bytes.hex), ContentsWrong)


def test_blobs_that_are_gone() -> None:
    _, where = packed(OBJECTS)
    gone = Ranges({"0": b"", "1": b"", "2": b""})
    gone.target = MemoryTarget()
    _, report = fetched([pack_source(gone.blobs(), where)])
    assert all(isinstance(failure.error, NotFound) for each in report.failures.values() for failure in each)
    assert "missing at every place" in str(report.error(bytes.hex))
