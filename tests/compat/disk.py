"""Random directories on disk with every kind of inode, made again exactly from a seed; needs root."""

from __future__ import annotations

import os
import random
import socket
import stat
import struct
from pathlib import Path

# Around the inline limit, the half block, the block, two blocks and the stages of a Merkle tree (128 blocks).
SIZES = [0, 1, 63, 64, 65, 100, 2048, 4095, 4096, 4097, 8191, 8192, 8193, 70_000, 524_287, 524_288, 524_289, 1_500_000]
MODES = [0o644, 0o600, 0o755, 0o4755, 0o2755, 0o6711, 0o000, 0o444]
OWNERS = [0, 0, 0, 1, 1000, 65_535, 65_536, 2_000_000_000]
TIMES_NS = [
    0,
    1_700_000_000_000_000_000,
    1_700_000_000_123_456_789,
    999_999_999,
    -1_000_000_001,
    4_000_000_000_000_000_007,
]
TARGETS = [
    b"x",
    b"../up",
    b"/absolute/path",
    b"with space",
    b"\xff\xfe not utf-8",
    b"t" * 60,
    b"t" * 1023,
    b"a/" * 1500,
]


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Return the value of a POSIX ACL attribute from (tag, permissions, id) entries."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFF_FFFF
ACL = acl((0x01, 6, NOBODY), (0x02, 4, 1000), (0x04, 4, NOBODY), (0x10, 6, NOBODY), (0x20, 4, NOBODY))
XATTRS = [
    (b"user.comment", b"hello"),
    (b"user.empty", b""),
    (b"user.binary", bytes(range(256))),
    (b"user." + b"k" * 250, b"longest key"),
    (b"user.large", b"v" * 1500),
    (b"user.overlay.opaque", b"y"),
    (b"trusted.secret", b"\x00\x01"),
    (b"trusted.overlay.redirect", b"/elsewhere"),
    (b"trusted.overlay.overlay.origin", b"twice"),
    (b"security.label", b"system_u:object_r:usr_t:s0\x00"),
    (b"security.overlay", b"="),
]
USER_XATTRS_NEED_FILES = (b"user.",)


