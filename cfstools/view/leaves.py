"""Hashes of parts of an object that was found right: what random reads of it are compared with.

They are one level of the Merkle tree: the lowest, a hash for every 4096 bytes, unless that would take too much memory.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from itertools import islice

from cfstools import native
from cfstools.errors import os_error
from cfstools.store.base import Object
from cfstools.threadpool import give_up_if_stopped
from cfstools.verity import MerkleHasher, Params
from cfstools.verity.files import hashed_pieces
from cfstools.verity.merkle import digests_of_zeros

MOST_BYTES = 16 << 20
"""Bytes of hashes that one object may have: objects up to 2 GiB (SHA-256) have a hash for each block."""

_PIECE = 1 << 20


class Leaves:
    """The hashes of an object of *size* bytes, each over ``group`` bytes; the last group may be shorter."""

    def __init__(self, size: int, params: Params) -> None:
        self._params = params
        in_block = params.block_size // params.algorithm.digest_size
        self._level = 0
        self.group = params.block_size
        """Bytes that one hash is over."""
        while -(-size // self.group) * params.algorithm.digest_size > MOST_BYTES:
            self._level += 1
            self.group *= in_block
        self._hashes = bytearray()
        self._pending = bytearray()

    @property
    def held(self) -> int:
        """How many bytes the hashes take."""
        return len(self._hashes)

    def add(self, hashes: bytes) -> None:
        """Append the hashes of further blocks."""
        if not self._level:
            self._hashes += hashes
            return
        self._pending += hashes
        unit = self.group // self._params.block_size * self._params.algorithm.digest_size
        whole = len(self._pending) // unit * unit
        if whole:
            self._hashes += self._raised(bytes(self._pending[:whole]))
            del self._pending[:whole]

    def add_zeros(self, size: int) -> None:
        """Append *size* bytes of zeros, whole blocks."""
        params = self._params
        length, blocks = params.algorithm.digest_size, size // params.block_size
        of_block, of_group = next(digests_of_zeros(params)), next(islice(digests_of_zeros(params), self._level, None))
        in_group = self.group // params.block_size
        first = min(blocks, -(len(self._pending) // length) % in_group)
        self.add(of_block * first)
        groups, rest = divmod(blocks - first, in_group)
        self._hashes += of_group * groups
        self.add(of_block * rest)

    def finish(self) -> None:
        """End with the last group, which may be shorter than the others."""
        if self._pending:
            self._hashes += self._raised(bytes(self._pending))
            self._pending.clear()

    def match(self, start: int, data: bytes | memoryview) -> bool:
        """Whether *data*, whole groups from *start* on, or up to the end, has the hashes that were found."""
        params = self._params
        found = self._raised(native.hash_blocks(params.algorithm.value, data, params.block_size, params.salt_prefix))
        at = start // self.group * params.algorithm.digest_size
        return self._hashes[at : at + len(found)] == found

    def _raised(self, hashes: bytes) -> bytes:
        """The hashes of this level over those of blocks."""
        params = self._params
        for _ in range(self._level):
            hashes = native.hash_blocks(params.algorithm.value, hashes, params.block_size, params.salt_prefix)
        return hashes


def hash_leaves(found: Object, size: int, params: Params, *, threads: int = 1) -> tuple[Leaves, bytes, int]:
    """Read the object *found*, which should have *size* bytes: its leaves, its digest and its length.

    It is read up to its end, or a bit further than *size*. Raises as reading does, InputError.
    """
    leaves, hasher = Leaves(size, params), MerkleHasher(params)
    with closing(_pieces(found, params, threads)) as pieces:
        for hashes, length in pieces:
            if hasher.size + length > size + params.block_size:
                return leaves, b"", hasher.size + length
            if hashes is None:
                leaves.add_zeros(length)
                hasher.update_zeros(length)
            else:
                leaves.add(hashes)
                hasher.update_hashed(hashes, length)
            give_up_if_stopped()
    leaves.finish()
    return leaves, hasher.digest(), hasher.size


def _pieces(found: Object, params: Params, threads: int) -> Generator[tuple[bytes | None, int], None, None]:
    fd = found.fileno()
    if fd is not None:
        try:
            yield from hashed_pieces(fd, params, threads=threads)
        except OSError as error:
            raise os_error(error, "cannot read") from error
        return
    at = 0
    while data := found.read(at, _PIECE):
        yield native.hash_blocks(params.algorithm.value, data, params.block_size, params.salt_prefix), len(data)
        at += len(data)
