"""The fs-verity descriptor, whose hash is a file's digest, and the form in which digests are signed."""

from __future__ import annotations

import struct

from cfstools import native
from cfstools.verity.algorithm import Params
from cfstools.verity.object_id import ObjectId

# struct fsverity_descriptor (linux/fsverity.h), little endian:
#   0 version (1)  1 hash algorithm  2 log2 of the block size  3 salt size  4 zero (4 bytes)
#   8 data size (8)  16 root hash, zero padded (64)  80 salt, zero padded (32)  112 zero (144)
_DESCRIPTOR = struct.Struct("<BBBB4xQ64s32s144x")
DESCRIPTOR_SIZE = _DESCRIPTOR.size

# struct fsverity_formatted_digest (linux/fsverity.h): magic (8), algorithm (2), digest size (2), digest
_FORMATTED = struct.Struct("<8sHH")


def descriptor(root_hash: bytes, data_size: int, params: Params) -> bytes:
    """The 256-byte descriptor of a file of *data_size* bytes whose Merkle tree ends in *root_hash*."""
    return _DESCRIPTOR.pack(
        1,
        params.algorithm.number,
        params.block_size.bit_length() - 1,
        len(params.salt),
        data_size,
        root_hash,
        params.salt,
    )


def file_digest(root_hash: bytes, data_size: int, params: Params) -> bytes:
    """The fs-verity digest: the hash of the descriptor (composefs format, section 5.1)."""
    return native.hash_blocks(params.algorithm.value, descriptor(root_hash, data_size, params), DESCRIPTOR_SIZE, b"")


def formatted_digest(wanted: ObjectId) -> bytes:
    """What the kernel's built-in signatures sign: magic, algorithm and digest (fsverity_formatted_digest)."""
    return _FORMATTED.pack(b"FSVerity", wanted.algorithm.number, len(wanted.digest)) + wanted.digest
