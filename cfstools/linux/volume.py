"""Identify a mounted file system by its superblock, for as long as the kernel keeps it.

UUIDs, device numbers and times cannot do that: the maker of an image chooses them, or they return when a device is
reused. The kernel makes a directory below ``/sys/fs`` for each superblock, removes it with the superblock, and does not
reuse the directory's inode number before the next boot.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
import zlib
from contextlib import suppress
from typing import NamedTuple

from cfstools.linux.files import IOC_READ, close, filesystem_type, ioctl_number, open_beneath

_SYSFS = 0x62656572
_PROC = 0x9FA0
_BTRFS = 0x9123683E
_F2FS = 0xF2F52010
# linux/magic.h, and the name of the file system's directory below /sys/fs. That of ext4 also serves ext2 and ext3.
_KINDS = {0xEF53: b"ext4", 0x58465342: b"xfs", _BTRFS: b"btrfs", _F2FS: b"f2fs"}
_BTRFS_FS_INFO = ioctl_number(IOC_READ, 0x94, 31, 1024)
_BTRFS_FSID = slice(16, 32)
_FIRST_TIME_NAMESPACE = "time:[4026531834]"  # linux/proc_ns.h
_BOOT_ID = b"sys/kernel/random/boot_id"
_UUID = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_READINGS = 3
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class Volume(NamedTuple):
    """A file system while it is mounted; on btrfs, a subvolume.

    ``boot`` is the id of the boot, ``instance`` the inode number of the superblock's directory in sysfs.
    """

    boot: bytes
    kind: int
    device: int
    fsid: int
    instance: int


def mounted_volume(fd: int) -> Volume | None:
    """The volume of the directory *fd*, if only the kernel changes it; no other volume ever equals it.

    ``None`` for file systems that do not update the ctime with every change, for read-only ones (whose device may be
    changed), and if sysfs or procfs are missing or fake. Raises ``OSError``.
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
    """Wall clock minus time since boot, in nanoseconds; it changes only when the clock is set.

    ``None`` in a time namespace, where the time since boot is not the machine's.
    """
    try:
        if os.readlink("/proc/self/ns/time") != _FIRST_TIME_NAMESPACE:
            return None
    except FileNotFoundError:
        pass  # a kernel without such namespaces
    return min(_read_clocks() for _ in range(_READINGS))[1]


def _read_clocks() -> tuple[int, int]:
    """How far apart the clocks were read at most, and the offset: in between, a busy machine may run others."""
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    now = time.time_ns()
    after = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return after - before, now - after


def xattr_view(fd: int) -> int:
    """A number for what decides which extended attributes this process is shown on the volume of *fd*; 0: unknown.

    Trusted ones are shown to some capabilities in the first user namespace; options of the mounted file system turn
    off those of users and access lists; security modules add one to every inode. It is unknown as well where new
    attributes do not always change the ctime: on f2fs before Linux 6.3. Raises ``OSError``.
    """
    if filesystem_type(fd) == _F2FS:
        return 0
    me = os.readlink(b"/proc/self")  # because _open_real() follows no links
    rights = [line for line in _read_proc(me + b"/status").splitlines() if line.startswith(b"CapEff:")]
    options = _superblock(fd)
    if options is None or not rights:
        return 0
    modules = sorted(key for key in os.listxattr(fd) if key.startswith("security."))
    space = ""
    with suppress(FileNotFoundError):  # a kernel without such namespaces
        space = os.readlink("/proc/self/ns/user")
    return zlib.crc32(repr((rights, space, options, modules)).encode()) or 1


def _device_name(device: int) -> bytes:
    """The kernel's name of a block device, which is also the name of its superblock in sysfs."""
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
    """Whether the superblock is writable, even if the mount through which *fd* was opened is read-only."""
    if not os.fstatvfs(fd).f_flag & os.ST_RDONLY:
        return True
    options = _superblock(fd)
    return options is not None and options.split()[-1].split(b",")[0] == b"rw"


def _superblock(fd: int) -> bytes | None:
    """Type, device and options of the file system of *fd*, as /proc shows them; ``None`` if it does not."""
    me = os.readlink(b"/proc/self")  # because _open_real() follows no links
    number = next(
        (line.split()[1] for line in _read_proc(me + b"/fdinfo/%d" % fd).splitlines() if line.startswith(b"mnt_id:")),
        None,
    )
    for line in _read_proc(me + b"/mountinfo").splitlines():
        mount, _, superblock = line.partition(b" - ")
        if mount.split()[0] == number:
            return superblock
    return None


def _read_proc(path: bytes) -> bytes:
    """Read a file below /proc; empty if /proc is not procfs."""
    fd = _open_real(b"/proc", path, os.O_RDONLY, _PROC)
    if fd is None:
        return b""
    with open(fd, "rb") as file:
        return file.read()


def _open_real(top: bytes, path: bytes, flags: int, kind: int) -> int | None:
    """Open *path* below *top* without following links; ``None`` if its file system is not of this *kind*."""
    here = os.open(top, _DIRECTORY)
    try:
        fd = open_beneath(here, path, flags)
    finally:
        close(here)
    if filesystem_type(fd) == kind:
        return fd
    close(fd)
    return None


__all__ = ["Volume", "clock_offset", "mounted_volume", "xattr_view"]
