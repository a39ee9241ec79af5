"""Stores to test with, and file systems on loop images for what the machine's own cannot show."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cfstools.store import DirectoryStore
from cfstools.verity import digest_bytes
from tests.processes import until


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DirectoryStore]:
    with DirectoryStore(str(tmp_path / "store"), create=True) as made:
        yield made


def listing(path: Path | str) -> dict[str, bytes]:
    """Every file below *path* but locks, with its contents; nothing else may be there but directories."""
    found = {}
    for file in sorted(Path(path).rglob("*")):
        assert not file.is_symlink()
        if not file.is_dir() and file.name != ".mkcfs-lock":
            found[str(file.relative_to(path))] = file.read_bytes()
    return found


def names_in(path: Path | str) -> list[str]:
    """The names directly below *path*, in order, but that of the lock."""
    return sorted(name for name in os.listdir(path) if name != ".mkcfs-lock")


def assert_whole(path: Path | str) -> int:
    """Every visible object below *path* has the contents its name says; returns how many there are."""
    objects = {name: data for name, data in listing(path).items() if not name.startswith(".")}
    for name, data in objects.items():
        assert digest_bytes(data).hex() == name.replace("/", ""), name
    return len(objects)


@contextmanager
def as_nobody(tmp_path: Path) -> Iterator[None]:
    """Without the rights of root, with the way to *tmp_path* open."""
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(path.stat().st_mode | 0o755)
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def loop_mount(tmp_path: Path, kind: str, size: int, *options: str) -> Iterator[Path]:
    """A fresh file system of *kind* in an image of *size* bytes, mounted; skips where that cannot be had."""
    if os.geteuid() != 0:
        pytest.skip("mounting a loop image needs root")
    if not shutil.which(f"mkfs.{kind}"):
        pytest.skip(f"mkfs.{kind} is not installed")
    image, where = tmp_path / f"{kind}.img", tmp_path / f"{kind}.mnt"
    where.mkdir()
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run([f"mkfs.{kind}", "-q", *options, str(image)], check=True, capture_output=True)
    mounted = subprocess.run(
        ["mount", "-o", "loop", "-t", kind, str(image), str(where)], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount {kind}: {mounted.stderr.strip()}")
    try:
        yield where
    finally:
        # A loop device on a file in it is said to be free a moment before the kernel has closed that file.
        until(lambda: subprocess.run(["umount", str(where)], check=False).returncode == 0)
        image.unlink()
