"""Reading the unread files of a tree: digests, inline contents, objects, and files that do not hold still."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

from cfstools.errors import CfsError, Exhausted, InputError, SourceChanged, StoreError, UsageError
from cfstools.store import DirectoryStore, MemoryBlobs, StoreWriter, stamp
from cfstools.store.write.ingest import _Run, ingest
from cfstools.tree import Content, Directory, External, HardLink, RegularFile, Stamp, Symlink, Unread
from cfstools.verity import Algorithm, Params, digest_bytes, object_path
from tests.processes import until
from tests.store.conftest import assert_whole, names_in


class Files:
    """Contents in a real directory, opened by name, with something to do before or after opening."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.opened: list[bytes] = []
        self.before: Callable[[Path], None] = lambda _path: None
        self.after: Callable[[Path], None] = lambda _path: None

    def open(self, unread: Unread) -> int:
        path = self.root / os.fsdecode(unread.path)
        self.opened.append(unread.path)
        self.before(path)
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise InputError(f"cannot open: {error.strerror}") from error
        self.after(path)
        return fd

    def name(self, unread: Unread) -> str:
        return f"the {os.fsdecode(unread.path)}"


def tree_of(contents: dict[bytes, bytes], directory: Path) -> Directory:
    root = Directory(mode=0o40755)
    directory.mkdir(exist_ok=True)
    for name, data in contents.items():
        path = directory / os.fsdecode(name)
        path.write_bytes(data)
        unread = Unread(name, stamp(path.stat()))
        root.entries[name] = RegularFile(mode=0o100644, size=len(data), content=unread)
    return root


def content_of(root: Directory, name: bytes) -> Content:
    entry = root.entries[name]
    assert isinstance(entry, RegularFile)
    return entry.content


CONTENTS = {
    b"empty": b"",
    b"one": b"1",
    b"inline": bytes(64),
    b"external": bytes(65),
    b"same": bytes(65),
    b"small": os.urandom(100_000),
    b"large": os.urandom((2 << 20) + 1),
}


@pytest.mark.parametrize("threads", [1, 2, None])
@pytest.mark.parametrize("with_store", [True, False])
def test_every_size(store: DirectoryStore, tmp_path: Path, threads: int | None, with_store: bool) -> None:
    root = tree_of(CONTENTS, tmp_path / "source")
    blobs = Files(tmp_path / "source")
    if with_store:
        with StoreWriter(store) as writer:
            report = ingest(root, blobs, writer, threads=threads)
            stored = writer.commit()
        assert (stored.objects_new, stored.objects_shared) == (3, 1)
        assert assert_whole(store.path) == 3
    else:
        report = ingest(root, blobs, None, threads=threads)
    for name, data in CONTENTS.items():
        content = content_of(root, name)
        if len(data) <= 64:
            assert content == data
        else:
            assert isinstance(content, External)
            assert content.digest == digest_bytes(data)
            assert content.payload == object_path(digest_bytes(data))
    assert b"empty" not in blobs.opened
    assert (report.empty_files, report.inline_files, report.inline_bytes) == (1, 2, 65)
    assert (report.external_files, report.external_bytes) == (4, 130 + 100_000 + (2 << 20) + 1)
    # Nothing is left to read.
    again = ingest(root, blobs, None)
    assert again.external_files == 0


def test_other_choices(tmp_path: Path) -> None:
    params = Params(algorithm=Algorithm.SHA512)
    root = tree_of({b"a": b"a" * 10, b"b": b"b" * 11}, tmp_path / "source")
    ingest(root, Files(tmp_path / "source"), None, params=params, inline_threshold=10)
    assert content_of(root, b"a") == b"a" * 10
    content = content_of(root, b"b")
    assert isinstance(content, External)
    assert content.digest == digest_bytes(b"b" * 11, params)
    none = tree_of({b"a": b"a"}, tmp_path / "source")
    ingest(none, Files(tmp_path / "source"), None, inline_threshold=0)
    assert isinstance(content_of(none, b"a"), External)


