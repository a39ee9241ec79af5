"""Trees as files in memory: what is made, what is left out, and that nothing an image says gets out of its place."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cfstools.errors import ImageError, InputError, Interrupted
from cfstools.linux import namespaces
from cfstools.linux.namespaces import IdMap
from cfstools.mount.rootless import materialise as module
from cfstools.mount.rootless.materialise import materialise
from cfstools.mount.rootless.survey import survey
from cfstools.mount.rootless.tree import memory_for
from cfstools.report import LeftOut
from cfstools.tree import (
    Device,
    Directory,
    Entry,
    External,
    Fifo,
    HardLink,
    Leaf,
    RegularFile,
    Socket,
    Symlink,
    Xattrs,
)
from cfstools.verity import object_path
from tests.inside import inside

DIGEST = bytes(range(32))
TIME = 1_600_000_000


def directory(entries: dict[bytes, Entry] | None = None, *, mode: int = 0o755, **common: Any) -> Directory:
    return Directory(mode=stat.S_IFDIR | mode, entries=entries or {}, **common)


def file(content: bytes | External = b"", *, size: int | None = None, mode: int = 0o644, **common: Any) -> RegularFile:
    length = size if size is not None else len(content) if isinstance(content, bytes) else 0
    return RegularFile(mode=stat.S_IFREG | mode, size=length, content=content, **common)


def device(rdev: int, *, kind: int = stat.S_IFCHR, **common: Any) -> Device:
    return Device(mode=kind | 0o600, rdev=rdev, **common)


def made(root: Directory, look: Callable[[], Any], ids: IdMap | None = None) -> tuple[Any, dict[str, int]]:
    """What *look* returns with the tree as working directory, and what was left out."""

    def work() -> tuple[Any, tuple[LeftOut, ...]]:
        found = survey(root)
        place = memory_for(found)
        left_out = materialise(root, place, linked=found.linked)
        os.fchdir(place)
        return look(), left_out

    seen, left_out = inside(work, ids)
    return seen, {one.what: one.count for one in left_out}


def attributes(name: bytes) -> dict[str, bytes]:
    keys = os.listxattr(name, follow_symlinks=False)
    return {key: os.getxattr(name, key, follow_symlinks=False) for key in keys}


def test_contents_are_references() -> None:
    root = directory(
        {
            b"with digest": file(External(DIGEST, object_path(DIGEST)), size=123),
            b"digest only": file(External(DIGEST, None), size=5),
            b"path only": file(External(None, b"some/place"), size=1 << 40),
            b"inline": file(b"contents"),
            b"empty": file(),
        }
    )
    seen, left_out = made(
        root,
        lambda: {name: (os.stat(name).st_size, os.stat(name).st_blocks, attributes(name)) for name in root.entries},
    )
    path = b"/" + object_path(DIGEST)
    metacopy = b"\0\x24\0\x01" + DIGEST
    assert seen == {
        b"with digest": (123, 0, {"user.overlay.metacopy": metacopy, "user.overlay.redirect": path}),
        b"digest only": (5, 0, {"user.overlay.metacopy": metacopy, "user.overlay.redirect": path}),
        b"path only": (1 << 40, 0, {"user.overlay.metacopy": b"", "user.overlay.redirect": b"/some/place"}),
        b"inline": (8, 8, {}),
        b"empty": (0, 0, {}),
    }
    assert left_out == {}


def test_the_longest_file_and_the_longest_digest() -> None:
    digest = bytes(64)
    root = directory({b"long": file(External(digest, object_path(digest)), size=(1 << 63) - 1)})
    (size, found), _ = made(root, lambda: (os.stat(b"long").st_size, attributes(b"long")))
    assert size == (1 << 63) - 1
    assert found["user.overlay.metacopy"] == b"\0\x44\0\x02" + digest


def test_types_modes_times_and_links() -> None:
    linked: list[Leaf] = [
        file(b"one", mode=0o6751, mtime_sec=TIME, mtime_nsec=7),
        Symlink(mode=stat.S_IFLNK | 0o777, target=b"../" * 1000 + b"x", mtime_sec=-TIME, mtime_nsec=999_999_999),
        Fifo(mode=stat.S_IFIFO | 0o2620, mtime_sec=1),
        Socket(mode=stat.S_IFSOCK | 0o1755, mtime_sec=2),
    ]
    names: dict[bytes, Entry] = {b"a%d" % number: HardLink(leaf) for number, leaf in enumerate(linked)}
    primary: dict[bytes, Entry] = {b"b%d" % number: leaf for number, leaf in enumerate(linked)}
    root = directory(
        {**names, b"sub": directory(primary, mode=0o1, mtime_sec=3), b".links-0": file(b"a name of ours")},
        mode=0o3711,
        mtime_sec=4,
    )

    def look() -> Any:
        both = [(b"a%d" % number, b"sub/b%d" % number) for number in range(len(linked))]
        return [
            [
                (status.st_mode, status.st_mtime_ns, status.st_nlink, os.path.samestat(status, os.lstat(other)))
                for status in [os.lstat(name)]
            ]
            for name, other in both
        ], sorted(os.listdir(b".")), os.readlink(b"a1"), [os.stat(name).st_mode for name in (b".", b"sub")], [
            os.stat(name).st_mtime for name in (b".", b"sub")
        ]  # fmt: skip

    (leaves, names_there, target, modes, times), left_out = made(root, look)
    assert left_out == {}
    assert leaves == [[(inode.mode, inode.mtime_sec * 10**9 + inode.mtime_nsec, 2, True)] for inode in linked]
    assert names_there == [b".links-0", b"a0", b"a1", b"a2", b"a3", b"sub"]
    assert target == b"../" * 1000 + b"x"
    assert modes == [stat.S_IFDIR | 0o3711, stat.S_IFDIR | 0o1]
    assert times == [4, 3]


def test_attributes_that_overlayfs_acts_on_are_escaped() -> None:
    xattrs: Xattrs = {
        b"user.overlay.opaque": b"y",
        b"user.overlay.overlay.redirect": b"/etc",
        b"user.overlays": b"",
        b"user.plain": b"\0",
    }
    root = directory({b"sub": directory(xattrs=xattrs), b"file": file(xattrs=xattrs)}, xattrs=xattrs)
    seen, left_out = made(root, lambda: [attributes(name) for name in (b".", b"sub", b"file")])
    assert (
        seen
        == [
            {
                "user.overlay.overlay.opaque": b"y",
                "user.overlay.overlay.overlay.redirect": b"/etc",
                "user.overlays": b"",
                "user.plain": b"\0",
            }
        ]
        * 3
    )
    assert left_out == {}


def test_whiteouts_of_a_tree_are_marked_files() -> None:
    root = directory({b"sub": directory({b"gone": device(0), b"other": HardLink(device(0))})})
    link = root.entries[b"sub"].entries[b"other"].inode  # type: ignore[union-attr]
    root.entries[b"primary"] = link
    seen, left_out = made(
        root, lambda: [(os.stat(name).st_mode, attributes(name)) for name in (b"sub", b"sub/gone", b"sub/other", b".")]
    )
    mark = {"user.overlay.overlay.whiteout": b""}
    parent = {"user.overlay.overlay.whiteouts": b""}
    regular = stat.S_IFREG | 0o600
    assert seen == [
        (stat.S_IFDIR | 0o755, parent),
        (regular, mark),
        (regular, mark),
        (stat.S_IFDIR | 0o755, parent),
    ]
    assert left_out == {}


def test_what_is_left_out_is_counted_with_its_first_name() -> None:
    null = device(os.makedev(1, 3))
    lost: dict[bytes, Entry] = {
        b"1 device": null,
        b"2 same device": HardLink(null),
        b"3 block": device(os.makedev(7, 0), kind=stat.S_IFBLK),
        b"4 owner": file(uid=1000, gid=1000),
        b"5 no owner": file(uid=0xFFFFFFFF, gid=0xFFFFFFFF),
        b"6 trusted": file(xattrs={b"trusted.a": b"", b"trusted.b": b"x"}),
        b"7 acl": file(xattrs={b"system.posix_acl_access": b"nonsense"}),
        b"8 symlink": Symlink(mode=stat.S_IFLNK | 0o777, target=b"t", xattrs={b"user.a": b""}),
        b"9 odd": file(xattrs={b"none": b"", b"user." + b"n" * 255: b"", b"user.\0": b"", b"security.evm": b""}),
        b"times": file(mtime_nsec=1_000_000_000),
    }
    root = directory({b"sub": directory(lost)})

    def work() -> Any:
        found = survey(root)
        place = memory_for(found)
        return materialise(root, place, linked=found.linked), os.listdir(b"/proc/self/fd/%d/sub" % place)

    left_out, names = inside(work)
    assert sorted(names) == sorted(name for name in lost if b"device" not in name and b"block" not in name)
    found = {one.what: (one.count, one.first) for one in left_out}
    assert found.pop("security attributes", None) in (None, (1, "/sub/9\\x20odd"))  # evm: the kernel may have it
    assert found == {
        "devices": (2, "/sub/1\\x20device"),
        "owners": (2, "/sub/4\\x20owner"),
        "trusted attributes": (2, "/sub/6\\x20trusted"),
        "access control lists": (1, "/sub/7\\x20acl"),
        "user attributes": (3, "/sub/8\\x20symlink"),
        "none attributes": (1, "/sub/9\\x20odd"),
        "modification times": (1, "/sub/times"),
    }


def test_a_lost_owner_takes_set_id_bits_only_where_others_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one id everybody is the same; with several a program must not run as root that was never root's."""
    root = directory({b"su": file(mode=0o6755, uid=1000, gid=1000), b"own": file(mode=0o6755)})

    def look() -> list[int]:
        return [stat.S_IMODE(os.stat(name).st_mode) for name in (b"su", b"own")]

    assert made(root, look) == ([0o6755, 0o6755], {"owners": 1})
    monkeypatch.setattr(module, "known_ids", lambda kind: [range(5)])
    assert made(root, look) == ([0o755, 0o6755], {"owners": 1, "set-ID bits": 1})


