"""Merkle trees over data in pieces or in memory, and the descriptor over their root, whose hash is a file's digest."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cfstools import native
from cfstools.verity.algorithm import DEFAULT, Hash, Params
from cfstools.verity.object_id import ObjectId

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Digests of a level are collected up to about this many bytes before they are hashed into the next level.
_GATHER = 65536
_ZEROS = bytes(65536)

# struct fsverity_descriptor (linux/fsverity.h), little endian:
#   0 version (1)  1 hash algorithm  2 log2 of the block size  3 salt size  4 zero (4 bytes)
#   8 data size (8)  16 root hash, zero padded (64)  80 salt, zero padded (32)  112 zero (144)
DESCRIPTOR = struct.Struct("<BBBB4xQ64s32s144x")
DESCRIPTOR_SIZE = DESCRIPTOR.size

# struct fsverity_formatted_digest (linux/fsverity.h): magic (8), algorithm (2), digest size (2), digest
_FORMATTED = struct.Struct("<8sHH")


class MerkleHasher:
    """The fs-verity digest of data that arrives in pieces.

    Uses at most the larger of block size and 64 KiB of memory for each level of the tree, for data of any length. Whole
    blocks are hashed in place, without a copy.
    """

    def __init__(self, params: Params = DEFAULT) -> None:
        self._params = params
        self._size = 0
        # Hash of the data block that is not full yet; None between blocks.
        self._partial: Hash | None = None
        # _levels[k]: digests of level k (level 0: of data blocks) that are not hashed into level k + 1 yet.
        self._levels: list[bytearray] = [bytearray()]
        self._flush_size = max(params.block_size, _GATHER)

    @property
    def size(self) -> int:
        """Bytes fed so far."""
        return self._size

    def update(self, data: Buffer) -> None:
        """Append *data*."""
        view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
        params, block_size = self._params, self._params.block_size
        fill = self._size % block_size
        self._size += len(view)
        if self._partial is not None:
            head, view = view[: block_size - fill], view[block_size - fill :]
            self._partial.update(head)
            if fill + len(head) < block_size:
                return
            self._levels[0] += self._partial.digest()
            self._partial = None
        whole = len(view) // block_size * block_size
        if whole:
            self._levels[0] += native.hash_blocks(params.algorithm.value, view[:whole], block_size, params.salt_prefix)
            self._flush()
        if whole < len(view):
            self._partial = params.algorithm.new(params.salt_prefix)
            self._partial.update(view[whole:])

    def update_hashed(self, hashes: bytes, size: int) -> None:
        """Append *size* bytes whose block hashes are given (from ``native.digest_range``).

        All data before must be whole blocks; only the last data may end inside a block.
        """
        self._levels[0] += hashes
        self._size += size
        self._flush()

    def update_zeros(self, size: int) -> None:
        """Append *size* zeros.

        Takes time by the number of levels only: all subtrees over zeros of one depth have the same digest.
        """
        block_size = self._params.block_size
        head = min(size, -self._size % block_size)
        if head:
            self.update(bytes(head))
        tail = (size - head) % block_size
        whole = size - head - tail
        if whole:
            self._size += whole
            self._append_zeros(whole // block_size)
        if tail:
            self.update(bytes(tail))

    def _append_zeros(self, left: int) -> None:
        """Append *left* blocks of zeros after whole blocks, as few and large subtrees as possible."""
        in_block = self._params.block_size // self._params.algorithm.digest_size
        zeros = digests_of_zeros(self._params)
        level = 0
        # Digests that follow the subtrees of the levels above.
        rests: list[tuple[int, bytes]] = []
        while True:
            pending, digest = self._levels[level], next(zeros)
            begun = len(pending) // len(digest) % in_block
            fill = min(left, -begun % in_block)
            pending += digest * fill
            left, rest = divmod(left - fill, in_block)
            if not left:
                pending += digest * rest
                break
            self._flush_level(level)
            rests.append((level, digest * rest))
            level += 1
        for lower, digests in rests:
            self._levels[lower] += digests
        self._flush()

    def digest(self) -> bytes:
        """The digest of the data so far; more data may follow."""
        return file_digest(self._root_hash(), self._size, self._params)

    def _flush(self) -> None:
        """Hash collected digests, whole blocks only, into the levels above."""
        level = 0
        while len(self._levels[level]) >= self._flush_size:
            self._flush_level(level)
            level += 1

    def _flush_level(self, level: int) -> None:
        params, levels = self._params, self._levels
        pending = levels[level]
        whole = len(pending) // params.block_size * params.block_size
        hashes = native.hash_blocks(
            params.algorithm.value, bytes(pending[:whole]), params.block_size, params.salt_prefix
        )
        del pending[:whole]
        if level + 1 == len(levels):
            levels.append(bytearray())
        levels[level + 1] += hashes

    def _root_hash(self) -> bytes:
        params = self._params
        if not self._size:
            return bytes(params.algorithm.digest_size)
        carried = b""
        if self._partial is not None:
            last = self._partial.copy()
            missing = -self._size % params.block_size
            while missing > 0:
                last.update(_ZEROS[:missing])
                missing -= len(_ZEROS)
            carried = last.digest()
        for pending in self._levels[:-1]:
            carried = native.hash_blocks(
                params.algorithm.value, bytes(pending) + carried, params.block_size, params.salt_prefix
            )
        return _reduce(bytes(self._levels[-1]) + carried, params)


def digests_of_zeros(params: Params) -> Iterator[bytes]:
    """The digest of a block of zeros, that of a block of such digests, and so on upwards."""
    digest = native.hash_blocks(params.algorithm.value, bytes(params.block_size), params.block_size, params.salt_prefix)
    while True:
        yield digest
        block = digest * (params.block_size // len(digest))
        digest = native.hash_blocks(params.algorithm.value, block, params.block_size, params.salt_prefix)


def digest_bytes(data: Buffer, params: Params = DEFAULT) -> bytes:
    """The fs-verity digest of *data* (composefs format, section 5.1; empty data as the kernel does)."""
    with memoryview(data) as view:
        size = view.nbytes
        if not size:
            return file_digest(bytes(params.algorithm.digest_size), 0, params)
        hashes = native.hash_blocks(params.algorithm.value, view, params.block_size, params.salt_prefix)
    return file_digest(_reduce(hashes, params), size, params)


def leaves_size(size: int, params: Params) -> int:
    """How many bytes the leaves of *size* bytes have: the digests of their blocks, level 0 of the Merkle tree."""
    return -(-size // params.block_size) * params.algorithm.digest_size


def _reduce(hashes: bytes, params: Params) -> bytes:
    """Hash level after level until one digest is left, the root hash."""
    while len(hashes) > params.algorithm.digest_size:
        hashes = native.hash_blocks(params.algorithm.value, hashes, params.block_size, params.salt_prefix)
    return hashes


def descriptor(root_hash: bytes, data_size: int, params: Params) -> bytes:
    """The 256-byte descriptor of a file of *data_size* bytes whose Merkle tree ends in *root_hash*."""
    return DESCRIPTOR.pack(
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
