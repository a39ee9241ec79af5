"""What is asked of the kernel where inode numbers do not tell."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from cfstools.linux import numbers
from cfstools.linux.numbers import Numbers, file_handle, look, numbers_of
from tests import fuse
from tests.fuse import Node


def test_a_look_is_that_of_stat(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        for name in (b"", b"link", b"fifo"):
            now = look(fd, name)
            status = os.stat(name, dir_fd=fd, follow_symlinks=False) if name else os.fstat(fd)
            assert now._replace(mount=None) == numbers._from_stat(status)
            assert now.mount is not None
        with pytest.raises(FileNotFoundError):
            look(fd, b"missing")
    finally:
        os.close(fd)


def test_a_look_without_statx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "_statx", None)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert look(fd).inode == tmp_path.stat().st_ino
        assert look(fd).mount is None
        with pytest.raises(FileNotFoundError):
            look(fd, b"missing")
    finally:
        os.close(fd)


def test_numbers_of_true_file_systems_have_no_handles(tmp_path: Path) -> None:
    """They need none."""
    fd = os.open(tmp_path, os.O_PATH)
    try:
        if numbers_of(fd) is Numbers.TRUE:
            assert file_handle(fd) is None
    finally:
        os.close(fd)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[list[int]]:
    """Three names on a file system in user space, the first two of which are one inode of the kernel's."""
    nodes = [Node(name, stat.S_IFREG | 0o644, 7, same_as=same) for name, same in [("a", None), ("b", "a"), ("c", None)]]
    with fuse.mounted(tmp_path, nodes) as mounted:
        fds = [os.open(mounted.path / node.path, os.O_PATH) for node in nodes]
        yield fds
        for fd in fds:
            os.close(fd)


@pytest.mark.root
def test_handles(opened: list[int]) -> None:
    first, second, third = map(file_handle, opened)
    assert first is not None
    assert first == second != third
    assert numbers_of(opened[0]) is Numbers.INVENTED


@pytest.mark.root
def test_handles_that_cannot_be_had(opened: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    failure = errno.EOPNOTSUPP
    flags = []

    def fail(_fd: int, _name: bytes, _handle: object, _mount: object, flag: int) -> int:
        flags.append(flag)
        ctypes.set_errno(failure)
        return -1

    monkeypatch.setattr(numbers, "_name_to_handle_at", fail)
    assert file_handle(opened[0]) is None
    assert len(flags) == 1
    failure = errno.EINVAL
    assert file_handle(opened[0]) is None
    assert flags[1:] == [0x1200, 0x1000]  # a kernel that does not know the first flag is asked without it
    failure = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        file_handle(opened[0])
    monkeypatch.setattr(numbers, "_name_to_handle_at", None)
    assert file_handle(opened[0]) is None


@pytest.mark.parametrize(
    ("magic", "worth"),
    [
        (0xEF53, Numbers.TRUE),
        (0x01021994, Numbers.TRUE),
        (0x9123683E, Numbers.TRUE),
        (0x794C7630, Numbers.COUNTED),
        (0x6969, Numbers.INVENTED),
        (0x65735546, Numbers.INVENTED),
        (0x01021997, Numbers.INVENTED),
        (0xFF534D42, Numbers.INVENTED),
        (0, Numbers.INVENTED),
    ],
)
def test_what_numbers_are_worth(monkeypatch: pytest.MonkeyPatch, magic: int, worth: Numbers) -> None:
    monkeypatch.setattr(numbers, "filesystem_type", lambda _fd: magic)
    assert numbers_of(0) is worth
