"""What a power cut leaves: the disk as it was at some moment of a running writer has only whole objects.

The file system lies in a file on another one that clones files: a clone is the disk at one moment, for cloning waits
for writes and keeps others out. It is mounted like a disk after the power came back, journal and all.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from cfstools.store import DirectoryStore, StoreWriter
from tests import requirements
from tests.mkcfs import mkcfs, unmeasured
from tests.processes import until
from tests.store.conftest import assert_whole, listing, loop_mount

CUTS = 5
APART = 0.25
# The journal is written every second: names soon reach the disk, contents only when somebody asks or after long.
INNER = {
    "ext4": (["-q", "-F", "-N", "65536"], "commit=1", ""),
    "xfs": (["-q"], "noatime", "nouuid"),
}

# Adds objects without end, in batches or synced one by one; "careless" leaves out what makes their contents durable.
PROGRAM = """
import os, sys
from cfstools.linux import files
from cfstools.store import DirectoryStore, StoreWriter
manner, _, sync = sys.argv[2].partition(" ")
if manner == "careless":
    files.syncfs = os.fsync = lambda _fd: None
batch = 150 if sync == "batch" else 20
with (
    DirectoryStore(sys.argv[1] + "/store", create=True) as store,
    StoreWriter(store, sync=sync, batch_files=batch) as writer,
):
    number = 0
    while True:
        writer.add_bytes(b"%09d" % number * 900)
        number += 1
"""

# Builds one new tree after another to one image, each with a process of its own, and notes each before and after.
BUILDS = """
import itertools, pathlib, shutil, subprocess, sys
from cfstools.api.build import build
disk, place = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
manner, _, sync = sys.argv[3].partition(" ")
command = [sys.executable, "-c", "from cfstools.cli import main; main()"]
if manner == "careless":
    careless = "import os; from cfstools.linux import files; os.fsync = files.syncfs = lambda fd: None; "
    command[2] = careless + command[2]
for number in itertools.count():
    source = place / f"source{number}"
    source.mkdir()
    for name in range(300 if sync == "batch" else 30):
        (source / str(name)).write_bytes(b"%09d" % (number * 1000 + name) * 900)
    with (place / "notes").open("a") as notes:
        print("begin", build(bytes(source), None).digest, file=notes, flush=True)
        words = ["build", source, disk / "image.cfs", "--store", disk / "store", "-j", "1", "--sync", sync]
        subprocess.run([*command, *words], check=True)
        print("end", file=notes, flush=True)
    shutil.rmtree(source)
