"""Mounting: the file-descriptor API of Linux 5.2, mount(2), umount2(2), what is mounted, and loop devices.

Functions raise plain ``OSError``, with the kernel's message about the mount if there is one. Paths and values are bytes
without NUL.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import struct
from collections.abc import Iterator
from enum import IntFlag
from typing import NamedTuple

from cfstools.lifetime import Closable
from cfstools.linux.files import close

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
# fsconfig(2) refuses longer values (fs/fsopen.c).
MAX_FSCONFIG_STRING = 255

# linux/unistd.h; these system calls have their numbers on every architecture that matters (all since 5.1 share them).
_SYS_OPEN_TREE = 428
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
_FSCONFIG_SET_FD = 5
_FSCONFIG_CMD_CREATE = 6
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 0x04
_MOVE_MOUNT_T_EMPTY_PATH = 0x40
_MOUNT_ATTR_IDMAP = 0x100000
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_MS_NOATIME = 1 << 10
_MS_PRIVATE = 1 << 18
_MS_SLAVE = 1 << 19
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
    """Flags of a mount, with the numbers of fsmount(2) (``MOUNT_ATTR_``)."""

    READ_ONLY = 1
    NO_SUID = 2
    NO_DEV = 4
    NO_EXEC = 8
    NO_ATIME = 16


class Mounted(NamedTuple):
    """A mounted file system: its type and source."""

    kind: bytes
    source: bytes


class MountPoint(NamedTuple):
    """A line of /proc/PID/mountinfo: *number* and that of the mount *below*; *point* is where it is mounted.

    ``device`` is that of the file system (``st_dev``), ``root`` the path in it that is mounted.
    """

    number: int
    below: int
    device: int
    root: bytes
    point: bytes
    mounted: Mounted


class FsContext(Closable):
    """A mount being configured (fsopen(2)). Raises ``OSError`` with ``ENOSYS`` if the kernel lacks the call."""

    def __init__(self, kind: bytes) -> None:
        self._fd = _syscall(_SYS_FSOPEN, ctypes.c_char_p(kind), ctypes.c_uint(_FSOPEN_CLOEXEC))

    def close(self) -> None:
        """Close the context. Closing twice is allowed."""
        if self._fd >= 0:
            close(self._fd)
            self._fd = -1

    def set_flag(self, key: bytes) -> None:
        """Set an option without a value."""
        self._configure(_FSCONFIG_SET_FLAG, key, None)

    def set_string(self, key: bytes, value: bytes) -> None:
        """Set an option to *value*, without any escaping."""
        self._configure(_FSCONFIG_SET_STRING, key, value)

    def set_fd(self, key: bytes, fd: int) -> None:
        """Set an option to the open file *fd*, which may be an ``O_PATH`` descriptor or a detached mount."""
        self._configure(_FSCONFIG_SET_FD, key, None, fd)

    def create(self) -> None:
        """Create the file system, without a mount of it."""
        self._configure(_FSCONFIG_CMD_CREATE, None, None)

    def mount(self, flags: MountFlag) -> int:
        """Create the file system and a detached mount of it, which vanishes with its last descriptor; return one."""
        self.create()
        try:
            return _syscall(_SYS_FSMOUNT, ctypes.c_int(self._fd), ctypes.c_uint(_FSMOUNT_CLOEXEC), ctypes.c_uint(flags))
        except OSError as error:
            raise self._told(error) from None

    def _configure(self, command: int, key: bytes | None, value: bytes | None, fd: int = 0) -> None:
        try:
            _syscall(
                _SYS_FSCONFIG,
                ctypes.c_int(self._fd),
                ctypes.c_uint(command),
                ctypes.c_char_p(key),
                ctypes.c_char_p(value),
                ctypes.c_int(fd),
            )
        except OSError as error:
            raise self._told(error) from None

    def _told(self, error: OSError) -> OSError:
        """*error* with the kernel's messages, if any."""
        messages = []
        while True:
            try:
                # A message starts with a letter for its severity and a space.
                message = os.read(self._fd, _MESSAGE_SIZE)
            except OSError:
                break
            if message.startswith(b"e "):
                messages.append(os.fsdecode(message[2:].rstrip(b"\n")))
        return OSError(error.errno, "; ".join(messages) or error.strerror)


def move_mount(mount_fd: int, directory_fd: int) -> None:
    """Attach the mount *mount_fd* to the directory *directory_fd*."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    _syscall(
        _SYS_MOVE_MOUNT,
        ctypes.c_int(mount_fd),
        ctypes.c_char_p(b""),
        ctypes.c_int(directory_fd),
        ctypes.c_char_p(b""),
        ctypes.c_uint(flags),
    )


def clone_mount(fd: int) -> int:
    """A detached copy of the mount at the file or directory *fd*, with all mounts below it, as its descriptor.

    What of it is above *fd* is not part of the copy.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH | _AT_RECURSIVE
    return _syscall(_SYS_OPEN_TREE, ctypes.c_int(fd), ctypes.c_char_p(b""), ctypes.c_uint(flags))


