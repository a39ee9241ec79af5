"""How contents get on disk: hard links, clones and copies."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from cfstools.api.extract import CopyMode
from cfstools.errors import (
    CheckFailed,
    InputError,
    Unsupported,
)
from cfstools.linux import files
from cfstools.store import DirectoryStore, MemoryStore, StoreWriter
from cfstools.tree import Entry, External, HardLink, RegularFile
from tests.api.extracting import UID, directory, file, left_out, put
from tests.store.conftest import loop_mount


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[tuple[DirectoryStore, RegularFile]]:
    with DirectoryStore(bytes(tmp_path / "store"), create=True) as store:
        with StoreWriter(store) as writer:
            digest = writer.add_bytes(b"d" * 5000).digest
        inode = file(b"d" * 5000)
        inode.content = External(digest, None)
        yield store, inode


def test_hard_links_to_objects(out: Path, stored: tuple[DirectoryStore, RegularFile]) -> None:
    store, plain = stored
    assert isinstance(plain.content, External)
    assert plain.content.digest is not None
    path = Path(store.describe(plain.content.digest))
    before = path.stat()

    def variant(**changes: object) -> RegularFile:
        made = file(b"d" * 5000)
        made.content = plain.content
        for name, value in changes.items():
            setattr(made, name, value)
        return made

    entries: dict[bytes, Entry] = {
        b"inline": file(),
        b"mode": variant(mode=0o100755),
        b"owner": variant(uid=1234 if UID == 0 else UID, mode=0o100644 if UID == 0 else 0o100600),
        b"plain": plain,
        b"plain again": HardLink(plain),
        b"same": variant(mtime_sec=before.st_mtime_ns // 10**9, mtime_nsec=before.st_mtime_ns % 10**9),
        b"xattrs": variant(xattrs={b"user.a": b"1"}),
    }
    report = put(directory(entries), out, store=store, contents=CopyMode.HARDLINK)
    linked = {name for name in entries if (out / os.fsdecode(name)).stat().st_ino == before.st_ino}
    assert linked == {b"plain", b"plain again", b"same"}
    assert left_out(report) == {"modification times of hard-linked objects": (1, "/plain")}
    assert (report.bytes_linked, report.bytes_copied) == (10_000, 15_001)
    now = path.stat()
    assert (now.st_mode, now.st_uid, now.st_gid, now.st_mtime_ns) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
        before.st_mtime_ns,
    )
    assert os.listxattr(path) == []
    assert (out / "mode").stat().st_mtime == pytest.approx(5, abs=1e-6)


def test_objects_with_attributes_of_their_own(out: Path, stored: tuple[DirectoryStore, RegularFile]) -> None:
    store, plain = stored
    assert isinstance(plain.content, External)
    assert plain.content.digest is not None
    path = Path(store.describe(plain.content.digest))
    os.setxattr(path, "user.a", b"1")
    for xattrs, linked in [({}, False), ({b"user.a": b"2"}, False), ({b"user.a": b"1"}, True)]:
        plain.xattrs = xattrs
        report = put(directory({b"f": plain}), out, store=store, contents=CopyMode.HARDLINK)
        assert (report.bytes_linked > 0) is linked
        assert os.listxattr(out / "f") == [key.decode() for key in xattrs]
        (out / "f").unlink()
        out.rmdir()


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EIO])
def test_objects_that_cannot_be_linked(
    out: Path, stored: tuple[DirectoryStore, RegularFile], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store, plain = stored

    def refuse(*_args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, "link_tmpfile", refuse)
    if number == errno.EIO:
        with pytest.raises(InputError, match="out/f: cannot write"):
            put(directory({b"f": plain}), out, store=store, contents=CopyMode.HARDLINK)
    else:
        report = put(directory({b"f": plain}), out, store=store, contents=CopyMode.HARDLINK)
        assert (report.bytes_copied, report.left_out) == (5000, ())


def test_stores_without_attributes(
    out: Path, stored: tuple[DirectoryStore, RegularFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, plain = stored

    def refuse(*_args: object) -> list[str]:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "listxattr", refuse)
    assert put(directory({b"f": plain}), out, store=store, contents=CopyMode.HARDLINK).bytes_linked == 5000


@pytest.mark.root
@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_clones(tmp_path: Path, kind: str) -> None:
    for place in loop_mount(tmp_path, kind, 320 << 20):
        data = os.urandom(8 << 20)
        with DirectoryStore(bytes(place / "store"), create=True) as store:
            with StoreWriter(store) as writer:
                digest = writer.add_bytes(data).digest
            inode = file(data, mode=0o4711)
            inode.content = External(digest, None)
            used = free_bytes(place)
            for mode in (CopyMode.AUTO, CopyMode.REFLINK):
                report = put(directory({b"f": inode, b"i": file()}), place / mode.value, store=store, contents=mode)
                assert (report.bytes_cloned, report.bytes_copied) == (len(data), 1)
                assert (place / mode.value / "f").read_bytes() == data
                assert stat.S_IMODE((place / mode.value / "f").stat().st_mode) == 0o4711
            assert used - free_bytes(place) < len(data) // 2
            report = put(directory({b"f": inode}), place / "copy", store=store, contents=CopyMode.COPY)
            assert (report.bytes_cloned, report.bytes_copied) == (0, len(data))
            path = Path(store.describe(digest))
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            with pytest.raises(CheckFailed, match=r"^/f: object .* is damaged"):
                put(directory({b"f": inode}), place / "damaged", store=store)
            assert not (place / "damaged").exists()
            with pytest.raises(Unsupported, match="cannot be cloned"):
                put(directory({b"f": inode}), tmp_path / "elsewhere", store=store, contents=CopyMode.REFLINK)
            os.truncate(path, 5)


def free_bytes(place: Path) -> int:
    os.sync()
    status = os.statvfs(place)
    return status.f_bfree * status.f_frsize


def test_a_clone_where_there_are_none(out: Path) -> None:
    store = MemoryStore()
    inode = file(b"d" * 5000)
    inode.content = External(store.add(b"d" * 5000), None)
    with pytest.raises(Unsupported, match="out/f: objects cannot be cloned there"):
        put(directory({b"f": inode}), out, store=store, contents=CopyMode.REFLINK)


def test_the_label_every_file_has_does_not_keep_from_linking(
    out: Path, stored: tuple[DirectoryStore, RegularFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, plain = stored
    monkeypatch.setattr(os, "listxattr", lambda _fd: ["security.selinux"])
    assert put(directory({b"f": plain}), out, store=store, contents=CopyMode.HARDLINK).bytes_linked == 5000