"""
T = TypeVar("T")


@contextmanager
def mounted(image: Path, place: Path, options: str) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    command = ["mount", "-o", ",".join(filter(None, ["loop", options])), str(image), str(place)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield place
    finally:
        # A writer that was killed may hold it until its last call has ended.
        deadline = time.monotonic() + 60
        while subprocess.run(["umount", str(place)], check=False, capture_output=True).returncode:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # The loop device lets go of the image a little later, and until then what the image lies on is busy.
        while subprocess.run(["losetup", "-j", str(image)], check=True, capture_output=True).stdout:
            time.sleep(0.02)


def power_cuts(
    disks: Path, kind: str, program: str, *words: str, work: Path, apart: float = APART, before: Callable[[], T]
) -> Iterator[tuple[Path, T]]:
    """The disk after each of some power cuts, mounted; clones are made while a program writes to it.

    The program's first word is the disk. With each disk comes what *before* said just before the cut.
    """
    options, while_written, afterwards = INNER[kind]
    disk = disks / "disk"
    with disk.open("wb") as file:
        file.truncate(512 << 20)
    subprocess.run([f"mkfs.{kind}", *options, str(disk)], check=True, capture_output=True)
    with mounted(disk, work / "mnt", while_written) as place:
        writer = subprocess.Popen(
            [sys.executable, "-c", program, str(place), *words], env=unmeasured(), start_new_session=True
        )
        try:
            wait_for(place / "store")
            said = []
            for number in range(CUTS):
                time.sleep(apart)
                said.append(before())
                subprocess.run(["cp", "--reflink=always", str(disk), str(disks / f"cut{number}")], check=True)
            assert writer.poll() is None
        finally:
            os.killpg(writer.pid, signal.SIGKILL)
            writer.wait()
    for number in range(CUTS):
        with mounted(disks / f"cut{number}", work / "mnt", afterwards) as place:
            yield place, said[number]


def stores(disks: Path, kind: str, manner: str, work: Path) -> Iterator[Path]:
    """The store after each power cut."""
    live, cuts = work / "mnt", 0

    def look() -> None:
        nonlocal cuts
        cuts += 1
        if cuts == CUTS:
            until(lambda: any((live / "store").glob("[0-9a-f][0-9a-f]/*")))
            commit(live)

    for place, _ in power_cuts(disks, kind, PROGRAM, manner, work=work, before=look):
        yield place / "store"


def commit(disk: Path) -> None:
    """However slow the machine is, names given so far are in the journal then; contents only if somebody asked."""
    os.utime(disk)
    fd = os.open(disk, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


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
@pytest.mark.parametrize("sync", ["batch", "object"])
def test_only_whole_objects_are_visible_after_a_power_cut(disks: Path, kind: str, sync: str, tmp_path: Path) -> None:
    counts = []
    for store in stores(disks, kind, f"careful {sync}", tmp_path):
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
@pytest.mark.parametrize("sync", ["batch", "object"])
def test_a_careless_writer_is_found_out(disks: Path, sync: str, tmp_path: Path) -> None:
    """Without the sync before names are given, the same cuts do leave torn objects: the test above can fail."""
    torn = 0
    for store in stores(disks, "ext4", f"careless {sync}", tmp_path):
        if store.exists():
            try:
                assert_whole(store)
            except AssertionError:
                torn += 1
        shutil.rmtree(store, ignore_errors=True)
    assert torn > 0


@dataclass(frozen=True)
class Notes:
    """What was known at some moment of the builds: the digests of those begun, and how many had ended well."""

    digests: list[str]
    ended: int

    @classmethod
    def read(cls, path: Path) -> Notes:
        lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
        digests = [line.split()[1] for line in lines if line.startswith("begin ")]
        return cls(digests, lines.count("end"))


def builds(disks: Path, kind: str, manner: str, work: Path) -> Iterator[tuple[Path, Notes]]:
    """The disk after each power cut while trees are built, and the notes from just before it."""
    place = work / "sources"
    place.mkdir()
    cuts = 0

    def look() -> Notes:
        nonlocal cuts
        cuts += 1
        notes, deadline = Notes.read(place / "notes"), time.monotonic() + 60
        # However slow the machine is, an image is replaced before the last cut.
        while cuts == CUTS and notes.ended < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
            notes = Notes.read(place / "notes")
        if cuts == CUTS:
            commit(work / "mnt")
        return notes

    for disk, before in power_cuts(disks, kind, BUILDS, str(place), manner, work=work, apart=0.7, before=look):
        # What began after the notes were read may be there as well.
        yield disk, Notes(Notes.read(place / "notes").digests, before.ended)


def assert_image(disk: Path, notes: Notes) -> str | None:
    """Objects are whole; the image is the last that was reported built, or a later one, with all that it needs."""
    if (disk / "store").exists():
        assert_whole(disk / "store")
    if not (disk / "image.cfs").exists():
        assert not notes.ended, "an image that was reported built is lost"
        return None
    digest = mkcfs("digest", "--compact", disk / "image.cfs").stdout.decode().strip()
    assert digest in notes.digests[max(0, notes.ended - 1) :]
    mkcfs("verify", disk / "image.cfs", "--digest", digest, "--store", disk / "store")
    return digest


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(INNER))
@pytest.mark.parametrize("sync", ["batch", "object"])
def test_an_image_that_is_visible_after_a_power_cut_is_complete(
    disks: Path, kind: str, sync: str, tmp_path: Path
) -> None:
    seen: list[str | None] = []
    ended = 0
    source = tmp_path / "more"
    source.mkdir()
    (source / "file").write_bytes(b"more" * 1000)
    for disk, notes in builds(disks, kind, f"careful {sync}", tmp_path):
        seen.append(assert_image(disk, notes))
        ended = notes.ended
        # Life goes on with what is left.
        mkcfs("build", source, disk / "image.cfs", "--store", disk / "store")
        mkcfs("verify", disk / "image.cfs", "--store", disk / "store")
        assert {name.name for name in disk.iterdir()} <= {"image.cfs", "store", "lost+found"}
    assert ended > 1
    print(f"{len(seen)} cuts, {len(set(seen) - {None})} images, {ended} builds had ended before the last cut")


@pytest.mark.root
@pytest.mark.slow
def test_careless_builds_are_found_out(disks: Path, tmp_path: Path) -> None:
    """Without the syncs the same cuts do leave broken objects or images: the test above can fail."""
    broken = 0
    for disk, notes in builds(disks, "ext4", "careless batch", tmp_path):
        try:
            assert_image(disk, notes)
        except AssertionError:
            broken += 1
    print(f"{broken} of {CUTS} cuts left something broken")
    assert broken > 0
