"""Stores in memory and chains of stores."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cfstools.errors import ObjectMissing, StoreError
from cfstools.store import DirectoryStore, MemoryStore, Store, StoreChain, StoreWriter
from cfstools.verity import digest_bytes


def read(store: Store, digest: bytes) -> bytes:
    fd = store.open(digest)
    with os.fdopen(fd, "rb") as file:
        return file.read()


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


def test_memory_store_without_memory_files(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    digest = store.add(b"one")

    def refuse(*_args: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", refuse)
    with pytest.raises(StoreError, match="cannot open the object: Too many open files"):
        store.open(digest)


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
