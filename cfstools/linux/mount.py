"""Mounting: the file-descriptor API of Linux 5.2, mount(2), umount2(2), and loop devices.

Every function raises plain ``OSError``; its text is what the kernel said about the mount, where it said something.
Paths and values are bytes, and no value may hold a NUL.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import struct
from enum import IntFlag
from types import TracebackType
from typing import NamedTuple, Self

from cfstools.linux.files import close

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
# Longer values are refused by fsconfig(2) before a file system sees them (fs/fsopen.c).
MAX_FSCONFIG_STRING = 255

# linux/unistd.h; these system calls have their numbers on every architecture that matters (all since 5.1 share them).
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_MOUNT_SETATTR = 442

# linux/mount.h
_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_MOVE_MOUNT_F_EMPTY_PATH = 0x04
_MOVE_MOUNT_T_EMPTY_PATH = 0x40
_MOUNT_ATTR_IDMAP = 0x100000
_AT_EMPTY_PATH = 0x1000
_MOUNT_ATTR = struct.Struct("=QQQQ")  # set, clear, propagation, user namespace

# linux/loop.h
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_GET_FREE = 0x4C82
_LO_READ_ONLY_AUTOCLEAR = 1 | 4
_LO_DIRECT_IO = 16
_LOOP_BLOCK_SIZE = 4096
_LOOP_ATTEMPTS = 64
# struct loop_config: fd (4), block size (4), struct loop_info64 (232), zero (64). Of the info only the size limit
# (at 32) and the flags (at 52) are set.
_LOOP_CONFIG = struct.Struct("=II32xQ12xI176x64x")

_MESSAGE_SIZE = 8192
_OCTAL = re.compile(rb"\\([0-7]{3})")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]


class MountFlag(IntFlag):
    """What holds for a whole mount; the numbers are those of mount(2) (``MS_``) and fsmount(2) (``MOUNT_ATTR_``)."""

    READ_ONLY = 1
    NO_SUID = 2
    NO_DEV = 4
    NO_EXEC = 8


class Mounted(NamedTuple):
    """What is mounted somewhere: the type of the file system and its source."""

    kind: bytes
    source: bytes


class FsContext:
    """A mount being configured (fsopen(2)); ``OSError`` with ``ENOSYS`` where the kernel has no such thing."""

    def __init__(self, kind: bytes) -> None:
        self._fd = _syscall(_SYS_FSOPEN, ctypes.c_char_p(kind), ctypes.c_uint(_FSOPEN_CLOEXEC))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        close(self._fd)

    def set_flag(self, key: bytes) -> None:
        """Set an option that has no value."""
        self._configure(_FSCONFIG_SET_FLAG, key, None)

    def set_string(self, key: bytes, value: bytes) -> None:
        """Set an option to *value*, which is taken as it is: nothing is escaped."""
        self._configure(_FSCONFIG_SET_STRING, key, value)

    def mount(self, flags: MountFlag) -> int:
        """Make the file system and a mount of it that has no place yet; returns its descriptor."""
        self._configure(_FSCONFIG_CMD_CREATE, None, None)
        try:
            return _syscall(_SYS_FSMOUNT, ctypes.c_int(self._fd), ctypes.c_uint(_FSMOUNT_CLOEXEC), ctypes.c_uint(flags))
        except OSError as error:
            raise self._told(error) from None

    def _configure(self, command: int, key: bytes | None, value: bytes | None) -> None:
        try:
            _syscall(
                _SYS_FSCONFIG,
                ctypes.c_int(self._fd),
                ctypes.c_uint(command),
                ctypes.c_char_p(key),
                ctypes.c_char_p(value),
                ctypes.c_int(0),
            )
        except OSError as error:
            raise self._told(error) from None

    def _told(self, error: OSError) -> OSError:
        """*error* with what the kernel said about it, if it did."""
        messages = []
        while True:
            try:
                # A letter for the severity and a space stand before the text.
                message = os.read(self._fd, _MESSAGE_SIZE)
            except OSError:
                break
            if message.startswith(b"e "):
                messages.append(os.fsdecode(message[2:].rstrip(b"\n")))
        return OSError(error.errno, "; ".join(messages) or error.strerror)


def move_mount(mount_fd: int, directory_fd: int) -> None:
    """Put the mount *mount_fd* on the directory *directory_fd*."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    _syscall(
        _SYS_MOVE_MOUNT,
        ctypes.c_int(mount_fd),
        ctypes.c_char_p(b""),
        ctypes.c_int(directory_fd),
        ctypes.c_char_p(b""),
        ctypes.c_uint(flags),
    )


