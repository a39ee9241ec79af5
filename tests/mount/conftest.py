"""An image to mount, and the end of all mounts of a test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mkcfs import mkcfs
from tests.mounts import unmount_below


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A source, its image, and its objects in two stores, half in each; mounts made here do not stay."""
    source = tmp_path / "source"
    (source / "etc").mkdir(parents=True)
    (source / "etc/conf").write_text("text\n")
    (source / "etc/link").symlink_to("conf")
    for number in range(10):
        (source / f"file{number}").write_bytes(b"%d" % number * 10_000)
    os.chown(source / "file1", 1, 2)
    mkcfs("build", source, tmp_path / "image", "--store", tmp_path / "one")
    for number, path in enumerate(sorted(file for file in (tmp_path / "one").rglob("*") if file.is_file())):
        if number % 2:
            other = tmp_path / "two" / path.relative_to(tmp_path / "one")
            other.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, other)
    for name in ("mnt", "upper", "work"):
        (tmp_path / name).mkdir()
    yield tmp_path
    unmount_below(tmp_path)
