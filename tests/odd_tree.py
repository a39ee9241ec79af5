"""A tree with every type of inode and every oddity that images know; making it needs root.

The order of names, sizes and numbers is fixed: the same tree gives the same image.
"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

from tests.compat.disk import NOBODY, acl, make_every_kind

_BEFORE_1970 = -86_400_000_000_001  # a day and a nanosecond
_CAPABILITY = struct.pack("<5I", 0x0200_0001, 1 << 10, 0, 0, 0)  # cap_net_bind_service+ep
_FOREIGN_ACL = acl((0x01, 6, NOBODY), (0x02, 4, 3_000_000), (0x04, 4, NOBODY), (0x10, 6, NOBODY), (0x20, 4, NOBODY))
_OWN_ACL = acl((0x01, 7, NOBODY), (0x04, 5, NOBODY), (0x08, 5, 0), (0x10, 7, NOBODY), (0x20, 0, NOBODY))
_OVERLAY = [b"opaque", b"redirect", b"metacopy", b"whiteout", b"whiteouts", b"overlay.opaque", b"origin", b"protattr"]


def make_odd_tree(path: Path, *, whiteouts: bool = True) -> Path:
    """Make the tree. Without *whiteouts* no device 0:0 is in it, which the kernel shows as something else by design."""
    make_every_kind(path)
    if not whiteouts:
        (path / "sub" / "whiteout").unlink()
    for make in (_names, _links, _owners, _modes, _attributes, _overlay_attributes, _contents, _directories, _times):
        make(path)
    # What a tree has for a root is part of it.
    os.chmod(path, 0o1755)
    os.chown(path, 5, 6)
    os.setxattr(path, b"user.root", b"of the tree")
    os.utime(path, ns=(0, 1_650_000_000_500_000_001))
    return path


def _names(path: Path) -> None:
    place = bytes(path / "names")
    os.mkdir(place)
    names = [b"\xff\xfe", b"line\nbreak", b"tab\t", b" ", b"-dash", b"...", b"back\\slash", b"a,b=c:d", b"\x01", b"~"]
    for name in [*names, "ä€😀".encode(), b"n" * 255]:
        with open(place + b"/" + name, "xb") as file:
            file.write(name)


def _links(path: Path) -> None:
    place = path / "links"
    (place / "deeper").mkdir(parents=True)
    (place / "empty").write_bytes(b"")
    (place / "inline").write_bytes(b"one inode of many names")
    (place / "external").write_bytes(b"one object of many names " * 100)
    os.symlink("nowhere", place / "symlink")
    os.mkfifo(place / "fifo")
    os.mknod(place / "socket", stat.S_IFSOCK | 0o600)
    os.mknod(place / "device", stat.S_IFCHR | 0o600, os.makedev(4095, 1_048_575))
    for name in ("empty", "inline", "external", "symlink", "fifo", "socket", "device"):
        for number in range(2):
            os.link(place / name, place / "deeper" / f"{name}-{number}", follow_symlinks=False)
    for length in (1, 127, 128, 1023, 4000):
        os.symlink("t" * length, place / f"target-{length}")
    os.symlink(b"\xff\n", place / "target-bytes")
    os.symlink("/etc/passwd", place / "target-absolute")
    os.symlink("../../..", place / "target-above")


def _owners(path: Path) -> None:
    place = path / "owners"
    place.mkdir()
    for uid, gid in [(0, 0), (0, 1), (1, 0), (1000, 1000), (65_534, 65_534), (65_535, 65_536), (4_000_000_000, 5)]:
        file = place / f"{uid}-{gid}"
        file.write_bytes(b"owned")
        os.chown(file, uid, gid)
        os.mkdir(place / f"directory-{uid}-{gid}")
        os.chown(place / f"directory-{uid}-{gid}", uid, gid)
        os.symlink("x", place / f"symlink-{uid}-{gid}")
        os.lchown(place / f"symlink-{uid}-{gid}", uid, gid)


def _modes(path: Path) -> None:
    place = path / "modes"
    place.mkdir()
    for mode in (0o000, 0o111, 0o222, 0o444, 0o600, 0o644, 0o755, 0o777, 0o1644, 0o2755, 0o4755, 0o6755, 0o7777):
        for name, make in (("file", Path.touch), ("directory", Path.mkdir), ("fifo", os.mkfifo)):
            inode = place / f"{name}-{mode:04o}"
            make(inode)
            os.chmod(inode, mode)
    setuid = place / "setuid-of-another"
    setuid.write_bytes(b"#!/bin/sh\n")
    os.chown(setuid, 1000, 1000)
    os.chmod(setuid, 0o6755)


def _attributes(path: Path) -> None:
    place = path / "attributes"
    place.mkdir()
    for name, key, value in [
        ("empty", b"user.empty", b""),
        ("binary", b"user.binary", bytes(range(256))),
        ("long-key", b"user." + b"k" * 250, b"v"),
        ("large", b"user.large", b"v" * 3000),
        ("capability", b"security.capability", _CAPABILITY),
        ("label", b"security.selinux", b"system_u:object_r:usr_t:s0\0"),
        ("trusted", b"trusted.secret", b"\0\1"),
        ("foreign-acl", b"system.posix_acl_access", _FOREIGN_ACL),
        ("own-acl", b"system.posix_acl_access", _OWN_ACL),
    ]:
        (place / name).write_bytes(name.encode())
        os.setxattr(place / name, key, value)
    many = place / "many"
    many.mkdir()
    for number in range(20):
        os.setxattr(many, b"user.%d" % number, b"%d" % number)
    for name, value in (("default-acl", _OWN_ACL), ("default-foreign-acl", _FOREIGN_ACL)):
        (place / name).mkdir()
        os.setxattr(place / name, b"system.posix_acl_default", value)
    os.symlink("x", place / "symlink")
    os.setxattr(place / "symlink", b"trusted.on.symlink", b"1", follow_symlinks=False)


def _overlay_attributes(path: Path) -> None:
    """Attributes that mean something to overlayfs, on files and on directories that must stay what they are."""
    for space in (b"user", b"trusted"):
        place = path / f"overlay-{space.decode()}"
        place.mkdir()
        for name in _OVERLAY:
            key = space + b".overlay." + name
            value = b"/etc/passwd" if name == b"redirect" else b"y"
            file, directory = place / f"file-{name.decode()}", place / f"directory-{name.decode()}"
            file.write_bytes(name * 30)
            directory.mkdir()
            (directory / "inside").write_bytes(b"must not be hidden")
            os.setxattr(file, key, value)
            os.setxattr(directory, key, value)
            os.setxattr(directory, space + b".kept", b"beside it")


def _contents(path: Path) -> None:
    place = path / "contents"
    place.mkdir()
    sizes = [0, 1, 63, 64, 65, 4095, 4096, 4097, 8192, 131_071, 131_072, 131_073, 1_048_576, 1_048_577, 9_000_001]
    for size in sizes:
        (place / f"of-{size}").write_bytes((b"%d " % size * (size // 2 + 1))[:size])
    with open(place / "sparse", "xb") as file:
        file.truncate(3_000_000)
        file.seek(1_500_000)
        file.write(b"in the middle")
    (place / "zeros").write_bytes(bytes(100_000))
    program = place / "program"
    program.write_bytes(b"#!/bin/sh\necho it runs\n")
    program.chmod(0o755)


def _directories(path: Path) -> None:
    many = path / "many"
    many.mkdir()
    for number in range(1200):
        (many / f"{number:05d}-{'x' * (number % 60)}").write_bytes(b"%d" % number)
    deep = path / "deep"
    for _ in range(40):
        deep /= "d"
    deep.mkdir(parents=True)
    (deep / "bottom").write_bytes(b"of it all")
    (path / "nothing-in-it").mkdir()


def _times(path: Path) -> None:
    for number, entry in enumerate(sorted(path.rglob("*"))):
        os.utime(entry, ns=(0, 1_600_000_000_000_000_001 + number * 1_000_000_007), follow_symlinks=False)
    place = path / "times"
    place.mkdir()
    times = [0, 1, -1, 999_999_999, -1_000_000_001, _BEFORE_1970, 1_700_000_000_123_456_789, 4_000_000_000_000_000_007]
    for number, time in enumerate(times):
        for name, make in (("file", Path.touch), ("directory", Path.mkdir), ("fifo", os.mkfifo)):
            make(place / f"{name}-{number}")
            os.utime(place / f"{name}-{number}", ns=(time, time))
        os.symlink("x", place / f"symlink-{number}")
        os.utime(place / f"symlink-{number}", ns=(time, time), follow_symlinks=False)
    os.utime(place, ns=(_BEFORE_1970, _BEFORE_1970))
