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


# Compressed streams
MAX_GZIP_FIELD = 1 << 16  # file name or comment in a gzip header
XZ_MEMORY_EXTRA = 16 << 20  # what the xz decoder needs besides its window
MAX_LEADING_ZEROS = 1 << 20  # a longer file of zeros is not taken for an empty archive

# Archives of images
MAX_ARCHIVE_MEMBERS = 1 << 18
MAX_LINK_HOPS = 40  # symbolic links on the way to one file of a layout

# Documents of images: JSON, manifests and indexes
MAX_JSON = 4 << 20
MAX_NESTING = 64
MAX_LAYERS = 1000
MAX_MANIFESTS = 1000
MAX_INDEX_DEPTH = 8
MAX_INDEXES = 4096  # all of an image's indexes together, each read once
MAX_INDEX_BYTES = 32 << 20
MAX_ENTRIES = 1 << 16  # looked at on all paths through the indexes
MAX_CANDIDATES = 1 << 14
MAX_LOOKS = 256  # manifests read to tell images from other artifacts
MAX_LOOKED_AT = 32 << 20  # bytes of manifests, and as many of configs, read to tell images apart, each once
MAX_NAMES_COMPARED = 1 << 20  # pairs of a name in index.json and one in manifest.json
