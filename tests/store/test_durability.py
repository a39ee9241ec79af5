"""How objects get to stable storage: contents before names, names before the end, in each of the ways."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cfstools import native
from cfstools.api.build import ObjectOptions, build
from cfstools.errors import StoreError
from cfstools.linux import files
from cfstools.native import _pure
from cfstools.store import DirectoryStore, StoreWriter
from cfstools.store.base import Sync, split_digest
from cfstools.store.care.fsck import fsck
from cfstools.store.care.repair import RepairOptions, repair
from cfstools.verity import digest_bytes
from tests.mkcfs import mkcfs
from tests.store.conftest import assert_whole

OBJECTS = [b"object %d " % number * 500 for number in range(5)]
LARGE = b"large" * 500_000

pytestmark = pytest.mark.usefixtures("pure")


def place_of(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


class Calls:
    """What was called in which order: ``syncfs``, ``fsync`` with an inode, ``name`` with the inode that got one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[tuple[str, tuple[int, int]]] = []
        real_fsync, real_syncfs = os.fsync, files.syncfs
        real_link, real_rename = _pure.link_files, files.rename_noreplace

        def fsync(fd: int) -> None:
            self.made.append(("fsync", place_of(fd)))
            real_fsync(fd)

        def syncfs(fd: int) -> None:
            self.made.append(("syncfs", (0, 0)))
            real_syncfs(fd)

        def link_files(links: list[tuple[int, int, bytes]]) -> list[int]:
            self.made += [("name", place_of(fd)) for fd, _, _ in links]
            return real_link(links)

        def rename_noreplace(old_fd: int, old: bytes, new_fd: int, new: bytes) -> None:
            status = os.stat(old, dir_fd=old_fd)
            self.made.append(("name", (status.st_dev, status.st_ino)))
            real_rename(old_fd, old, new_fd, new)

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(files, "syncfs", syncfs)
        monkeypatch.setattr(native, "link_files", link_files)
        monkeypatch.setattr(files, "rename_noreplace", rename_noreplace)

    def of(self, kind: str) -> list[tuple[int, int]]:
        return [place for what, place in self.made if what == kind]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def add(place: Path, sync: Sync, *, deferred: bool = False) -> None:
    with DirectoryStore(str(place), create=True) as store, StoreWriter(store, sync=sync, deferred=deferred) as writer:
        for data in (*OBJECTS, LARGE):
            writer.add_bytes(data)
        with writer.open_stream() as stream:
            stream.write(b"stream" * 300_000)
            stream.finish()
        writer.commit()


@pytest.mark.parametrize("deferred", [False, True])
def test_object_by_object(tmp_path: Path, calls: Calls, deferred: bool) -> None:
    place = tmp_path / "new/and/deep/store"
    add(place, "object", deferred=deferred)
    assert assert_whole(place) == 7
    assert calls.of("syncfs") == []
    named = calls.of("name")
    assert len(named) == 7
    kinds = [what for what, _ in calls.made]
    first, last = kinds.index("name"), len(kinds) - kinds[::-1].index("name")
    assert {place for what, place in calls.made[:first] if what == "fsync"} == set(named)
    # Every directory that got a name, the store with those directories, and all above that may be new.
    after = {place for what, place in calls.made[last:] if what == "fsync"}
    for directory in (*place.iterdir(), place, *list(place.parents)[:4]):
        if directory.is_dir() and not directory.name.startswith("."):
            status = directory.stat()
            assert (status.st_dev, status.st_ino) in after, directory
    calls.made.clear()
    with DirectoryStore(str(place)) as store, StoreWriter(store, sync="object") as writer:
        writer.add_bytes(b"one more" * 100)
    # What lies above a store that is not new was durable before.
    parent = place.parent.stat()
    assert (parent.st_dev, parent.st_ino) not in calls.of("fsync")
    assert len(calls.of("fsync")) == 3


@pytest.mark.parametrize("deferred", [False, True])
def test_a_batch(tmp_path: Path, calls: Calls, deferred: bool) -> None:
    add(tmp_path / "store", "batch", deferred=deferred)
    assert calls.of("fsync") == []
    kinds = [what for what, _ in calls.made]
    assert kinds == ["syncfs"] + ["name"] * 7 + ["syncfs"]


