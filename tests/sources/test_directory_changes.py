"""A directory that changes while it is read."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cfstools import native
from cfstools.errors import CfsError, InputError, SourceChanged
from cfstools.native import _pure
from cfstools.native._names import Maker
from cfstools.sources.directory import open_directory
from cfstools.sources.inodes import NameStatus
from cfstools.store.write import ingest
from cfstools.tree import RegularFile, Unread
from tests.sources.trees import (
    change,
    get,
    later,
    paths,
    read,
    walk,
)


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
    short = "ends after 1 byte, though its file system says that it has 5242880 bytes"
    told = "cannot read: Input/output error" if number else short
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
