"""Objects that are read without waiting."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cfstools.mount.fuse.nearby import Nearby
from cfstools.store import DirectoryStore, MemoryStore, Store, StoreWriter
from cfstools.verity import digest_bytes

DATA = b"an object " * 1000
SIZE = len(DATA)


@pytest.fixture(params=["/var/tmp", "/dev/shm"])  # a disk, and memory: that answers without being told not to wait
def store(request: pytest.FixtureRequest) -> Iterator[DirectoryStore]:
    with (
        tempfile.TemporaryDirectory(dir=request.param) as top,
        DirectoryStore(os.fsencode(top), create=True) as made,
    ):
        with StoreWriter(made) as writer:
            writer.add_bytes(DATA)
        assert made.open(digest_bytes(DATA)).read(0, SIZE) == DATA  # it is in the page cache
        yield made


def path_in(store: DirectoryStore) -> Path:
    return Path(store.describe(digest_bytes(DATA)))


def test_what_is_at_hand(store: DirectoryStore, tmp_path: Path) -> None:
    digest = digest_bytes(DATA)
    with DirectoryStore(bytes(tmp_path / "other"), create=True) as other:
        choices: list[list[Store]] = [[store], [other, store], [store, MemoryStore()]]
        for stores in choices:
            near = Nearby(stores, 1 << 20)
            assert bytes(near.whole(digest, SIZE) or b"") == DATA
            assert near.whole(digest, SIZE - 1) is None
            assert near.whole(digest, SIZE + 1) is None
            assert near.whole(digest_bytes(b"another"), 7) is None
        # Which object counts is not known behind one that has to be waited for.
        assert Nearby([MemoryStore(), store], 1 << 20).whole(digest, SIZE) is None
    with path_in(store).open("rb") as file:
        near = Nearby([store], 1 << 20)
        assert bytes(near.part(file.fileno(), 10, 20) or b"") == DATA[10:30]
        assert near.part(file.fileno(), SIZE - 5, 6) is None


@pytest.mark.parametrize("kind", ["pipe", "link", "directory"])
def test_what_is_no_file_is_left_to_others(store: DirectoryStore, kind: str) -> None:
    path = path_in(store)
    path.unlink()
    {"pipe": os.mkfifo, "directory": os.mkdir, "link": lambda path: os.symlink("/dev/zero", path)}[kind](path)
    assert Nearby([store], 1 << 20).whole(digest_bytes(DATA), SIZE) is None


def test_what_is_not_cached_is_left_to_others(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv

    def waits(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError(errno.EAGAIN, "would wait")
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", waits)
    assert Nearby([store], 1 << 20).whole(digest_bytes(DATA), SIZE) is None