class Maker:
    """Fills a directory from a seed. ``whiteouts`` adds devices 0:0, which read back as something else."""

    def __init__(self, seed: int, *, whiteouts: bool = True, overlay_xattrs: bool = True) -> None:
        self.random = random.Random(seed)
        self.whiteouts = whiteouts
        self.xattrs = [pair for pair in XATTRS if overlay_xattrs or b"overlay." not in pair[0]]
        self.made: list[bytes] = []

    def name(self) -> bytes:
        """Return a file name: short, escaped in dumps, sorting before the dots, or 255 bytes long."""
        pick = self.random.random()
        if pick < 0.6:
            return b"%s%d" % (self.random.choice([b"f", b"lib", b"Z", b"-", b"!", b"~"]), self.random.randrange(10_000))
        if pick < 0.9:
            return bytes(self.random.choices([c for c in range(1, 256) if c != 0x2F], k=self.random.randint(3, 40)))
        return b"n%d" % self.random.randrange(10_000) + b"n" * self.random.randint(200, 250)

    def fill(self, directory: bytes, entries: int, depth: int = 3) -> None:
        """Make about this many entries below a directory, then give the directory its own attributes."""
        while entries > 0:
            path = directory + b"/" + self.name()
            if os.path.lexists(path):
                continue
            if depth and self.random.random() < 0.2:
                inside = self.random.choice([0, 1, 3, entries // 2])
                os.mkdir(path)
                self.fill(path, inside, depth - 1)
                entries -= inside + 1
                continue
            self.leaf(path)
            entries -= 1
        self.attributes(directory)

    def leaf(self, path: bytes) -> None:
        """Make one entry that is not a directory."""
        kind = self.random.choices(
            ["file", "symlink", "hardlink", "fifo", "socket", "char", "block", "whiteout"], [50, 15, 12, 4, 4, 4, 4, 3]
        )[0]
        if kind == "hardlink" and self.made:
            os.link(self.random.choice(self.made), path, follow_symlinks=False)
            return
        self.make(kind, path)
        self.attributes(path)
        self.made.append(path)

    def make(self, kind: str, path: bytes) -> None:
        """Make one new inode."""
        number = os.makedev(self.random.choice([1, 7, 259, 4095]), self.random.choice([0, 3, 255, 256, 1_048_575]))
        match kind:
            case "symlink":
                os.symlink(self.random.choice(TARGETS), path)
            case "fifo":
                os.mkfifo(path)
            case "socket":
                # By mknod: binding a path is limited to 107 bytes.
                os.mknod(path, stat.S_IFSOCK | 0o755)
            case "char":
                os.mknod(path, stat.S_IFCHR | 0o666, number)
            case "block":
                os.mknod(path, stat.S_IFBLK | 0o660, number)
            case "whiteout" if self.whiteouts:
                os.mknod(path, stat.S_IFCHR | 0o644, 0)
            case _:
                self.write(path)

    def write(self, path: bytes) -> None:
        """Write a regular file: random, of zeros, sparse, or with contents that occur often."""
        size = self.random.choice(SIZES)
        with open(path, "xb") as file:
            match self.random.randrange(4):
                case 0:
                    file.write(bytes(size))
                case 1:
                    file.truncate(size)
                case 2:
                    file.write((b"the same again " * (size // 15 + 1))[:size])
                case _:
                    file.write(self.random.randbytes(size))

    def attributes(self, path: bytes) -> None:
        """Give an inode an owner, a mode, extended attributes and a time."""
        kind = stat.S_IFMT(os.lstat(path).st_mode)
        owner, group = self.random.choice(OWNERS), self.random.choice(OWNERS)
        os.lchown(path, owner, group)
        if kind != stat.S_IFLNK:
            os.chmod(path, self.random.choice(MODES))
        if self.random.random() < 0.4:
            wanted = self.random.sample(self.xattrs, self.random.randint(1, 4))
            for key, value in wanted:
                if kind in (stat.S_IFREG, stat.S_IFDIR) or not key.startswith(USER_XATTRS_NEED_FILES):
                    os.setxattr(path, key, value, follow_symlinks=False)
        if kind in (stat.S_IFREG, stat.S_IFDIR) and self.random.random() < 0.1:
            os.setxattr(path, b"system.posix_acl_access", ACL)
            if kind == stat.S_IFDIR:
                os.setxattr(path, b"system.posix_acl_default", ACL)
        time = self.random.choice(TIMES_NS)
        os.utime(path, ns=(time, time), follow_symlinks=False)


def make_tree(path: Path, seed: int, *, whiteouts: bool = True, overlay_xattrs: bool = True) -> Path:
    """Make the random directory of this seed."""
    path.mkdir()
    maker = Maker(seed, whiteouts=whiteouts, overlay_xattrs=overlay_xattrs)
    maker.fill(bytes(path), maker.random.choice([0, 1, 5, 20, 60, 150]))
    return path


def make_every_kind(path: Path) -> Path:
    """Make the fixed directory the option tests share: one of everything an option decides about."""
    path.mkdir()
    (path / "sub").mkdir()
    (path / "empty").write_bytes(b"")
    (path / "inline").write_bytes(b"i" * 64)
    (path / "external").write_bytes(b"e" * 65)
    (path / "sub" / "same").write_bytes(b"e" * 65)
    (path / "large").write_bytes(bytes(range(256)) * 4000)
    (path / "link").symlink_to("sub/same")
    os.mkfifo(path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path)
        server.bind("socket")
        os.chdir(here)
    os.mknod(path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(path / "loop", stat.S_IFBLK | 0o660, os.makedev(7, 0))
    os.mknod(path / "sub" / "whiteout", stat.S_IFCHR | 0o644, 0)
    for name in (b"user.one", b"trusted.two", b"security.three"):
        os.setxattr(path / "external", name, b"value of " + name)
        os.setxattr(path / "sub", name, b"value of " + name)
    os.setxattr(path / "link", b"trusted.two", b"on a symlink")
    os.setxattr(path / "inline", b"system.posix_acl_access", ACL)
    for number, entry in enumerate(sorted(path.rglob("*"))):
        os.utime(entry, ns=(0, 1_600_000_000_000_000_001 * (number % 3)), follow_symlinks=False)
    os.utime(path, ns=(0, 1_650_000_000_500_000_000))
    return path
