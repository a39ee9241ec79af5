"""Places to extract to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """A place to extract to; afterwards nothing temporary may be beside it."""
    place = tmp_path / "place"
    place.mkdir()
    yield place / "out"
    assert set(os.listdir(place)) <= {"out"}


@pytest.fixture
def open_tmp(tmp_path: Path) -> Path:
    """The temporary directory, with the way to it open to everyone."""
    for path in (tmp_path, *tmp_path.parents[:3]):
        path.chmod(path.stat().st_mode | 0o755)
    return tmp_path
