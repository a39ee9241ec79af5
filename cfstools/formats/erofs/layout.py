"""Constants and records of a composefs image (composefs format, sections 1 to 4); nothing else is here.

All integers are little-endian. Offsets in comments are bytes from the record's start. Every number in this
file decides bytes of the image, hence its digest: changing one changes every image.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

BLOCK_BITS = 12
BLOCK_SIZE = 1 << BLOCK_BITS
SLOT_SIZE = 32  # inodes start at multiples of this; nid = offset / SLOT_SIZE

HEADER_OFFSET = 0
SUPERBLOCK_OFFSET = 1024
FIRST_INODE_OFFSET = 1152

COMPOSEFS_MAGIC = 0xD078629A
COMPOSEFS_HEADER_VERSION = 1
HEADER_FLAG_HAS_ACL = 1
MAX_COMPOSEFS_VERSION = 1

EROFS_MAGIC = 0xE0F5E1E2
FEATURE_COMPAT_MTIME = 2
FEATURE_COMPAT_XATTR_FILTER = 4
FEATURE_COMPAT = FEATURE_COMPAT_MTIME | FEATURE_COMPAT_XATTR_FILTER

CHUNK_BITS_MAX = BLOCK_BITS + 31
CHUNK_ENTRIES_MAX = 1024
CHUNK_FORMAT_BITS_MASK = 0x1F
CHUNK_HOLE = b"\xff\xff\xff\xff"

NAME_MAX = 255
SYMLINK_MAX = 4095
PAYLOAD_MAX = 4095
INLINE_MAX = 5000  # largest inline content any input may ask for
TAIL_MAX = BLOCK_SIZE // 2  # a longer remainder takes a whole block

XATTR_KEY_MAX = 255
XATTR_SPACE_MAX = 32767
XATTR_SHARED_MAX = 128  # shared references per inode
XATTR_FILTER_SEED = 0x25BBE08F
XATTR_HEADER_SIZE = 12
XATTR_UNIT = 4

# overlayfs metacopy header: version 0, length of header and digest, flags 0, number of the algorithm
METACOPY = struct.Struct("BBBB")


class DataLayout(IntEnum):
    """How an inode's data is stored (bits 1 to 3 of ``i_format``)."""

    PLAIN = 0
    INLINE = 2
    CHUNK = 4


class FileType(IntEnum):
    """The file type byte of a dirent."""

    REGULAR = 1
    DIRECTORY = 2
    CHARACTER = 3
    BLOCK = 4
    FIFO = 5
    SOCKET = 6
    SYMLINK = 7


# File type byte by the type bits of a mode, shifted right by 12.
FILE_TYPE_OF_MODE = {
    0o10: FileType.REGULAR,
    0o04: FileType.DIRECTORY,
    0o02: FileType.CHARACTER,
    0o06: FileType.BLOCK,
    0o01: FileType.FIFO,
    0o14: FileType.SOCKET,
    0o12: FileType.SYMLINK,
}


class XattrIndex(IntEnum):
    """The name prefix byte of an xattr entry."""

    NONE = 0
    USER = 1
    ACL_ACCESS = 2
    ACL_DEFAULT = 3
    TRUSTED = 4
    LUSTRE = 5
    SECURITY = 6


XATTR_PREFIXES = {
    XattrIndex.NONE: b"",
    XattrIndex.USER: b"user.",
    XattrIndex.ACL_ACCESS: b"system.posix_acl_access",
    XattrIndex.ACL_DEFAULT: b"system.posix_acl_default",
    XattrIndex.TRUSTED: b"trusted.",
    XattrIndex.LUSTRE: b"lustre.",
    XattrIndex.SECURITY: b"security.",
}


class ComposefsHeader(NamedTuple):
    """The first 32 bytes of an image."""

    magic: int  # 0, u32
    header_version: int  # 4, u32
    flags: int  # 8, u32
    composefs_version: int  # 12, u32; then 16 zero bytes


COMPOSEFS_HEADER = struct.Struct("<IIII16x")


class Superblock(NamedTuple):
    """The EROFS superblock at offset 1024; the fields composefs leaves zero at its end are skipped."""

    magic: int  # 0, u32
    checksum: int  # 4, u32
    feature_compat: int  # 8, u32
    block_bits: int  # 12, u8
    ext_slots: int  # 13, u8
    root_nid: int  # 14, u16
    inode_count: int  # 16, u64
    build_time_sec: int  # 24, i64
    build_time_nsec: int  # 32, u32
    blocks: int  # 36, u32
    meta_block: int  # 40, u32
    xattr_block: int  # 44, u32
    uuid: bytes  # 48, 16 bytes
    volume_name: bytes  # 64, 16 bytes
    feature_incompat: int  # 80, u32; then 44 bytes


SUPERBLOCK = struct.Struct("<IIIBBHQqIIII16s16sI44x")


class CompactInode(NamedTuple):
    """An inode of 32 bytes; its mtime is the superblock's build time."""

    format: int  # 0, u16
    xattr_count: int  # 2, u16
    mode: int  # 4, u16
    nlink: int  # 6, u16
    size: int  # 8, u32; then 4 reserved bytes
    union: int  # 16, u32: first data block, device number or chunk format
    ino: int  # 20, u32
    uid: int  # 24, u16
    gid: int  # 26, u16; then 4 reserved bytes


COMPACT_INODE = struct.Struct("<HHHHI4xIIHH4x")


class ExtendedInode(NamedTuple):
    """An inode of 64 bytes."""

    format: int  # 0, u16
    xattr_count: int  # 2, u16
    mode: int  # 4, u16; then 2 reserved bytes
    size: int  # 8, u64
    union: int  # 16, u32
    ino: int  # 20, u32
    uid: int  # 24, u32
    gid: int  # 28, u32
    mtime_sec: int  # 32, i64
    mtime_nsec: int  # 40, u32
    nlink: int  # 44, u32; then 16 reserved bytes


EXTENDED_INODE = struct.Struct("<HHH2xQIIIIqII16x")


# One of the 12-byte records at the start of a directory block: nid (0, u64), offset of the name from the start of that
# block (8, u16), file type (10, u8).
DIRENT = struct.Struct("<QHBx")


# The start of an inode's xattr area: name filter (0, u32), count of shared ids (4, u8), 7 reserved bytes; shared
# ids (u32 each) and inline entries follow.
XATTR_HEADER = struct.Struct("<IB7x")


# The start of an xattr entry: length of the name (0, u8), an XattrIndex (1, u8), length of the value (2, u16); name and
# value follow, zero padded to a multiple of 4.
XATTR_ENTRY = struct.Struct("<BBH")
