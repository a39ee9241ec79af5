"""Contents of the files in a layer: kept in the inode, written to the store, or only hashed."""

from __future__ import annotations

from collections import deque

from cfstools.formats.tar import Member, TarReader
from cfstools.lifetime import Closable
from cfstools.linux.files import fd_limit
from cfstools.store import INLINE_THRESHOLD, StoreWriter
from cfstools.store.write.batch import digest_many
from cfstools.threadpool import Call, ThreadPool
from cfstools.tree.model import Content, External
from cfstools.verity import MerkleHasher, Params, object_path

SMALL = 1 << 20  # up to this size contents are taken at once
_BATCH = 1 << 20
_BATCH_FILES = 256  # all of them are open at one moment, or an eighth of what a process may have open
_BATCHES_WAITING = 4

_Batch = list[tuple[External, bytes]]


class LayerContents(Closable):
    """Takes the contents of one file after the other; over 64 bytes they go to *writer*, or are only digested by
    *params* when there is none.

    Small contents are hashed and stored in a thread, so that this overlaps with the reading of the layer: the
    :class:`External` given out for them has its digest after :meth:`finish`. At most 5 MiB of contents wait. Leaving
    a ``with`` block drops what still waits; no thread touches the writer afterwards.
    """

    def __init__(self, writer: StoreWriter | None, params: Params) -> None:
        self._writer = writer
        self._params = params
        self._thread = ThreadPool(1, "contents")
        self._waiting: deque[Call[None]] = deque()
        self._batch: _Batch = []
        self._batch_bytes = 0
        self._batch_files = max(1, min(_BATCH_FILES, fd_limit() // 8))

    def close(self) -> None:
        """Drop what still waits; no thread uses the writer afterwards."""
        self._thread.close()

    def __call__(self, reader: TarReader, member: Member) -> Content:
        """Take the contents of one file, which is not empty. Raises ``StoreError``, also for files before this one."""
        size = member.size
        if size <= INLINE_THRESHOLD:
            return reader.read_content(member)
        if size > SMALL:
            return self._stream(reader, member)
        if self._batch_bytes + size > _BATCH:
            self._submit()
        external = External(None, None)
        self._batch.append((external, reader.read_content(member)))
        self._batch_bytes += size
        if self._batch_bytes >= _BATCH or len(self._batch) >= self._batch_files:
            self._submit()
        return external

    def finish(self) -> None:
        """Wait until all contents are where they belong. Raises ``StoreError``."""
        self._submit()
        while self._waiting:
            self._waiting.popleft().result()

    def _submit(self) -> None:
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        if len(self._waiting) == _BATCHES_WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(self._store, batch))

    def _store(self, batch: _Batch) -> None:
        contents = [data for _, data in batch]
        if self._writer is not None:
            digests = self._writer.add_many(contents)
        else:
            digests = [result[0] for result in digest_many(contents, self._params)[1] if result is not None]
        for (external, _), digest in zip(batch, digests, strict=True):
            external.digest, external.payload = digest, object_path(digest)

    def _stream(self, reader: TarReader, member: Member) -> External:
        if self._writer is not None:
            with self._writer.open_stream() as stream:
                for region in reader.iter_regions(member):
                    if isinstance(region, int):
                        stream.write_hole(region)
                    else:
                        stream.write(region)
                digest = stream.finish().digest
        else:
            hasher = MerkleHasher(self._params)
            for region in reader.iter_regions(member):
                if isinstance(region, int):
                    hasher.update_zeros(region)
                else:
                    hasher.update(region)
            digest = hasher.digest()
        return External(digest, object_path(digest))
