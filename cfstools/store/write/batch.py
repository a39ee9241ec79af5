"""Digest and write small contents in batches, from files of a directory tree or from memory, in native code.

No errors are reported here: the caller reads each file that the batch did not handle by itself, and reports the error.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cfstools import native
from cfstools.tree.model import Unread
from cfstools.verity import Params
from cfstools.verity.merkle import descriptor

if TYPE_CHECKING:
    from cfstools.native._pure import Digested
    from cfstools.store.directory import DirectoryStore
    from cfstools.store.write.writer import StoreWriter

# Size of the buffer for the contents of a batch, padded to blocks; each thread has one.
ARENA_BYTES = 2 << 20
BATCH_FILES = 1024
SMALL = 1 << 20
"""Larger files, in bytes, are read one at a time."""


class BatchReader:
    """Reads files below the directory *root_fd*, and adds their contents with *writer* if given. Thread-safe."""

    def __init__(self, root_fd: int, writer: StoreWriter | None, params: Params, inline_threshold: int) -> None:
        self._root_fd = root_fd
        self._writer = writer
        self._params = params
        self._descriptor = descriptor(b"", 0, params)
        self._inline_threshold = inline_threshold
        self._local = threading.local()

    def read(self, files: Sequence[Unread]) -> list[Digested]:
        """The results of ``native.digest_files``: ``None`` for files left to the caller. Raises ``StoreError``."""
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
    """Digest non-empty *contents* and look them up in *store* if given.

    Returns a buffer with the contents, and for each (digest, size, offset), or ``None`` if the store's object is
    damaged. Offset -1 means that the store has the object.
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
