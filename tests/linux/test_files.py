"""Thin wrappers around system calls, against the kernel that runs the tests."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cfstools.linux import files, libc
from cfstools.store.write.scratch import Temporary
from tests.descriptors import descriptors

# No process of the tests holds so many files open.
NO_FD = 1_000_000_000

Opener = Callable[[int, bytes, int], int]


@pytest.fixture
def dirfd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_tmpfile_has_no_name_until_linked(tmp_path: Path, dirfd: int) -> None:
    fd = files.open_tmpfile(dirfd)
    if fd is None:
        pytest.skip("no O_TMPFILE on this file system")
    os.write(fd, b"data")
    assert list(tmp_path.iterdir()) == []
    files.syncfs(fd)
    files.link_tmpfile(fd, dirfd, b"name")
    assert (tmp_path / "name").read_bytes() == b"data"
    other = files.open_tmpfile(dirfd)
    assert other is not None
    with pytest.raises(FileExistsError):
        files.link_tmpfile(other, dirfd, b"name")
    with pytest.raises(FileNotFoundError):
        files.link_tmpfile(other, dirfd, b"missing/name")
    os.close(other)
    os.close(fd)
    assert os.listdir(tmp_path) == ["name"]


def test_tmpfile_unsupported_and_failing(dirfd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError):
        files.open_tmpfile(NO_FD)

    def refuse(*_args: object, **_options: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "open", refuse)
    assert files.open_tmpfile(dirfd) is None


def test_tmpfile_is_linked_without_proc(tmp_path: Path, dirfd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second way to give a name; the privileged may always use it, others with kernel 6.10."""

    def no_proc(*_args: object, **_options: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "link", no_proc)
    fd = files.open_tmpfile(dirfd)
    if fd is None:
        pytest.skip("no O_TMPFILE on this file system")
    try:
        files.link_tmpfile(fd, dirfd, b"name")
    except FileNotFoundError:
        pytest.skip("this kernel lets only the privileged link by descriptor")
    finally:
        os.close(fd)
    assert (tmp_path / "name").exists()


def test_syncfs_reports_errors() -> None:
    with pytest.raises(OSError) as caught:
        files.syncfs(NO_FD)
    assert caught.value.errno == errno.EBADF


def test_reflink_between_file_systems_is_refused_quietly(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    with open("/proc/self/status", "rb") as source, (tmp_path / "target").open("r+b") as target:
        assert files.reflink(source.fileno(), target.fileno()) is False
    with pytest.raises(OSError), (tmp_path / "target").open("r+b") as target:
        files.reflink(NO_FD, target.fileno())


@pytest.fixture(params=["openat2", "stepwise"])
def opener(request: pytest.FixtureRequest) -> Opener:
    if request.param == "openat2":
        return files.open_beneath

    def stepwise(dirfd: int, path: bytes, flags: int) -> int:
        return files._open_stepwise(dirfd, path, flags, 0)

    return stepwise


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "file").write_bytes(b"inside")
    (tmp_path / "secret").write_bytes(b"outside")
    (root / "a" / "link").symlink_to("b")
    (root / "a" / "filelink").symlink_to("b/file")
    (root / "absolute").symlink_to("/etc")
    (root / "up").symlink_to("../secret")
    return root


def attempt(opener: Opener, root: Path, path: bytes, flags: int = os.O_RDONLY) -> bytes | int | None:
    dirfd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    before = descriptors()
    try:
        fd = opener(dirfd, path, flags)
    except OSError as error:
        assert descriptors() <= before
        return error.errno
    else:
        assert len(descriptors() - before) == 1
        assert not os.get_inheritable(fd)
        try:
            return None if os.path.isdir(f"/proc/self/fd/{fd}") else os.read(fd, 100)
        finally:
            os.close(fd)
    finally:
        os.close(dirfd)


