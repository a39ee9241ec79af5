"""The requests and answers of the kernel's FUSE protocol 7.31 and later: numbers, flags and structs (linux/fuse.h).

All in native byte order and without padding of the compiler. Only this module knows offsets.
"""

from __future__ import annotations

import struct

MAJOR = 7
LEAST_MINOR = 31
"""Linux 5.2: the first whose INIT has all flags that are used here."""
MINOR = 45
"""The newest minor version that these structs are known to fit."""

ROOT = 1
"""The node number of the root."""

SECONDS_FOREVER = 2**31 - 1
"""How long names and attributes stay valid: nothing ever changes."""

MAX_READ = 1 << 20
"""Bytes that one READ may ask for, and that are read ahead."""
PAGES_PER_READ = MAX_READ // 4096
MAX_WRITE = 4096
MAX_REQUEST = (1 << 16) + (1 << 13)
"""Length in bytes of a buffer for requests: no request of a read-only file system is longer. (The kernel wants at least
8192; an attribute that somebody tries to set has up to 64 KiB.)"""
MAX_NAME = 255

# Requests.
LOOKUP = 1
FORGET = 2
GETATTR = 3
SETATTR = 4
READLINK = 5
SYMLINK = 6
MKNOD = 8
MKDIR = 9
UNLINK = 10
RMDIR = 11
RENAME = 12
LINK = 13
OPEN = 14
READ = 15
WRITE = 16
STATFS = 17
RELEASE = 18
FSYNC = 20
SETXATTR = 21
GETXATTR = 22
LISTXATTR = 23
REMOVEXATTR = 24
FLUSH = 25
INIT = 26
OPENDIR = 27
READDIR = 28
RELEASEDIR = 29
FSYNCDIR = 30
ACCESS = 34
CREATE = 35
INTERRUPT = 36
DESTROY = 38
BATCH_FORGET = 42
FALLOCATE = 43
READDIRPLUS = 44
RENAME2 = 45
COPY_FILE_RANGE = 47
TMPFILE = 51

CHANGING = (
    SETATTR,
    SYMLINK,
    MKNOD,
    MKDIR,
    UNLINK,
    RMDIR,
    RENAME,
    LINK,
    WRITE,
    SETXATTR,
    REMOVEXATTR,
    CREATE,
    FALLOCATE,
    RENAME2,
    COPY_FILE_RANGE,
    TMPFILE,
)
"""Requests that would change something."""

# Notification: the kernel sends again what was read and not answered (Linux 6.9).
NOTIFY_RESEND = 7

# Flags of INIT.
ASYNC_READ = 1 << 0
EXPORT_SUPPORT = 1 << 4
DO_READDIRPLUS = 1 << 13
NO_OPEN_SUPPORT = 1 << 17
PARALLEL_DIROPS = 1 << 18
POSIX_ACL = 1 << 20
MAX_PAGES = 1 << 22
CACHE_SYMLINKS = 1 << 23
NO_OPENDIR_SUPPORT = 1 << 24
EXPLICIT_INVAL_DATA = 1 << 25
INIT_EXT = 1 << 30

# struct fuse_in_header: length, number of the request, unique, node, uid, gid, pid, length of extensions and padding
IN_HEADER = struct.Struct("=2I2Q4I")
_IN_THREAD = struct.Struct("=32xI")
# struct fuse_out_header: length, negative error or number of a notification, unique
OUT_HEADER = struct.Struct("=IiQ")
OUT_SIZE = OUT_HEADER.size

# struct fuse_init_in: major, minor, readahead, flags. Linux 5.17 adds the upper flags and 44 bytes for later.
INIT_IN = struct.Struct("=4I")
# struct fuse_init_out: major, minor, readahead, flags, requests in the background, of which is congestion (two of 16
# bits), largest write, granularity of times in ns, pages of a request, alignment of mappings (16 bits each), upper
# flags, depth of stacking, time-out in seconds (16 bits), unused
INIT_OUT = struct.Struct("=4I2H2I2H2IH22x")

