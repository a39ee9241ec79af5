"""fs-verity of the kernel: ask a file's digest, seal a file (Documentation/filesystems/fsverity.rst)."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct

from cfstools.linux.ioctl import IOC_READ, IOC_WRITE, ioctl_number

# struct fsverity_enable_arg: version (4), hash algorithm (4), block size (4), salt size (4), salt pointer (8),
# signature size (4), zero (4), signature pointer (8), zero (88)
_ENABLE_ARG = struct.Struct("=IIIIQI4xQ88x")
# struct fsverity_digest: algorithm (2), digest size (2), followed by the digest
_DIGEST_ARG = struct.Struct("=HH")
_LARGEST_DIGEST = 64

FS_IOC_ENABLE_VERITY = ioctl_number(IOC_WRITE, ord("f"), 133, _ENABLE_ARG.size)
FS_IOC_MEASURE_VERITY = ioctl_number(IOC_READ | IOC_WRITE, ord("f"), 134, _DIGEST_ARG.size)

# No fs-verity on this file; or the file system, or the kernel, does not have it.
_NONE = frozenset({errno.ENODATA, errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS})
# What block devices answer to requests that they do not know.
_NONE_OF_DEVICES = _NONE | {errno.EINVAL}


def measure(fd: int) -> tuple[int, bytes] | None:
    """The number of the hash algorithm and the digest that the kernel enforces for *fd*; ``None`` if it does not."""
    argument = bytearray(_DIGEST_ARG.pack(0, _LARGEST_DIGEST) + bytes(_LARGEST_DIGEST))
    try:
        fcntl.ioctl(fd, FS_IOC_MEASURE_VERITY, argument)
    except OSError as error:
        if error.errno in (_NONE_OF_DEVICES if stat.S_ISBLK(os.fstat(fd).st_mode) else _NONE):
            return None
        raise
    algorithm, size = _DIGEST_ARG.unpack_from(argument)
    return algorithm, bytes(argument[_DIGEST_ARG.size : _DIGEST_ARG.size + size])


def offered(fd: int) -> bool:
    """Whether kernel and file system have fs-verity for files like *fd*; a directory answers for those in it."""
    try:
        fcntl.ioctl(fd, FS_IOC_MEASURE_VERITY, bytearray(_DIGEST_ARG.pack(0, _LARGEST_DIGEST) + bytes(_LARGEST_DIGEST)))
    except OSError as error:
        return error.errno == errno.ENODATA
    return True


def enable(fd: int, algorithm: int, block_size: int, salt: bytes = b"", signature: bytes = b"") -> None:
    """Seal the file *fd*: from now on it cannot be written and every read is checked.

    *fd* must be open read-only and nobody may have the file open for writing. ``EEXIST``: it is sealed already.
    """
    salt_buffer = ctypes.create_string_buffer(salt, max(len(salt), 1))
    signature_buffer = ctypes.create_string_buffer(signature, max(len(signature), 1))
    argument = _ENABLE_ARG.pack(
        1,
        algorithm,
        block_size,
        len(salt),
        ctypes.addressof(salt_buffer) if salt else 0,
        len(signature),
        ctypes.addressof(signature_buffer) if signature else 0,
    )
    fcntl.ioctl(fd, FS_IOC_ENABLE_VERITY, argument)
