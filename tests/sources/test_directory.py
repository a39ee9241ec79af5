from __future__ import annotations

import errno
import os
import resource
import shutil
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from cfstools import native
from cfstools.errors import CfsError, InputError, LimitExceeded, SourceChanged, TreeError, Unsupported, UsageError
from cfstools.native import _pure
from cfstools.native._names import Maker
from cfstools.sources.directory import MAX_OPEN, MAX_PATH, DirectorySource, WalkOptions, open_directory
from cfstools.sources.inodes import NameStatus
from cfstools.store import ingest
from cfstools.tree import Device, Directory, Fifo, HardLink, RegularFile, Socket, Symlink, Unread
from cfstools.tree.model import Leaf
from cfstools.tree.walk import inode_of, iter_entries, iter_inodes, lookup
from cfstools.tree.xattrs import XattrPolicy

is_root = os.geteuid() == 0
needs_root = pytest.mark.skipif(not is_root, reason="making device nodes and trusted attributes needs root")
NOBODY = 65534


def walk(path: Path, **options: object) -> Directory:
    with open_directory(os.fsencode(path), options=WalkOptions(**options)) as source:  # type: ignore[arg-type]
        return source.root


def get(root: Directory, path: bytes) -> Leaf:
    entry = lookup(root, path)
    assert entry is not None
    inode = inode_of(entry)
    assert not isinstance(inode, Directory)
    return inode


def paths(root: Directory) -> list[bytes]:
    return [path for path, _, _ in iter_entries(root)]


def later() -> None:
    """Let the clock of the file system go on, which on older kernels ticks every few milliseconds."""
    time.sleep(0.02)


class AtNames:
    """Progress that runs *action* when the names of the *count*-th directory are known but not yet looked at."""

    def __init__(self, count: int, action: Callable[[], object]) -> None:
        self._count = count
        self._action = action

    def start(self, stage: str, total: int | None, unit: str) -> None:
        assert (stage, total, unit) == ("walk", None, "entry")

    def advance(self, amount: int) -> None:
        self._count -= 1
        if self._count == 0:
            later()
            self._action()

    def finish(self) -> None:
        self._count = 0


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


@pytest.fixture
def src(tmp_path: Path) -> Path:
    path = tmp_path / "src"
    path.mkdir()
    return path


def set_xattr(path: Path, key: str, value: bytes) -> None:
    try:
        os.setxattr(path, key, value, follow_symlinks=False)
    except OSError as error:
        if error.errno in {errno.EOPNOTSUPP, errno.EPERM}:
            pytest.skip(f"{key} cannot be set here: {error.strerror}")
        raise


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


def read(source: DirectorySource, inode: RegularFile) -> bytes:
    assert isinstance(inode.content, Unread)
    fd = source.open(inode.content)
    with open(fd, "rb") as file:
        return file.read()


# Extended attributes


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def test_user_attributes(src: Path) -> None:
    for name in ("a", "b", "c"):
        (src / name).touch()
    for name in ("a", "b"):
        set_xattr(src / name, "user.x", b"\0\xff=\n")
        set_xattr(src / name, "user.empty", b"")
    set_xattr(src, "user.root", b"1")
    root = walk(src)
    assert root.xattrs == {b"user.root": b"1"}
    assert get(root, b"/a").xattrs == {b"user.empty": b"", b"user.x": b"\0\xff=\n"}
    assert get(root, b"/a").xattrs is get(root, b"/b").xattrs
    assert get(root, b"/c").xattrs == {}


