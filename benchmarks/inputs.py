"""What is built: a Debian root, a tree of many small files, one large file.

They are kept beside the Debian roots (see tools/debian-root), because making them takes longer than measuring.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.reference import debian_root


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """Return a directory of the cache, made with *make* the first time; its name is given by a rename."""
    place = Path(os.environ.get("CFSTOOLS_ROOTS", "/var/cache/cfstools-tests")) / name
    if not place.is_dir():
        partial = place.with_name(f"{name}.partial.{os.getpid()}")
        partial.mkdir(parents=True)
        try:
            make(partial)
            partial.rename(place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return place


def debian() -> Path:
    """Return the root of a minimal Debian 12."""
    return debian_root("bookworm")


def small_files(count: int) -> Path:
    """Return a tree of *count* different files of 100 to 4,000 bytes, a hundred to a directory."""

    def make(root: Path) -> None:
        source = random.Random(count)
        for number in range(count):
            directory = root / f"{number // 10_000:02}" / f"{number // 100 % 100:02}"
            if number % 100 == 0:
                directory.mkdir(parents=True)
            (directory / f"file-{number:06}").write_bytes(source.randbytes(source.randint(100, 4000)))

    return cached(f"small-{count}", make)


def large_file(size: int) -> Path:
    """Return a directory with one file of *size* bytes."""

    def make(root: Path) -> None:
        source = random.Random(size)
        with (root / "large").open("wb") as file:
            for _ in range(size // 2**20):
                file.write(source.randbytes(2**20))

    return cached(f"large-{size}", make)
