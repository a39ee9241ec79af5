"""Small contents, a batch at a time: files of a directory tree, or what is in memory, by the native functions.

Nothing here reports what is wrong with a file. A file that is not done in the batch is left to the caller, which
reads it by itself and then meets, and names, whatever kept it from being done here.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cfstools import native
from cfstools.tree.model import Unread
from cfstools.verity import Params
from cfstools.verity.descriptor import descriptor

if TYPE_CHECKING:
    from cfstools.native._pure import Digested
    from cfstools.store.directory import DirectoryStore
    from cfstools.store.writer import StoreWriter

# Contents of one batch that are in memory at a time, padded to blocks; one such arena for each thread.
ARENA_BYTES = 2 << 20
BATCH_FILES = 1024
SMALL = 1 << 20
"""Larger files, in bytes, are read one at a time."""


class BatchReader:
    """Reads files below the directory *root_fd*, and adds their contents with *writer* if there is one.

    Used from several threads.
    """

    def __init__(self, root_fd: int, writer: StoreWriter | None, params: Params, inline_threshold: int) -> None:
        self._root_fd = root_fd
        self._writer = writer
        self._params = params
        self._descriptor = descriptor(b"", 0, params)
        self._inline_threshold = inline_threshold
        self._local = threading.local()

    def read(self, files: Sequence[Unread]) -> list[Digested]:
        """What ``native.digest_files`` says: ``None`` for files left to the caller. Raises ``StoreError``."""
        arena = self._arena()
        params = self._params
        store = self._writer.lookup if self._writer is not None else None
        found = native.digest_files(
            self._root_fd,
            [(file.path, file.stamp) for file in files],
            arena,
            params.algorithm.value,
            params.block_size,
            params.salt_prefix,
            self._descriptor,
            self._inline_threshold,
            store.fd if store else -1,
            store.prefix_fds if store else b"",
        )
        if self._writer is not None:
            self._writer.add_hashed(arena, [result for result in found if isinstance(result, tuple)])
        return found

    def _arena(self) -> bytearray:
        arena: bytearray | None = getattr(self._local, "arena", None)
        if arena is None:
            arena = self._local.arena = bytearray(ARENA_BYTES)
        return arena


def digest_many(
    contents: Sequence[bytes], params: Params, store: DirectoryStore | None = None
) -> tuple[bytearray, list[tuple[bytes, int, int] | None]]:
    """Digest contents together, which are not empty; with *store* see whether they are objects of it.

    Returns an arena they lie in, and for each of them digest, size and offset, which is -1 for whole objects; ``None``
    in place of that where the object is damaged.
    """
    block = params.block_size
    spans = []
    end = 0
    for data in contents:
        spans.append((end, len(data)))
        end += -(-len(data) // block) * block
    arena = bytearray(end)
    for (offset, size), data in zip(spans, contents, strict=True):
        arena[offset : offset + size] = data
    found = native.digest_spans(
        arena,
        spans,
        params.algorithm.value,
        block,
        params.salt_prefix,
        descriptor(b"", 0, params),
        store.fd if store else -1,
        store.prefix_fds if store else b"",
    )
    return arena, [one if isinstance(one, tuple) else None for one in found]
