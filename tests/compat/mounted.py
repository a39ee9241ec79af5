"""Mounts an image with the kernel and compares it with its source; run as a program of its own.

``python -m tests.compat.mounted IMAGE STORE SOURCE SCRATCH`` wants a mount namespace of its own (``unshare
--mount``), in which it mounts EROFS and an overlay over it with the store as data-only layer. It prints one
line for each difference and leaves no mount behind, because the namespace ends with it.
"""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Seen(NamedTuple):
    """What a user sees of an inode, apart from its names."""

    mode: str
    uid: int
    gid: int
    mtime_ns: int
    rdev: int
    nlink: int
    size: int
    content: str
    xattrs: tuple[tuple[bytes, bytes], ...]


def content_of(path: bytes, status: os.stat_result) -> str:
    """Return what is read from an inode: the digest of a file, the target of a link."""
    if stat.S_ISLNK(status.st_mode):
        return repr(os.readlink(path))
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return ""


def see(path: bytes) -> Seen:
    """Look at one inode, without following it."""
    status = os.lstat(path)
    # The size and the link count of a directory are the file system's own business.
    directory = stat.S_ISDIR(status.st_mode)
    names = sorted(os.fsencode(name) for name in os.listxattr(path, follow_symlinks=False))
    return Seen(
        mode=oct(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        rdev=status.st_rdev,
        nlink=0 if directory else status.st_nlink,
        size=0 if directory else status.st_size,
        content=content_of(path, status),
        xattrs=tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names),
    )


def names_below(root: bytes) -> Iterator[bytes]:
    """Go through all names below a root, relative to it, the root itself as ``.``."""
    pending = [b"."]
    while pending:
        name = pending.pop()
        yield name
        path = os.path.join(root, name)
        if stat.S_ISDIR(os.lstat(path).st_mode):
            pending += [os.path.join(name, child) for child in os.listdir(path)]


def links(root: bytes, names: list[bytes]) -> set[tuple[bytes, ...]]:
    """Return the names of each inode that has several, as sorted tuples."""
    inodes: dict[int, list[bytes]] = {}
    for name in names:
        status = os.lstat(os.path.join(root, name))
        if not stat.S_ISDIR(status.st_mode):
            inodes.setdefault(status.st_ino, []).append(name)
    return {tuple(sorted(found)) for found in inodes.values() if len(found) > 1}


def differences(source: bytes, mount: bytes) -> Iterator[str]:
    """Compare two trees and tell each difference in a line."""
    expected, found = sorted(names_below(source)), sorted(names_below(mount))
    for name in sorted(set(expected) ^ set(found)):
        yield f"{name!r} is only in the {'source' if name in expected else 'mount'}"
    for name in sorted(set(expected) & set(found)):
        ours, theirs = see(os.path.join(source, name)), see(os.path.join(mount, name))
        for field, wanted, got in zip(Seen._fields, ours, theirs, strict=True):
            if wanted != got:
                yield f"{name!r}: {field} is {got!r}, in the source {wanted!r}"
    if links(source, expected) != links(mount, found):
        yield f"hard links are {links(mount, found)!r}, in the source {links(source, expected)!r}"


def mount_image(image: Path, store: Path, scratch: Path) -> Path:
    """Mount an image and its store below a scratch directory."""
    manifest, merged = scratch / "erofs", scratch / "merged"
    manifest.mkdir()
    merged.mkdir()
    subprocess.run(["mount", "-t", "erofs", "-o", "ro", image, manifest], check=True)
    options = f"ro,metacopy=on,redirect_dir=on,lowerdir={manifest}::{store}"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", merged], check=True)
    return merged


def main() -> int:
    """Mount, compare, print."""
    image, store, source, scratch = (Path(word) for word in sys.argv[1:])
    merged = mount_image(image, store, scratch)
    for line in differences(bytes(source), bytes(merged)):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