def test_open_beneath(opener: Opener, tree: Path) -> None:
    assert attempt(opener, tree, b"a/b/file") == b"inside"
    assert attempt(opener, tree, b"a//b/file") == b"inside"
    assert attempt(opener, tree, b".") is None
    assert attempt(opener, tree, b"a/b/") is None
    assert attempt(opener, tree, b"a", os.O_RDONLY | os.O_DIRECTORY) is None
    assert attempt(opener, tree, b"a/missing") == errno.ENOENT
    assert attempt(opener, tree, b"") == errno.ENOENT
    assert attempt(opener, tree, b"a/b/file/x") == errno.ENOTDIR
    assert attempt(opener, tree, b"a/b/file/") == errno.ENOTDIR


@pytest.mark.parametrize("path", [b"a/link/file", b"a/link", b"a/filelink", b"absolute/passwd", b"absolute", b"up"])
def test_open_beneath_follows_no_link(opener: Opener, tree: Path, path: bytes) -> None:
    assert attempt(opener, tree, path) == errno.ELOOP
    assert attempt(opener, tree, path, os.O_RDONLY | os.O_DIRECTORY) in (errno.ELOOP, errno.ENOTDIR)


@pytest.mark.parametrize("path", [b"../secret", b"a/../../secret", b"/etc/passwd", b"/", b".."])
def test_open_beneath_stays_inside(tree: Path, path: bytes) -> None:
    assert attempt(files.open_beneath, tree, path) == errno.EXDEV


def test_open_beneath_refuses_nul(tree: Path) -> None:
    assert attempt(files.open_beneath, tree, b"a\0b") == errno.EINVAL


def test_open_below_takes_paths_of_any_length(tmp_path: Path) -> None:
    dirfd = top = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    name = b"n" * 200
    for _ in range(50):
        os.mkdir(name, dir_fd=dirfd)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=dirfd)
        if dirfd != top:
            os.close(dirfd)
        dirfd = below
    os.close(os.open(b"file", os.O_CREAT | os.O_WRONLY, dir_fd=dirfd))
    os.symlink(name, b"link", dir_fd=top)
    for fd in (dirfd, top):
        os.close(fd)
    path = b"/".join([name] * 50)
    assert attempt(files.open_below, tmp_path, path + b"/file") == b""
    assert attempt(files.open_below, tmp_path, path) is None
    assert attempt(files.open_below, tmp_path, b"") is None
    assert attempt(files.open_below, tmp_path, path + b"/missing") == errno.ENOENT
    assert attempt(files.open_below, tmp_path, b"link/" + path + b"/file") == errno.ELOOP
    assert attempt(files.open_below, tmp_path, path + b"/../file") == errno.EXDEV
    assert attempt(files.open_below, tmp_path, b"n" * 5000) == errno.ENAMETOOLONG


def test_write_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:3]))
    with (tmp_path / "file").open("wb") as file:
        for data in (b"", b"1", b"2345678", memoryview(bytearray(b"90ab"))):
            files.write_all(file.fileno(), data)
    assert (tmp_path / "file").read_bytes() == b"1234567890ab"


def test_open_beneath_creates(tree: Path) -> None:
    dirfd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    for path, opener in [(b"a/new", files.open_beneath), (b"a/newer", files._open_stepwise)]:
        os.close(opener(dirfd, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640))
        assert os.stat(path, dir_fd=dirfd).st_mode & 0o777 == 0o640 & ~_umask()
    os.close(dirfd)


