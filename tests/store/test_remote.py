"""Stores in other places: nothing unchecked comes out, and what came once stays."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from cfstools.errors import (
    AccessDenied,
    NetworkError,
    ObjectMissing,
    RemoteObjectWrong,
    RemoteStoreError,
    StoreError,
    TransientError,
    Unsupported,
)
from cfstools.store import DirectoryStore, remote
from cfstools.store.base import Object
from cfstools.store.chain import StoreChain
from cfstools.store.open import open_stores
from cfstools.store.remote import IN_MEMORY, RemoteStore
from cfstools.store.write.keeping import keep_fetched, open_and_keep
from cfstools.streams.buffered import Read
from cfstools.transport.base import Span, Version
from cfstools.transport.faults import Faults, FaultyTarget
from cfstools.transport.memory import MemoryTarget
from cfstools.transport.open import open_http
from cfstools.transport.retry import Clock, RetryRules
from cfstools.transport.web import WebPlace
from cfstools.verity import Algorithm, ObjectId, Params, digest_bytes, object_path
from tests.descriptors import descriptors
from tests.servers.faulty import END, Answer, Asked, FaultyServer, Part, serve
from tests.servers.faulty import head as answer_head
from tests.servers.nginx import nginx

SHA512 = Params(algorithm=Algorithm.SHA512)
SMALL = b"small contents " * 50
LARGE = random.Random(4).randbytes(IN_MEMORY * 3 + 5)
OBJECTS = {digest_bytes(data): data for data in (SMALL, LARGE, b"x", b"y" * IN_MEMORY)}
OBJECTS[digest_bytes(b"other", SHA512)] = b"other"
CLOCK = Clock(sleep=lambda _seconds: None)


class Watched:
    """A place that counts what is asked of it, and raises what it is told to."""

    def __init__(self, objects: Mapping[bytes, bytes] = OBJECTS, error: Exception | None = None) -> None:
        self.target = MemoryTarget({object_path(digest).decode(): data for digest, data in objects.items()})
        self.error = error
        self.asked: list[str] = []

    def size(self, name: str) -> int | None:
        self.asked.append(f"size {name}")
        if self.error is not None:
            raise self.error
        return self.target.size(name)

    def read(self, name: str, span: Span | None = None, version: Version | None = None) -> AbstractContextManager[Read]:
        self.asked.append(f"read {name}")
        if self.error is not None:
            raise self.error
        return self.target.read(name, span, version)

    def describe(self, name: str) -> str:
        return f"https://m.example/{name}"

    def close(self) -> None:
        self.asked.append("close")


def store_of(place: Watched | MemoryTarget | FaultyTarget) -> RemoteStore:
    return RemoteStore(place, "https://m.example", rules=RetryRules(attempts=60, progress=1), clock=CLOCK)


def contents(found: Object) -> bytes:
    try:
        return found.read(0, found.size)
    finally:
        found.close()


def test_objects_are_fetched_and_checked() -> None:
    place = Watched()
    with store_of(place) as store:
        for digest, data in OBJECTS.items():
            found = store.open(digest)
            assert (found.fileno() is not None) == (len(data) > IN_MEMORY)
            assert contents(found) == data
            assert contents(store.open_path(b"/" + object_path(digest))) == data
            assert store.size(digest) == len(data)
            assert store.describe(digest) == f"https://m.example/{object_path(digest).decode()}"
    assert not [each for each in place.asked if each.startswith("size")]
    assert place.asked[-1] == "close"


def test_sizes_are_asked_for_once() -> None:
    place = Watched()
    store = store_of(place)
    digest, missing = digest_bytes(SMALL), digest_bytes(b"missing")
    for _ in range(3):
        assert store.size(digest) == len(SMALL)
        assert store.size(missing) is None
    assert len(place.asked) == 2
    with pytest.raises(ObjectMissing, match="no such object") as raised:
        store.open(missing)
    assert raised.value.subject == store.describe(missing)


def test_what_has_no_digest_cannot_come_from_elsewhere() -> None:
    for path in (b"a", b"ab/cd", b"usr/bin/tool", b"ab/" + b"c" * 61, b""):
        with pytest.raises(ObjectMissing, match="has no digest to check what comes by"):
            store_of(Watched()).open_path(path)


@pytest.mark.parametrize("data", [SMALL, LARGE])
@pytest.mark.parametrize("wrong", ["changed", "longer", "shorter", "empty"])
def test_wrong_contents_never_come_out(data: bytes, wrong: str) -> None:
    digest = digest_bytes(data)
    lies = {"changed": b"?" + data[1:], "longer": data + b"?", "shorter": data[:-1], "empty": b""}
    place = Watched({digest: lies[wrong]})
    before = descriptors()
    with pytest.raises(RemoteObjectWrong, match="contents are wrong") as raised:
        store_of(place).open(digest)
    assert raised.value.exit_code == 3
    assert isinstance(raised.value, StoreError)
    assert raised.value.subject == place.describe(object_path(digest).decode())
    assert descriptors() <= before
    assert len(place.asked) == 1


def test_an_object_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_OBJECT", IN_MEMORY * 2)
    with pytest.raises(RemoteObjectWrong, match="is larger than"):
        store_of(Watched()).open(digest_bytes(LARGE))


def test_what_breaks_is_resumed() -> None:
    target = FaultyTarget(Watched().target, Faults(seed=3, errors=0.2, short=0.9))
    store = store_of(target)
    for digest, data in OBJECTS.items():
        assert contents(store.open(digest)) == data
    assert target.injected["read", "short"] > 5


def large_answer(broken: int) -> Answer:
    """A server that breaks off the first *broken* answers to a request for the large object in the middle."""

    def answer(asked: Asked) -> Iterable[Part]:
        if asked.method == "GET" and sum(each.method == "GET" for each in server_asked(asked)) <= broken:
            whole = serve(LARGE, asked)
            return [whole[: len(whole) * 2 // 3], END]
        return [serve(LARGE, asked)]

    gets: list[Asked] = []

    def server_asked(asked: Asked) -> list[Asked]:
        gets.append(asked)
        return gets

    return answer


@pytest.mark.parametrize("broken", [1, 3])
def test_a_large_object_goes_on_where_it_broke(broken: int, tmp_path: Path) -> None:
    with FaultyServer(large_answer(broken)) as server, open_http() as http:
        store = RemoteStore(WebPlace(server.url(), http), "here", clock=CLOCK)
        assert contents(store.open(digest_bytes(LARGE))) == LARGE
        asked = [each for each in server.asked if each.method == "GET"]
        assert len(asked) == broken + 1
        assert asked[0].span is None
        assert all(each.span is not None and each.span[0] > IN_MEMORY for each in asked[1:])


@pytest.mark.parametrize("head", [(404, 0), (200, 5)])
def test_a_large_object_that_vanishes_meanwhile(head: tuple[int, int]) -> None:
    def answer(asked: Asked) -> Iterable[Part]:
        if asked.method == "HEAD":
            return [answer_head(head[0], length=head[1])]
        whole = serve(LARGE, asked)
        return [whole[: len(whole) * 2 // 3], END]

    before = descriptors()
    with FaultyServer(answer) as server, open_http() as http:
        store = RemoteStore(WebPlace(server.url(), http), "here", clock=CLOCK)
        with pytest.raises(ObjectMissing if head[0] == 404 else RemoteObjectWrong):
            store.open(digest_bytes(LARGE))
    assert descriptors() <= before


def test_a_place_that_fails() -> None:
    digest = digest_bytes(SMALL)
    for error in (
        AccessDenied("access denied", subject="https://m.example"),
        TransientError("reset"),
        NetworkError("no route"),
    ):
        store = store_of(Watched(error=error))
        for attempt in (store.open, store.size):
            with pytest.raises(RemoteStoreError, match=error.what) as raised:
                attempt(digest)
            assert raised.value.exit_code == 1
            assert raised.value.subject


def test_one_flight_for_each_object() -> None:
    class Slow(Watched):
        def read(
            self, name: str, span: Span | None = None, version: Version | None = None
        ) -> AbstractContextManager[Read]:
            at_once.append(name)
            assert len(at_once) == 1
            try:
                together.wait(0.1)
                return super().read(name, span, version)
            finally:
                at_once.remove(name)

    at_once: list[str] = []
    together = threading.Event()
    store = store_of(Slow())
    threads = [threading.Thread(target=lambda: contents(store.open(digest_bytes(SMALL)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not store._flights


def test_places_that_can_be_listed() -> None:
    target = Watched().target
    with store_of(target) as store:
        assert list(store.objects()) == sorted(OBJECTS)
    with pytest.raises(Unsupported, match=r"^https://m\.example: cannot be listed"):
        list(store_of(Watched()).objects())
    with pytest.raises(RemoteStoreError, match="injected fault in names"):
        list(store_of(FaultyTarget(target, Faults(errors=1))).objects())


# Chains


def test_a_chain_goes_on_after_a_place_that_lies_or_fails() -> None:
    liar = store_of(Watched(dict.fromkeys(OBJECTS, b"lie")))
    down = store_of(Watched(error=NetworkError("no route")))
    chain = StoreChain([liar, down, store_of(Watched())])
    for digest, data in OBJECTS.items():
        assert contents(chain.open(digest)) == data
    with pytest.raises(RemoteObjectWrong):
        StoreChain([liar, down]).open(digest_bytes(SMALL))
    with pytest.raises(RemoteStoreError, match="no route"):
        StoreChain([down, liar]).open(digest_bytes(SMALL))


def test_what_was_fetched_is_kept(tmp_path: Path) -> None:
    place = Watched()
    with (
        DirectoryStore(bytes(tmp_path / "objects"), create=True) as local,
        keep_fetched([local, store := store_of(place)]),
    ):
        chain = StoreChain([local, store])
        for digest, data in OBJECTS.items():
            assert contents(chain.open(digest)) == data
    asked = len(place.asked)
    with DirectoryStore(bytes(tmp_path / "objects")) as local:
        for digest, data in OBJECTS.items():
            assert contents(local.open(digest)) == data
    assert len(place.asked) == asked
    assert store.keep is None
    assert not [name for name in os.listdir(tmp_path / "objects") if name.startswith(".mkcfs-tmp")]


def test_nothing_wrong_is_kept(tmp_path: Path) -> None:
    lies = store_of(Watched(dict.fromkeys(OBJECTS, b"lie")))
    with DirectoryStore(bytes(tmp_path / "objects"), create=True) as local, keep_fetched([local, lies]):
        for digest in OBJECTS:
            with pytest.raises(RemoteObjectWrong):
                lies.open(digest)
        assert list(local.objects()) == []
    with DirectoryStore(bytes(tmp_path / "objects")) as local:
        assert list(local.objects()) == []


def test_a_store_that_cannot_keep_anything_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_words: object, **_more: object) -> object:
        raise StoreError("read-only")

    monkeypatch.setattr("cfstools.store.write.writer.StoreWriter.__init__", refuse)
    with (
        DirectoryStore(bytes(tmp_path / "objects"), create=True) as local,
        keep_fetched([local, store := store_of(Watched())]),
    ):
        for digest, data in OBJECTS.items():
            assert contents(store.open(digest)) == data


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    for digest, data in OBJECTS.items():
        path = tmp_path / "www/objects" / object_path(digest).decode()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    with nginx(tmp_path / "www", tmp_path / "nginx") as base:
        yield f"{base}objects"


def test_a_url_is_a_store(served: str, tmp_path: Path) -> None:
    with open_stores([served.encode()]) as (store,):
        for digest, data in OBJECTS.items():
            assert contents(store.open(digest)) == data
            assert store.describe(digest) == f"{served}/{object_path(digest).decode()}"
    (tmp_path / "local").mkdir()
    with open_and_keep([bytes(tmp_path / "local"), served.encode()]) as stores:
        assert contents(StoreChain(stores).open(digest_bytes(LARGE))) == LARGE
    kept = tmp_path / "local" / object_path(digest_bytes(LARGE)).decode()
    assert kept.read_bytes() == LARGE
    assert ObjectId.of(digest_bytes(LARGE)).digest == digest_bytes(LARGE)
