"""Images for all tests of this directory."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.everyone.ways import Image
from tests.mkcfs import mkcfs
from tests.odd_tree import make_odd_tree
from tests.requirements import need_root


def build(source: Path, place: Path) -> Image:
    """Build an image where everybody can read it."""
    image = Image(place / "image.cfs", place / "store")
    mkcfs("build", source, image.path, "--store", image.store)
    place.chmod(0o755)
    return image


@pytest.fixture(scope="session")
def odd_image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The image of the odd tree."""
    need_root()
    place = tmp_path_factory.mktemp("odd-image")
    return build(make_odd_tree(place / "tree"), place)


@pytest.fixture(scope="session")
def debian_image(tmp_path_factory: pytest.TempPathFactory, debian_tree: Path) -> Image:
    """The image of a Debian root."""
    return build(debian_tree, tmp_path_factory.mktemp("debian-image"))


@pytest.fixture(scope="session")
def small_image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """A static shell, a file of each way to keep contents, the places that --chroot wants, and many small objects."""
    need_root()
    place = tmp_path_factory.mktemp("small-image")
    root = place / "tree"
    for name in ("bin", "etc", "dev", "proc", "sys", "data", "tmp"):
        (root / name).mkdir(parents=True)
    subprocess.run(["cp", "/bin/busybox", root / "bin/busybox"], check=True)
    for name in ("sh", "cat", "ls", "true", "id", "sleep", "stat", "echo", "touch", "mkdir", "rm", "mv"):
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc/os-release").write_text("NAME=small\n")
    (root / "etc/resolv.conf").write_text("")
    (root / "data/inline").write_bytes(b"inline")
    (root / "data/external").write_bytes(b"external " * 1000)
    (root / "data/large").write_bytes(bytes(range(256)) * 10_000)
    # More than are fetched ahead of a read, and behind all that the tests read.
    (root / "usr").mkdir()
    for number in range(40):
        (root / f"usr/{number:02d}").write_bytes(bytes([number]) * 1000)
    return build(root, place)
