"""After a mount has ended nothing of it is left, whatever the way: no process, mount, descriptor, lock or temporary."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.everyone.ways import ALL, LAZY, Image, Way, mkcfs_words
from tests.processes import until
from tests.requirements import REPOSITORY
from tests.users import Place, User, Word

pytestmark = [pytest.mark.root, pytest.mark.kernel]

ROUNDS = 100
# What differs from these only in its map or its store leaves the same behind.
OFTEN = {"kernel", "overlay-sub", "fuse", "link", "fuse-inside-sub", "overlay-sub-lazy", "fuse-lazy"}
FEW = 5
PATIENCE = 20.0  # seconds


def leftovers(user: User, image: Image) -> list[str]:
    """What there is of a mount outside of the store: names of the kinds of things, and the things."""
    found = [f"mount {line}" for line in user.place.new_mounts()]
    found += [f"process {pid}: {line}" for pid, line in user.processes().items()]
    found += [f"open: {line}" for line in _open_below(user.place.top, image.path.parent)]
    found += [f"lock: {line}" for line in _locks(user.home, image.path.parent)]
    found += [f"loop device {line}" for line in _loops(image.path)]
    for place in (user.temporary, user.runtime, image.path.parent):
        found += [f"file {path}" for path in place.iterdir() if path not in (image.path, image.store, place / "tree")]
    found += [f"file {path}" for path in Path("/tmp").glob(".mkcfs*")]
    found += [f"file {path}" for path in user.home.rglob(".mkcfs*") if path.name != ".mkcfs-lock"]
    return found


def _open_below(*places: Path) -> Iterator[str]:
    """Files below *places* that a process has open, as its working directory, or as its root."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        links = [Path("/proc", pid, name) for name in ("cwd", "root", "exe")]
        try:
            links += Path("/proc", pid, "fd").iterdir()
        except OSError:
            continue
        for link in links:
            try:
                target = Path(os.readlink(link))
            except OSError:
                continue
            if any(target.is_relative_to(place) for place in places):
                yield f"{link} -> {target}"


def _locks(*places: Path) -> Iterator[str]:
    inodes = {path.stat().st_ino for place in places for path in place.rglob(".mkcfs*") if path.is_file()}
    for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
        number = next((word for word in line.split() if word.count(":") == 2), "0:0:0")
        if int(number.rpartition(":")[2]) in inodes:
            yield line


def _loops(image: Path) -> Iterator[str]:
    for device in Path("/sys/block").glob("loop*/loop/backing_file"):
        if Path(device.read_text().strip()) == image:
            yield str(device)


def script(way: Way, user: User, image: Image, rounds: int) -> str:
    """Show the image and read it, again and again; a directory that still shows it afterwards ends the script."""
    directory = user.home / "mnt"
    reading = f"cat {directory}/data/inline {directory}/data/external {directory}/data/large >/dev/null"
    verb = "run" if way.run else "mount"
    show = words(*mkcfs_words(verb, way, user, image, directory))
    if way.run:
        each = f"{show} -- sh -euc {shlex.quote(reading)}"
    else:
        unmount = words("python", "-m", "cfstools.cli", "umount", directory)
        each = f"{show}; {reading}; {unmount}"
    made = f"rmdir {directory} 2>/dev/null || true" if "link" in way.options else f"mkdir -p {directory}"
    gone = f"if test -e {directory}/data; then echo still there; exit 1; fi"
    return f"{made}; for i in $(seq {rounds}); do {each}; {gone}; done"


def words(*given: Word) -> str:
    return shlex.join(os.fsdecode(os.fsencode(word)) for word in given)


def repeat(way: Way, user: User, image: Image, rounds: int) -> None:
    if way.root:
        environment = f"PYTHONPATH={REPOSITORY}", f"PATH={user.environment['PATH']}:/usr/sbin:/sbin"
        user.place.root("env", *environment, "sh", "-euc", script(way, user, image, rounds))
    else:
        user.shell(script(way, user, image, rounds))


@pytest.mark.slow
@pytest.mark.parametrize("way", [*ALL, *LAZY], ids=lambda way: way.name)
def test_a_hundred_mounts(user: User, small_image: Image, way: Way) -> None:
    way.require(user)
    assert leftovers(user, small_image) == []
    repeat(way, user, small_image, ROUNDS if way.name in OFTEN else FEW)
    # A keeper notices the end of its mount a moment after that.
    deadline = time.monotonic() + PATIENCE
    while left := leftovers(user, small_image):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_what_is_left_is_found(user: User, small_image: Image, place: Place) -> None:
    (user.temporary / "left").touch()
    place.root("mount", "-t", "tmpfs", "tmpfs", user.home / "tmp")
    process = user.start("sleep", "1000", cwd=user.home)
    until(lambda: bool(user.processes()))  # what starts it is root's at first
    with (small_image.path).open("rb"):
        found = leftovers(user, small_image)
    process.kill()
    process.wait()
    kinds = {line.split()[0] for line in found}
    assert {"mount", "process", "open:"} <= kinds
