"""Adding objects to a store: from bytes, files and streams, each read once where possible."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from cfstools.errors import InputError, os_error
from cfstools.lifetime import Closable
from cfstools.linux import files
from cfstools.progress import SILENT, Stage
from cfstools.store.base import FsVerity, Store, Sync, store_error
from cfstools.store.directory import DirectoryStore
from cfstools.store.locking import PATIENT, Waiting
from cfstools.store.write.batch import digest_many
from cfstools.store.write.publisher import Publisher, StoredObject, StoreReport
from cfstools.store.write.scratch import Scratch, Temporary
from cfstools.store.write.stream import SMALL, ObjectStream, add_small
from cfstools.verity import DEFAULT, Params
from cfstools.verity.files import CopyFailed, hash_fd

if TYPE_CHECKING:
    from typing_extensions import Buffer

BATCH_FILES = 3000
BATCH_BYTES = 256 << 20


class StoreWriter(Closable):
    """Adds objects to *store*; thread-safe.

    Objects that one of *others* has are not added again; an object there whose length differs counts as missing.
    ``deferred`` publishes nothing before :meth:`commit`, which may then select objects. *sync* says how objects are
    made durable. The end of a ``with`` block commits (unless ``deferred``); an exception drops unpublished objects.
    All these stores stay locked (shared) until :meth:`close`, so that no process removes objects meanwhile; *waiting*
    says how long to wait for one that does. All methods raise ``StoreError`` for errors of the store and ``InputError``
    for errors of the contents.
    """

    def __init__(
        self,
        store: DirectoryStore,
        *,
        params: Params = DEFAULT,
        others: Sequence[Store] = (),
        batch_files: int = BATCH_FILES,
        batch_bytes: int = BATCH_BYTES,
        object_mode: int = 0o644,
        fs_verity: FsVerity = "off",
        deferred: bool = False,
        sync: Sync = "batch",
        waiting: Waiting = PATIENT,
    ) -> None:
        self.store = store
        self.params = params
        self._deferred = deferred
        # Whether reflinks work from a device to the store's file system.
        self._clones: dict[int, bool] = {}
        scratch = Scratch(store, named=deferred, mode=object_mode, fs_verity=fs_verity, params=params)
        self._publisher = Publisher(
            store,
            others,
            scratch,
            batch_files=batch_files,
            batch_bytes=batch_bytes,
            deferred=deferred,
            sync=sync,
            waiting=waiting,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and not self._deferred:
                self.commit()
        finally:
            super().__exit__(kind, error, trace)

    @property
    def report(self) -> StoreReport:
        """The totals so far; objects count as new once they are published."""
        return self._publisher.report

    def add_bytes(self, data: Buffer) -> StoredObject:
        """Add *data*."""
        return add_small(self._publisher, data, self.params)

    def add_many(self, contents: Sequence[bytes]) -> list[bytes]:
        """Add non-empty contents, about a megabyte in all; return their digests."""
        params = self.params
        arena, results = digest_many(contents, params, self.store)
        self.add_hashed(arena, [result for result in results if result is not None])
        # The rest have a damaged object in the store: add_bytes() raises the error.
        return [
            result[0] if result is not None else self.add_bytes(data).digest
            for result, data in zip(results, contents, strict=True)
        ]

    def count_shared(self, objects: int, size: int) -> None:
        """Count *objects* with *size* bytes in all as found in the store."""
        self._publisher.count_many_shared(objects, size)

    @property
    def lookup(self) -> DirectoryStore:
        """The store in which objects must be looked up before :meth:`add_hashed`."""
        return self.store

    def add_hashed(self, arena: bytearray, objects: Sequence[tuple[bytes, int, int]]) -> None:
        """Add many small contents that lie in *arena*, given as (digest, size, offset).

        Offset -1 means that the store has the object. The digests are trusted.
        """
        publisher = self._publisher
        shared = [size for _, size, offset in objects if offset < 0]
        missing: dict[bytes, tuple[int, int]] = {}
        for digest, size, offset in objects:
            if offset >= 0:
                if digest in missing or publisher.seen_elsewhere(digest, size):
                    shared.append(size)
                else:
                    missing[digest] = (offset, size)
        publisher.count_many_shared(len(shared), sum(shared))
        if not missing:
            return
        written = publisher.write_many(arena, list(missing.values()))
        digests = list(missing)
        publisher.accept_many(dict(zip(digests, written, strict=False)))
        # Fall back for what could not be written in the batch: write it, or raise the error, one at a time.
        with memoryview(arena) as view:
            for digest in digests[len(written) :]:
                offset, size = missing[digest]
                add_small(publisher, view[offset : offset + size], self.params)

    def add_fd(self, fd: int, *, threads: int = 1, progress: Stage = SILENT) -> StoredObject:
        """Add the contents of *fd*: a regular file from its start, anything else from the current position.

        A large regular file is reflinked if the file systems allow it. Else it is read once, or twice (hashed, then
        copied) if most contents so far were already in the store. The result describes what was stored, even if the
        file changed meanwhile. A large file is hashed by *threads* threads. ``progress`` is advanced in bytes.
        """
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return self._copy(fd, progress, seekable=False)
            if status.st_size > SMALL:
                return self._add_large(fd, status, threads, progress)
            data = os.pread(fd, status.st_size + 1, 0)
        except OSError as error:
            raise os_error(error, "cannot read") from error
        if len(data) == status.st_size:
            progress.advance(len(data))
            return self.add_bytes(data)
        # A short read, or another length than stat(2) said: read until the end.
        return self._copy(fd, progress, seekable=True)

    def add_unnamed(self, fd: int, size: int, digest: bytes) -> StoredObject:
        """Add the file without a name *fd*, made with ``open_tmpfile`` in the store; takes over the descriptor.

        It has *size* bytes, and its *digest* is trusted. No other descriptor may be able to write to it.
        """
        temporary = Temporary(fd, None)
        temporary.size = size
        return self._publisher.accept(temporary, digest)

    def open_stream(self) -> ObjectStream:
        """Add contents that arrive in pieces."""
        return ObjectStream(self._publisher, self.params)

    def _add_large(self, fd: int, status: os.stat_result, threads: int, progress: Stage) -> StoredObject:
        cloned = self._clone(fd, status.st_dev)
        if cloned is not None:
            return self._add_temporary(cloned, cloned.fd, -1, threads, progress)
        if self._publisher.expects_shared():
            digest, size = hash_fd(fd, self.params, threads=threads, progress=progress)
            if self._publisher.seen(digest, size):
                return self._publisher.count_shared(digest, size)
            progress = SILENT
        temporary = self._publisher.create()
        return self._add_temporary(temporary, fd, temporary.fd, threads, progress)

    def _add_temporary(
        self, temporary: Temporary, fd: int, copy_fd: int, threads: int, progress: Stage
    ) -> StoredObject:
        """Hash *fd*, copying it to *copy_fd* unless that is -1, and add the temporary."""
        try:
            digest, temporary.size = hash_fd(fd, self.params, threads=threads, copy_fd=copy_fd, progress=progress)
            if os.fstat(temporary.fd).st_size != temporary.size:
                raise InputError("changed while it was read")
        except CopyFailed as error:
            self._publisher.drop(temporary)
            raise store_error(error, "cannot write an object", self.store.path) from error
        except BaseException:
            self._publisher.drop(temporary)
            raise
        return self._publisher.accept(temporary, digest)

    def _clone(self, fd: int, device: int) -> Temporary | None:
        if not self._clones.get(device, True):
            return None
        temporary = self._publisher.create()
        try:
            if files.reflink(fd, temporary.fd):
                self._clones[device] = True
                return temporary
        except OSError as error:
            self._publisher.drop(temporary)
            raise store_error(error, "cannot clone into the store", self.store.path) from error
        self._clones[device] = False
        self._publisher.drop(temporary)
        return None

    def _copy(self, fd: int, progress: Stage, *, seekable: bool) -> StoredObject:
        buffer = bytearray(SMALL)
        view = memoryview(buffer)
        with self.open_stream() as stream:
            while True:
                try:
                    got = os.preadv(fd, [buffer], stream.size) if seekable else os.readv(fd, [buffer])
                except OSError as error:
                    raise os_error(error, "cannot read") from error
                if not got:
                    return stream.finish()
                stream.write(view[:got])
                progress.advance(got)

    def discard(self, digest: bytes) -> bool:
        """Drop an object that is not wanted after all; ``False`` if it is not queued (published or never new)."""
        return self._publisher.discard(digest)

    def has(self, digest: bytes, size: int) -> bool:
        """Whether an object is in one of the stores, or on its way there. Raises ``StoreError`` if it is damaged."""
        return self._publisher.seen(digest, size)

    def publish(self, digests: Collection[bytes]) -> None:
        """Publish those of *digests* that are waiting, whatever becomes of the others (of use with ``deferred``).

        :meth:`commit` makes their names durable.
        """
        self._publisher.publish(digests)

    def commit(self, keep: Collection[bytes] | None = None) -> StoreReport:
        """Publish the queued objects durably and return the totals; more may be added afterwards.

        With *keep*, queued objects whose digest is not in it are dropped (useful with ``deferred``).
        """
        return self._publisher.commit(keep)

    def close(self) -> None:
        """Drop unpublished objects and release the locks."""
        self._publisher.close()
