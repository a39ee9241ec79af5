"""What a power cut leaves: the disk as it was at some moment of a running writer has only whole objects.

The file system lies in a file on another one that clones files: a clone is the disk at one moment, for cloning waits
for writes and keeps others out. It is mounted like a disk after the power came back, journal and all.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cfstools.store import DirectoryStore, StoreWriter
from tests import requirements
from tests.store.conftest import assert_whole, listing, loop_mount

CUTS = 5
APART = 0.25
# The journal is written every second: names soon reach the disk, contents only when somebody asks or after long.
INNER = {
    "ext4": (["-q", "-F", "-N", "65536"], "commit=1", ""),
    "xfs": (["-q"], "noatime", "nouuid"),
}

# Adds objects without end; "careless" leaves out what makes their contents durable.
PROGRAM = """
import sys
from cfstools.linux import files
from cfstools.store import DirectoryStore, StoreWriter
if sys.argv[2] == "careless":
    files.syncfs = lambda _fd: None
with DirectoryStore(sys.argv[1], create=True) as store, StoreWriter(store, batch_files=150) as writer:
    number = 0
    while True:
        writer.add_bytes(b"%09d" % number * 900)
        number += 1
"""


@contextmanager
def mounted(image: Path, place: Path, options: str) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    command = ["mount", "-o", ",".join(filter(None, ["loop", options])), str(image), str(place)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)
        # The loop device lets go of the image a little later, and until then what the image lies on is busy.
        while subprocess.run(["losetup", "-j", str(image)], check=True, capture_output=True).stdout:
            time.sleep(0.02)


def power_cuts(disks: Path, kind: str, manner: str, work: Path) -> Iterator[Path]:
    """The store after each of some power cuts, mounted; clones are made while a writer runs."""
    options, while_written, afterwards = INNER[kind]
    disk = disks / "disk"
    with disk.open("wb") as file:
        file.truncate(512 << 20)
    subprocess.run([f"mkfs.{kind}", *options, str(disk)], check=True, capture_output=True)
    with mounted(disk, work / "mnt", while_written) as place:
        writer = subprocess.Popen([sys.executable, "-c", PROGRAM, str(place / "store"), manner])
        try:
            wait_for(place / "store")
            for number in range(CUTS):
                time.sleep(APART)
                subprocess.run(["cp", "--reflink=always", str(disk), str(disks / f"cut{number}")], check=True)
            assert writer.poll() is None
        finally:
            writer.kill()
            writer.wait()
    for number in range(CUTS):
        with mounted(disks / f"cut{number}", work / "mnt", afterwards) as place:
            yield place / "store"


def wait_for(store: Path) -> None:
    deadline = time.monotonic() + 60
    while not list(store.glob("[0-9a-f][0-9a-f]")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Path]:
    """A file system that clones files."""
    requirements.need_mounts()
    requirements.need_command("mkfs.btrfs", "mkfs.ext4", "mkfs.xfs")
    yield from loop_mount(tmp_path, "btrfs", 4 << 30)


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(INNER))
def test_only_whole_objects_are_visible_after_a_power_cut(disks: Path, kind: str, tmp_path: Path) -> None:
    counts = []
    for store in power_cuts(disks, kind, "careful", tmp_path):
        counts.append(assert_whole(store) if store.exists() else 0)
        # Life goes on with what is left.
        with DirectoryStore(str(store), create=True) as opened, StoreWriter(opened) as writer:
            for number in range(20):
                writer.add_bytes(b"%09d" % number * 900)
        assert assert_whole(store) >= max(20, counts[-1])
        assert all(name.startswith(".mkcfs") or len(name.partition("/")[0]) == 2 for name in listing(store))
    assert len(counts) == CUTS
    assert counts[-1] > 0, "nothing was published before the last cut: this proved nothing"


@pytest.mark.root
@pytest.mark.slow
def test_a_careless_writer_is_found_out(disks: Path, tmp_path: Path) -> None:
    """Without the sync before names are given, the same cuts do leave torn objects: the test above can fail."""
    torn = 0
    for store in power_cuts(disks, "ext4", "careless", tmp_path):
        if store.exists():
            try:
                assert_whole(store)
            except AssertionError:
                torn += 1
        shutil.rmtree(store, ignore_errors=True)
    assert torn > 0
