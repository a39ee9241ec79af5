"""Counting what a store holds."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from cfstools.store import DirectoryStore, StoreWriter
from cfstools.store.care.usage import ImageUse, SizeClass, usage
from cfstools.store.locking import Waiting
from cfstools.verity import Algorithm, Params, digest_bytes

CONTENTS = [b"small", b"a" * 5000, b"b" * 100_000, bytes(2 << 20)]
DIGESTS = [digest_bytes(data) for data in CONTENTS]
SIZES = dict(zip(DIGESTS, map(len, CONTENTS), strict=True))


def fill(store: DirectoryStore) -> None:
    with StoreWriter(store) as writer:
        for data in CONTENTS:
            writer.add_bytes(data)


def test_an_empty_store(store: DirectoryStore) -> None:
    found = usage(store)
    assert (found.objects, found.bytes, found.bytes_allocated, found.images) == (0, 0, 0, ())
    assert (found.algorithms, found.sharing, found.unused) == ({}, {}, 0)


def test_objects_and_sizes(store: DirectoryStore) -> None:
    fill(store)
    with StoreWriter(store, params=Params(algorithm=Algorithm.SHA512)) as writer:
        writer.add_bytes(b"long")
    root = Path(store.path)
    (root / "README").write_bytes(b"")
    (root / ".mkcfs-tmp-0123456789abcdef").mkdir()
    found = usage(store)
    assert found.objects == 5
    assert found.bytes == sum(map(len, CONTENTS)) + 4
    assert found.bytes_allocated == sum(512 * path.stat().st_blocks for path in root.glob("??/*"))
    assert found.algorithms == {"sha256": 4, "sha512": 1}
    assert (found.temporaries, found.foreign) == (1, 1)
    assert found.sizes == (
        SizeClass(limit=0, objects=0, bytes=0),
        SizeClass(limit=4 << 10, objects=2, bytes=9),
        SizeClass(limit=64 << 10, objects=1, bytes=5000),
        SizeClass(limit=1 << 20, objects=1, bytes=100_000),
        SizeClass(limit=16 << 20, objects=1, bytes=2 << 20),
        SizeClass(limit=256 << 20, objects=0, bytes=0),
        SizeClass(limit=None, objects=0, bytes=0),
    )


def test_sharing(store: DirectoryStore) -> None:
    fill(store)
    missing = digest_bytes(b"not there")
    images = [
        {DIGESTS[0]: 5, DIGESTS[1]: 5000},
        {DIGESTS[1]: 5000, DIGESTS[2]: 100_000, missing: 9},
        {},
    ]
    found = usage(store, images)
    assert found.images == (
        ImageUse(objects=2, bytes=5005, missing=0, bytes_missing=0, exclusive=1, bytes_exclusive=5),
        ImageUse(objects=3, bytes=105_009, missing=1, bytes_missing=9, exclusive=1, bytes_exclusive=100_000),
        ImageUse(objects=0, bytes=0, missing=0, bytes_missing=0, exclusive=0, bytes_exclusive=0),
    )
    assert found.sharing == {1: 2, 2: 1}
    assert (found.unused, found.bytes_unused) == (1, 2 << 20)
    assert usage(store, [{}]).unused == 4
    assert usage(store).unused == 0
    assert found.to_dict()["sharing"] == {"1": 2, "2": 1}


def test_waits_while_objects_are_removed(store: DirectoryStore) -> None:
    fill(store)
    waiting = threading.Event()
    counted = []

    def run() -> None:
        with DirectoryStore(store.path) as own:
            counted.append(usage(own, waiting=Waiting(on_wait=lambda *_: waiting.set())))

    thread = threading.Thread(target=run)
    with store.locked(exclusive=True):
        thread.start()
        assert waiting.wait(60)
        os.unlink(store.describe(DIGESTS[0]))
    thread.join(60)
    assert counted[0].objects == 3