@needs_root
def test_all_attributes(src: Path) -> None:
    file, link, directory, fifo = src / "file", src / "link", src / "dir", src / "fifo"
    file.touch()
    link.symlink_to("file")
    directory.mkdir()
    os.mkfifo(fifo)
    rights = acl((1, 6, 2**32 - 1), (2, 4, 1000), (4, 4, 2**32 - 1), (16, 4, 2**32 - 1), (32, 0, 2**32 - 1))
    capability = struct.pack("<IIIII", 0x02000001, 0x2000, 0, 0, 0)
    set_xattr(file, "system.posix_acl_access", rights)
    set_xattr(file, "security.capability", capability)
    set_xattr(file, "security.\udcff", b"odd")
    set_xattr(file, "trusted.overlay.metacopy", b"")
    set_xattr(file, "user.u", b"1")
    set_xattr(directory, "system.posix_acl_default", rights)
    set_xattr(link, "trusted.own", b"of the link")
    set_xattr(fifo, "trusted.f", b"")
    root = walk(src)
    assert get(root, b"/file").xattrs == {
        b"security.\xff": b"odd",
        b"security.capability": capability,
        b"system.posix_acl_access": rights,
        b"trusted.overlay.metacopy": b"",
        b"user.u": b"1",
    }
    assert get(root, b"/link").xattrs == {b"trusted.own": b"of the link"}
    assert get(root, b"/fifo").xattrs == {b"trusted.f": b""}
    entry = root.entries[b"dir"]
    assert isinstance(entry, Directory)
    assert entry.xattrs == {b"system.posix_acl_default": rights}
    user = walk(src, xattrs=XattrPolicy.USER)
    assert {key for inode in iter_inodes(user) for key in inode.xattrs} == {b"user.u"}
    none = walk(src, xattrs=XattrPolicy.NONE)
    assert not any(inode.xattrs for inode in iter_inodes(none))