def test_parameters_must_be_those_of_the_writer(store: DirectoryStore) -> None:
    with StoreWriter(store) as writer, pytest.raises(UsageError, match="other parameters"):
        ingest(Directory(mode=0o40755), MemoryBlobs(), writer, params=Params(algorithm=Algorithm.SHA512))


def test_links_and_other_inodes() -> None:
    blobs = MemoryBlobs()
    data = b"linked" * 100
    file = RegularFile(mode=0o100644, size=len(data), content=blobs.add(b"d/file", data))
    ready = RegularFile(mode=0o100644, size=1, content=b"x")
    inner = Directory(mode=0o40755, entries={b"file": file, b"link": HardLink(file)})
    root = Directory(mode=0o40755)
    root.entries = {b"d": inner, b"l": HardLink(file), b"s": Symlink(mode=0o120777, target=b"x"), b"r": ready}
    report = ingest(root, blobs, None)
    assert report.external_files == 1
    assert isinstance(file.content, External)
    assert ready.content == b"x"
    blobs.close()


def test_memory_blobs(monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = MemoryBlobs()
    unread = blobs.add(b"path", b"data")
    assert unread.stamp.size == 4
    first, second = blobs.open(unread), blobs.open(unread)
    assert os.read(first, 10) == os.read(second, 10) == b"data"
    os.close(first)
    os.close(second)
    with pytest.raises(InputError, match=r"^other: no such contents$"):
        blobs.open(Unread(b"other", Stamp(0, 0, 0, 0, 0)))

    def refuse(*_args: object) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        with pytest.raises(Exhausted, match=r"^path: cannot open: Too many open files$"):
            blobs.open(unread)
        patched.setattr(os, "memfd_create", refuse)
        with pytest.raises(Exhausted, match="cannot keep contents in memory"):
            blobs.add(b"more", b"")
    blobs.close()
    with pytest.raises(InputError):
        blobs.open(unread)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def rewrite(path: Path) -> None:
    """Same size, same mtime: only the ctime tells."""
    was = path.stat()
    time.sleep(0.02)  # past the granularity of the file system's clock
    path.write_bytes(b"\xff" * was.st_size)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


def replace(path: Path) -> None:
    time.sleep(0.02)
    new = path.with_name("new")
    new.write_bytes(path.read_bytes())
    new.rename(path)


@pytest.mark.parametrize("change", [grow, shrink, empty, rewrite, replace])
@pytest.mark.parametrize("size", [50, 5000, (2 << 20) + 1])
@pytest.mark.parametrize("with_store", [True, False])
def test_files_that_change(
    store: DirectoryStore, tmp_path: Path, change: Callable[[Path], None], size: int, with_store: bool
) -> None:
    root = tree_of({b"file": os.urandom(size)}, tmp_path / "source")
    blobs = Files(tmp_path / "source")
    blobs.before = change
    writer = StoreWriter(store) if with_store else None
    with pytest.raises(SourceChanged) as caught:
        ingest(root, blobs, writer)
    assert str(caught.value) == "the file: changed while it was read"
    assert isinstance(content_of(root, b"file"), Unread)
    if writer is not None:
        writer.close()
    assert names_in(store.path) == []


def test_change_after_opening(tmp_path: Path) -> None:
    root = tree_of({b"file": os.urandom(5000)}, tmp_path / "source")
    blobs = Files(tmp_path / "source")
    blobs.after = grow
    with pytest.raises(SourceChanged):
        ingest(root, blobs, None)


@pytest.mark.parametrize("threads", [1, 4])
def test_the_first_error_in_tree_order_is_raised(tmp_path: Path, threads: int) -> None:
    """However the threads run: the file that fails first in the tree is the one that is named."""
    contents = {b"%04d" % number: bytes(100) for number in range(400)}
    for _ in range(3):
        root = tree_of(contents, tmp_path / "source")
        blobs = Files(tmp_path / "source")
        for number in (390, 300, 205):
            (tmp_path / "source" / f"{number:04}").unlink()
        blobs.before = lambda path: time.sleep(0.05) if path.name == "0200" else None
        with pytest.raises(InputError) as caught:
            ingest(root, blobs, None, threads=threads)
        assert str(caught.value) == "the 0205: cannot open: No such file or directory"


def test_an_error_cancels_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree_of({b"%04d" % number: bytes(100) for number in range(2000)}, tmp_path / "source")
    blobs = Files(tmp_path / "source")
    (tmp_path / "source" / "0000").unlink()
    known = threading.Event()
    stop = _Run.stop

    def noted(run: _Run, position: int, failure: BaseException | None = None) -> None:
        stop(run, position, failure)
        known.set()

    # However the threads run: the second half is not read before the error is known.
    blobs.before = lambda path: None if path.name < "1000" else until(known.is_set)
    monkeypatch.setattr(_Run, "stop", noted)
    with pytest.raises(InputError):
        ingest(root, blobs, None, threads=2)
    assert len([path for path in blobs.opened if path >= b"1000"]) <= 2


def test_errors_of_the_store_come_through(store: DirectoryStore, tmp_path: Path) -> None:
    data = bytes(1000)
    path = Path(store.describe(digest_bytes(data)))
    path.parent.mkdir()
    path.write_bytes(b"damaged")
    root = tree_of({b"file": data}, tmp_path / "source")
    with pytest.raises(StoreError) as caught, StoreWriter(store) as writer:
        ingest(root, Files(tmp_path / "source"), writer)
    assert str(caught.value) == f"{path}: damaged object: 7 bytes instead of 1000"


def test_unreadable_descriptor(tmp_path: Path) -> None:
    root = tree_of({b"file": bytes(1000), b"inline": b"x"}, tmp_path / "source")

    class Unreadable:
        def open(self, unread: Unread) -> int:
            return os.open(tmp_path, os.O_RDONLY)

        def name(self, unread: Unread) -> str:
            return os.fsdecode(unread.path)

    with pytest.raises(CfsError, match=r"^file: cannot read: Is a directory$"):
        ingest(root, Unreadable(), None)


def test_progress(store: DirectoryStore, tmp_path: Path) -> None:
    class Record:
        def __init__(self) -> None:
            self.events: list[object] = []
            self.total = 0
            self.lock = threading.Lock()

        def stage(self, name: str, total: int | None, unit: str) -> Self:
            self.events.append((name, total, unit))
            return self

        def advance(self, amount: int) -> None:
            with self.lock:
                self.total += amount

        def finish(self) -> None:
            self.events.append("finish")

    total = sum(map(len, CONTENTS.values()))
    for _ in range(2):
        record = Record()
        with StoreWriter(store) as writer:
            ingest(tree_of(CONTENTS, tmp_path / "source"), Files(tmp_path / "source"), writer, progress=record)
        assert record.events == [("read", total, "B"), "finish"]
        assert record.total == total
    record = Record()
    ingest(tree_of(CONTENTS, tmp_path / "source"), Files(tmp_path / "source"), None, progress=record)
    assert record.total == total


def test_interruption_stops_the_threads(tmp_path: Path) -> None:
    root = tree_of({b"%04d" % number: bytes(100) for number in range(1000)}, tmp_path / "source")
    blobs = Files(tmp_path / "source")

    class Interrupt:
        def stage(self, name: str, total: int | None, unit: str) -> Self:
            return self

        def advance(self, amount: int) -> None:
            raise KeyboardInterrupt

        def finish(self) -> None:
            pass

    with pytest.raises(KeyboardInterrupt):
        ingest(root, blobs, None, threads=2, progress=Interrupt())
    assert len(blobs.opened) < 1000
