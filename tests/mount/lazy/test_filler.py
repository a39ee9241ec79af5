"""Objects that come when they are read: once, checked, and kept."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cfstools.errors import (
    CfsError,
    ContentsWrong,
    Interrupted,
    NetworkError,
    NotFound,
    ObjectMissing,
    StoreError,
    TransientError,
    UsageError,
)
from cfstools.mount.lazy import filler as filler_module
from cfstools.mount.lazy.filler import MAX_FAILURES, Filler
from cfstools.mount.lazy.jobs import Urgency
from cfstools.mount.lazy.options import LEAST, LazyOptions
from cfstools.mount.lazy.waiting import Interruption, interruptible
from cfstools.store import DirectoryStore
from cfstools.store.chain import StoreChain
from cfstools.transport.base import Span
from cfstools.transport.retry import Clock
from cfstools.verity import Algorithm
from cfstools.verity.object_id import object_name, object_path
from tests.mount.lazy.making import EAGER_CLOCK, QUICK, Place, failing, filler, make_objects, read_whole, sizes_of
from tests.store.conftest import assert_whole

OBJECTS = make_objects(1, 10, 4096, 5000, 300_000, 700_001, 1, 0)
SMALL, LARGE = list(OBJECTS)[1], list(OBJECTS)[4]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DirectoryStore]:
    with DirectoryStore(str(tmp_path / "store"), create=True) as opened:
        yield opened


def in_threads(count: int, work: object) -> list[object]:
    results: list[object] = []

    def run() -> None:
        try:
            results.append(work())  # type: ignore[operator]
        except CfsError as error:
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def gated() -> tuple[threading.Event, object]:
    gate = threading.Event()

    def before(_name: str, _span: Span | None) -> None:
        assert gate.wait(30)

    return gate, before


def wait_for(condition: object) -> None:
    deadline = time.monotonic() + 30
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_is_missing_comes_and_is_published(store: DirectoryStore) -> None:
    place = Place(OBJECTS)
    with filler(place, objects=OBJECTS, store=store) as lazy:
        for digest, data in OBJECTS.items():
            assert read_whole(lazy, digest) == data
            found = lazy.open(digest)
            assert found.size == len(data)
            assert found.read(3, 5) == data[3:8]
            found.close()
            found.close()
    assert assert_whole(Path(store.path)) == len(OBJECTS)
    assert set(place.asked.values()) == {1}
    counters = lazy.counters
    assert (counters.objects, counters.bytes) == (len(OBJECTS), sum(map(len, OBJECTS.values())))
    assert (counters.misses, counters.published, counters.waiting, counters.kept) == (len(OBJECTS), len(OBJECTS), 0, 0)
    assert counters.hits == len(OBJECTS)


def test_it_is_a_store(store: DirectoryStore) -> None:
    with filler(Place(OBJECTS), objects=OBJECTS, store=store) as lazy:
        assert list(lazy.objects()) == sorted(OBJECTS)
        assert lazy.size(SMALL) == len(OBJECTS[SMALL])
        assert lazy.size(b"x" * 32) is None
        assert not lazy.is_here(SMALL)
        found = lazy.open_path(b"/" + object_path(SMALL))
        assert found.read(0, 1 << 20) == OBJECTS[SMALL]
        found.close()
        assert lazy.is_here(SMALL)
        for path in (b"somewhere", b"ab/cd", b"", b"/x/y/z"):
            with pytest.raises(ObjectMissing):
                lazy.open_path(path)
        with pytest.raises(ObjectMissing, match="no object of the image"):
            lazy.open(b"x" * 32)
        assert object_path(SMALL).decode() in lazy.describe(SMALL)
        chain = StoreChain([store, lazy])
        found = chain.open(LARGE)
        assert found.read(0, 1 << 20) == OBJECTS[LARGE]
        found.close()


def test_sha512_objects(store: DirectoryStore) -> None:
    objects = make_objects(2, 100, 300_000, algorithm=Algorithm.SHA512)
    with filler(Place(objects), objects=objects, store=store) as lazy:
        assert [read_whole(lazy, digest) for digest in objects] == list(objects.values())
    assert {path.read_bytes() for path in Path(store.path).glob("*/*")} == set(objects.values())
    assert list(store.objects()) == sorted(objects)


@pytest.mark.parametrize("digest", [SMALL, LARGE])
def test_eight_readers_cost_one_fetch(store: DirectoryStore, digest: bytes) -> None:
    gate, before = gated()
    place = Place(OBJECTS, before=before)  # type: ignore[arg-type]
    with filler(place, objects=OBJECTS, store=store) as lazy:
        threading.Timer(0.1, gate.set).start()
        assert in_threads(8, lambda: read_whole(lazy, digest)) == [OBJECTS[digest]] * 8
        assert lazy.counters.misses == 8
    assert place.asked == {object_name(digest): 1}


def test_what_is_in_a_local_store_is_not_fetched(store: DirectoryStore, tmp_path: Path) -> None:
    place = Place(OBJECTS)
    with filler(place, objects=OBJECTS, store=store) as lazy:
        read_whole(lazy, SMALL)
    empty = Place({})
    with filler(empty, objects=OBJECTS, store=store) as lazy:
        assert read_whole(lazy, SMALL) == OBJECTS[SMALL]
        assert not empty.asked
        assert lazy.counters.hits == 1


def truncated(place: Place, digest: bytes) -> None:
    place.contents[object_name(digest)] = OBJECTS[digest][:-1]


def corrupt(place: Place, digest: bytes) -> None:
    data = bytearray(OBJECTS[digest])
    data[-1] ^= 1
    place.contents[object_name(digest)] = bytes(data)


def missing(place: Place, digest: bytes) -> None:
    del place.contents[object_name(digest)]


def refused(place: Place, digest: bytes) -> None:
    place.before = failing(lambda: NetworkError("refuses", subject="it"))


BAD = {
    "truncated": (truncated, ContentsWrong, "shorter"),
    "corrupt": (corrupt, ContentsWrong, "fs-verity digest"),
    "missing": (missing, ObjectMissing, "is not at place0"),
    "refused": (refused, NetworkError, "cannot fetch from place0: refuses"),
}


@pytest.mark.parametrize("digest", [SMALL, LARGE])
@pytest.mark.parametrize("kind", sorted(BAD))
def test_what_a_source_does_not_give_is_an_error_and_tried_again(
    store: DirectoryStore, kind: str, digest: bytes
) -> None:
    spoil, error, text = BAD[kind]
    place = Place(OBJECTS)
    spoil(place, digest)
    with filler(place, objects=OBJECTS, store=store) as lazy:
        for _ in range(2):
            results = in_threads(4, lambda: read_whole(lazy, digest))
            assert all(isinstance(result, error) and isinstance(result, StoreError) for result in results), results
            assert text in str(results[0])
            assert object_path(digest).decode() in str(results[0])
        assert lazy.counters.failures == 8
        assert not list(store.objects())
        mended = Place(OBJECTS)
        place.contents, place.before = mended.contents, mended.before
        assert read_whole(lazy, digest) == OBJECTS[digest]
    assert list(store.objects()) == [digest]
    assert assert_whole(Path(store.path)) == 1


def test_what_is_too_long_is_read_no_further_than_one_byte(store: DirectoryStore) -> None:
    """A place that says a length is read to that; one that does not end gives one byte more at most."""
    from contextlib import contextmanager

    from cfstools.transport.objects import PlaceObjects

    given = 0

    class Endless(Place):
        @contextmanager
        def read(self, name, span=None, version=None):  # type: ignore[no-untyped-def]
            def endless(count: int) -> bytes:
                nonlocal given
                given += count
                return b"x" * count

            yield endless

    class NoEnd(PlaceObjects):
        def fetch(self, request, taker):  # type: ignore[no-untyped-def]
            for key, size in request.sizes:
                with self._place.read("x") as read:
                    taker.take(key, size, read)
            return 1

    for digest in (SMALL, LARGE):
        given = 0
        source = NoEnd(Endless(OBJECTS), lambda key: "x", "endless")
        lazy = Filler([source], sizes_of(OBJECTS), local=[store], store=store, options=QUICK, clock=EAGER_CLOCK)
        with lazy, pytest.raises(ContentsWrong, match=f"more bytes instead of {len(OBJECTS[digest])}"):
            lazy.open(digest)
        assert given == len(OBJECTS[digest]) + 1
    assert not list(store.objects())


def test_a_slow_source_is_an_error_at_the_deadline_and_may_come_later(store: DirectoryStore) -> None:
    gate, before = gated()
    place = Place(OBJECTS, before=before)  # type: ignore[arg-type]
    options = LazyOptions(attempts=1, timeout=0.1, readahead=0)
    assert options.deadline == pytest.approx(1.1)
    with filler(place, objects=OBJECTS, store=store, options=options) as lazy:
        with pytest.raises(StoreError, match="did not come within 1 s"):
            lazy.open(SMALL)
        assert lazy.counters.waiting == 0
        gate.set()
        wait_for(lambda: lazy.counters.objects)
        assert read_whole(lazy, SMALL) == OBJECTS[SMALL]
    assert place.asked == {object_name(SMALL): 1}, "the fetch that was on its way was good enough"


def test_a_source_that_drips_is_given_up(store: DirectoryStore) -> None:
    now = 0.0

    class Dripping(Place):
        def source(self, shown: str = "memory"):  # type: ignore[no-untyped-def]
            made = super().source(shown)
            fetch = made.fetch

            def dripping(request, taker):  # type: ignore[no-untyped-def]
                class Slow:
                    def take(self, key, size, read):  # type: ignore[no-untyped-def]
                        def drip(count: int) -> bytes:
                            nonlocal now
                            now += 1
                            part: bytes = read(min(count, 100))
                            return part

                        taker.take(key, size, drip)

                    def lost(self, key, error):  # type: ignore[no-untyped-def]
                        taker.lost(key, error)

                return fetch(request, Slow())

            made.fetch = dripping  # type: ignore[method-assign]
            return made

    clock = Clock(now=lambda: now, sleep=lambda _seconds: None)
    log: list[str] = []
    options = LazyOptions(attempts=2, timeout=60, readahead=0)
    place = Dripping(OBJECTS)
    lazy = Filler(
        [place.source("drip")],
        sizes_of(OBJECTS),
        local=[store],
        store=store,
        options=options,
        log=log.append,
        clock=clock,
    )
    with lazy:
        with pytest.raises(NetworkError, match="only 6000 bytes in 60 s"):
            lazy.open(LARGE)
        # What is small enough comes in time.
        assert read_whole(lazy, SMALL) == OBJECTS[SMALL]
    assert LEAST > 6000
    assert [line.rpartition("(")[2] for line in log] == ["attempt 1 of 2)", "attempt 2 of 2)"]
    assert list(store.objects()) == [SMALL]


def test_sources_are_asked_in_their_order_and_each_for_what_the_others_lack(store: DirectoryStore) -> None:
    keys = list(OBJECTS)
    first, second = Place({key: OBJECTS[key] for key in keys[:3]}), Place(OBJECTS)
    with filler(first, second, objects=OBJECTS, store=store) as lazy:
        for key in keys:
            assert read_whole(lazy, key) == OBJECTS[key]
    assert set(first.asked) == {object_name(key) for key in keys if OBJECTS[key]}
    assert not {object_name(key) for key in keys[:3]} & set(second.asked)


def test_damage_at_one_source_is_logged_and_the_next_asked(store: DirectoryStore) -> None:
    first, second = Place(OBJECTS), Place(OBJECTS)
    corrupt(first, LARGE)
    log: list[str] = []
    with filler(first, second, objects=OBJECTS, store=store, log=log.append) as lazy:
        assert read_whole(lazy, LARGE) == OBJECTS[LARGE]
    assert first.asked[object_name(LARGE)] == second.asked[object_name(LARGE)] == 1
    (line,) = log
    assert line.startswith(f"object {object_path(LARGE).decode()} from place0 is damaged: its fs-verity digest is ")


def test_a_source_that_comes_back_within_the_attempts_is_enough(store: DirectoryStore) -> None:
    place = Place(OBJECTS, before=failing(lambda: TransientError("is away"), times=1))
    log: list[str] = []
    with filler(place, objects=OBJECTS, store=store, log=log.append) as lazy:
        assert read_whole(lazy, SMALL) == OBJECTS[SMALL]
    assert log == [f"object {object_path(SMALL).decode()}: cannot fetch from place0: is away (attempt 1 of 2)"]


def test_a_source_that_is_down_is_soon_asked_last(store: DirectoryStore) -> None:
    objects = make_objects(3, *range(1, 31))
    down = Place(objects, before=failing(lambda: TransientError("is down")))
    good = Place(objects)
    with filler(down, good, objects=objects, store=store) as lazy:
        for digest, data in objects.items():
            assert read_whole(lazy, digest) == data
    assert sum(down.asked.values()) == 3
    assert sum(good.asked.values()) == len(objects)


def test_an_interrupted_reader_stops_waiting_and_the_others_go_on(store: DirectoryStore) -> None:
    gate, before = gated()
    place = Place(OBJECTS, before=before)  # type: ignore[arg-type]
    with filler(place, objects=OBJECTS, store=store) as lazy:
        interruption = Interruption()
        results: list[object] = []

        def reader() -> None:
            with interruptible(interruption):
                try:
                    results.append(read_whole(lazy, SMALL))
                except CfsError as error:
                    results.append(error)

        thread = threading.Thread(target=reader)
        thread.start()
        wait_for(lambda: lazy.counters.waiting == 1)
        interruption.interrupt()
        thread.join()
        assert isinstance(results[0], Interrupted)
        assert not isinstance(results[0], StoreError), "a chain would go on to the next store"
        with interruptible(interruption), pytest.raises(Interrupted):
            lazy.open(SMALL)
        gate.set()
        assert read_whole(lazy, SMALL) == OBJECTS[SMALL]
        assert lazy.counters.failures == 0


def test_too_many_readers_are_turned_away(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filler_module, "MAX_WAITING", 3)
    gate, before = gated()
    with filler(Place(OBJECTS, before=before), objects=OBJECTS, store=store) as lazy:  # type: ignore[arg-type]
        waiting = [threading.Thread(target=lambda: read_whole(lazy, SMALL)) for _ in range(3)]
        for thread in waiting:
            thread.start()
        wait_for(lambda: lazy.counters.waiting == 3)
        with pytest.raises(StoreError, match="too many readers wait"):
            lazy.open(LARGE)
        gate.set()
        for thread in waiting:
            thread.join()
        assert read_whole(lazy, LARGE) == OBJECTS[LARGE]


def test_closing_wakes_those_who_wait(store: DirectoryStore) -> None:
    gate, before = gated()
    lazy = filler(Place(OBJECTS, before=before), objects=OBJECTS, store=store)  # type: ignore[arg-type]
    errors: list[CfsError] = []

    def reader() -> None:
        with pytest.raises(StoreError, match="closed") as caught:
            lazy.open(SMALL)
        errors.append(caught.value)

    thread = threading.Thread(target=reader)
    thread.start()
    wait_for(lambda: lazy.counters.waiting == 1)
    threading.Timer(0.2, gate.set).start()
    lazy.close()
    thread.join()
    assert errors
    lazy.close()
    with pytest.raises(StoreError, match="closed"):
        lazy.open(LARGE)


def test_misses_go_before_what_nobody_waits_for(store: DirectoryStore) -> None:
    objects = make_objects(4, *range(1, 60))
    gate, before = gated()
    place = Place(objects, before=before)  # type: ignore[arg-type]
    digests = list(objects)
    with filler(place, objects=objects, store=store, options=QUICK._replace(connections=2)) as lazy:
        lazy.want(digests[:50])
        wait_for(lambda: sum(place.asked.values()) == 1)
        # One of two threads is left for those who wait.
        readers = [threading.Thread(target=read_whole, args=(lazy, digest)) for digest in digests[50:]]
        for thread in readers:
            thread.start()
        wait_for(lambda: sum(place.asked.values()) == 2)
        wait_for(lambda: len(lazy._crew._queues[Urgency.MISS]) == 8)
        gate.set()
        for thread in readers:
            thread.join()
        wait_for(lambda: lazy.counters.objects == 59)
        order = [name for name, _ in place.spans]
        late = [order.index(object_name(digest)) for digest in digests[50:]]
        # The last one was taken from the queue before others were, though its thread may have slept since.
        assert sorted(late)[-2] < 12, "what was wanted behind went first"
        assert lazy.counters.ahead == 50


def test_objects_are_read_ahead_in_the_order_of_the_tree(store: DirectoryStore) -> None:
    objects = make_objects(5, *range(1, 100))
    place = Place(objects)
    digests = list(objects)
    with filler(place, objects=objects, store=store, options=QUICK._replace(readahead=8)) as lazy:
        read_whole(lazy, digests[20])
        wait_for(lambda: lazy.counters.objects == 9)
        time.sleep(0.05)
        assert set(place.asked) == {object_name(digest) for digest in digests[20:29]}
        # Nothing happens at the first of these; half of the way on, more comes.
        read_whole(lazy, digests[21])
        time.sleep(0.05)
        assert lazy.counters.objects == 9
        read_whole(lazy, digests[24])
        wait_for(lambda: lazy.counters.objects == 13)
        read_whole(lazy, digests[98])
    assert place.asked[object_name(digests[98])] == 1
    assert lazy.counters.misses == 2


def test_objects_are_read_ahead_from_the_end_of_a_directory(store: DirectoryStore) -> None:
    objects = make_objects(5, *range(1, 100))
    place = Place(objects)
    digests = list(objects)
    with filler(place, objects=objects, store=store, options=QUICK._replace(readahead=8)) as lazy:
        read_whole(lazy, digests[50])
        wait_for(lambda: lazy.counters.objects == 9)
        read_whole(lazy, digests[49])
        wait_for(lambda: lazy.counters.objects == 18)
    assert set(place.asked) == {object_name(digest) for digest in digests[41:59]}


def test_large_objects_are_not_read_ahead(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfstools.mount.lazy.order.MAX_AHEAD", 1000)
    objects = make_objects(6, 10, 2000, 20, 30)
    place = Place(objects)
    digests = list(objects)
    with filler(place, objects=objects, store=store, options=QUICK._replace(readahead=3)) as lazy:
        read_whole(lazy, digests[0])
        wait_for(lambda: lazy.counters.objects == 3)
    assert object_name(digests[1]) not in place.asked


def test_what_is_wanted_behind_stops_after_failures_in_a_row(store: DirectoryStore) -> None:
    objects = make_objects(7, *range(1, 400))
    log: list[str] = []
    place = Place({})
    with filler(place, objects=objects, store=store, log=log.append) as lazy:
        lazy.want(objects)
        wait_for(lambda: log)
        time.sleep(0.1)
        assert log == [f"nothing more is fetched ahead: {MAX_FAILURES} failures in a row"]
        assert MAX_FAILURES <= sum(place.asked.values()) < 300
        # Who asks is still answered, and more can be wanted later.
        place.contents = Place(objects).contents
        lazy.want([b"foreign digests are", *list(objects)[:200]])
        wait_for(lambda: lazy.counters.objects == 200)


def test_a_few_failures_do_not_stop_it(store: DirectoryStore) -> None:
    objects = make_objects(8, *range(1, 400))
    digests = list(objects)
    place = Place({digest: objects[digest] for digest in digests if digests.index(digest) % 3})
    with filler(place, objects=objects, store=store) as lazy:
        lazy.want(digests)
        wait_for(lambda: lazy.counters.objects == len(place.contents))


def test_nothing_runs_before_something_is_wanted_so_that_a_process_can_fork(store: DirectoryStore) -> None:
    before = threading.active_count()
    lazy = filler(Place(OBJECTS), objects=OBJECTS, store=store)
    assert threading.active_count() == before
    pid = os.fork()
    if not pid:
        code = 1
        try:
            code = 0 if read_whole(lazy, SMALL) == OBJECTS[SMALL] else 2
            lazy.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert list(store.objects()) == [SMALL]
    assert read_whole(lazy, LARGE) == OBJECTS[LARGE]
    lazy.close()
    assert threading.active_count() == before


def test_without_sources_everything_is_missing(store: DirectoryStore) -> None:
    with filler(objects=OBJECTS, store=store) as lazy, pytest.raises(ObjectMissing, match="any source"):
        lazy.open(SMALL)


@pytest.mark.parametrize(
    "words", [{"connections": 0}, {"attempts": 0}, {"timeout": 0}, {"readahead": -1}, {"cache_size": -1}]
)
def test_senseless_options_are_refused(words: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        LazyOptions(**words)


def test_the_first_touch_is_noted(store: DirectoryStore) -> None:
    with filler(Place(OBJECTS), objects=OBJECTS, store=store) as lazy:
        for digest in (LARGE, SMALL, LARGE):
            read_whole(lazy, digest)
        touches = lazy.touched.touches()
    assert [touch.digest for touch in touches] == [LARGE, SMALL]
    assert touches[0].ms == 0


def test_a_missing_object_is_not_asked_for_twice(store: DirectoryStore) -> None:
    place = Place({}, before=failing(lambda: NotFound("not found")))
    with filler(place, objects=OBJECTS, store=store) as lazy, pytest.raises(ObjectMissing):
        lazy.open(SMALL)
    assert place.asked == {object_name(SMALL): 1}