@pytest.mark.usefixtures("pure")
def test_more_attributes_than_an_inode_can_have(src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system with room for that much is rare, so the values are given here."""
    (src / "file").touch()
    monkeypatch.setattr(os, "listxattr", lambda target, **_: ["user.big"] if isinstance(target, bytes) else [])
    monkeypatch.setattr(os, "getxattr", lambda *_, **__: b"v" * 32741)
    with pytest.raises(TreeError, match="no room") as caught:
        walk(src)
    assert str(caught.value).startswith(f"{src}/file: ")
    monkeypatch.setattr(os, "getxattr", lambda *_, **__: b"v" * 32740)
    assert len(get(walk(src), b"/file").xattrs[b"user.big"]) == 32740


def test_a_file_system_without_attributes_is_asked_once(src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (src / "dir").mkdir()
    (src / "dir" / "file").touch()
    asked: list[object] = []

    def unsupported(target: object, *, follow_symlinks: bool = True) -> list[str]:
        asked.append(target)
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "listxattr", unsupported)
    assert paths(walk(src)) == [b"/", b"/dir", b"/dir/file"]
    assert len(asked) == 1


def test_one_inode_without_attributes(src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (src / "file").touch()
    listing = os.listxattr

    def unsupported(target: int | bytes, *, follow_symlinks: bool = True) -> list[str]:
        if isinstance(target, bytes):
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return listing(target)

    monkeypatch.setattr(os, "listxattr", unsupported)
    assert get(walk(src), b"/file").xattrs == {}


@pytest.mark.usefixtures("pure")
@pytest.mark.parametrize(("rounds", "settles"), [(1, True), (2, True), (100, False)])
def test_attributes_that_change_are_read_again(
    src: Path, monkeypatch: pytest.MonkeyPatch, rounds: int, *, settles: bool
) -> None:
    """Between list and value an attribute goes: done here by really removing it at that moment."""
    file = src / "file"
    file.touch()
    set_xattr(file, "user.goes", b"1")
    listing = os.listxattr
    left = rounds

    def and_remove(target: int | bytes, *, follow_symlinks: bool = True) -> list[str]:
        nonlocal left
        names = listing(target, follow_symlinks=follow_symlinks)
        if isinstance(target, bytes):
            if left and "user.goes" in names:
                os.removexattr(file, "user.goes")
            elif "user.goes" not in names:
                os.setxattr(file, "user.goes", b"1")
                names.append("user.goes")
                if left:
                    os.removexattr(file, "user.goes")
            left = max(0, left - 1)
        return names

    monkeypatch.setattr(os, "listxattr", and_remove)
    if settles:
        assert get(walk(src), b"/file").xattrs == {b"user.goes": b"1"}
    else:
        with pytest.raises(SourceChanged, match=r"file: extended attributes changed while"):
            walk(src)


@pytest.mark.usefixtures("pure")
@pytest.mark.parametrize("of_directory", [True, False])
def test_attributes_that_cannot_be_read(src: Path, monkeypatch: pytest.MonkeyPatch, *, of_directory: bool) -> None:
    (src / "file").touch()
    listing = os.listxattr

    def refused(target: int | bytes, *, follow_symlinks: bool = True) -> list[str]:
        if isinstance(target, int) is of_directory:
            raise PermissionError(errno.EACCES, "Permission denied")
        return listing(target, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "listxattr", refused)
    with pytest.raises(InputError, match=r"cannot (read|list) extended attributes: Permission denied") as caught:
        walk(src)
    assert caught.value.subject == str(src if of_directory else src / "file")


@pytest.mark.parametrize(
    ("number", "kind", "why"),
    [
        (errno.ENOENT, Unsupported, "read through /proc, which is not mounted"),
        (errno.EIO, InputError, "src: cannot look up through /proc: Input/output error"),
    ],
)
def test_without_proc(src: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[CfsError], why: str) -> None:
    looking = os.stat

    def fail(path: Any, **words: Any) -> os.stat_result:
        if isinstance(path, bytes) and path.startswith(b"/proc/self/fd/"):
            raise OSError(number, os.strerror(number))
        return looking(path, **words)

    monkeypatch.setattr(os, "stat", fail)
    with pytest.raises(kind, match=why):
        walk(src)
    assert paths(walk(src, xattrs=XattrPolicy.NONE)) == [b"/"]


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


# What changes meanwhile


def change(tmp_path: Path, src: Path, count: int, action: Callable[[], object]) -> SourceChanged:
    """Do *action* when the *count*-th directory was listed; return the error that comes of it."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SourceChanged) as caught:
        open_directory(os.fsencode(src), progress=AtNames(count, action))
    assert len(os.listdir("/proc/self/fd")) == before
    return caught.value


def test_a_file_vanishes_during_the_walk(src: Path, tmp_path: Path) -> None:
    (src / "dir").mkdir()
    (src / "dir" / "file").touch()
    error = change(tmp_path, src, 2, (src / "dir" / "file").unlink)
    assert str(error) == f"{src}/dir/file: vanished or was replaced while the source was read"


def test_a_directory_vanishes_during_the_walk(src: Path, tmp_path: Path) -> None:
    (src / "dir").mkdir()
    error = change(tmp_path, src, 1, (src / "dir").rmdir)
    assert error.subject == f"{src}/dir"


def test_a_file_appears_during_the_walk(src: Path, tmp_path: Path) -> None:
    (src / "dir").mkdir()
    error = change(tmp_path, src, 2, (src / "dir" / "new").touch)
    assert str(error) == f"{src}/dir: directory changed while the source was read"


def test_the_root_changes_during_the_walk(src: Path, tmp_path: Path) -> None:
    (src / "dir").mkdir()
    error = change(tmp_path, src, 2, (src / "new").touch)
    assert str(error) == f"{src}: directory changed while the source was read"


def test_a_linked_file_changes_during_the_walk(src: Path, tmp_path: Path) -> None:
    (src / "a").write_bytes(b"1")
    (src / "b").mkdir()
    os.link(src / "a", src / "b" / "c")
    error = change(tmp_path, src, 2, lambda: (src / "a").chmod(0o600))
    assert error.subject == f"{src}/b/c"


def test_a_directory_is_replaced_by_another(src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between looking at it and opening it."""
    (src / "dir").mkdir()
    other = src.parent / "other"
    other.mkdir()
    opening = os.open

    def swap(name: bytes, *args: int, dir_fd: int | None = None) -> int:
        if name == b"dir":
            (src / "dir").rmdir()
            other.rename(src / "dir")
        return opening(name, *args, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", swap)
    with pytest.raises(SourceChanged, match=r"dir: was replaced while"):
        walk(src)


@pytest.mark.usefixtures("pure")
def test_a_link_is_replaced_by_a_file(src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (src / "link").symlink_to("x")
    reading = os.readlink

    def swap(name: bytes, *, dir_fd: int) -> bytes:
        (src / "link").unlink()
        (src / "link").touch()
        return reading(name, dir_fd=dir_fd)

    # Changed long ago, so that a change now is seen however seldom the clock ticks.
    os.utime(src, (1, 1))
    monkeypatch.setattr(os, "readlink", swap)
    with pytest.raises(SourceChanged, match=r"src: directory changed while"):
        walk(src)


def test_a_look_that_fails_once(src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no replacement: what is there after all is taken."""
    (src / "file").write_bytes(b"x")
    looking = native.stat_names
    answers: list[list[NameStatus | None]] = [[None]]
    monkeypatch.setattr(native, "stat_names", lambda *words: answers.pop() if answers else looking(*words))
    assert isinstance(get(walk(src), b"file"), RegularFile)
    assert not answers


def test_a_look_that_never_succeeds(src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (src / "file").touch()
    for module in (native, _pure):
        monkeypatch.setattr(module, "stat_names", lambda _directory, names, *_: [None for _ in names])
    with pytest.raises(SourceChanged, match=r"file: was replaced while"):
        walk(src)


@pytest.mark.usefixtures("pure")
def test_a_link_cannot_be_read(src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (src / "link").symlink_to("x")

    def fail(name: bytes, *, dir_fd: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "readlink", fail)
    with pytest.raises(InputError, match=r"link: cannot read symbolic link: Input/output error"):
        walk(src)


def test_an_unknown_kind_of_file(src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (src / "odd").touch()

    def odd(directory: int, names: Sequence[bytes], xattrs: bool, prefix: bytes, maker: Maker) -> list[NameStatus]:
        (status,) = _pure.stat_names(directory, names, xattrs, prefix, maker)
        assert status is not None
        return [(0o050644, *status[1:])]

    monkeypatch.setattr(native, "stat_names", odd)
    with pytest.raises(InputError, match=r"odd: unknown kind of file 0o50000"):
        walk(src, use_epoch=True)


def rewrite(path: Path) -> None:
    path.write_bytes(b"longer than before")


def rewrite_same_size(path: Path) -> None:
    status = path.stat()
    path.write_bytes(b"y" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace(path: Path) -> None:
    path.rename(path.parent.parent / "kept")
    path.write_bytes(b"x")


def replace_by_link(path: Path) -> None:
    path.rename(path.parent.parent / "kept")
    path.symlink_to("../kept")


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_socket(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fsencode(path))


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def parent_becomes_link(path: Path) -> None:
    moved = path.parent.parent / "moved"
    path.parent.rename(moved)
    path.parent.symlink_to(moved)


def parent_becomes_file(path: Path) -> None:
    shutil.rmtree(path.parent)
    path.parent.touch()


@pytest.mark.parametrize(
    "action",
    [
        Path.unlink,
        rewrite,
        rewrite_same_size,
        replace,
        replace_by_link,
        replace_by_fifo,
        replace_by_socket,
        replace_by_directory,
        parent_becomes_link,
        parent_becomes_file,
        lambda path: path.chmod(0o600),
    ],
)
def test_a_file_changes_between_walk_and_reading(src: Path, action: Callable[[Path], None]) -> None:
    (src / "dir").mkdir()
    file = src / "dir" / "file"
    file.write_bytes(b"x")
    with open_directory(os.fsencode(src)) as source:
        inode = get(source.root, b"/dir/file")
        assert isinstance(inode, RegularFile)
        assert read(source, inode) == b"x"
        later()
        action(file)
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(SourceChanged, match="while the source was read") as caught:
            read(source, inode)
        assert caught.value.subject == str(file)
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_changes_while_it_is_read(src: Path) -> None:
    (src / "file").write_bytes(b"x")
    with open_directory(os.fsencode(src)) as source:
        inode = get(source.root, b"/file")
        assert isinstance(inode, RegularFile)
        assert isinstance(inode.content, Unread)
        fd = source.open(inode.content)
        source.check(inode.content, fd)
        later()
        rewrite(src / "file")
        with pytest.raises(SourceChanged, match=r"file: changed while"):
            source.check(inode.content, fd)
        os.close(fd)


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("number", [0, errno.EIO])
def test_errors_of_contents_name_the_path_as_it_can_be_used(
    src: Path, monkeypatch: pytest.MonkeyPatch, slash: str, number: int
) -> None:
    """From where the command runs, as the errors of the walk do."""
    (src / "sub").mkdir()
    (src / "sub" / "file").write_bytes(bytes(5 << 20))
    monkeypatch.chdir(src.parent)

    def hashed(fd: int, *_args: object, **_options: object) -> tuple[bytes, int]:
        if number:
            raise OSError(number, os.strerror(number))
        return bytes(32), 1

    monkeypatch.setattr(ingest, "hash_fd", hashed)
    with (
        open_directory(f"{src.name}{slash}".encode()) as source,
        pytest.raises(InputError) as caught,
    ):
        ingest.ingest(source.root, source, None)
    told = "cannot read: Input/output error" if number else "changed while it was read"
    assert str(caught.value) == f"{src.name}/sub/file: {told}"


def test_no_swap_leads_out_of_the_source(src: Path) -> None:
    """A user of the tree swaps a directory with a link to a place outside, over and over."""
    outside = src.parent / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"secret")
    (outside / "secret").touch()
    (src / "dir").mkdir()
    (src / "dir" / "file").write_bytes(b"public")
    (src / "link").symlink_to(outside)
    stop = threading.Event()

    def swap() -> None:
        names = [src / "dir", src / "link"]
        while not stop.is_set():
            names[0].rename(src / "x")
            names[1].rename(src / "dir")
            (src / "x").rename(src / "link")

    with open_directory(os.fsencode(src)) as source:
        inode = get(source.root, b"/dir/file")
        assert isinstance(inode, RegularFile)
        thread = threading.Thread(target=swap)
        thread.start()
        try:
            seen = {outcome(lambda: read(source, inode)) for _ in range(2000)}
            walks = {outcome(lambda: b"".join(paths(walk(src)))) for _ in range(300)}
        finally:
            stop.set()
            thread.join()
    assert SourceChanged in seen
    assert seen <= {SourceChanged, b"public"}
    assert SourceChanged in walks
    for found in walks - {SourceChanged}:
        assert isinstance(found, bytes)
        assert b"secret" not in found


def outcome(action: Callable[[], bytes]) -> bytes | type[CfsError]:
    try:
        return action()
    except CfsError as error:
        return type(error)


# Depth


@contextmanager
def deep(path: Path, name: bytes, depth: int, contents: bytes) -> Iterator[None]:
    """*depth* directories called *name* inside each other below *path*, with a file in the last."""
    top = fd = os.open(path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=fd)
        inner = os.open(name, os.O_RDONLY, dir_fd=fd)
        if fd != top:
            os.close(fd)
        fd = inner
    with open(os.open(b"file", os.O_WRONLY | os.O_CREAT, dir_fd=fd), "wb") as file:
        file.write(contents)
    try:
        yield
    finally:
        os.unlink(b"file", dir_fd=fd)
        for _ in range(depth):
            outer = os.open(b"..", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            with suppress(FileNotFoundError):
                os.rmdir(name, dir_fd=outer)
            fd = outer
        os.close(fd)
        os.close(top)


def test_deep_trees(src: Path) -> None:
    """More levels than descriptors, and a path longer than a system call takes."""
    (src / "z").touch()
    path = b"dd/" * 3000 + b"file"
    with deep(src, b"dd", 3000, b"far down"), open_directory(os.fsencode(src)) as source:
        inode = get(source.root, path)
        assert isinstance(inode, RegularFile)
        assert read(source, inode) == b"far down"
        assert len(paths(source.root)) == 3003
        before = len(os.listdir("/proc/self/fd"))
        os.rename(src / "dd", src / "e")
        with pytest.raises(SourceChanged):
            read(source, inode)
        assert len(os.listdir("/proc/self/fd")) == before
        os.rename(src / "e", src / "dd")


def test_descriptors_stay_bounded(src: Path) -> None:
    most = 0

    class Watch(AtNames):
        def advance(self, amount: int) -> None:
            nonlocal most
            most = max(most, len(os.listdir("/proc/self/fd")))

    before = len(os.listdir("/proc/self/fd"))
    with deep(src, b"d", MAX_OPEN + 50, b""):
        open_directory(os.fsencode(src), progress=Watch(0, lambda: None)).close()
    assert before + MAX_OPEN <= most <= before + MAX_OPEN + 10


def test_a_tree_moved_during_the_walk(src: Path, tmp_path: Path) -> None:
    """So deep that its parents are no longer held open, a part of the tree goes elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    with deep(src, b"d", MAX_OPEN + 20, b""):

        def move() -> None:
            os.rename(src / "d" / "d" / "d", elsewhere)

        error = change(tmp_path, src, MAX_OPEN + 20, move)
        os.rename(elsewhere, src / "d" / "d" / "d")
    assert error.subject == f"{src}/d/d/d"
    assert error.what.startswith("directory changed")


@pytest.mark.parametrize(("removed", "refused"), [(False, False), (True, False), (False, True)])
def test_a_parent_that_is_not_found_again(
    src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, removed: bool, refused: bool
) -> None:
    """Moved, or moved and removed, or refused, at the moment it is opened through its child."""
    opening = os.open
    elsewhere = tmp_path / "elsewhere"

    def move(name: bytes, flags: int, *, dir_fd: int | None = None) -> int:
        if name == b"..":
            if refused:
                raise PermissionError(errno.EACCES, "Permission denied")
            (src / "d" / "d").rename(elsewhere)
            if removed:
                elsewhere.rmdir()
        return opening(name, flags, dir_fd=dir_fd)

    (src / "d" / "d").mkdir(parents=True)
    monkeypatch.setattr(os, "open", move)
    monkeypatch.setattr("cfstools.sources.directory.MAX_OPEN", 1)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(InputError if refused else SourceChanged) as caught:
        walk(src)
    assert caught.value.subject == f"{src}/d"
    assert type(caught.value) is (InputError if refused else SourceChanged)
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_descriptor_left(src: Path) -> None:
    (src / "d" / "d" / "d").mkdir(parents=True)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir("/proc/self/fd")}
    free = [number for number in range(len(used) + 4) if number not in used]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[2], limits[1]))  # three are left: the listing took one itself
        with pytest.raises(InputError, match="directory: Too many open files") as caught:
            walk(src)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    # Listing takes a descriptor of its own where it is not done natively.
    assert caught.value.subject in (f"{src}/d", f"{src}/d/d")


def test_paths_are_bounded(src: Path) -> None:
    name = b"n" * 255
    before = len(os.listdir("/proc/self/fd"))
    with deep(src, name, MAX_PATH // 256 + 1, b""), pytest.raises(LimitExceeded, match="16384") as caught:
        walk(src)
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(str(caught.value)) < 500