def _umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def test_open_beneath_without_openat2(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel or seccomp filter without openat2 is a call with a number that does not exist."""
    monkeypatch.setattr(files, "_SYS_OPENAT2", 100_000)
    assert attempt(files.open_beneath, tree, b"a/b/file") == b"inside"
    assert attempt(files.open_beneath, tree, b"a/link/file") == errno.ELOOP
    assert attempt(files.open_beneath, tree, b"../secret") == errno.EXDEV


def test_open_beneath_asks_again_after_a_race(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = libc.calls()
    answers = [errno.EAGAIN, errno.EINTR]

    class Racing:
        get_errno = staticmethod(ctypes.get_errno)

        def openat2(self, *args: object) -> int:
            if answers:
                ctypes.set_errno(answers.pop())
                return -1
            return int(real.openat2(*args))

    monkeypatch.setattr(files, "calls", Racing)
    assert attempt(files.open_beneath, tree, b"a/b/file") == b"inside"
    assert answers == []


@pytest.mark.parametrize("way", ["renameat2", "refused", "missing"])
def test_rename_without_replacing(tmp_path: Path, dirfd: int, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_args: object) -> int:
        ctypes.set_errno(errno.EINVAL)
        return -1

    if way != "renameat2":
        monkeypatch.setattr(libc.calls(), "renameat2", refused if way == "refused" else None)
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    (tmp_path / "d").mkdir()
    with pytest.raises(FileExistsError):
        files.rename_noreplace(dirfd, b"a", dirfd, b"b")
    with pytest.raises(FileNotFoundError):
        files.rename_noreplace(dirfd, b"missing", dirfd, b"c")
    files.rename_noreplace(dirfd, b"a", dirfd, b"d/c")
    assert (tmp_path / "d" / "c").read_bytes() == b"a"
    assert (tmp_path / "d" / "c").stat().st_nlink == 1
    assert (tmp_path / "b").read_bytes() == b"b"
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("way", ["renameat2", "missing"])
def test_rename_a_directory_without_replacing(
    tmp_path: Path, dirfd: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "missing":
        monkeypatch.setattr(libc.calls(), "renameat2", None)
    (tmp_path / "a" / "sub").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "file").touch()
    for taken in (b"empty", b"link", b"file"):
        with pytest.raises(FileExistsError):
            files.rename_noreplace(dirfd, b"a", dirfd, taken)
    files.rename_noreplace(dirfd, b"a", dirfd, b"b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "empty", "file", "link"]
    assert (tmp_path / "b" / "sub").is_dir()


def test_a_file_that_cannot_be_linked_is_not_renamed(
    tmp_path: Path, dirfd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(libc.calls(), "renameat2", None)
    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a").touch()
    with pytest.raises(PermissionError):
        files.rename_noreplace(dirfd, b"a", dirfd, b"b")
    assert (tmp_path / "a").exists()


def test_raise_fd_limit() -> None:
    """In a process of its own, since limits are the process's."""
    code = (
        "import resource; from cfstools.linux import files;"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1];"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard));"
        "assert files.fd_limit() == 64;"
        "assert files.raise_fd_limit() == files.fd_limit() == hard;"
        "assert files.raise_fd_limit() == hard"
    )
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] == resource.RLIM_INFINITY:
        pytest.skip("no hard limit to compare with")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unlimited_fds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert files.fd_limit() == 1 << 20


def test_a_close_that_fails_is_a_close(monkeypatch: pytest.MonkeyPatch) -> None:
    closing = os.close

    def fail(fd: int) -> None:
        closing(fd)
        raise OSError(errno.EIO, "Input/output error")

    fd = os.open("/", os.O_RDONLY)
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", fail)
        files.close(fd)
        kept = Temporary(os.open("/", os.O_RDONLY), None)
        with pytest.raises(OSError, match="Input/output error"):
            kept.close()
        # The number may be another file's by now.
        assert kept.fd == -1
        kept.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_stores_through_a_map_are_seen_after_pages_were_written_back(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(10_000))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:

        def store_changes_ctime(value: int) -> bool:
            before = path.stat().st_ctime_ns
            time.sleep(0.05)
            mapped[0] = mapped[5000] = value
            return path.stat().st_ctime_ns != before

        # Somebody's sync may write the pages back at any time.
        assert any(not store_changes_ctime(value) for value in range(1, 20))
        with path.open("rb") as reader:
            files.write_back(reader.fileno())
        assert store_changes_ctime(20)


def test_writing_back_what_has_no_pages(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with pytest.raises(OSError, match="Illegal seek"):
        files.write_back(reading)
    os.close(reading)
    os.close(writing)
