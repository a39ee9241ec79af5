"""What of the attributes of a tree is put on disk, and what cannot be."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from cfstools.errors import InputError
from cfstools.linux import pinned
from cfstools.tree import Device, Directory, Entry, Fifo, HardLink, RegularFile, Socket, Symlink
from cfstools.tree.xattrs import XattrPolicy
from tests.api.extracting import GID, NOBODY, UID, Stop, as_nobody, directory, file, left_out, put, stop_after


def everything() -> Directory:
    """Inodes that only root can make as they are."""
    other = {"uid": 1234, "gid": 4321, "mtime_sec": 5}
    special = file(b"suid", mode=0o6755, xattrs={b"user.a": b"1", b"trusted.t": b"2", b"security.s": b"3"})
    foreign = RegularFile(mode=0o106711, size=1, content=b"f", **other)  # type: ignore[arg-type]
    null = Device(mode=stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3), **other)  # type: ignore[arg-type]
    return directory(
        {
            b"block": Device(mode=stat.S_IFBLK | 0o660, rdev=os.makedev(7, 300), **other),  # type: ignore[arg-type]
            b"dir": Directory(mode=0o043755, uid=1234, gid=GID, mtime_sec=5, xattrs={b"trusted.d": b"4"}),
            b"fifo": Fifo(mode=stat.S_IFIFO | 0o600, uid=UID, gid=GID, mtime_sec=5),
            b"foreign": foreign,
            b"link": Symlink(mode=0o120777, target=b"x", xattrs={b"trusted.l": b"5"}, **other),
            b"null": null,
            b"null again": HardLink(null),
            b"socket": Socket(mode=stat.S_IFSOCK | 0o755, uid=UID, gid=GID, mtime_sec=5),
            b"special": special,
            b"whiteout": Device(mode=stat.S_IFCHR | 0o600, rdev=0, uid=UID, gid=GID, mtime_sec=5),
        }
    )


def test_what_an_ordinary_user_holds(open_tmp: Path) -> None:
    if UID:
        pytest.skip("gives up the rights of root")
    place = open_tmp / "place"
    place.mkdir()
    root = everything()
    for inode in (root, *root.entries.values()):
        if not isinstance(inode, HardLink) and inode.uid == UID:
            inode.uid, inode.gid = NOBODY, NOBODY
    with as_nobody(place):
        report = put(root, place / "out")
    assert left_out(report) == {
        "device nodes": (3, "/block"),
        "owners": (3, "/foreign"),
        "setuid and setgid bits": (2, "/foreign"),
        "extended attributes trusted.*": (3, "/link"),
        "extended attributes security.*": (1, "/special"),
    }
    modes = {path.name: stat.filemode(path.lstat().st_mode) for path in (place / "out").iterdir()}
    assert modes == {
        "dir": "drwxr-xr-t",
        "fifo": "prw-------",
        "foreign": "-rwx--x--x",
        "link": "lrwxrwxrwx",
        "socket": "srwxr-xr-x",
        "special": "-rwsr-sr-x",
        "whiteout": "c" + "rw-------",
    }
    for path in (place / "out").iterdir():
        status = path.lstat()
        assert (status.st_uid, status.st_gid, status.st_mtime_ns // 10**9) == (NOBODY, NOBODY, 5), path
    assert os.listxattr(place / "out/special") == ["user.a"]


def test_closed_directories_of_an_ordinary_user(open_tmp: Path) -> None:
    if UID:
        pytest.skip("gives up the rights of root")
    place = open_tmp / "place"
    place.mkdir()
    closed = directory({b"b": directory({b"f": file(mode=0o000)}, mode=0o000), b"c": directory(mode=0o555)}, mode=0o000)
    with as_nobody(place):
        put(directory({b"a": closed}, mode=0o500), place / "out", threads=2)
        with pytest.raises(Stop):
            put(directory({b"a": closed, b"z": file()}), place / "no", progress=stop_after(2, Stop()))
        with pytest.raises(InputError):
            put(directory(), open_tmp / "not mine")
    assert stat.S_IMODE((place / "out/a/b").stat().st_mode) == 0
    assert os.listdir(place) == ["out"]


@pytest.mark.root
def test_whiteouts_where_users_may_not_make_them(open_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    place = open_tmp / "place"
    place.mkdir()
    whiteout = Device(mode=stat.S_IFCHR, rdev=0)
    root = directory({b"a": directory(), b"w": whiteout, b"w2": HardLink(whiteout)})
    monkeypatch.setattr(os, "mknod", refuse)
    with as_nobody(place):
        assert left_out(put(root, place / "out"))["device nodes"] == (2, "/w")
    with pytest.raises(InputError, match="no/w: cannot make a device node: Operation not permitted") as caught:
        put(root, place / "no", shared=True)
    assert caught.value.hint == "devices=False leaves them out"
    report = put(root, place / "without", devices=False, shared=True)
    assert (report.left_out, report.special_files, report.hard_links) == ((), 0, 0)


@pytest.mark.root
def test_root_without_owners(out: Path) -> None:
    report = put(everything(), out, owners=False)
    assert left_out(report) == {"setuid and setgid bits": (3, "/foreign")}
    assert {path.lstat().st_uid for path in out.iterdir()} == {0}
    assert stat.S_IMODE((out / "special").stat().st_mode) == 0o755
    assert stat.S_IMODE((out / "foreign").stat().st_mode) == 0o711


@pytest.mark.root
@pytest.mark.parametrize("inode", [file(), Symlink(mode=0o120777, target=b"x")])
def test_owners_that_nobody_has_in_a_user_namespace(
    out: Path, monkeypatch: pytest.MonkeyPatch, inode: RegularFile | Symlink
) -> None:
    inode.uid, inode.gid = 65534, 12

    def refuse(*_arguments: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "chown", refuse)
    monkeypatch.setattr(pinned, "chown", refuse)
    with pytest.raises(InputError, match="out/f: cannot give it to user 65534 and group 12: Invalid") as caught:
        put(directory({b"f": inode}), out)
    assert caught.value.hint == "owners=False leaves owners out"
    assert not out.exists()
    put(directory({b"f": inode}), out, owners=False)


@pytest.mark.root
def test_the_group_of_a_setgid_directory(out: Path) -> None:
    os.chown(out.parent, 0, 1234)
    out.parent.chmod(0o2755)
    put(directory({b"d": directory({b"f": file()})}), out)
    for path in (out, out / "d", out / "d/f"):
        assert path.stat().st_gid == 0
    assert stat.S_IMODE((out / "d").stat().st_mode) == 0o755


@pytest.mark.root
def test_owners_the_kernel_has_no_name_for(out: Path) -> None:
    odd = file(mode=0o4755)
    odd.uid = 2**32 - 1
    report = put(directory({b"f": odd}), out)
    assert left_out(report) == {"owners": (1, "/f"), "setuid and setgid bits": (1, "/f")}
    assert stat.S_IMODE((out / "f").stat().st_mode) == 0o755


@pytest.mark.root
@pytest.mark.parametrize(("policy", "kept"), [("all", 3), ("user", 1), ("none", 0)])
def test_xattr_policies(out: Path, policy: str, kept: int) -> None:
    report = put(everything(), out, xattrs=XattrPolicy(policy))
    assert len(os.listxattr(out / "special")) == kept
    assert report.left_out == ()


@pytest.mark.parametrize("key", [b"unknown.a", b"user.a"])
def test_attributes_no_file_system_has(open_tmp: Path, key: bytes) -> None:
    if UID:
        pytest.skip("compares root with others")
    place = open_tmp / "place"
    place.mkdir()
    odd: Entry = Symlink(mode=0o120777, uid=NOBODY, gid=NOBODY, target=b"x", xattrs={key: b"1"})
    name = key.decode()
    with pytest.raises(InputError, match=f"out/odd: cannot set extended attribute {name}: Operation not ") as caught:
        put(directory({b"odd": odd}), place / "out")
    assert caught.value.hint is not None
    bad = directory()
    bad.xattrs = {b"unknown.a": b""}
    with pytest.raises(InputError, match="out/d: cannot set extended attribute"):
        put(directory({b"d": bad}), place / "out")
    with as_nobody(place):
        report = put(directory({b"odd": odd}), place / "out")
    assert left_out(report)[f"extended attributes {name.partition('.')[0]}.*"] == (1, "/odd")


@pytest.mark.parametrize("seconds", [-(2**63), -(2**31) - 1, -1, 0, 2**31, 2**40, 2**63 - 1])
def test_times_at_the_ends(out: Path, seconds: int) -> None:
    """What the file system cannot hold is cut by the kernel and listed; what it can is exact."""
    entries: dict[bytes, Entry] = {
        b"f": file(mtime=seconds),
        b"l": Symlink(mode=0o120777, uid=UID, gid=GID, target=b"x", mtime_sec=seconds),
        b"d": directory(mtime=seconds),
    }
    report = put(directory(entries), out)
    exact = {
        "f": seconds * 10**9 + 7,
        "l": seconds * 10**9,
        "d": seconds * 10**9,
    }
    wrong = [name for name, wanted in exact.items() if (out / name).lstat().st_mtime_ns != wanted]
    assert len(wrong) in (0, 3)
    assert left_out(report) == ({"modification times": (3, "/f")} if wrong else {})
    assert not wrong or not -(2**31) <= seconds < 2**31


def test_nanoseconds_that_are_too_many(out: Path) -> None:
    odd = file()
    odd.mtime_nsec = 2**32 - 1
    report = put(directory({b"f": odd}), out)
    assert left_out(report) == {"modification times": (1, "/f")}
    assert (out / "f").stat().st_mtime_ns == 5_999_999_999
