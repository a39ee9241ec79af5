"""The bytes of a tar header block: records, field offsets, type flags (docs/oci.md, "Headers of tar archives")."""

from __future__ import annotations

from enum import Enum
from struct import Struct
from typing import NamedTuple

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)

# The part that all formats share. It skips 64 bytes of user and group name: owners are taken from the numbers.
HEADER = Struct("100s8s8s8s12s12s8sc100s8s64x8s8s155s12s")
# Two halves of a block, each small enough that one Adler-32 gives its exact byte sum.
HALVES = Struct("256s256s")


class Header(NamedTuple):
    """One header block as stored, all fields raw."""

    name: bytes  # 0
    mode: bytes  # 100
    uid: bytes  # 108
    gid: bytes  # 116
    size: bytes  # 124
    mtime: bytes  # 136
    checksum: bytes  # 148
    typeflag: bytes  # 156
    linkname: bytes  # 157
    magic: bytes  # 257, magic and version
    devmajor: bytes  # 329
    devminor: bytes  # 337
    prefix: bytes  # 345
    tail: bytes  # 500


NUMBER_FIELDS = ("mode", "uid", "gid", "size", "mtime", "checksum")

MAGIC_USTAR = b"ustar\0"  # POSIX; the version that follows is ignored
MAGIC_GNU = b"ustar  \0"
TAIL_STAR = b"tar\0"  # in the last four bytes: the prefix is 131 bytes, then access and change time
STAR_PREFIX = 131
NO_PREFIX = bytes(155)
GNU_TIMES = 24  # access and change time at the start of the field

# Old GNU sparse files: four pairs of 12-byte numbers in the header block, 21 in each block that follows.
SPARSE_PAIR = 24
SPARSE_OFFSET, SPARSE_COUNT, SPARSE_MORE, SPARSE_REAL_SIZE = 386, 4, 482, 483
SPARSE_BLOCK_COUNT, SPARSE_BLOCK_MORE = 21, 504


class MemberType(Enum):
    """What a member is; the value is its POSIX type flag."""

    FILE = b"0"
    HARDLINK = b"1"
    SYMLINK = b"2"
    CHAR = b"3"
    BLOCK = b"4"
    DIR = b"5"
    FIFO = b"6"


PAX_LOCAL, PAX_GLOBAL, GNU_LONG_NAME, GNU_LONG_LINK = b"x", b"g", b"L", b"K"
EXTENSION_NAMES = {
    PAX_LOCAL: "PAX extended header",
    PAX_GLOBAL: "PAX global header",
    GNU_LONG_NAME: "GNU long name",
    GNU_LONG_LINK: "GNU long link",
}
EXTENSIONS = frozenset(EXTENSION_NAMES)
OLD_FILE = b"\0"
OLD_SPARSE = b"S"

# NUL is what tar wrote before POSIX, 7 asks for contiguous blocks, S is an old GNU sparse file.
TYPES = {kind.value: kind for kind in MemberType} | {
    OLD_FILE: MemberType.FILE,
    b"7": MemberType.FILE,
    OLD_SPARSE: MemberType.FILE,
}
UNKNOWN_NAMES = {
    b"D": "GNU directory listing",
    b"M": "GNU continuation of a multi-volume file",
    b"N": "old GNU long name",
    b"V": "GNU volume label",
    b"X": "Solaris extended header",
}