def map_ids(mount_fd: int, namespace_fd: int) -> None:
    """Map the owners in the mount *mount_fd*, which has no place yet, as the user namespace *namespace_fd* says."""
    attributes = _MOUNT_ATTR.pack(_MOUNT_ATTR_IDMAP, 0, 0, namespace_fd)
    _syscall(
        _SYS_MOUNT_SETATTR,
        ctypes.c_int(mount_fd),
        ctypes.c_char_p(b""),
        ctypes.c_uint(_AT_EMPTY_PATH),
        attributes,
        ctypes.c_size_t(len(attributes)),
    )


def mount(source: bytes, directory_fd: int, kind: bytes, options: bytes, flags: MountFlag) -> None:
    """Mount with mount(2) on the directory *directory_fd*; needs /proc."""
    if _libc.mount(source, fd_path(directory_fd), kind, flags, options):
        raise _error()


def umount(path: bytes, *, detach: bool = False) -> None:
    """Take the uppermost mount off *path*, which must not be a symbolic link; with *detach* even if it is in use."""
    if _libc.umount2(path, UMOUNT_NOFOLLOW | (MNT_DETACH if detach else 0)):
        raise _error()


def mounted_at(path: bytes, *, dir_fd: int | None = None) -> Mounted | None:
    """What is mounted on *path*, the uppermost of several; ``None`` if it is no mount point.

    A link at the end of *path* is not followed.
    """
    try:
        here = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        above = os.open(b"..", os.O_PATH | os.O_CLOEXEC, dir_fd=here)
        try:
            number, outer = _mount_id(here), _mount_id(above)
        finally:
            close(above)
    finally:
        close(here)
    return None if number == outer else _mount(number)


def _mount_id(fd: int) -> bytes:
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        return next(line.split()[1] for line in file if line.startswith(b"mnt_id:"))


def _mount(number: bytes) -> Mounted | None:
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields = line.split()
            if fields[0] == number:
                # Optional fields stand before a lone hyphen, type and source behind it (proc_pid_mountinfo(5)).
                end = fields.index(b"-", 6)
                return Mounted(fields[end + 1], _unescaped(fields[end + 2]))
    return None


def attach_loop(fd: int, size: int) -> tuple[bytes, int]:
    """Attach the first *size* bytes of the file *fd* to a loop device: read-only, with 4096-byte blocks.

    Returns the path of the device and a descriptor of it. The device is set free when nothing has it open any more,
    so keep the descriptor until it is mounted. Reads bypass the page cache of the file where its file system allows.
    """
    with open("/dev/loop-control", "rb") as control:
        for _ in range(_LOOP_ATTEMPTS):
            path = b"/dev/loop%d" % fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _configure_loop(device, fd, size)
            except OSError as error:
                close(device)
                # Somebody else took the device since we were told that it is free.
                if error.errno != errno.EBUSY:
                    raise
            else:
                return path, device
    raise OSError(errno.EBUSY, "no loop device stays free")


def fd_path(fd: int) -> bytes:
    """A path that leads to what *fd* has open, whatever its names are by now."""
    return b"/proc/self/fd/%d" % fd


def _configure_loop(device: int, fd: int, size: int) -> None:
    flags = _LO_READ_ONLY_AUTOCLEAR
    try:
        fcntl.ioctl(device, _LOOP_CONFIGURE, _LOOP_CONFIG.pack(fd, _LOOP_BLOCK_SIZE, size, flags | _LO_DIRECT_IO))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fcntl.ioctl(device, _LOOP_CONFIGURE, _LOOP_CONFIG.pack(fd, _LOOP_BLOCK_SIZE, size, flags))


def _syscall(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise _error()
    return result


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def _unescaped(text: bytes) -> bytes:
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), text)
