"""Stores in memory and chains of stores."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from cfstools.errors import ObjectMissing, StoreError
from cfstools.store import DirectoryStore, MemoryStore, Store, StoreChain, StoreWriter
from cfstools.verity import digest_bytes, object_path


def read(store: Store, digest: bytes) -> bytes:
    with closing(store.open(digest)) as found:
        return found.read(0, found.size + 1)


def read_path(store: Store, path: bytes) -> bytes:
    with closing(store.open_path(path)) as found:
        return found.read(0, found.size + 1)


def test_memory_store() -> None:
    store = MemoryStore()
    digests = [store.add(data) for data in (b"one", b"two", b"", bytearray(3))]
    assert digests[0] == digest_bytes(b"one")
    assert list(store.objects()) == sorted(digests)
    assert store.size(digests[0]) == 3
    assert read(store, digests[0]) == read(store, digests[0]) == b"one"
    missing = digest_bytes(b"missing")
    assert store.size(missing) is None
    with pytest.raises(ObjectMissing, match=f"object {missing.hex()} in memory: no such object"):
        store.open(missing)


def test_objects_in_memory_are_no_files() -> None:
    store = MemoryStore()
    found = store.open(store.add(b"0123456789"))
    assert found.size == 10
    assert [found.read(offset, 4) for offset in (0, 3, 8, 10, 99)] == [b"0123", b"3456", b"89", b"", b""]
    found.close()
    found.close()


def test_chain(store: DirectoryStore) -> None:
    with StoreWriter(store) as writer:
        mine = writer.add_bytes(b"mine").digest
        both = writer.add_bytes(b"both").digest
    second = MemoryStore()
    theirs = second.add(b"theirs")
    second.add(b"both")
    chain = StoreChain([store, second])
    assert list(chain.objects()) == sorted([mine, both, theirs])
    assert [read(chain, digest) for digest in (mine, both, theirs)] == [b"mine", b"both", b"theirs"]
    assert [chain.size(digest) for digest in (mine, both, theirs)] == [4, 4, 6]
    assert chain.describe(mine) == chain.stores[0].describe(mine)
    assert chain.describe(theirs) == second.describe(theirs)
    missing = digest_bytes(b"missing")
    assert chain.size(missing) is None
    assert chain.describe(missing) == store.describe(missing)
    with pytest.raises(ObjectMissing, match=f"^{missing.hex()}: object is in no store$"):
        chain.open(missing)


def test_empty_chain() -> None:
    chain = StoreChain([])
    digest = digest_bytes(b"x")
    assert list(chain.objects()) == []
    assert chain.size(digest) is None
    assert chain.describe(digest) == digest.hex()
    with pytest.raises(ObjectMissing):
        chain.open(digest)


def test_chain_goes_on_after_a_broken_store(store: DirectoryStore) -> None:
    second = MemoryStore()
    digest = second.add(b"data")
    path = Path(store.describe(digest))
    path.mkdir(parents=True)
    chain = StoreChain([store, second])
    assert chain.size(digest) == 4
    assert read(chain, digest) == b"data"
    assert chain.describe(digest) == second.describe(digest)
    alone = StoreChain([store, MemoryStore()])
    for attempt in (alone.size, alone.open):
        with pytest.raises(StoreError, match="not a regular file"):
            attempt(digest)
    assert alone.describe(digest) == store.describe(digest)


def test_objects_by_path(store: DirectoryStore, tmp_path: Path) -> None:
    with StoreWriter(store) as writer:
        mine = object_path(writer.add_bytes(b"mine").digest)
    memory = MemoryStore()
    theirs = object_path(memory.add(b"theirs"))
    place = Path(store.path)
    (place / "lib").mkdir()
    (place / "lib/file").write_bytes(b"named")
    (place / "link").symlink_to("lib")
    (place / "out").symlink_to(tmp_path)
    (tmp_path / "secret").write_bytes(b"secret")
    memory.put(b"lib/file", b"other")
    memory.put(b"etc/one", b"1")
    chain = StoreChain([store, memory])
    assert [read_path(chain, path) for path in (mine, b"/" + mine, theirs)] == [b"mine", b"mine", b"theirs"]
    assert [read_path(chain, path) for path in (b"lib/file", b"//lib//file", b"etc/one")] == [b"named", b"named", b"1"]
    for path in (b"missing", b"lib/missing", b"ab/cd/ef", b"x/file", object_path(digest_bytes(b"missing"))):
        for each in (store, memory, chain):
            with pytest.raises(ObjectMissing, match=f"{os.fsdecode(path)}|{digest_bytes(b'missing').hex()}"):
                each.open_path(path)
    for path in (b"link/file", b"out/secret", b"../secret", b"lib/../../secret", b"", b"lib"):
        with pytest.raises(StoreError) as caught:
            store.open_path(path)
        assert type(caught.value) is StoreError, path
        assert caught.value.subject