def test_file_capabilities_need_a_root() -> None:
    capability = b"\x01\0\0\2" + bytes(16)
    root = directory({b"ping": file(xattrs={b"security.capability": capability})})
    assert made(root, lambda: attributes(b"ping")) == ({"security.capability": capability}, {})
    if os.geteuid():
        seen, left_out = made(root, lambda: attributes(b"ping"), namespaces.one_id())
        assert seen == {}
        assert left_out["file capabilities"] == 1


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"../escaped", b"/tmp/escaped", b"nul\0"])
def test_names_that_are_none(name: bytes) -> None:
    for root in (directory({name: file()}), directory({b"sub": directory({b"good": file(), name: directory()})})):
        with pytest.raises(ImageError):
            made(root, lambda: None)


def test_links_in_the_tree_lead_nowhere_else(tmp_path: Path) -> None:
    """Names below a symbolic link would be made where it leads."""
    tmp_path.chmod(0o777)
    root = directory(
        {
            b"a": Symlink(mode=stat.S_IFLNK | 0o777, target=bytes(tmp_path)),
            b"a/escaped": file(b"x"),
        }
    )
    with pytest.raises(ImageError):
        made(root, lambda: None)
    assert list(tmp_path.iterdir()) == []


def test_names_that_no_file_system_has() -> None:
    with pytest.raises(InputError, match="cannot make the tree in memory"):
        made(directory({b"n" * 256: file()}), lambda: None)
    with pytest.raises(ImageError, match="NUL"):
        made(directory({b"link": Symlink(mode=stat.S_IFLNK | 0o777, target=b"a\0b")}), lambda: None)


