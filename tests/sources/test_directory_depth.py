"""Deep directories, long paths and few descriptors."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from cfstools.errors import Exhausted, InputError, LimitExceeded, SourceChanged
from cfstools.linux.files import MAX_PATH
from cfstools.sources.directory import MAX_OPEN, open_directory
from cfstools.tree import RegularFile
from tests.sources.trees import (
    AtNames,
    change,
    deep,
    get,
    paths,
    read,
    walk,
)


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
        with pytest.raises(Exhausted, match="directory: Too many open files") as caught:
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
