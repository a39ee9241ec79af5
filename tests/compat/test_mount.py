"""The kernel mounts our images, and what it shows is the source."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compat.disk import make_tree
from tests.mkcfs import mkcfs
from tests.reference import Reference
from tests.requirements import REPOSITORY

pytestmark = pytest.mark.kernel

SEEDS = 15


def differences(image: Path, store: Path, source: Path, scratch: Path) -> list[str]:
    """Mount in a namespace of its own and return the differences to the source."""
    scratch.mkdir()
    store.mkdir(exist_ok=True)
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", "tests.compat.mounted"]
    done = subprocess.run(
        [*command, image, store, source, scratch], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1000 + SEEDS))
def test_random_directories(tmp_path: Path, seed: int) -> None:
    # Whiteouts read back as something else by design: see the test below.
    source = make_tree(tmp_path / "source", seed, whiteouts=False)
    image, store = tmp_path / "image.cfs", tmp_path / "store"
    mkcfs("build", source, image, "--store", store)
    assert differences(image, store, source, tmp_path / "mount") == []


@pytest.mark.reference
@pytest.mark.slow
def test_debian_root(reference: Reference, debian_tree: Path, tmp_path: Path) -> None:
    image, store = tmp_path / "image.cfs", tmp_path / "store"
    mkcfs("build", debian_tree, image, "--store", store)
    assert reference.fsck_erofs([image]) == []
    assert differences(image, store, debian_tree, tmp_path / "mount") == []


def test_a_difference_is_found(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", 7, whiteouts=False)
    image, store = tmp_path / "image.cfs", tmp_path / "store"
    mkcfs("build", source, image, "--store", store)
    os.utime(source, ns=(1, 1))
    (source / "more").write_bytes(b"")
    found = differences(image, store, source, tmp_path / "mount")
    assert "b'./more' is only in the source" in found
    assert any("mtime_ns" in line for line in found)


def test_a_whiteout_in_the_source_stays_visible_as_a_marked_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    os.mknod(source / "gone", 0o020644, 0)
    image, store = tmp_path / "image.cfs", tmp_path / "store"
    mkcfs("build", source, image, "--store", store)
    found = differences(image, store, source, tmp_path / "mount")
    assert any(line.startswith("b'./gone': mode is '0o100644', in the source '0o20644'") for line in found)
    assert any("trusted.overlay.whiteout'" in line for line in found)
