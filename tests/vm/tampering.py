"""An image of which objects are tampered with, in every way at once, since commands take long in these machines."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cfstools.verity import digest_bytes
from tests.vm.checks import seal
from tests.vm.look import look

VICTIMS = ("swapped", "unsealed", "cut", "linked", "flipped", "flipped-on-disk")
"""The files whose objects are tampered with; the first one has another name as well."""
WRONG = {
    **dict.fromkeys((*VICTIMS, "d0/hard"), errno.EIO),
    # For the overlay what is no regular file is not there.
    "linked": errno.ENOENT,
}
"""What is refused below a fresh mount, and the numbers of the errors."""
_SIZE = 70_000
_FIBMAP = 1


class Image(NamedTuple):
    """An image with its store, both below a directory with a place to mount, and what its files give."""

    home: Path
    image: Path
    store: Path
    wanted: dict[str, str | int]

    def object_of(self, name: str) -> Path:
        """The object with the contents of this file."""
        found = digest_bytes((self.home / "src" / name).read_bytes()).hex()
        return self.store / found[:2] / found[2:]


def made(place: Path, command: Callable[..., str], *options: str, owner: int = 0) -> Image:
    """Build a small image with *command*, which runs as *owner*."""
    place.chmod(0o755)
    home, chance = place / "home", random.Random(2)
    source = home / "src"
    source.mkdir(parents=True)
    for name in (*VICTIMS, "twin"):
        (source / name).write_bytes(chance.randbytes(_SIZE))
    for number, size in enumerate((0, 1, 64, 65, 4096, 600_000)):
        (source / f"d{number % 2}").mkdir(exist_ok=True)
        (source / f"d{number % 2}/f{number}").write_bytes(chance.randbytes(size))
    (source / "link").symlink_to("d0/f0")
    os.link(source / "swapped", source / "d0/hard")
    (home / "mnt").mkdir()
    for path in (home, *home.rglob("*")):
        os.chown(path, owner, owner, follow_symlinks=False)
    one = Image(home, home / "image.cfs", home / "store", look(source))
    command("build", source, one.image, "--store", one.store, "--no-cache", *options)
    return one


def tamper(one: Image, *, owner: int = 0) -> None:
    """Change the objects of all victims behind the mount's back, and let the kernel forget what it has read."""
    data = {name: (one.home / "src" / name).read_bytes() for name in VICTIMS}
    victim = {name: one.object_of(name) for name in VICTIMS}
    other = one.object_of("twin")
    flipped = bytearray(data["flipped"])
    flipped[_SIZE // 2] ^= 1
    _replace(victim["swapped"], other.read_bytes(), owner, sealed=True)
    _replace(victim["unsealed"], data["unsealed"], owner, sealed=False)
    _replace(victim["cut"], data["cut"][:-4096], owner, sealed=True)
    _replace(victim["flipped"], bytes(flipped), owner, sealed=True)
    victim["linked"].unlink()
    victim["linked"].symlink_to(f"../{other.parent.name}/{other.name}")
    _flip_on_disk(victim["flipped-on-disk"])
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")


def right_or_refused(one: Image, found: dict[str, str | int]) -> None:
    """Check what is seen below a mount that has read all of it before.

    Of a name that leads elsewhere by now the kernel may still have the object of before, but never other bytes; what
    changed on the disk is refused in any case.
    """
    assert found.keys() == one.wanted.keys()
    for name, content in found.items():
        assert content in {one.wanted[name], WRONG.get(name)}, (name, content)
    assert found["flipped-on-disk"] == errno.EIO


def _replace(victim: Path, data: bytes, owner: int, *, sealed: bool) -> None:
    victim.unlink()
    victim.write_bytes(data)
    os.chown(victim, owner, owner)
    if sealed:
        seal(victim)


def _flip_on_disk(victim: Path) -> None:
    """Change a byte of a sealed file on the disk, where neither the file system nor fs-verity sees it."""
    with victim.open("rb") as file:
        (block,) = struct.unpack("i", fcntl.ioctl(file.fileno(), _FIBMAP, struct.pack("i", 1)))
    assert block > 0
    disk = os.open("/dev/vda", os.O_RDWR)
    try:
        (before,) = os.pread(disk, 1, block * 4096 + 7)
        os.pwrite(disk, bytes([before ^ 1]), block * 4096 + 7)
        os.fsync(disk)
    finally:
        os.close(disk)
