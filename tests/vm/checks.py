"""What the checks inside of the virtual machines have in common: how they are marked, the command, trees and images.

They run as root on an ext4 with the verity feature, with nothing but the standard library and cfstools.
"""

from __future__ import annotations

import hashlib
import os
import random
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cfstools.linux import verity

SIZES = [0, 1, 4095, 4096, 4097, 2**20 - 1, 2**20, 2**20 + 1]
KEYS = Path("/opt/keys")
# Where this program, its libraries' compiled forms and what it makes lie; and, to save time, a quarter of all bytes in
# one file and much of the same.
LEFT_OUT = ("opt", "work", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/zoneinfo")
# An access list: version, then for each entry tag, permissions and id.
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, 1000 if tag == 2 else 0xFFFF_FFFF)
    for tag, permissions in ((1, 7), (2, 4), (4, 5), (16, 5), (32, 5))
)
# What a bare Debian has none of, and an image keeps.
ODD_XATTRS = [
    ("/etc/hostname", "user.k", b"v"),
    ("/etc", "trusted.k", bytes(range(256))),
    ("/usr/bin/openssl", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000")),
    ("/usr/share", "system.posix_acl_default", ACL),
]
VERITY, OLD_USERS, USERS = "verity", "old-users", "users"
"""The machines: one for fs-verity, two for mounts of users, whose kernels take no data layers from these, and do."""
KERNELS = {VERITY: "verity-kernel", OLD_USERS: "verity-kernel", USERS: "user-kernel"}
"""The kernel of each machine, by its kind in tools/debian-root."""
CHECKS: dict[str, list[Callable[[Path], None]]] = {machine: [] for machine in KERNELS}
"""The checks of each machine."""


def check(*machines: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Mark a function as a check in these machines; it gets an empty directory."""

    def mark(function: Callable[[Path], None]) -> Callable[[Path], None]:
        for machine in machines:
            CHECKS[machine].append(function)
        return function

    return mark


def mkcfs(*words: str | Path, code: int = 0) -> str:
    """Run the command, expect this exit code, and return what it said."""
    command = [sys.executable, "-m", "cfstools.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
    return done.stdout + done.stderr


def kernel_digest(path: Path) -> bytes | None:
    """What the kernel says of a file."""
    fd = os.open(path, os.O_RDONLY)
    try:
        found = verity.measure(fd)
    finally:
        os.close(fd)
    return None if found is None else found[1]


def seal(path: Path) -> None:
    """Turn on fs-verity with the standard's own tool."""
    subprocess.run(["fsverity", "enable", str(path)], check=True, capture_output=True)


def objects(store: Path) -> list[Path]:
    """The objects of a store."""
    return sorted(store.glob("[0-9a-f][0-9a-f]/*"))


def tree(place: Path) -> Path:
    """A small tree with every kind of inode that matters here."""
    root, chance = place / "src", random.Random(1)
    for number, size in enumerate([0, 1, 64, 65, 4095, 4096, 4097, 70_000, 600_000]):
        (root / f"d{number % 3}").mkdir(parents=True, exist_ok=True)
        (root / f"d{number % 3}/f{number}").write_bytes(chance.randbytes(size))
    (root / "link").symlink_to("d0/f0")
    os.link(root / "d1/f7", root / "hard")
    (root / "twin").write_bytes(chance.randbytes(70_000))
    os.mknod(root / "null", 0o20666, os.makedev(1, 3))
    os.setxattr(root / "d0/f3", "user.k", b"v")
    return root


def sealed_image(
    place: Path, *stores: str, source: Path | None = None, without: Sequence[str] = ()
) -> tuple[Path, str]:
    """An image with fs-verity of *source* or the small tree, its objects divided among the stores; and its digest."""
    image = place / "image.cfs"
    first = place / stores[0]
    words = [word for name in without for word in ("--exclude", f"/{name}")]
    # The cache would lie inside of the Debian root.
    words += ["--store", str(first), "--verity", "require", "--print-digest", "--no-cache"]
    digest = mkcfs("build", source or tree(place), image, *words).strip()
    for number, path in enumerate(objects(first)):
        target = place / stores[number % len(stores)] / path.parent.name / path.name
        if target != path:
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    if kernel_digest(image) is None:
        seal(image)
    return image, digest


@contextmanager
def mounted(image: Path, digest: str, place: Path, *stores: str) -> Iterator[Path]:
    """The image on a directory, through these stores, every object checked by the kernel."""
    where = place / "mnt"
    where.mkdir(exist_ok=True)
    words = [word for store in stores for word in ("--store", str(place / store))]
    mkcfs("mount", image, where, *words, "--digest", digest, "--verity", "require")
    try:
        assert "verity=require" in Path("/proc/self/mountinfo").read_text(encoding="utf-8")
        yield where
    finally:
        mkcfs("umount", where)


def describe(root: Path, without: Sequence[str] = ()) -> dict[str, tuple[Any, ...]]:
    """Everything that an image keeps of a directory and what is below, but for these paths and what is below them."""
    found: dict[str, tuple[Any, ...]] = {}
    inodes: dict[tuple[int, int], str] = {}
    pending = [""]
    while pending:
        name = pending.pop()
        path = root / name
        status = path.lstat()
        content: object = None
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        elif stat.S_ISDIR(status.st_mode):
            # In one order, so that of several names for one file the same comes first.
            below = (f"{name}/{one}".lstrip("/") for one in sorted(os.listdir(path)))
            pending += (one for one in below if one not in without)
        else:
            content = status.st_rdev
        xattrs = {
            key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)
        }
        same = name if stat.S_ISDIR(status.st_mode) else inodes.setdefault((status.st_dev, status.st_ino), name)
        found[name] = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, content, xattrs, same)
    return found
