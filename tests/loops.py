"""Images of file systems, and loop devices to mount them from again and again."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.requirements import need_command, need_mounts

_SIZE = 320 << 20
_PATIENCE = 60
_EPOCH = {"SOURCE_DATE_EPOCH": "1700000000"}
UUID = "01234567-89ab-4def-8123-456789abcdef"


def made(directory: Path, kind: str, *, tree: Path | None = None, name: str = "image") -> Path:
    """An image of *kind* in *directory*; squashfs, erofs and ext4 hold *tree*, with one UUID and one time for all."""
    need_mounts(kind)
    image = directory / f"{name}.{kind}"
    image.unlink(missing_ok=True)
    source = tree
    if source is None:
        source = directory / "nothing"
        source.mkdir(exist_ok=True)
    commands: dict[str, list[str | Path]] = {
        "squashfs": ["mksquashfs", source, image, "-all-root", "-no-progress", "-quiet"],
        "erofs": ["mkfs.erofs", "-U", UUID, "-T1700000000", image, source],
        "ext4": ["mke2fs", "-q", "-F", "-t", "ext4", "-U", UUID, "-E", f"hash_seed={UUID}", "-d", source, image],
        # Of these the kernel mounts no two with one UUID.
        "xfs": ["mkfs.xfs", "-q", "-f", image],
        "btrfs": ["mkfs.btrfs", "-q", "-f", image],
    }
    command = commands[kind]
    need_command(str(command[0]))
    if kind in {"ext4", "xfs", "btrfs"}:
        with image.open("wb") as file:
            file.truncate(_SIZE)
    subprocess.run(command, check=True, capture_output=True, env=os.environ | _EPOCH)
    return image


@contextmanager
def loop_device(image: Path) -> Iterator[str]:
    """A loop device on *image*, which can be set to another image with :func:`change`."""
    said = subprocess.run(["losetup", "--find", "--show", image], check=True, capture_output=True, text=True)
    device = said.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextmanager
def mounted(source: Path | str, kind: str, options: str = "rw", *, place: Path | None = None) -> Iterator[Path]:
    """*source*, an image or a device, mounted; beside the image unless *place* says where."""
    need_mounts(kind)
    if place is None:
        place = Path(source).with_suffix(".mnt")
    place.mkdir(exist_ok=True)
    is_image = Path(source).is_file()
    words = ["-o", f"{options},loop" if is_image else options]
    subprocess.run(["mount", "-t", kind, *words, source, place], check=True, capture_output=True)
    said = subprocess.run(["findmnt", "-n", "-o", "SOURCE", "-M", place], check=True, capture_output=True, text=True)
    device = Path(said.stdout.strip().partition("[")[0])  # of btrfs, findmnt names the subvolume as well
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)
        if device.is_block_device():
            await_release(device, Path(source) if is_image else None)


def await_release(device: Path, image: Path | None = None) -> None:
    """Wait until the kernel let go of the file system on *device*, a loop device for *image* or one that stays.

    Whoever made a mount namespace meanwhile has a copy of the mount, and keeps the file system until the namespace
    ends: what is then written to the image is not what the next mount shows.
    """
    until = time.monotonic() + _PATIENCE
    while _is_held(device, image):
        assert time.monotonic() < until, f"{device} is still in use in another mount namespace"
        time.sleep(0.02)


def _is_held(device: Path, image: Path | None) -> bool:
    if image is not None:  # the device goes with its last mount, and may be another's by now
        try:
            backing = Path(f"/sys/block/{device.name}/loop/backing_file").read_text().rstrip("\n")
        except OSError:
            return False
        return backing == str(image.resolve())
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return True
    return False
