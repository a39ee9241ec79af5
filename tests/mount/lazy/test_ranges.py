"""Parts of large objects: no block without its digest, and no more fetched than is read."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cfstools.errors import ContentsWrong, Interrupted, NetworkError, NoRanges, StoreError, TransientError
from cfstools.mount.lazy import large as large_module
from cfstools.mount.lazy.filler import Filler
from cfstools.mount.lazy.options import LazyOptions
from cfstools.mount.lazy.ranges import CHUNK, MAX_WINDOW
from cfstools.mount.lazy.waiting import Interruption, interruptible
from cfstools.store import DirectoryStore
from cfstools.transport.base import Span
from cfstools.verity import Algorithm
from cfstools.verity.object_id import LARGE, leaves_name, object_name
from tests.mount.lazy.making import QUICK, Place, failing, filler, make_objects, read_whole
from tests.mount.lazy.test_filler import gated, wait_for
from tests.store.conftest import assert_whole

SIZE = LARGE + 5 * CHUNK + 4097
OBJECTS = make_objects(20, SIZE, 5000)
DIGEST, DATA = next(iter(OBJECTS.items()))
NAME, LEAVES = object_name(DIGEST), leaves_name(DIGEST)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DirectoryStore]:
    with DirectoryStore(str(tmp_path / "store"), create=True) as opened:
        yield opened


def part(lazy: Filler, offset: int, count: int) -> bytes:
    found = lazy.open(DIGEST)
    try:
        assert found.size == SIZE
        return found.read(offset, count)
    finally:
        found.close()


def test_the_first_bytes_come_with_the_leaves_and_a_chunk(store: DirectoryStore) -> None:
    place = Place(OBJECTS, leaves=True)
    with filler(place, objects=OBJECTS, store=store) as lazy:
        assert part(lazy, 0, 4096) == DATA[:4096]
        wait_for(lambda: not lazy._large._files[DIGEST]._asked)
        assert place.given <= len(place.contents[LEAVES]) + 3 * CHUNK
        assert lazy.counters.objects == 0
        assert lazy.counters.parts <= 3
        assert not list(store.objects())
    assert not list(store.objects()), "a part of an object was published"
    assert not [name for name in os.listdir(store.path) if name != ".mkcfs-lock"]


def test_random_reads_fetch_chunks_only(store: DirectoryStore) -> None:
    chance = random.Random(3)
    place = Place(OBJECTS, leaves=True)
    with filler(place, objects=OBJECTS, store=store) as lazy:
        found = lazy.open(DIGEST)
        for _ in range(20):
            at, count = chance.randrange(SIZE), chance.choice([1, 4096, 100_000])
            assert found.read(at, count) == DATA[at : at + count]
        assert found.read(SIZE, 5) == found.read(SIZE + 9, 5) == found.read(5, 0) == b""
        assert found.read(SIZE - 1, 50) == DATA[-1:]
        assert found.fileno() is None
        found.close()
    assert lazy.counters.part_bytes < 45 * CHUNK
    assert all(span is None or span.size % CHUNK == 0 or span.end == SIZE for name, span in place.spans if name == NAME)


def test_whoever_reads_all_of_it_gets_it_published(store: DirectoryStore) -> None:
    place = Place(OBJECTS, leaves=True)
    with filler(place, objects=OBJECTS, store=store) as lazy:
        found = lazy.open(DIGEST)
        assert found.read(0, SIZE + 5) == DATA
        # Complete: others get a file; who has it open reads on.
        wait_for(lambda: not lazy._large.has(DIGEST))
        assert read_whole(lazy, DIGEST) == DATA
        assert found.read(SIZE - 3, 9) == DATA[-3:]
        wait_for(lambda: lazy.counters.published == 1)
        # It has a name, under which somebody changes it: the open one is compared again.
        with Path(store.path, NAME).open("r+b") as file:
            file.seek(5000)
            file.write(bytes([DATA[5000] ^ 1]))
        with pytest.raises(StoreError, match="was changed"):
            found.read(4096, 1)
        assert found.read(9000, 5) == DATA[9000:9005]
        with Path(store.path, NAME).open("r+b") as file:
            file.seek(5000)
            file.write(DATA[5000:5001])
        found.close()
    assert list(store.objects()) == [DIGEST]
    assert assert_whole(Path(store.path)) == 1
    assert Path(store.path, NAME).stat().st_size == SIZE


def test_reading_on_needs_few_requests(store: DirectoryStore) -> None:
    place = Place(OBJECTS, leaves=True)
    with filler(place, objects=OBJECTS, store=store) as lazy:
        found = lazy.open(DIGEST)
        data = b""
        while piece := found.read(len(data), 100_000):
            data += piece
        found.close()
        assert data == DATA
    assert place.asked[NAME] < 12
    assert max(span.size for name, span in place.spans if span is not None) <= MAX_WINDOW * CHUNK
    assert lazy.counters.part_bytes == SIZE, "something was fetched twice"


def test_readers_of_one_chunk_share_a_fetch(store: DirectoryStore) -> None:
    place = Place(OBJECTS, leaves=True)
    with filler(place, objects=OBJECTS, store=store) as lazy:
        found = lazy.open(DIGEST)
        found.read(0, 1)
        wait_for(lambda: not lazy._large._files[DIGEST]._asked)
        asked = place.asked[NAME]
        gate, place.before = gated()  # type: ignore[assignment]
        results: list[bytes] = []
        at = 40 * CHUNK
        threads = [threading.Thread(target=lambda: results.append(found.read(at + 5, 10))) for _ in range(8)]
        for thread in threads:
            thread.start()
        wait_for(lambda: place.asked[NAME] == asked + 1)
        gate.set()
        for thread in threads:
            thread.join()
        assert results == [DATA[at + 5 : at + 15]] * 8
        assert place.asked[NAME] == asked + 1
        found.close()


def test_wrong_leaves_are_an_error(store: DirectoryStore) -> None:
    for spoiled in (b"\xff", b"", None):
        place = Place(OBJECTS, leaves=True)
        leaves = place.contents[LEAVES]
        if spoiled is None:
            place.contents[LEAVES] = leaves + bytes(32)
        else:
            place.contents[LEAVES] = leaves[:-1] + spoiled
        log: list[str] = []
        with filler(place, objects=OBJECTS, store=store, log=log.append) as lazy:
            with pytest.raises(ContentsWrong) as caught:
                lazy.open(DIGEST)
            assert isinstance(caught.value, StoreError)
            assert place.asked[NAME] == 0
            assert "is damaged" in log[0]
            # The next access tries again.
            place.contents[LEAVES] = leaves
            assert part(lazy, 9, 9) == DATA[9:18]


def test_leaves_of_another_object_are_an_error(store: DirectoryStore) -> None:
    other = make_objects(21, SIZE)
    place = Place(OBJECTS, leaves=True)
    place.contents[LEAVES] = Place(other, leaves=True).contents[leaves_name(next(iter(other)))]
    with filler(place, objects=OBJECTS, store=store) as lazy, pytest.raises(ContentsWrong, match="another object"):
        lazy.open(DIGEST)


def test_a_wrong_chunk_is_an_error_and_the_others_are_right(store: DirectoryStore) -> None:
    place = Place(OBJECTS, leaves=True)
    spoiled = bytearray(DATA)
    spoiled[30 * CHUNK + 77] ^= 1
    place.contents[NAME] = bytes(spoiled)
    log: list[str] = []
    with filler(place, objects=OBJECTS, store=store, log=log.append) as lazy:
        found = lazy.open(DIGEST)
        assert found.read(29 * CHUNK, CHUNK) == DATA[29 * CHUNK : 30 * CHUNK]
        with pytest.raises(ContentsWrong, match="do not have the digests"):
            found.read(30 * CHUNK, 1)
        with pytest.raises(StoreError):
            found.read(0, SIZE)
        assert found.read(31 * CHUNK, 9) == DATA[31 * CHUNK : 31 * CHUNK + 9]
        assert "place0 is damaged" in log[0]
        place.contents[NAME] = DATA
        assert found.read(0, SIZE) == DATA
        found.close()
    assert assert_whole(Path(store.path)) == 1


def test_a_chunk_that_one_source_has_wrong_comes_from_the_next(store: DirectoryStore) -> None:
    liar, good = Place(OBJECTS, leaves=True), Place(OBJECTS)
    liar.contents[NAME] = bytes(SIZE)
    with filler(liar, good, objects=OBJECTS, store=store) as lazy:
        assert part(lazy, 20 * CHUNK, CHUNK) == DATA[20 * CHUNK : 21 * CHUNK]
    assert good.asked[LEAVES] == 0


def test_leaves_come_from_whoever_has_them(store: DirectoryStore) -> None:
    bare, rich = Place(OBJECTS), Place(OBJECTS, leaves=True)
    with filler(bare, rich, objects=OBJECTS, store=store) as lazy:
        assert part(lazy, 5, 5) == DATA[5:10]
    assert 1 <= bare.asked[NAME] <= 2
    assert rich.asked[NAME] == 0
    assert bare.given <= 3 * CHUNK


def test_without_leaves_it_comes_whole(store: DirectoryStore) -> None:
    place = Place(OBJECTS)
    with filler(place, objects=OBJECTS, store=store) as lazy:
        assert part(lazy, 5, 5) == DATA[5:10]
        assert lazy.counters.objects == 1
    assert place.given == SIZE
    assert assert_whole(Path(store.path)) == 1


def test_without_ranges_it_comes_whole(store: DirectoryStore) -> None:
    def before(_name: str, span: Span | None) -> None:
        if span is not None:
            raise NoRanges("gives no ranges")

    place = Place(OBJECTS, leaves=True, before=before)
    with filler(place, objects=OBJECTS, store=store) as lazy:
        assert part(lazy, SIZE - 5, 5) == DATA[-5:]
    assert assert_whole(Path(store.path)) == 1


def test_leaves_that_cannot_be_had_now_are_an_error(store: DirectoryStore) -> None:
    place = Place(OBJECTS, leaves=True, before=failing(lambda: TransientError("is away"), times=2))
    with filler(place, objects=OBJECTS, store=store) as lazy:
        with pytest.raises(NetworkError, match="is away"):
            lazy.open(DIGEST)
        assert part(lazy, 1, 1) == DATA[1:2]


def test_a_chunk_that_cannot_be_had_now_is_an_error_and_comes_later(store: DirectoryStore) -> None:
    place = Place(OBJECTS, leaves=True)
    with filler(place, objects=OBJECTS, store=store) as lazy:
        found = lazy.open(DIGEST)
        place.before = failing(lambda: TransientError("is away"), times=2)
        with pytest.raises(NetworkError, match="is away"):
            found.read(50 * CHUNK, 5)
        assert found.read(50 * CHUNK, 5) == DATA[50 * CHUNK : 50 * CHUNK + 5]
        found.close()


def test_a_break_in_the_middle_goes_on_where_it_was(store: DirectoryStore) -> None:
    place = Place(OBJECTS, leaves=True)
    with filler(place, objects=OBJECTS, store=store) as lazy:
        found = lazy.open(DIGEST)
        wait_for(lambda: not lazy._large._files[DIGEST]._asked)
        whole = place.contents[NAME]
        place.contents[NAME] = whole[: 20 * CHUNK]
        with pytest.raises(StoreError):
            found.read(10 * CHUNK, 20 * CHUNK)
        place.contents[NAME] = whole
        assert found.read(10 * CHUNK, 20 * CHUNK) == DATA[10 * CHUNK : 30 * CHUNK]
        found.close()


def test_an_interrupted_read_ends(store: DirectoryStore) -> None:
    place = Place(OBJECTS, leaves=True)
    with filler(place, objects=OBJECTS, store=store) as lazy:
        found = lazy.open(DIGEST)
        gate, place.before = gated()  # type: ignore[assignment]
        interruption = Interruption()
        caught: list[BaseException] = []

        def reader() -> None:
            with interruptible(interruption):
                try:
                    found.read(50 * CHUNK, 1)
                except Interrupted as error:
                    caught.append(error)

        thread = threading.Thread(target=reader)
        thread.start()
        wait_for(lambda: lazy._large._files[DIGEST]._asked)
        interruption.interrupt()
        thread.join()
        assert caught
        gate.set()
        assert found.read(50 * CHUNK, 1) == DATA[50 * CHUNK : 50 * CHUNK + 1]
        found.close()


def test_a_slow_chunk_is_an_error_at_the_deadline(store: DirectoryStore) -> None:
    place = Place(OBJECTS, leaves=True)
    options = LazyOptions(attempts=1, timeout=0.1, readahead=0)
    with filler(place, objects=OBJECTS, store=store, options=options) as lazy:
        found = lazy.open(DIGEST)
        gate, place.before = gated()  # type: ignore[assignment]
        with pytest.raises(StoreError, match="did not come within 1 s"):
            found.read(50 * CHUNK, 1)
        before = lazy.counters.parts
        gate.set()
        wait_for(lambda: lazy.counters.parts > before)
        assert found.read(50 * CHUNK, 1) == DATA[50 * CHUNK : 50 * CHUNK + 1]
        found.close()


def test_what_is_wanted_behind_completes_it(store: DirectoryStore) -> None:
    place = Place(OBJECTS, leaves=True)
    with filler(place, objects=OBJECTS, store=store) as lazy:
        assert part(lazy, 44 * CHUNK, 9) == DATA[44 * CHUNK : 44 * CHUNK + 9]
        lazy.want(OBJECTS)
        wait_for(lambda: lazy.counters.published == 2 or len(list(store.objects())) == 2)
    assert assert_whole(Path(store.path)) == 2
    assert lazy.counters.part_bytes == SIZE


def test_a_reader_does_not_wait_for_what_is_wanted_behind(store: DirectoryStore) -> None:
    """The rest of a large object is on its way; its parts can be read meanwhile."""
    place = Place(OBJECTS, leaves=True)
    opened, gate = threading.Event(), threading.Event()

    def before(name: str, span: Span | None) -> None:
        if name == NAME and span is not None and span.start == CHUNK:
            opened.set()
            assert gate.wait(30)

    place.before = before
    with filler(place, objects=OBJECTS, store=store, options=QUICK._replace(connections=2)) as lazy:
        lazy.want([DIGEST])
        assert opened.wait(30)
        assert part(lazy, 5, 5) == DATA[5:10]
        assert part(lazy, SIZE - 5, 5) == DATA[-5:]
        gate.set()
        wait_for(lambda: lazy.counters.published)


def test_those_that_nobody_reads_go_when_there_are_too_many(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_module, "_DESCRIPTORS", 2)
    objects = make_objects(22, LARGE + 1, LARGE + 2, LARGE + 3)
    before = len(os.listdir("/proc/self/fd"))
    with filler(Place(objects, leaves=True), objects=objects, store=store) as lazy:
        digests = list(objects)
        first = lazy.open(digests[0])
        for digest in digests[1:]:
            assert lazy.open(digest).read(5, 5) == objects[digest][5:10]
        # Those are open still, so they stay whatever the limit is.
        assert len(lazy._large._files) == 3
        first.close()
        assert list(lazy._large._files) == digests[1:]
        again = lazy.open(digests[0])
        assert again.read(5, 5) == objects[digests[0]][5:10]
        again.close()
        lazy._large._files[digests[1]].close()
        lazy._large._files[digests[2]].close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_sha512_leaves(store: DirectoryStore) -> None:
    objects = make_objects(23, LARGE + 1, algorithm=Algorithm.SHA512)
    ((digest, data),) = objects.items()
    with filler(Place(objects, leaves=True), objects=objects, store=store) as lazy:
        found = lazy.open(digest)
        assert found.read(LARGE - 9, 99) == data[LARGE - 9 :]
        found.close()
