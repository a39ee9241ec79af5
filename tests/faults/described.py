"""A directory tree as one text, with all that must be the same after another extraction."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path


def described(top: Path) -> bytes:
    """Everything at *top* and below: attributes, contents, and which names are one inode."""
    first_names: dict[tuple[int, int], str] = {}
    return "".join(f"{line}\n" for path in _paths(top) for line in _lines(path, top, first_names)).encode()


def attributes(path: Path) -> str:
    """Kind, permissions, owner and extended attributes, and the time of what is no directory."""
    status = path.lstat()
    names = sorted(os.listxattr(path, follow_symlinks=False))
    xattrs = [(name, os.getxattr(path, name, follow_symlinks=False)) for name in names]
    time = None if stat.S_ISDIR(status.st_mode) else status.st_mtime_ns
    return f"{status.st_mode:o} {status.st_uid}:{status.st_gid} {time} {xattrs}"


def _paths(top: Path) -> Iterator[Path]:
    yield top
    if top.is_dir() and not top.is_symlink():
        yield from sorted(top.rglob("*"))


def _lines(path: Path, top: Path, first_names: dict[tuple[int, int], str]) -> Iterator[str]:
    status = path.lstat()
    name = str(path.relative_to(top))
    yield f"{name}: {attributes(path)} {status.st_mtime_ns} {status.st_rdev}"
    if path.is_symlink():
        yield f"-> {path.readlink()}"
    elif stat.S_ISREG(status.st_mode):
        yield hashlib.sha256(path.read_bytes()).hexdigest()
    if not stat.S_ISDIR(status.st_mode):
        yield f"is {first_names.setdefault((status.st_dev, status.st_ino), name)}"
