"""What tells one mount of a file system from every other: its superblock, for as long as the kernel keeps it.

UUIDs, device numbers and times are data that whoever made an image has chosen, or come back when a device is reused. A
directory below ``/sys/fs`` is neither: the kernel makes it when it mounts a file system and removes it with the
superblock, and gives its inode a number that it does not use again before the next boot.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from typing import NamedTuple

from cfstools.linux.files import close, filesystem_type, open_beneath
from cfstools.linux.ioctl import IOC_READ, ioctl_number

_SYSFS = 0x62656572
_PROC = 0x9FA0
_BTRFS = 0x9123683E
# linux/magic.h, and what a file system calls its directory below /sys/fs. That of ext4 also has ext2 and ext3.
_KINDS = {0xEF53: b"ext4", 0x58465342: b"xfs", _BTRFS: b"btrfs", 0xF2F52010: b"f2fs"}
_BTRFS_FS_INFO = ioctl_number(IOC_READ, 0x94, 31, 1024)
_BTRFS_FSID = slice(16, 32)
_FIRST_TIME_NAMESPACE = "time:[4026531834]"  # linux/proc_ns.h
_BOOT_ID = b"sys/kernel/random/boot_id"
_UUID = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class Volume(NamedTuple):
    """A file system for as long as it is mounted; of btrfs, one of its subvolumes.

    ``boot`` is the id of the boot, ``instance`` the inode number of the superblock's directory in sysfs.
    """

    boot: bytes
    kind: int
    device: int
    fsid: int
    instance: int


def mounted_volume(fd: int) -> Volume | None:
    """The volume that the directory *fd* lies on, if the kernel alone changes it: no other is ever equal to it.

    ``None`` for file systems that do not set a new ctime with every change, for read-only ones (whose device may change
    below them), and where sysfs or procfs do not show what they must. Raises ``OSError``.
    """
    kind = filesystem_type(fd)
    if kind not in _KINDS or not _is_writable(fd):
        return None
    device = os.fstat(fd).st_dev
    name = _btrfs_name(fd) if kind == _BTRFS else _device_name(device)
    directory = _open_real(b"/sys", b"fs/" + _KINDS[kind] + b"/" + name, _DIRECTORY, _SYSFS)
    if directory is None:
        return None
    try:
        instance = os.fstat(directory).st_ino
    finally:
        close(directory)
    boot = _read_proc(_BOOT_ID).strip()
    fsid = os.fstatvfs(fd).f_fsid
    return Volume(boot, kind, device, fsid & (2**64 - 1), instance) if _UUID.fullmatch(boot) else None


def clock_offset() -> int | None:
    """How many nanoseconds the clock is ahead of the time since the boot; it changes only when the clock is set.

    ``None`` where the time since the boot is not the machine's.
    """
    try:
        if os.readlink("/proc/self/ns/time") != _FIRST_TIME_NAMESPACE:
            return None
    except FileNotFoundError:
        pass  # a kernel without such namespaces
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _device_name(device: int) -> bytes:
    """The kernel's name of a block device: the one it also has for the superblock that is mounted from it."""
    numbers = _open_real(b"/sys", b"dev/block", _DIRECTORY, _SYSFS)
    if numbers is None:
        raise FileNotFoundError
    try:
        link = os.readlink(b"%d:%d" % (os.major(device), os.minor(device)), dir_fd=numbers)
    finally:
        close(numbers)
    return os.path.basename(link)


def _btrfs_name(fd: int) -> bytes:
    info = bytearray(1024)
    fcntl.ioctl(fd, _BTRFS_FS_INFO, info)
    text = info[_BTRFS_FSID].hex()
    return "-".join([text[:8], text[8:12], text[12:16], text[16:20], text[20:]]).encode()


def _is_writable(fd: int) -> bool:
    """Whether the file system itself is mounted for writing, even if the mount that *fd* was opened through is not."""
    if not os.fstatvfs(fd).f_flag & os.ST_RDONLY:
        return True
    me = os.readlink(b"/proc/self")  # as _open_real() follows no links
    number = next(
        (line.split()[1] for line in _read_proc(me + b"/fdinfo/%d" % fd).splitlines() if line.startswith(b"mnt_id:")),
        None,
    )
    for line in _read_proc(me + b"/mountinfo").splitlines():
        mount, _, superblock = line.partition(b" - ")
        if mount.split()[0] == number:
            return superblock.split()[-1].split(b",")[0] == b"rw"
    return False


def _read_proc(path: bytes) -> bytes:
    """What a file below /proc says; nothing if it is not procfs that says it."""
    fd = _open_real(b"/proc", path, os.O_RDONLY, _PROC)
    if fd is None:
        return b""
    with open(fd, "rb") as file:
        return file.read()


def _open_real(top: bytes, path: bytes, flags: int, kind: int) -> int | None:
    """Open *path* below *top* without following links; ``None`` if it does not lie on a file system of this *kind*."""
    here = os.open(top, _DIRECTORY)
    try:
        fd = open_beneath(here, path, flags)
    finally:
        close(here)
    if filesystem_type(fd) == kind:
        return fd
    close(fd)
    return None


__all__ = ["Volume", "clock_offset", "mounted_volume"]
