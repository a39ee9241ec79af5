"""All limits for input that is read as a stream.

They bound what an input can make the process allocate, write or compute. They are not in the readers' modules so that
options can refer to them without importing the readers.
"""

from __future__ import annotations

from cfstools.values import Value


class DecompressionLimits(Value):
    """Limits of a decompressed stream, in bytes; exceeding one raises :class:`LimitExceeded`.

    The ratio counts only once *ratio_from* bytes have come out: zeros reach 1030:1 in gzip and more in zstd,
    and a file of zeros in an otherwise small layer is legitimate.
    """

    total: int = 64 << 30
    ratio: int = 1000
    ratio_from: int = 1 << 30
    window: int = 64 << 20  # history that the decoder keeps in memory: enough for zstd --ultra -21 and xz -9


class TarLimits(Value):
    """Limits of a tar archive; sizes in bytes. Exceeding one raises ``TarError``."""

    extension: int = 1 << 20  # data of one extended header (PAX records, GNU long names)
    path: int = 4096  # a member's name or a hard link's target
    component: int = 255  # one component of a path, as the kernel's NAME_MAX
    symlink: int = 4095  # a symbolic link's target
    xattr_name: int = 255
    xattr_value: int = 1 << 16
    sparse_extents: int = 1 << 18  # data regions of one sparse file
    holes: int = 64 << 30  # zeros produced for the holes of all sparse files together
    members: int = 1 << 23


# Compressed streams
MAX_GZIP_FIELD = 1 << 16  # file name or comment in a gzip header
XZ_MEMORY_EXTRA = 16 << 20  # what the xz decoder needs besides its window
MAX_LEADING_ZEROS = 1 << 20  # a file with more zeros at its start is no empty archive

# Archives of images
MAX_ARCHIVE_MEMBERS = 1 << 18
MAX_LINK_HOPS = 40  # symbolic links on the way to one file of a layout

# Documents of images: JSON, manifests and indexes
MAX_JSON = 4 << 20
MAX_NESTING = 64
MAX_LAYERS = 1000
MAX_REFERRERS = 32  # artifacts that refer to one image
MAX_MANIFESTS = 1000
MAX_INDEX_DEPTH = 8
MAX_INDEXES = 4096  # all of an image's indexes together, each read once
MAX_INDEX_BYTES = 32 << 20
MAX_ENTRIES = 1 << 16  # on all paths through the indexes
MAX_CANDIDATES = 1 << 14
MAX_LOOKS = 256  # manifests read to tell images from other artifacts
MAX_LOOKED_AT = 32 << 20  # bytes of manifests, and as many of configs, read to tell images apart, each once
MAX_NAMES_COMPARED = 1 << 20  # pairs of a name in index.json and one in manifest.json