def test_a_tree_of_any_depth() -> None:
    """The depth needs neither paths nor open files."""
    depth = 20_000
    root = bottom = directory()
    for _ in range(depth):
        below = directory(mode=0o700)
        bottom.entries[b"n" * 255] = below
        bottom = below
    bottom.entries[b"file"] = file(b"deep", uid=7)

    def look() -> tuple[int, bytes]:
        levels = 0
        while (names := os.listdir(b".")) == [os.fsencode("n" * 255)]:
            os.chdir(names[0])
            levels += 1
        with open(b"file", "rb") as there:
            return levels, there.read()

    seen, left_out = made(root, look)
    assert seen == (depth, b"deep")
    assert left_out == {"owners": 1}


def test_it_stops_when_told() -> None:
    """Who waits may be interrupted; the thread then ends at the next directory."""

    def work() -> str:
        making = module._Materialiser(frozenset())
        making.stopped = True
        try:
            making.run(directory())
        except Interrupted:
            return "interrupted"
        return "ran on"

    assert inside(work) == "interrupted"


def test_a_full_file_system_is_an_error() -> None:
    root = directory({b"%d" % number: file(b"x" * 4096) for number in range(10)})

    def work() -> None:
        found = survey(root)
        place = memory_for(found._replace(pages=-(16 << 20) + 4096))
        materialise(root, place, linked=found.linked)

    with pytest.raises(InputError, match="No space left"):
        inside(work)
