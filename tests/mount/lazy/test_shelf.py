"""What came is published in batches, and what cannot be is kept in files without a name, as long as there is room."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cfstools.errors import StoreError
from cfstools.mount.lazy import cache as cache_module
from cfstools.mount.lazy import shelf as shelf_module
from cfstools.mount.lazy.cache import Cache
from cfstools.mount.lazy.shelf import Shelf
from cfstools.store import DirectoryStore
from cfstools.store.locking import PATIENT, alone
from tests import requirements
from tests.mount.lazy.making import QUICK, Place, filler, make_objects, read_whole
from tests.mount.lazy.test_filler import wait_for
from tests.store.conftest import as_nobody, assert_whole, listing

OBJECTS = make_objects(40, *range(1, 30), 300_000, 400_000)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DirectoryStore]:
    with DirectoryStore(str(tmp_path / "store"), create=True) as opened:
        yield opened


def contents(shelf: Shelf, digest: bytes) -> bytes | None:
    found = shelf.open(digest)
    if found is None:
        return None
    try:
        return found.read(0, found.size + 5)
    finally:
        found.close()


def test_a_batch_is_published_after_a_second_at_most(store: DirectoryStore) -> None:
    with filler(Place(OBJECTS), objects=OBJECTS, store=store) as lazy:
        for digest in OBJECTS:
            read_whole(lazy, digest)
        wait_for(lambda: lazy.counters.published == len(OBJECTS))
        assert assert_whole(Path(store.path)) == len(OBJECTS)
        # The lock is not held between batches.
        with store.locked(exclusive=True, wait=False) as held:
            assert held


def test_a_full_batch_is_published_at_once(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf_module, "BATCH_SECONDS", 3600.0)
    monkeypatch.setattr(shelf_module, "BATCH_OBJECTS", 10)
    digests = list(OBJECTS)
    with Cache(b"/tmp", 0) as cache, Shelf(store, cache, QUICK, print) as shelf:
        for digest in digests[:9]:
            shelf.put(digest, OBJECTS[digest])
        time.sleep(0.05)
        assert not list(store.objects())
        shelf.put(digests[9], OBJECTS[digests[9]])
        wait_for(lambda: shelf.published == 10)
        assert contents(shelf, digests[0]) is None
        monkeypatch.setattr(shelf_module, "BATCH_BYTES", 250_000)
        shelf.put(digests[-1], OBJECTS[digests[-1]])
        wait_for(lambda: shelf.published == 11)
        shelf.put(digests[10], OBJECTS[digests[10]])
    assert set(store.objects()) == {*digests[:11], digests[-1]}


def test_objects_are_there_while_they_are_published(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf_module, "BATCH_SECONDS", 0.0)
    begun, gate = threading.Event(), threading.Event()

    def slow(writer: object, objects: object) -> None:
        begun.set()
        assert gate.wait(30)
        add(writer, objects)  # type: ignore[arg-type]

    add = shelf_module._add
    monkeypatch.setattr(shelf_module, "_add", slow)
    digests = list(OBJECTS)
    with Cache(b"/tmp", 0) as cache, Shelf(store, cache, QUICK, print) as shelf:
        shelf.put(digests[0], OBJECTS[digests[0]])
        file = shelf.new_file()
        os.write(file.fd, OBJECTS[digests[-1]])
        shelf.put_file(digests[-1], file, len(OBJECTS[digests[-1]]))
        assert begun.wait(30)
        for digest in (digests[0], digests[-1]):
            assert shelf.has(digest)
            assert contents(shelf, digest) == OBJECTS[digest]
        # What comes meanwhile waits for the next batch; the same object twice is one.
        shelf.put(digests[1], OBJECTS[digests[1]])
        shelf.put(digests[0], OBJECTS[digests[0]])
        file = shelf.new_file()
        os.write(file.fd, OBJECTS[digests[-1]])
        shelf.put_file(digests[-1], file, len(OBJECTS[digests[-1]]))
        gate.set()
    assert set(store.objects()) == {digests[0], digests[1], digests[-1]}
    assert assert_whole(Path(store.path)) == 3


def test_a_reader_keeps_what_it_opened(store: DirectoryStore) -> None:
    digest = list(OBJECTS)[-1]
    with filler(Place(OBJECTS), objects=OBJECTS, store=store) as lazy:
        found = lazy.open(digest)
        assert found.fileno() is not None
        wait_for(lambda: lazy.counters.published == 1)
        assert found.read(0, 1 << 20) == OBJECTS[digest]
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(found.fileno() or -1, b"x")
        found.close()


def test_new_objects_have_the_mode_of_objects(store: DirectoryStore) -> None:
    with filler(Place(OBJECTS), objects=OBJECTS, store=store, options=QUICK._replace(object_mode=0o600)) as lazy:
        for digest in OBJECTS:
            read_whole(lazy, digest)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in Path(store.path).glob("??/*")}
    assert modes == {0o600}


def test_a_collection_that_goes_on_makes_publishing_wait_and_not_readers(store: DirectoryStore) -> None:
    with filler(Place(OBJECTS), objects=OBJECTS, store=store) as lazy:
        with alone(store, PATIENT):
            for digest in OBJECTS:
                assert read_whole(lazy, digest) == OBJECTS[digest]
            time.sleep(shelf_module.BATCH_SECONDS + shelf_module._LOCK_SECONDS + 0.3)
            assert lazy.counters.published == 0
            for digest in OBJECTS:
                assert read_whole(lazy, digest) == OBJECTS[digest]
        wait_for(lambda: lazy.counters.published == len(OBJECTS))
        assert lazy.counters.objects == len(OBJECTS)


def test_a_collection_until_the_end_is_told(store: DirectoryStore) -> None:
    log: list[str] = []
    with alone(store, PATIENT):
        with filler(Place(OBJECTS), objects=OBJECTS, store=store, log=log.append) as lazy:
            read_whole(lazy, next(iter(OBJECTS)))
        assert "1 objects are not published" in log[0]
    assert not list(store.objects())


def test_what_the_store_cannot_take_is_kept_in_files(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StoreError("No space left on device", subject=store.path)

    monkeypatch.setattr(shelf_module, "_add", full)
    log: list[str] = []
    before = len(os.listdir("/proc/self/fd"))
    with filler(Place(OBJECTS), objects=OBJECTS, store=store, log=log.append) as lazy:
        for digest in OBJECTS:
            read_whole(lazy, digest)
        wait_for(lambda: lazy.counters.kept == len(OBJECTS))
        for digest in OBJECTS:
            assert read_whole(lazy, digest) == OBJECTS[digest]
        assert lazy.counters.objects == len(OBJECTS)
    (line,) = log
    assert "are not kept in the store" in line
    assert "No space left" in line
    assert not listing(store.path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_damaged_object_in_the_way_does_not_keep_the_others_out(store: DirectoryStore) -> None:
    from cfstools.verity import object_path

    digests = list(OBJECTS)
    damaged = Path(store.path, os.fsdecode(object_path(digests[3])))
    damaged.parent.mkdir()
    damaged.write_bytes(b"something else")
    with filler(Place(OBJECTS), objects=OBJECTS, store=store) as lazy:
        for digest in OBJECTS:
            assert read_whole(lazy, digest) == OBJECTS[digest]
        wait_for(lambda: lazy.counters.published == len(OBJECTS) - 1)
        assert read_whole(lazy, digests[3]) == OBJECTS[digests[3]]
        assert lazy.counters.kept == 1
    assert damaged.read_bytes() == b"something else"


def test_a_store_that_cannot_be_written_to(tmp_path: Path) -> None:
    requirements.need_root()
    path = tmp_path / "theirs"
    with DirectoryStore(str(path), create=True):
        pass
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    scratch.chmod(0o777)
    log: list[str] = []
    with (
        as_nobody(tmp_path),
        DirectoryStore(str(path)) as store,
        filler(Place(OBJECTS), objects=OBJECTS, store=store, log=log.append, scratch=bytes(scratch)) as lazy,
    ):
        for digest in OBJECTS:
            assert read_whole(lazy, digest) == OBJECTS[digest]
        assert lazy.counters.kept == len(OBJECTS)
        for digest in OBJECTS:
            assert read_whole(lazy, digest) == OBJECTS[digest]
        assert lazy.counters.objects == len(OBJECTS)
    assert ["the store cannot be written to" in line for line in log] == [True]
    assert not listing(path)


def test_without_a_store_everything_is_in_files() -> None:
    with filler(Place(OBJECTS), objects=OBJECTS) as lazy:
        for digest in OBJECTS:
            assert read_whole(lazy, digest) == OBJECTS[digest]
            found = lazy.open(digest)
            assert found.read(0, 1 << 20) == OBJECTS[digest]
            assert found.read(len(OBJECTS[digest]), 5) == b""
            found.close()
            found.close()
        assert lazy.counters.kept == len(OBJECTS)


def test_a_small_cache_forgets_the_oldest_and_fetches_it_again() -> None:
    objects = make_objects(41, *[100_000] * 60)
    place = Place(objects)
    options = QUICK._replace(cache_size=2_000_000)
    with filler(place, objects=objects, options=options) as lazy:
        for digest in objects:
            assert read_whole(lazy, digest) == objects[digest]
        assert 14 <= lazy.counters.kept <= 20
        assert lazy._shelf._cache._size <= 2_000_000
        first, last = next(iter(objects)), list(objects)[-1]
        assert read_whole(lazy, last) == objects[last]
        assert place.asked.total() == 60
        assert read_whole(lazy, first) == objects[first]
        assert place.asked.total() == 61


def test_an_object_larger_than_the_cache_is_served_all_the_same() -> None:
    objects = make_objects(42, 500_000, 600_000)
    before = len(os.listdir("/proc/self/fd"))
    with filler(Place(objects), objects=objects, options=QUICK._replace(cache_size=1000)) as lazy:
        first = lazy.open(next(iter(objects)))
        for digest in objects:
            assert read_whole(lazy, digest) == objects[digest]
        assert lazy.counters.kept == 1
        # What is open stays, though its file was forgotten.
        assert first.read(0, 1 << 20) == objects[next(iter(objects))]
        first.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_files_of_the_cache_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_DESCRIPTORS", 3)
    objects = make_objects(43, *[300_000] * 8)
    with filler(Place(objects), objects=objects) as lazy:
        for digest in objects:
            read_whole(lazy, digest)
        assert lazy.counters.kept == 3


def test_a_directory_that_takes_no_temporaries_is_an_error(tmp_path: Path) -> None:
    with Cache(bytes(tmp_path / "nowhere"), 1000) as cache:
        with pytest.raises(StoreError, match="cannot make a temporary file"):
            cache.put(b"x", b"data")
        with pytest.raises(StoreError, match="cannot make a temporary file"):
            cache.new_file()
    lazy = filler(Place(OBJECTS), objects=OBJECTS, scratch=bytes(tmp_path / "nowhere"))
    with lazy, pytest.raises(StoreError, match="cannot make a temporary file"):
        lazy.open(next(iter(OBJECTS)))


def test_a_full_disk_is_an_error_and_no_ones_fault(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    from cfstools.mount.lazy import receiving

    def full(_fd: int, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(receiving, "write_all", full)
    log: list[str] = []
    place = Place(OBJECTS)
    digest = list(OBJECTS)[-1]
    with filler(place, objects=OBJECTS, store=store, log=log.append) as lazy:
        with pytest.raises(StoreError, match="No space left on device"):
            lazy.open(digest)
        assert not log, "the source did nothing wrong"
        assert place.asked.total() == 1
        monkeypatch.undo()
        assert read_whole(lazy, digest) == OBJECTS[digest]


def test_what_comes_faster_than_it_is_published_goes_to_the_cache(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf_module, "BATCH_OBJECTS", 5)
    with filler(Place(OBJECTS), objects=OBJECTS, store=store) as lazy, alone(store, PATIENT):
        for digest in OBJECTS:
            assert read_whole(lazy, digest) == OBJECTS[digest]
        assert lazy.counters.kept > 0
        for digest in OBJECTS:
            assert read_whole(lazy, digest) == OBJECTS[digest]
        assert lazy.counters.objects == len(OBJECTS)


def test_files_without_names_that_cannot_be_linked_are_copied(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system without anonymous files: what is large goes to the cache, what is small is published."""
    monkeypatch.setattr(shelf_module, "open_tmpfile", lambda _fd, _mode: None)
    with filler(Place(OBJECTS), objects=OBJECTS, store=store) as lazy:
        for digest in OBJECTS:
            assert read_whole(lazy, digest) == OBJECTS[digest]
        assert lazy.counters.kept == 2
    assert assert_whole(Path(store.path)) == len(OBJECTS) - 2
