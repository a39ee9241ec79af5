"""Sending objects to other stores: only what is missing there, and nothing with other contents than its digest says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cfstools.errors import ContentsWrong, InputError, ObjectMissing, SourceChanged, StoreError, TransientError
from cfstools.store.directory import DirectoryStore
from cfstools.store.memory import MemoryStore
from cfstools.store.write.sending import LOOKED_UP, Sent, send_leaves, send_to_directory, send_to_target
from cfstools.transport.base import Body, BytesBody
from cfstools.transport.memory import MemoryTarget
from cfstools.verity import Algorithm, ObjectId, Params, digest_bytes, object_path
from cfstools.verity.object_id import leaves_name
from tests.mount.lazy.making import leaves_of

SMALL = [bytes([number % 256]) * (number + 1) for number in range(LOOKED_UP + 20)]
LARGE = bytes(range(256)) * 12_000  # three megabytes
OBJECTS = {digest_bytes(data): data for data in [*SMALL, LARGE]}
SIZES = {digest: len(data) for digest, data in OBJECTS.items()}
FEW = dict(list(SIZES.items())[:LOOKED_UP])
BIG = digest_bytes(LARGE)


def name_of(digest: bytes, prefix: str = "") -> str:
    return prefix + object_path(digest).decode()


class Told(MemoryTarget):
    """A place that remembers what was asked of it."""

    def __init__(self, contents: dict[str, bytes] | None = None) -> None:
        super().__init__(contents)
        self.asked: list[tuple[str, str]] = []

    def size(self, name: str) -> int | None:
        self.asked.append(("size", name))
        return super().size(name)

    def put(self, name: str, body: Body, *, replace: bool) -> bool:
        self.asked.append(("replace" if replace else "put", name))
        return super().put(name, body, replace=replace)

    def names(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        self.asked.append(("names", prefix))
        return super().names(prefix)

    def contents(self) -> dict[str, bytes]:
        return dict(self._contents)


class Lying:
    """A store that gives other contents for one object, of the same length or another."""

    def __init__(self, digest: bytes, data: bytes, size: int | None = None) -> None:
        self._store = MemoryStore()
        for good in OBJECTS.values():
            self._store.add(good)
        self._wrong = MemoryStore()
        self._bad = digest
        self._data = data
        self._size = len(data) if size is None else size
        self.objects, self.open_path = self._store.objects, self._store.open_path

    def size(self, digest: bytes) -> int | None:
        return self._store.size(digest)

    def open(self, digest: bytes) -> object:
        return _Given(self._data, self._size) if digest == self._bad else self._store.open(digest)

    def describe(self, digest: bytes) -> str:
        return f"liar/{name_of(digest)}"


class _Given:
    def __init__(self, data: bytes, size: int) -> None:
        self._data = data
        self.size = size

    def read(self, offset: int, count: int) -> bytes:
        return self._data[offset : offset + count]

    def fileno(self) -> None:
        return None

    def close(self) -> None:
        pass


@pytest.fixture
def source() -> MemoryStore:
    store = MemoryStore()
    for data in OBJECTS.values():
        store.add(data)
    return store


@pytest.mark.parametrize("prefix", ["", "a/objects"])
@pytest.mark.parametrize("wanted", [SIZES, FEW], ids=["many", "few"])
def test_only_what_is_missing_is_sent(source: MemoryStore, prefix: str, wanted: dict[bytes, int]) -> None:
    before = f"{prefix}/" if prefix else ""
    there = Told({name_of(digest, before): OBJECTS[digest] for digest in list(wanted)[10:]} | {f"{before}other": b"x"})
    sent = send_to_target(source, wanted, there, prefix, connections=4)
    assert sent == Sent(10, sum(list(wanted.values())[:10]))
    kept = {name_of(digest, before): OBJECTS[digest] for digest in wanted} | {f"{before}other": b"x"}
    assert there.contents() == kept
    # Few are looked up, of many all that is there is listed.
    looked = {what for what, _ in there.asked} - {"put"}
    assert looked == ({"size"} if wanted is FEW else {"names"})
    there.asked.clear()
    assert send_to_target(source, wanted, there, prefix, connections=4) == Sent(0, 0)
    assert not [name for what, name in there.asked if what in {"put", "replace"}]


def test_what_has_another_size_there_is_replaced(source: MemoryStore) -> None:
    there = Told({name_of(BIG): b"cut short"})
    assert send_to_target(source, {BIG: len(LARGE)}, there, connections=1) == Sent(1, len(LARGE))
    assert there.contents() == {name_of(BIG): LARGE}
    assert ("replace", name_of(BIG)) in there.asked


def test_what_somebody_else_sends_meanwhile_does_not_count(source: MemoryStore) -> None:
    class Late(MemoryTarget):
        def size(self, name: str) -> int | None:
            return None

    there = Late({name_of(digest): OBJECTS[digest] for digest in FEW})
    assert send_to_target(source, FEW, there, connections=4) == Sent(0, 0)


WRONG = {
    "small, one byte": (digest_bytes(SMALL[60]), lambda data: b"!" + data[1:]),
    "large, first byte": (BIG, lambda data: b"!" + data[1:]),
    "large, last byte": (BIG, lambda data: data[:-1] + b"!"),
}


@pytest.mark.parametrize(("digest", "change"), WRONG.values(), ids=WRONG)
def test_nothing_wrong_arrives(digest: bytes, change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    liar = Lying(digest, change(OBJECTS[digest]))
    there = MemoryTarget()
    with pytest.raises(ContentsWrong, match="do not have the digest") as caught:
        send_to_target(liar, SIZES, there, connections=2)  # type: ignore[arg-type]
    assert caught.value.subject == f"liar/{name_of(digest)}"
    assert caught.value.exit_code == 3
    assert name_of(digest) not in dict(there.names())
    with DirectoryStore(bytes(tmp_path / "store"), create=True) as store:
        with pytest.raises(ContentsWrong):
            send_to_directory(liar, SIZES, store, threads=2)  # type: ignore[arg-type]
        assert store.size(digest) is None
        assert all(digest_bytes(store.open(one).read(0, 1 << 23)) == one for one in store.objects())


@pytest.mark.parametrize("size", [None, SIZES[BIG]], ids=["it says so", "it does not say so"])
def test_an_object_that_is_shorter_than_it_was(size: int | None, tmp_path: Path) -> None:
    liar = Lying(BIG, LARGE[:-1], size)
    there = MemoryTarget()
    with pytest.raises(SourceChanged) as caught:
        send_to_target(liar, SIZES, there, connections=2)  # type: ignore[arg-type]
    assert caught.value.subject == f"liar/{name_of(BIG)}"
    assert name_of(BIG) not in dict(there.names())
    with DirectoryStore(bytes(tmp_path / "store"), create=True) as store:
        with pytest.raises((SourceChanged, ContentsWrong)):
            send_to_directory(liar, SIZES, store, threads=2)  # type: ignore[arg-type]
        assert store.size(BIG) is None


def test_an_object_that_is_gone(source: MemoryStore) -> None:
    with pytest.raises(ObjectMissing):
        send_to_target(source, {bytes(32): 5}, MemoryTarget(), connections=1)


def test_an_error_of_the_place_ends_it(source: MemoryStore) -> None:
    class Full(Told):
        def put(self, name: str, body: Body, *, replace: bool) -> bool:
            super().put(name, body, replace=replace)
            time.sleep(0.01)
            raise TransientError("no space there", subject=name)

    there = Full()
    with pytest.raises(InputError, match="no space there"):
        send_to_target(source, SIZES, there, connections=2)
    assert len([what for what, _ in there.asked if what == "put"]) < len(SIZES)


def test_a_directory_gets_what_it_lacks_of_both_algorithms(tmp_path: Path) -> None:
    source = MemoryStore()
    wanted = {}
    for data in (*SMALL[:20], LARGE):
        for algorithm in Algorithm:
            digest = digest_bytes(data, Params(algorithm=algorithm))
            source.add(data, Params(algorithm=algorithm))
            wanted[digest] = len(data)
    with DirectoryStore(bytes(tmp_path / "store"), create=True) as store:
        assert send_to_directory(source, wanted, store, threads=3).objects == len(wanted)
        assert {digest: store.size(digest) for digest in store.objects()} == wanted
        for digest in store.objects():
            assert digest_bytes(store.open(digest).read(0, 1 << 23), ObjectId.of(digest).params) == digest
        assert send_to_directory(source, wanted, store, threads=3) == Sent(0, 0)


def test_a_damaged_object_in_the_directory_is_told(source: MemoryStore, tmp_path: Path) -> None:
    with DirectoryStore(bytes(tmp_path / "store"), create=True) as store:
        send_to_directory(source, SIZES, store, threads=1)
        (tmp_path / "store" / name_of(BIG)).write_bytes(b"short")
        with pytest.raises(StoreError, match=r"damaged|bytes"):
            send_to_directory(source, SIZES, store, threads=1)


HUGE = bytes(range(256)) * ((8 << 20) // 256) + b"and a little more"
TREE = digest_bytes(HUGE)
ALGORITHMS = [Algorithm.SHA256, Algorithm.SHA512]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_leaves_of_large_objects_lie_beside_them(algorithm: Algorithm) -> None:
    store = MemoryStore()
    params = Params(algorithm=algorithm)
    digest = store.add(HUGE, params)
    wanted = {digest: len(HUGE), store.add(SMALL[5], params): len(SMALL[5])}
    target = Told()
    assert send_leaves(store, wanted, target, "objects", connections=2) == 1
    name = leaves_name(digest, "objects")
    assert target.contents() == {name: leaves_of(digest, HUGE)}
    assert name.startswith("objects/leaves/")
    # What is there is not sent again; what has another length is.
    assert send_leaves(store, wanted, target, "objects", connections=2) == 0
    target.put(name, BytesBody(b"cut"), replace=True)
    assert send_leaves(store, wanted, target, "objects", connections=2) == 1
    assert target.contents()[name] == leaves_of(digest, HUGE)
    assert send_leaves(store, {}, target, connections=2) == 0


def test_leaves_of_a_damaged_object_are_not_sent() -> None:
    for data in (HUGE[:-1] + b"!", HUGE[:-1]):
        store = Lying(TREE, data)
        target = Told()
        with pytest.raises((ContentsWrong, SourceChanged)):
            send_leaves(store, {TREE: len(HUGE)}, target, connections=1)  # type: ignore[arg-type]
        assert not target.contents()