def map_ids(mount_fd: int, namespace_fd: int) -> None:
    """Map the owners in the detached mount *mount_fd* by the user namespace *namespace_fd*."""
    _set_attributes(mount_fd, _AT_EMPTY_PATH, _MOUNT_ATTR.pack(_MOUNT_ATTR_IDMAP, 0, 0, namespace_fd))


def receive_only(directory_fd: int) -> None:
    """Let the mount of *directory_fd* and those below it receive new mounts from others, and pass none on."""
    _set_attributes(directory_fd, _AT_EMPTY_PATH | _AT_RECURSIVE, _MOUNT_ATTR.pack(0, 0, _MS_SLAVE, 0))


def keep_private(directory_fd: int) -> None:
    """Let the mount of *directory_fd* and those below it neither receive new mounts nor pass any on."""
    _set_attributes(directory_fd, _AT_EMPTY_PATH | _AT_RECURSIVE, _MOUNT_ATTR.pack(0, 0, _MS_PRIVATE, 0))


def _set_attributes(fd: int, flags: int, attributes: bytes) -> None:
    _syscall(
        _SYS_MOUNT_SETATTR,
        ctypes.c_int(fd),
        ctypes.c_char_p(b""),
        ctypes.c_uint(flags),
        attributes,
        ctypes.c_size_t(len(attributes)),
    )


def mount(source: bytes, directory_fd: int, kind: bytes, options: bytes, flags: MountFlag) -> None:
    """Mount with mount(2) on the directory *directory_fd*. Needs /proc."""
    # All but one are the same for mount(2).
    own = flags & ~MountFlag.NO_ATIME | (_MS_NOATIME if flags & MountFlag.NO_ATIME else 0)
    if _libc.mount(source, fd_path(directory_fd), kind, own, options):
        raise _error()


def umount(path: bytes, *, detach: bool = False) -> None:
    """Unmount the topmost mount at *path*, which must not be a symbolic link; with *detach* even if in use."""
    if _libc.umount2(path, UMOUNT_NOFOLLOW | (MNT_DETACH if detach else 0)):
        raise _error()


def mounted_at(path: bytes, *, dir_fd: int | None = None) -> Mounted | None:
    """The topmost mount at *path*; ``None`` if it is not a mount point. A link at its end is not followed."""
    try:
        here = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        above = os.open(b"..", os.O_PATH | os.O_CLOEXEC, dir_fd=here)
        try:
            number, outer = mount_id(here), mount_id(above)
        finally:
            close(above)
    finally:
        close(here)
    return None if number == outer else next((one.mounted for one in mounts() if one.number == number), None)


def mounts(pid: int | None = None) -> Iterator[MountPoint]:
    """Yield what is mounted in the namespace of the process *pid* (``None``: this one) and below its root directory.

    In the order of mounting: of several mounts at one path the last one is visible.
    """
    with open(f"/proc/{'self' if pid is None else pid}/mountinfo", "rb") as file:
        for line in file:
            fields = line.split(b" ")
            # Optional fields end with a hyphen; type and source follow (proc_pid_mountinfo(5)).
            end = fields.index(b"-", 6)
            device = os.makedev(*map(int, fields[2].split(b":")))
            mounted = Mounted(_unescaped(fields[end + 1]), _unescaped(fields[end + 2]))
            root, point = _unescaped(fields[3]), _unescaped(fields[4])
            yield MountPoint(int(fields[0]), int(fields[1]), device, root, point, mounted)


def mount_id(fd: int) -> int:
    """The number of the mount that the file *fd* is in, which the mount keeps when it is moved. Needs /proc."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(b"mnt_id:"))


def attach_loop(fd: int, size: int) -> tuple[bytes, int]:
    """Attach the first *size* bytes of the file *fd* to a loop device: read-only, with 4096-byte blocks.

    Returns the path of the device and a descriptor. The kernel detaches the device when it is closed everywhere, so
    keep the descriptor until it is mounted. Reads bypass the page cache of the file if its file system supports that.
    """
    with open("/dev/loop-control", "rb") as control:
        for _ in range(_LOOP_ATTEMPTS):
            path = b"/dev/loop%d" % fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _configure_loop(device, fd, size)
            except OSError as error:
                close(device)
                # Another process took the free device first.
                if error.errno != errno.EBUSY:
                    raise
            else:
                return path, device
    raise OSError(errno.EBUSY, "no loop device stays free")


def fd_path(fd: int) -> bytes:
    """A path to the file that *fd* has open, whatever its names are."""
    return b"/proc/self/fd/%d" % fd


def source_path(fd: int) -> bytes:
    """As :func:`fd_path`, for the list of mounts: whoever looks up ``self`` from there finds a file of its own."""
    return b"/proc/%b/fd/%d" % (os.readlink(b"/proc/self"), fd)


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
