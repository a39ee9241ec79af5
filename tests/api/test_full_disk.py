"""Outputs on file systems that are, or become, full: nothing is left, or it is said what."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cfstools.api.extract import CopyMode, ExtractOptions, extract_view
from cfstools.errors import CfsError, InputError, StoreError
from cfstools.linux.files import syncfs
from cfstools.output.files import output_file
from cfstools.output.removal import empty_directory, remove_file
from cfstools.store import DirectoryStore, MemoryStore, StoreChain, StoreWriter
from cfstools.tree import Directory, Entry, External, RegularFile
from cfstools.view.nodes import View
from tests.store.conftest import loop_mount

pytestmark = pytest.mark.root

SIZES = {"btrfs": 128 << 20, "ext4": 16 << 20, "xfs": 320 << 20, "tmpfs": 16 << 20}
XATTRS = {b"user.large": b"v" * 900}


def directory(entries: dict[bytes, Entry], mode: int = 0o755) -> Directory:
    return Directory(mode=stat.S_IFDIR | mode, mtime_sec=5, entries=entries, xattrs=XATTRS)


def wide(files: int) -> Directory:
    """Many small files and nested directories: what fills the metadata of a file system."""
    entries: dict[bytes, Entry] = {}
    for number in range(files):
        small = RegularFile(mode=0o100644, size=2000, content=b"%04d" % (number % 10000) * 500, xattrs=XATTRS)
        entries[b"d%d" % number] = directory({b"sub": directory({b"file": small}, mode=0o555)}, mode=0o500)
    return directory(entries)


def large(store: MemoryStore, size: int) -> Directory:
    data = os.urandom(1 << 20) * (size >> 20)
    inode = RegularFile(mode=0o100644, size=len(data), content=External(store.add(data), None))
    return directory({b"a": directory({b"large": inode}), **wide(50).entries})


@pytest.fixture(params=sorted(SIZES))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    kind: str = request.param
    if kind != "tmpfs":
        yield from loop_mount(tmp_path, kind, SIZES[kind])
        return
    where = tmp_path / "tmpfs.mnt"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZES[kind]},nr_inodes=8000", "none", where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)


def fill(place: Path) -> None:
    """Leave not a byte, nor room for a name: in large pieces first, then in ever smaller ones, then by names."""
    kept = place / "filler"
    kept.mkdir(exist_ok=True)
    for size in (1 << 20, 1 << 16, 1 << 12, 512):
        piece = os.urandom(size)
        for number in range(10**6):
            try:
                (kept / f"{size}-{number}").write_bytes(piece)
            except OSError:
                break
    fd = os.open(kept, os.O_RDONLY)
    syncfs(fd)
    os.close(fd)
    for number in range(10**6):
        try:
            (kept / f"{number:0200}").touch()
        except OSError:
            break


@pytest.mark.slow
@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("kind", ["names", "contents"])
def test_extract_where_the_disk_becomes_full(place: Path, existing: bool, kind: str) -> None:
    target = place / "out"
    if existing:
        target.mkdir()
    store = MemoryStore()
    room = os.statvfs(place)
    root = wide(40_000) if kind == "names" else large(store, room.f_bavail * room.f_frsize + (16 << 20))
    before = sorted(place.rglob("*"))
    with pytest.raises(InputError, match=r"(No space left on device|Disk quota exceeded)") as caught:
        extract_view(View(root, store), bytes(target))
    assert sorted(place.rglob("*")) == before, getattr(caught.value, "__notes__", ())
    assert not hasattr(caught.value, "__notes__")


def write_image(path: Path) -> None:
    with output_file(bytes(path)) as sink:
        for _ in range(64):
            sink.write(os.urandom(1 << 20))


def write_objects(store: DirectoryStore) -> None:
    with StoreWriter(store) as writer:
        for _ in range(64):
            writer.add_bytes(os.urandom(1 << 20))


def test_a_full_disk(place: Path) -> None:
    """Nothing can be made, and nothing is left of what was tried."""
    store = DirectoryStore(bytes(place / "store"), create=True)
    fill(place)
    before = sorted(place.rglob("*"))
    with pytest.raises(InputError, match="No space left on device"):
        extract_view(View(wide(2000), StoreChain([])), bytes(place / "out"))
    with pytest.raises(InputError, match="No space left on device"):
        write_image(place / "image")
    with pytest.raises(StoreError, match="No space left on device"):
        write_objects(store)
    store.close()
    # Directories of a store and its lock are kept; no object was whole.
    left = {path for path in set(place.rglob("*")) - set(before) if path.name != ".mkcfs-lock"}
    assert not [path for path in left if not path.is_dir() or path.parent != place / "store" or len(path.name) != 2]


def test_objects_that_were_linked_are_not_cut(tmp_path: Path) -> None:
    """Where a full disk refuses to remove a name, only files without another name are emptied first."""
    with DirectoryStore(bytes(tmp_path / "store"), create=True) as store:
        with StoreWriter(store) as writer:
            digest = writer.add_bytes(b"x" * 5000).digest
        path = Path(store.describe(digest))
        inode = RegularFile(mode=0o100644, size=5000, content=External(digest, None))
        status = path.stat()
        inode.mode, inode.uid, inode.gid = status.st_mode, status.st_uid, status.st_gid
        own = RegularFile(mode=0o100644, size=4, content=b"text")
        options = ExtractOptions(contents=CopyMode.HARDLINK)
        root = Directory(mode=0o40755, entries={b"own": own, b"linked": inode})
        extract_view(View(root, store), bytes(tmp_path / "out"), options=options)
        refused = refusing(tmp_path / "out", {b"own": 1, b"linked": 1})
        assert refused == {b"linked": errno.ENOSPC}
        assert path.read_bytes() == b"x" * 5000
        assert sorted(os.listdir(tmp_path / "out")) == ["linked"]


def refusing(place: Path, names: dict[bytes, int]) -> dict[bytes, int | None]:
    """Remove *names* while each refuses so many times; returns the errors that remained."""
    real = os.unlink

    def unlink(name: bytes, *, dir_fd: int) -> None:
        if names[name]:
            names[name] -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(name, dir_fd=dir_fd)

    errors: dict[bytes, int | None] = {}
    fd = os.open(place, os.O_RDONLY)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "unlink", unlink)
        for name in list(names):
            try:
                remove_file(fd, name)
            except OSError as error:
                errors[name] = error.errno
    os.close(fd)
    return errors


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_name_that_goes_only_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The room that others gave back may come only with a sync."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").touch()
    real, refusals = os.rmdir, [number, number]

    def rmdir(name: bytes, *, dir_fd: int) -> None:
        if refusals:
            raise OSError(refusals[0], os.strerror(refusals.pop()))
        real(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", rmdir)
    fd = os.open(tmp_path, os.O_RDONLY)
    empty_directory(fd)
    os.close(fd)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("existing", [False, True])
def test_what_cannot_be_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool) -> None:
    target = tmp_path / "out"
    if existing:
        target.mkdir()
    real = os.unlink

    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    bad = RegularFile(mode=0o100644, size=5, content=External(None, None))
    root = directory({b"a": RegularFile(mode=0o100644, size=1, content=b"a"), b"b": bad})
    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(CfsError, match="contents are unknown") as caught:
        extract_view(View(root, StoreChain([])), bytes(target))
    monkeypatch.setattr(os, "unlink", real)
    (left,) = tmp_path.iterdir()
    assert caught.value.__notes__ == [f"{left} could not be removed (No space left on device): delete it"]
    assert (left.name == "out") is existing