@pytest.mark.parametrize("deferred", [False, True])
def test_none(tmp_path: Path, calls: Calls, deferred: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfstools.store.write.publisher._WRITE_BACK_BYTES", 1)
    add(tmp_path / "store", "none", deferred=deferred)
    assert {what for what, _ in calls.made} == {"name"}
    assert assert_whole(tmp_path / "store") == 7


def test_auto_takes_what_waits_for_less(tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, (dirty, by_object) in enumerate([(0, False), (1 << 30, True)]):
        monkeypatch.setattr(files, "dirty_bytes", lambda dirty=dirty: dirty)
        calls.made.clear()
        add(tmp_path / f"store{number}", "auto")
        assert bool(calls.of("syncfs")) != by_object
        assert bool(calls.of("fsync")) == by_object
    # Many, or much, at once always go together.
    calls.made.clear()
    with DirectoryStore(str(tmp_path / "many"), create=True) as store, StoreWriter(store, sync="auto") as writer:
        for number in range(200):
            writer.add_bytes(b"%d" % number * 1000)
    assert len(calls.of("syncfs")) == 2


@pytest.mark.parametrize("what", ["contents", "directory"])
def test_what_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Without durable contents there is no name; without durable names nothing is reported as done."""
    real = os.fsync

    def fail(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}") == (what == "directory"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match="cannot bring objects to stable storage: Input/output error"):
        add(tmp_path / "store", "object")
    assert assert_whole(tmp_path / "store") == (0 if what == "contents" else 7)


@pytest.mark.parametrize("sync", ["object", "batch"])
def test_a_repair(tmp_path: Path, calls: Calls, sync: Sync) -> None:
    add(tmp_path / "store", "none")
    (tmp_path / "from").mkdir()
    (tmp_path / "from/file").write_bytes(LARGE)
    with DirectoryStore(str(tmp_path / "store")) as store:
        prefix, name = split_digest(digest_bytes(LARGE))
        damaged = tmp_path / "store" / os.fsdecode(prefix) / os.fsdecode(name)
        damaged.write_bytes(b"damaged")
        result = fsck(store, now=0)
        calls.made.clear()
        repair(store, result, RepairOptions(replace=True, sync=sync, donors=[bytes(tmp_path / "from")]), now=0)
    assert damaged.read_bytes() == LARGE
    if sync == "batch":
        assert [what for what, _ in calls.made] == ["syncfs", "syncfs"]
    else:
        status, directory = damaged.stat(), damaged.parent.stat()
        assert calls.of("syncfs") == []
        assert calls.of("fsync")[:2] == [(status.st_dev, status.st_ino), (directory.st_dev, directory.st_ino)]


@pytest.mark.parametrize("sync", ["auto", "batch", "object", "none"])
def test_the_option(tmp_path: Path, sync: str) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_bytes(LARGE)
    mkcfs("build", tmp_path / "source", tmp_path / "image.cfs", "--store", tmp_path / "store", "--sync", sync)
    mkcfs("verify", tmp_path / "image.cfs", "--store", tmp_path / "store")
    done = mkcfs("build", tmp_path / "source", tmp_path / "image.cfs", "--sync", sync, check=False)
    assert (done.code, b"--sync is about objects: add --store" in done.stderr) == (2, True)


def test_how_much_is_dirty() -> None:
    assert 0 <= files.dirty_bytes() < 1 << 50


@pytest.mark.parametrize("sync", ["none", "batch"])
def test_a_build_that_syncs_nothing(tmp_path: Path, calls: Calls, sync: Sync) -> None:
    """Neither the store nor, for the digest cache, the source; only the image, which may leave the job."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_bytes(OBJECTS[0])
    (tmp_path / "cache").mkdir(mode=0o700)
    options = ObjectOptions(cache=bytes(tmp_path / "cache"), sync=sync)
    build(bytes(tmp_path / "source"), bytes(tmp_path / "image"), stores=[bytes(tmp_path / "store")], objects=options)
    assert bool(calls.of("syncfs")) == (sync == "batch")
    assert len(calls.of("fsync")) == 2
