"""Extended attributes of a directory's files."""

from __future__ import annotations

import errno
import os
import stat
import struct
from pathlib import Path
from typing import Any

import pytest

from cfstools.errors import CfsError, InputError, SourceChanged, TreeError, Unsupported
from cfstools.tree import Directory
from cfstools.tree.walk import iter_inodes
from cfstools.tree.xattrs import XattrPolicy
from tests import fuse
from tests.fuse import Node
from tests.sources.trees import (
    get,
    needs_root,
    paths,
    set_xattr,
    walk,
)


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


@pytest.mark.root
@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EPERM, errno.ENODATA, errno.EOPNOTSUPP, errno.E2BIG])
@pytest.mark.parametrize("mode", [stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777, stat.S_IFIFO])
def test_an_attribute_that_is_listed_but_cannot_be_read(tmp_path: Path, mode: int, number: int) -> None:
    """It is named, with how to do without it: whatever the reason, nothing is left out in silence."""
    xattrs: dict[str, bytes | int] = {"trusted.a": b"1", "trusted.\nodd": number, "trusted.z": b"2"}
    with fuse.mounted(tmp_path, [Node("name", mode, 2, content=b"x", xattrs=xattrs)]) as mounted:
        with pytest.raises(InputError) as caught:
            walk(mounted.path)
        assert not isinstance(caught.value, SourceChanged)
        assert caught.value.subject == f"{mounted.path}/name"
        assert caught.value.what == rf"cannot read extended attribute trusted.\nodd: {os.strerror(number)}"
        assert caught.value.hint is not None
        assert "XattrPolicy.NONE" in caught.value.hint
        assert "XattrPolicy.USER" in caught.value.hint
        for policy in (XattrPolicy.NONE, XattrPolicy.USER):
            assert paths(walk(mounted.path, xattrs=policy)) == [b"/", b"/name"]


@pytest.mark.root
@pytest.mark.usefixtures("each_implementation")
def test_an_attribute_of_a_user_that_no_kernel_reads(tmp_path: Path) -> None:
    """Some file systems list user.* for symbolic links and devices, where the kernel knows of none."""
    nodes = [Node("link", stat.S_IFLNK | 0o777, 2, content=b"x", xattrs={"user.x": b"1"})]
    with fuse.mounted(tmp_path, nodes) as mounted, pytest.raises(InputError) as caught:
        walk(mounted.path)
    assert caught.value.what == "cannot read extended attribute user.x: No data available"
    assert caught.value.hint == "XattrPolicy.NONE leaves all extended attributes out"


@pytest.mark.usefixtures("pure")
def test_attributes_of_something_that_goes(src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (src / "file").touch()
    set_xattr(src / "file", "user.x", b"1")

    def gone(*_: object, **__: object) -> bytes:
        (src / "file").unlink(missing_ok=True)
        raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))

    monkeypatch.setattr(os, "getxattr", gone)
    with pytest.raises(SourceChanged, match="file: vanished or was replaced while"):
        walk(src)
