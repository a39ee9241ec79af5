"""Large objects that stay open: how many, how they are shared, and what happens to those that are wrong."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from cfstools.errors import CheckFailed, Interrupted, StoreError
from cfstools.mount.fuse import open_files as module
from cfstools.mount.fuse.open_files import OpenFile, OpenFiles
from cfstools.store.base import FileObject
from cfstools.threadpool import ThreadPool
from cfstools.verity import ObjectId, digest_bytes
from cfstools.view.contents import Contents

DATA = [bytes([node]) * 300_000 for node in range(10)]


class Opener:
    """Opens the files of a directory by number, and counts how often."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.opened: list[Contents] = []
        for node, data in enumerate(DATA):
            self.path(node).write_bytes(data)

    def path(self, node: int) -> Path:
        return self.directory / str(node)

    def __call__(self, node: int) -> Contents:
        found = FileObject(os.open(self.path(node), os.O_RDONLY), self.path(node).stat().st_size)
        wanted = ObjectId.of(digest_bytes(DATA[node]))
        self.opened.append(Contents(len(DATA[node]), b"/file", found, wanted, lambda: "object"))
        return self.opened[-1]

    @property
    def open_now(self) -> int:
        return sum(contents.fileno() != -1 for contents in self.opened)


@pytest.fixture
def opener(tmp_path: Path) -> Opener:
    return Opener(tmp_path)


def read(opened: OpenFile) -> bytes:
    return opened.contents.read(5000, 9)


def test_few_stay_open(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OPEN", 3)
    with OpenFiles(opener) as files:
        for node in (1, 2, 3, 1, 4, 5):
            assert files.use(node, read) == DATA[node][:9]
        assert opener.open_now == 3
        assert [files.acquire(node) is not None for node in (2, 3)] == [False, False]
        used = files.acquire(1)
        assert used is not None
        for node in (6, 7, 8, 9):
            files.use(node, read)
        assert opener.open_now == 4  # one is in use, though it is not in the table any more
        assert read(used) == DATA[1][:9]
        files.release(used)
        assert opener.open_now == 3
    assert opener.open_now == 0


def test_hashes_take_little_memory(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    one = -(-len(DATA[0]) // 4096) * 32
    monkeypatch.setattr(module, "LEAF_BYTES", 2 * one)
    with OpenFiles(opener) as files:
        for node in (1, 2, 1, 2, 1):
            files.use(node, read)
        assert len(opener.opened) == 2
        files.use(3, read)
        assert opener.open_now == 2
        files.use(2, read)
        assert len(opener.opened) == 4
        assert opener.open_now == 2


def test_many_threads_share_one(opener: Opener) -> None:
    with OpenFiles(opener) as files, ThreadPool(8, "read") as pool:
        calls = [pool.submit(files.use, node, read) for _ in range(20) for node in range(10)]
        assert {call.result() for call in calls} == {data[:9] for data in DATA}
        assert opener.open_now == 10
    assert opener.open_now == 0


def test_what_is_wrong_is_hashed_once(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    prepare = Contents.prepare

    def counted(contents: Contents, *, threads: int = 1) -> None:
        hashed.append(contents)
        prepare(contents, threads=threads)

    monkeypatch.setattr(Contents, "prepare", counted)
    opener.path(1).write_bytes(DATA[2])
    with OpenFiles(opener) as files:
        for _ in range(3):
            with pytest.raises(CheckFailed, match="damaged"):
                files.use(1, read)
        assert len(hashed) == 1
        # Mended in place, and another time by a new file.
        opener.path(1).write_bytes(DATA[1])
        os.utime(opener.path(1), ns=(0, 5))
        assert files.use(1, read) == DATA[1][:9]
        opener.path(1).write_bytes(DATA[2])
        with pytest.raises(CheckFailed, match="changed"):
            files.use(1, read)
        opener.path(1).unlink()
        opener.path(1).write_bytes(DATA[1])
        assert files.use(1, read) == DATA[1][:9]
    assert opener.open_now == 0


@pytest.mark.parametrize("kind", [Interrupted, StoreError])
def test_what_did_not_come_is_not_waited_for_twice(opener: Opener, kind: type[StoreError]) -> None:
    def fails(_opened: OpenFile) -> bytes:
        raise kind("did not come")

    with OpenFiles(opener) as files:
        with pytest.raises(kind):
            files.use(1, fails)
        assert len(opener.opened) == 1
        assert files.use(1, read) == DATA[1][:9]


def test_two_that_open_the_same_keep_one(opener: Opener) -> None:
    both = threading.Barrier(2)
    plain = opener.__call__

    def together(node: int) -> Contents:
        both.wait(20)
        return plain(node)

    with OpenFiles(together) as files, ThreadPool(2, "read") as pool:
        calls = [pool.submit(files.use, 1, read) for _ in range(2)]
        assert [call.result() for call in calls] == [DATA[1][:9]] * 2
        assert len(opener.opened) == 2
        assert opener.open_now == 1
