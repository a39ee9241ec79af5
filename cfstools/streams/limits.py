"""The limits of everything that is read as a stream, in one table.

They bound what an input can make us allocate, write or compute. Apart from the readers, so that command lines and
options can name them without loading those.
"""

from __future__ import annotations

from typing import NamedTuple


class DecompressionLimits(NamedTuple):
    """What a compressed stream may grow to, in bytes; beyond one of them is a :class:`LimitExceeded`.

    The ratio counts only once *ratio_from* bytes have come out: zeros reach 1030:1 in gzip and more in zstd,
    and a file of zeros in an otherwise small layer is legitimate.
    """

    total: int = 64 << 30
    ratio: int = 1000
    ratio_from: int = 1 << 30
    window: int = 64 << 20  # history the decoder must keep in memory: what zstd --ultra -21 and xz -9 need


class TarLimits(NamedTuple):
    """Named maxima of what an archive may ask for; sizes in bytes. Beyond one of them is a ``TarError``."""

    extension: int = 1 << 20  # data of one extended header (PAX records, GNU long names)
    path: int = 4096  # a member's name or a hard link's target
    component: int = 255  # one component of a path, as the kernel's NAME_MAX
    symlink: int = 4095  # a symbolic link's target
    xattr_name: int = 255
    xattr_value: int = 1 << 16
    sparse_extents: int = 1 << 18  # data regions of one sparse file
    holes: int = 64 << 30  # zeros made up for the holes of all sparse files together
    members: int = 1 << 23
