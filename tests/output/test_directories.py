"""Directories that appear complete or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from cfstools.errors import CfsError, InputError
from cfstools.linux import libc
from cfstools.output.directories import output_directory
from cfstools.output.removal import empty_directory
from tests.compat.disk import ACL
from tests.faults.described import attributes


def make(
    path: Path | bytes, *, sync: bool = False, shared: bool = False, before_end: Callable[[], object] = lambda: None
) -> None:
    with output_directory(os.fsencode(path), sync=sync, shared=shared) as fd:
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o700
        os.mkdir("sub", dir_fd=fd)
        before_end()
        os.chmod(fd, 0o750)


@pytest.mark.parametrize("sync", [False, True])
def test_a_new_directory(tmp_path: Path, sync: bool) -> None:
    target = tmp_path / "out"
    make(target, sync=sync, before_end=lambda: target.exists() and pytest.fail("it is there too early"))
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(target) == ["sub"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o750


def test_relative_paths_and_slashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(b"one")
    make(b"two///")
    make(b"n" * 255)
    assert sorted(os.listdir(".")) == ["n" * 255, "one", "two"]
    os.mkdir("here")
    monkeypatch.chdir("here")
    make(b".")
    assert os.listdir(tmp_path / "here") == ["sub"]


@pytest.mark.parametrize("sync", [False, True])
def test_an_empty_directory_is_filled_where_it_is(tmp_path: Path, sync: bool) -> None:
    target = tmp_path / "out"
    target.mkdir()
    inode = target.stat().st_ino
    make(target, sync=sync)
    assert (target.stat().st_ino, os.listdir(target)) == (inode, ["sub"])


class Stop(BaseException):
    pass


def stop() -> None:
    raise Stop


@pytest.mark.parametrize("existing", [False, True])
def test_nothing_is_left_after_an_error(tmp_path: Path, existing: bool) -> None:
    target = tmp_path / "out"
    if existing:
        target.mkdir(mode=0o711)
    with pytest.raises(Stop):
        make(target, before_end=stop)
    assert os.listdir(tmp_path) == (["out"] if existing else [])
    if existing:
        assert os.listdir(target) == []
        assert stat.S_IMODE(target.stat().st_mode) == 0o711


def test_inherited_acls(tmp_path: Path) -> None:
    parent, target = tmp_path / "parent", tmp_path / "parent" / "out"
    parent.mkdir()
    os.setxattr(parent, "system.posix_acl_default", ACL)
    make(target)
    assert os.listxattr(target) == []
    target = tmp_path / "existing"
    target.mkdir()
    os.setxattr(target, "system.posix_acl_default", ACL)
    with pytest.raises(Stop):
        make(target, shared=True, before_end=stop)
    assert os.getxattr(target, "system.posix_acl_default") == ACL
    make(target, shared=True)
    assert os.listxattr(target) == []


@pytest.mark.root
def test_an_existing_directory_is_given_back_as_it_was(tmp_path: Path) -> None:
    """Whatever the block has done to it already."""
    target = tmp_path / "out"
    target.mkdir()
    os.chown(target, 1234, 1235)
    target.chmod(0o2711)
    os.setxattr(target, "user.kept", b"before")
    os.setxattr(target, "system.posix_acl_access", ACL)
    before = attributes(target)

    def change() -> None:
        os.chown(target, 4321, 4321)
        os.setxattr(target, "user.kept", b"after")
        os.setxattr(target, "user.new", b"after")
        raise Stop

    with pytest.raises(Stop):
        make(target, shared=True, before_end=change)
    assert attributes(target) == before


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("call", ["getxattr", "removexattr"])
def test_acls_that_cannot_be_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool, call: str
) -> None:
    """What is made in the directory would inherit them."""
    os.setxattr(tmp_path, "system.posix_acl_default", ACL)
    target = tmp_path / "out"
    if existing:
        target.mkdir()
    before = [attributes(path) for path in tmp_path.iterdir()]

    def fail(*_args: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises(InputError, match="out: cannot make the directory: Input"):
            make(target, shared=True)
    assert [attributes(path) for path in tmp_path.iterdir()] == before


def test_somebody_cleans_up_before_the_directory_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.mkdir
    todo = [True]

    def mkdir(path: bytes, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        real(path, mode, dir_fd=dir_fd)
        if todo:
            todo.clear()
            os.rmdir(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", mkdir)
    make(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]
    assert not todo


def test_where_nothing_can_be_renamed_without_replacing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libc.calls(), "renameat2", None)
    make(tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["sub"]
    with pytest.raises(InputError, match="File exists"):
        make(tmp_path / "file", before_end=(tmp_path / "file").touch)
    assert sorted(os.listdir(tmp_path)) == ["file", "out"]


@pytest.mark.parametrize("kind", ["file", "full", "dangling", "parent", "zero"])
def test_what_is_refused(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    why = "out: cannot make"
    match kind:
        case "file":
            target.write_bytes(b"precious")
        case "full":
            target.mkdir()
            (target / "precious").touch()
            why = "out: is not empty"
        case "dangling":
            target.symlink_to("missing")
        case "parent":
            target = tmp_path / "missing" / "out"
        case _:
            target = Path(f"{target}\0")
            why = "zero byte"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=why):
        make(os.fsencode(target))
    assert sorted(tmp_path.rglob("*")) == before


def test_something_else_gets_the_name_meanwhile(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(InputError, match="out: cannot make the directory: File exists"):
        make(target, before_end=lambda: target.write_bytes(b"precious"))
    assert target.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["out"]


def test_errors_of_the_block_keep_their_subject(tmp_path: Path) -> None:
    with pytest.raises(CfsError) as caught, output_directory(bytes(tmp_path / "out")):
        raise CfsError("mine")
    assert str(caught.value) == "mine"


def test_emptying(tmp_path: Path) -> None:
    """Deeper than recursion and descriptors go, wide, closed, and with links that must not be followed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    top = tmp_path / "top"
    top.mkdir()
    fd = here = os.open(top, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        os.symlink(outside, "link", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        if here != fd:
            os.chmod(here, 0o100)
            os.close(here)
        here = below
    os.close(here)
    for number in range(50):
        (top / f"w{number}" / "x").mkdir(parents=True)
        (top / f"w{number}").chmod(0)
    top.chmod(0)
    empty_directory(fd)
    os.close(fd)
    assert os.listdir(top) == []
    assert os.listdir(outside) == ["file"]


def test_emptying_goes_on_past_what_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    real = os.rmdir

    def rmdir(path: bytes, *, dir_fd: int) -> None:
        if path == b"two":
            raise PermissionError(1, "Operation not permitted")
        real(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", rmdir)
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(PermissionError):
        empty_directory(fd)
    os.close(fd)
    assert os.listdir(tmp_path) == ["two"]
