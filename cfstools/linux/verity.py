"""fs-verity of the kernel: measure a file, enable it on a file (Documentation/filesystems/fsverity.rst)."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct

from cfstools.linux.files import IOC_READ, IOC_WRITE, ioctl_number
from cfstools.linux.libc import calls

# struct fsverity_enable_arg: version (4), hash algorithm (4), block size (4), salt size (4), salt pointer (8),
# signature size (4), zero (4), signature pointer (8), zero (88)
_ENABLE_ARG = struct.Struct("=IIIIQI4xQ88x")
# struct fsverity_digest: algorithm (2), digest size (2), followed by the digest
_DIGEST_ARG = struct.Struct("=HH")
_LARGEST_DIGEST = 64

FS_IOC_ENABLE_VERITY = ioctl_number(IOC_WRITE, ord("f"), 133, _ENABLE_ARG.size)
FS_IOC_MEASURE_VERITY = ioctl_number(IOC_READ | IOC_WRITE, ord("f"), 134, _DIGEST_ARG.size)

# Not enabled on this file, or not supported by the file system or the kernel.
_NONE = frozenset({errno.ENODATA, errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS})
# Block devices answer EINVAL to unknown requests.
_NONE_OF_DEVICES = _NONE | {errno.EINVAL}


def measure(fd: int) -> tuple[int, bytes] | None:
    """The hash algorithm number and the digest that the kernel enforces for *fd*; ``None`` if not enabled."""
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
    """Whether kernel and file system support fs-verity for *fd*; for a directory, for the files in it."""
    try:
        fcntl.ioctl(fd, FS_IOC_MEASURE_VERITY, bytearray(_DIGEST_ARG.pack(0, _LARGEST_DIGEST) + bytes(_LARGEST_DIGEST)))
    except OSError as error:
        return error.errno == errno.ENODATA
    return True


def enable(fd: int, algorithm: int, block_size: int, salt: bytes = b"", signature: bytes = b"") -> None:
    """Enable fs-verity on *fd*: the file becomes read-only and the kernel checks every read.

    *fd* must be open for reading, and no descriptor may be open for writing. ``EEXIST``: it is enabled already.
    """
    salt_kept, salt_at = calls().copied(salt)
    signature_kept, signature_at = calls().copied(signature)
    argument = _ENABLE_ARG.pack(1, algorithm, block_size, len(salt), salt_at, len(signature), signature_at)
    fcntl.ioctl(fd, FS_IOC_ENABLE_VERITY, argument)
    del salt_kept, signature_kept
