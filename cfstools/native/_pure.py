"""The hot loops in Python: what they mean, and what runs where the C copy was not built."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

_ZEROS = bytes(65536)


def hash_blocks(algorithm: str, data: Buffer, block_size: int, salt_prefix: bytes) -> bytes:
    """Digests of each *block_size* block of *data*, one after another; the last block is zero padded.

    ``salt_prefix`` (already padded, or empty) goes before each block. No data gives no digest. ``data`` must be
    contiguous, else ``BufferError``.
    """
    view = memoryview(data)
    if not view.c_contiguous:
        raise BufferError("data to hash is not contiguous")
    if not view.nbytes:
        return b""
    if view.format != "B" or view.ndim != 1:
        view = view.cast("B")
    start = hashlib.new(algorithm, salt_prefix).copy
    whole = len(view) // block_size * block_size
    digests = []
    for offset in range(0, whole, block_size):
        block = start()
        block.update(view[offset : offset + block_size])
        digests.append(block.digest())
    if whole < len(view):
        block = start()
        block.update(view[whole:])
        missing = block_size - (len(view) - whole)
        while missing > 0:
            block.update(_ZEROS[:missing])
            missing -= len(_ZEROS)
        digests.append(block.digest())
    return b"".join(digests)
