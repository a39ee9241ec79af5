"""What is read of a directory, and what cannot be."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cfstools.errors import InputError, SourceChanged, UsageError
from cfstools.sources.directory import open_directory
from cfstools.tree import Device, Fifo, HardLink, RegularFile, Socket, Symlink, Unread
from cfstools.tree.walk import iter_entries, iter_inodes, lookup
from tests.sources.trees import (
    NOBODY,
    get,
    is_root,
    needs_root,
    paths,
    read,
    walk,
)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Without the rights of root, if this is root."""
    if not is_root:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


# What is read


def test_an_empty_directory(src: Path) -> None:
    src.chmod(0o1751)
    os.utime(src, ns=(0, 1_500_000_000_123_456_789))
    root = walk(src)
    status = src.lstat()
    assert root.entries == {}
    assert (root.mode, root.uid, root.gid) == (0o041751, status.st_uid, status.st_gid)
    assert (root.mtime_sec, root.mtime_nsec) == (1_500_000_000, 123_456_789)


def test_every_inode_is_as_lstat_says(src: Path) -> None:
    (src / "dir").mkdir(mode=0o700)
    (src / "dir" / "deep").mkdir()
    (src / "dir" / "deep" / "file").write_bytes(b"x" * 100)
    (src / "empty").touch()
    (src / "setuid").write_bytes(b"s")
    (src / "setuid").chmod(0o6755)
    (src / "link").symlink_to("dir/deep")
    (src / "loop").symlink_to("loop")
    os.mkfifo(src / "fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fsencode(src / "socket"))
        root = walk(src)
    assert paths(root) == [
        b"/",
        b"/dir",
        b"/dir/deep",
        b"/dir/deep/file",
        b"/empty",
        b"/fifo",
        b"/link",
        b"/loop",
        b"/setuid",
        b"/socket",
    ]
    for path, _, entry in iter_entries(root):
        status = os.lstat(os.fsencode(src) + path)
        assert not isinstance(entry, HardLink)
        assert (entry.mode, entry.uid, entry.gid) == (status.st_mode, status.st_uid, status.st_gid)
        assert entry.mtime_sec * 10**9 + entry.mtime_nsec == status.st_mtime_ns
        assert entry.nlink == 1
    file, empty, link = get(root, b"/dir/deep/file"), get(root, b"/empty"), get(root, b"/link")
    assert isinstance(file, RegularFile)
    assert isinstance(file.content, Unread)
    assert (file.size, file.content.path) == (100, b"dir/deep/file")
    assert isinstance(empty, RegularFile)
    assert (empty.size, empty.content) == (0, b"")
    assert isinstance(link, Symlink)
    assert link.target == b"dir/deep"
    assert isinstance(get(root, b"/fifo"), Fifo)
    assert isinstance(get(root, b"/socket"), Socket)
    assert get(root, b"/setuid").mode == 0o106755


@needs_root
def test_devices(src: Path) -> None:
    os.mknod(src / "char", 0o020620, os.makedev(5, 1))
    os.mknod(src / "block", 0o060600, os.makedev(259, 0x12345))
    os.mknod(src / "whiteout", 0o020000, 0)
    os.chown(src / "char", 70000, 5)
    (src / "char").chmod(0o4620)
    root = walk(src)
    char, block, whiteout = get(root, b"/char"), get(root, b"/block"), get(root, b"/whiteout")
    assert isinstance(char, Device)
    assert isinstance(block, Device)
    assert isinstance(whiteout, Device)
    assert (char.mode, char.rdev, char.uid, char.gid) == (0o024620, 0x501, 70000, 5)
    assert block.rdev == (0x12345 & 0xFF) | 259 << 8 | (0x12345 & ~0xFF) << 12
    assert whiteout.is_whiteout
    (src / "file").touch()
    assert paths(walk(src, skip_devices=True)) == [b"/", b"/file"]


@pytest.mark.parametrize("time_ns", [-1, -1_500_000_000, 0, 1, 2**32 * 10**9 + 5])
def test_times(src: Path, time_ns: int) -> None:
    (src / "file").touch()
    os.utime(src / "file", ns=(0, time_ns))
    if (src / "file").lstat().st_mtime_ns != time_ns:
        pytest.skip("the file system here cannot keep this time")
    file = get(walk(src), b"/file")
    assert 0 <= file.mtime_nsec < 10**9
    assert file.mtime_sec * 10**9 + file.mtime_nsec == time_ns


def test_use_epoch(src: Path) -> None:
    (src / "dir").mkdir()
    (src / "dir" / "file").touch()
    times = {(inode.mtime_sec, inode.mtime_nsec) for inode in iter_inodes(walk(src, use_epoch=True))}
    assert times == {(0, 0)}


@pytest.mark.parametrize(
    "name", [b"\xff\xfe", b"new\nline", b" ", b"-", b"\\", b"n" * 255, b"\xc3\xa9", b"%s", b"...", b"\x01"]
)
def test_names_are_bytes(src: Path, name: bytes) -> None:
    directory = os.fsencode(src) + b"/" + name
    os.mkdir(directory)
    with open(directory + b"/" + name, "wb") as file:
        file.write(b"contents")
    os.symlink(name, directory + b"/link")
    with open_directory(os.fsencode(src)) as source:
        inode = get(source.root, b"/" + name + b"/" + name)
        link = get(source.root, b"/" + name + b"/link")
        assert isinstance(link, Symlink)
        assert link.target == name
        assert isinstance(inode, RegularFile)
        assert read(source, inode) == b"contents"


# Hard links


def test_the_first_name_in_byte_order_is_primary(src: Path) -> None:
    for name in ("b", "c"):
        (src / name).mkdir()
    (src / "c" / "one").write_bytes(b"1")
    os.link(src / "c" / "one", src / "b" / "two")
    os.link(src / "c" / "one", src / "c" / "a")
    os.link(src / "c" / "one", src / "b.")
    os.link(src / "c" / "one", src.parent / "outside")
    (src / "lone").touch()
    os.link(src / "lone", src.parent / "lone")
    root = walk(src)
    one = get(root, b"/b/two")
    assert lookup(root, b"/b/two") is one
    assert one.nlink == 4
    for path in (b"/b.", b"/c/a", b"/c/one"):
        link = lookup(root, path)
        assert isinstance(link, HardLink)
        assert link.inode is one
    assert isinstance(one, RegularFile)
    assert isinstance(one.content, Unread)
    assert one.content.path == b"b/two"
    assert get(root, b"/lone").nlink == 1


def test_without_hard_links_every_name_is_an_inode(src: Path) -> None:
    (src / "a").write_bytes(b"1")
    os.link(src / "a", src / "b")
    root = walk(src, hardlinks=False)
    a, b = lookup(root, b"/a"), lookup(root, b"/b")
    assert isinstance(a, RegularFile)
    assert isinstance(b, RegularFile)
    assert a is not b
    assert (a.nlink, b.nlink) == (1, 1)
    assert isinstance(b.content, Unread)
    assert b.content.path == b"b"


def test_other_kinds_are_linked_too(src: Path) -> None:
    (src / "s").symlink_to("target")
    os.mkfifo(src / "f")
    kinds = ["s", "f"]
    if is_root:
        os.mknod(src / "d", 0o020600, os.makedev(1, 3))
        kinds.append("d")
    for name in kinds:
        os.link(src / name, src / (name + "2"), follow_symlinks=False)
    root = walk(src)
    for name in kinds:
        link = lookup(root, name.encode() + b"2")
        assert isinstance(link, HardLink)
        assert link.inode is lookup(root, name.encode())
        assert link.inode.nlink == 2
    if is_root:
        assert paths(walk(src, skip_devices=True)) == [b"/", b"/f", b"/f2", b"/s", b"/s2"]


def test_an_excluded_name_is_no_link(src: Path) -> None:
    (src / "a").mkdir()
    (src / "a" / "x").touch()
    os.link(src / "a" / "x", src / "b")
    os.link(src / "a" / "x", src / "c")
    root = walk(src, exclude=(b"a/",))
    assert paths(root) == [b"/", b"/b", b"/c"]
    assert lookup(root, b"/b") is get(root, b"/c")
    assert get(root, b"/c").nlink == 2


# Exclusion


def test_excluded_names_are_not_read(src: Path) -> None:
    (src / "keep").mkdir()
    (src / "keep" / "a.tmp").touch()
    (src / "keep" / "cache").touch()
    (src / "cache").mkdir()
    (src / "cache" / "file").touch()
    (src / "keep" / "sub").mkdir()
    (src / "keep" / "sub" / "x").touch()
    root = walk(src, exclude=(b"*.tmp", b"cache/", b"/keep/sub/**"))
    assert paths(root) == [b"/", b"/keep", b"/keep/cache", b"/keep/sub"]


def test_a_malformed_pattern(src: Path) -> None:
    with pytest.raises(UsageError, match="bad pattern"):
        walk(src, exclude=(b"[",))


# The source itself


def test_the_source_is_a_symbolic_link(src: Path, tmp_path: Path) -> None:
    (src / "file").touch()
    link = tmp_path / "link"
    link.symlink_to("src")
    with pytest.raises(InputError, match="is a symbolic link, not a directory") as caught:
        walk(link)
    assert caught.value.hint is not None
    assert "trailing slash" in caught.value.hint
    with open_directory(os.fsencode(link) + b"/") as source:
        assert paths(source.root) == [b"/", b"/file"]


def test_the_source_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file: is not a directory$"):
        walk(tmp_path / "file")


@pytest.mark.parametrize("path", [b"", b"/nonexistent/path"])
def test_the_source_is_missing(path: bytes) -> None:
    with pytest.raises(InputError, match="cannot open: No such file or directory"):
        open_directory(path)


def test_the_source_has_a_zero_byte() -> None:
    with pytest.raises(InputError, match="zero byte"):
        open_directory(b"/tmp/\0")


def test_a_relative_source(src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (src / "file").write_bytes(b"1")
    monkeypatch.chdir(src)
    with open_directory(b".") as source:
        file = get(source.root, b"/file")
        monkeypatch.chdir("/")
        assert isinstance(file, RegularFile)
        assert read(source, file) == b"1"


def test_closing(src: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with open_directory(os.fsencode(src)) as source:
        source.close()
    assert len(os.listdir("/proc/self/fd")) == before


# What cannot be read


@pytest.fixture
def open_src() -> Iterator[Path]:
    """A directory that other users can get at, unlike those in pytest's own place."""
    path = Path("/tmp") / f"cfstools-test-{os.getpid()}"
    path.mkdir(mode=0o755)
    yield path
    shutil.rmtree(path)


def test_an_unreadable_directory_is_named(open_src: Path) -> None:
    (open_src / "a").mkdir()
    (open_src / "a" / "secret").mkdir(mode=0)
    before = len(os.listdir("/proc/self/fd"))
    with unprivileged(), pytest.raises(InputError) as caught:
        walk(open_src)
    assert str(caught.value) == f"{open_src}/a/secret: cannot open directory: Permission denied"
    assert not isinstance(caught.value, SourceChanged)
    assert len(os.listdir("/proc/self/fd")) == before
    with unprivileged():
        assert paths(walk(open_src, exclude=(b"secret",))) == [b"/", b"/a"]


def test_a_directory_that_can_be_listed_but_not_searched(open_src: Path) -> None:
    (open_src / "dir").mkdir()
    (open_src / "dir" / "file").touch()
    (open_src / "dir").chmod(0o444)
    with unprivileged(), pytest.raises(InputError) as caught:
        walk(open_src)
    assert str(caught.value) == f"{open_src}/dir/file: cannot look at: Permission denied"


def test_an_unreadable_file_is_named(open_src: Path) -> None:
    (open_src / "file").write_bytes(b"secret")
    (open_src / "file").chmod(0)
    with unprivileged(), open_directory(os.fsencode(open_src)) as source:
        file = get(source.root, b"/file")
        assert isinstance(file, RegularFile)
        with pytest.raises(InputError) as caught:
            read(source, file)
    assert str(caught.value) == f"{open_src}/file: cannot open: Permission denied"