# struct fuse_attr: number, size, blocks of 512 bytes, atime, mtime, ctime in seconds and then their nanoseconds, mode,
# links, uid, gid, device, block size, flags
ATTR = struct.Struct("=6Q10I")
# struct fuse_entry_out without its attr: node, generation, validity of name and attributes in seconds, then the
# nanoseconds of both
ENTRY_HEAD = struct.Struct("=4Q2I")
# struct fuse_entry_out
ENTRY = struct.Struct("=4Q2I6Q10I")
ENTRY_SIZE = ENTRY.size
# Mode and size in the attr of struct fuse_entry_out
_ENTRY_MODE = struct.Struct("=100xI")
_ENTRY_LENGTH = struct.Struct("=48xQ")
_ENTRY_NODE = struct.Struct("=Q")
NO_ENTRY = ENTRY_HEAD.pack(0, 0, SECONDS_FOREVER, 0, 0, 0) + bytes(ATTR.size)
"""The answer for a name that does not exist, and never will."""
NO_NODE = bytes(ENTRY_SIZE)
"""The entry of ``.`` and ``..`` in directory records: the kernel is to keep nothing of it."""
# struct fuse_attr_out without its attr: validity in seconds and nanoseconds, unused
ATTR_HEAD = struct.Struct("=Q2I").pack(SECONDS_FOREVER, 0, 0)

# struct fuse_read_in: file handle, offset, size, flags, lock owner, flags of the open file, unused
READ_IN = struct.Struct("=2Q2IQ2I")
# struct fuse_getxattr_in: size, unused; the name follows, if there is one
GETXATTR_IN = struct.Struct("=2I")
# struct fuse_getxattr_out: size, unused
GETXATTR_OUT = struct.Struct("=2I")
# struct fuse_interrupt_in: unique of the request
INTERRUPT_IN = struct.Struct("=Q")
# struct fuse_dirent: node, offset of the next one, length of the name, type; name and padding to 8 bytes follow
DIRENT = struct.Struct("=2Q2I")
# struct fuse_direntplus without the name
DIRENT_PLUS = struct.Struct(f"={ENTRY_SIZE}s2Q2I")
_NAME_LENGTH = struct.Struct(f"={ENTRY_SIZE}x16xI")
# struct fuse_kstatfs: blocks, free, available, files, free files, block size, length of names, fragment size, spare
STATFS_OUT = struct.Struct("=5Q3I28x")

_PADDING = (b"", *(bytes(8 - length) for length in range(1, 8)))


def padding(length: int) -> bytes:
    """The zeros behind a name of *length* bytes in a directory record."""
    return _PADDING[length & 7]


def length_in(entries: bytes | bytearray, place: int) -> int:
    """The size in bytes of the file whose ``struct fuse_entry_out`` is at *place* of *entries*."""
    length: int = _ENTRY_LENGTH.unpack_from(entries, place)[0]
    return length


def node_in(entries: bytes | bytearray, place: int) -> int:
    """The node whose ``struct fuse_entry_out`` is at *place* of *entries*."""
    node: int = _ENTRY_NODE.unpack_from(entries, place)[0]
    return node


def name_in(records: bytes | bytearray, place: int) -> bytes:
    """The name in the ``struct fuse_direntplus`` at *place* of *records*."""
    start = place + DIRENT_PLUS.size
    return bytes(records[start : start + _NAME_LENGTH.unpack_from(records, place)[0]])


def type_in(entry: bytes) -> int:
    """The type of the node in a ``struct fuse_entry_out``, as directory records have it."""
    mode: int = _ENTRY_MODE.unpack_from(entry)[0]
    return mode >> 12


def thread_in(request: bytes) -> int:
    """The thread that a request is for; 0 for one of another pid namespace."""
    thread: int = _IN_THREAD.unpack_from(request)[0]
    return thread
