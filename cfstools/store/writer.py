"""Adding objects to a store: from bytes, files and streams, each read once where possible."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cfstools.errors import InputError, os_error
from cfstools.linux import files
from cfstools.progress import SILENT, Stage
from cfstools.store.base import FsVerity, Store, Sync, store_error
from cfstools.store.batch import digest_many
from cfstools.store.directory import DirectoryStore
from cfstools.store.publisher import Publisher, StoredObject, StoreReport
from cfstools.store.scratch import Scratch, Temporary
from cfstools.store.stream import SMALL, ObjectStream, add_small
from cfstools.store.waiting import PATIENT, Waiting
from cfstools.verity import DEFAULT, CopyFailed, Params, hash_fd

if TYPE_CHECKING:
    from typing_extensions import Buffer

BATCH_FILES = 3000
BATCH_BYTES = 256 << 20


class StoreWriter:
    """Adds objects to *store*; may be used from several threads.

    Contents that any of *others* has are not added, an object there with another length than the contents counts
    as absent. ``deferred`` publishes nothing before :meth:`commit`, which may then choose. *sync* says how objects are
    brought to stable storage.
    Leaving a ``with`` block commits (unless ``deferred``); an error drops what was not published yet.
    All of these stores are locked shared until the end, so that nobody removes objects meanwhile; *waiting* says how
    long to wait for someone who does.
    All methods raise ``StoreError`` for the store, ``InputError`` for the contents read.
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
        # Whether clones work between a source's file system and the store's.
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and not self._deferred:
                self.commit()
        finally:
            self.close()

    @property
    def report(self) -> StoreReport:
        """What was done so far; objects count as new once they are published."""
        return self._publisher.report

    def add_bytes(self, data: Buffer) -> StoredObject:
        """Add *data*."""
        return add_small(self._publisher, data, self.params)

    def add_many(self, contents: Sequence[bytes]) -> list[bytes]:
        """Add contents that are not empty, up to about a megabyte in all; returns their digests."""
        params = self.params
        arena, results = digest_many(contents, params, self.store)
        self.add_hashed(arena, [result for result in results if result is not None])
        # What is left has a damaged object, which is said now.
        return [
            result[0] if result is not None else self.add_bytes(data).digest
            for result, data in zip(results, contents, strict=True)
        ]

    def count_shared(self, objects: int, size: int) -> None:
        """So many contents with so many bytes were wanted that the store has."""
        self._publisher.count_many_shared(objects, size)

    @property
    def lookup(self) -> DirectoryStore:
        """The store in which :meth:`add_hashed` expects that objects were looked up."""
        return self.store

    def add_hashed(self, arena: bytearray, objects: Sequence[tuple[bytes, int, int]]) -> None:
        """Add contents that lie in *arena*: (digest, size, offset), -1 for those found in the store.

        The digests are taken as they are. Used for many small contents at once.
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
        # What could not be written that way is written, or refused, one at a time.
        with memoryview(arena) as view:
            for digest in digests[len(written) :]:
                offset, size = missing[digest]
                add_small(publisher, view[offset : offset + size], self.params)

    def add_fd(self, fd: int, *, threads: int = 1, progress: Stage = SILENT) -> StoredObject:
        """Add what *fd* holds from its start (a pipe: from where it stands) to its end.

        A regular file is cloned where the file systems can; else its contents are read once when they are small or
        probably new, and hashed before they are copied when most contents so far were in the store. The result
        tells what was stored, whatever happened to the file meanwhile. A large file is hashed by *threads* at once.
        ``progress`` is advanced in bytes.
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
        # A short read, or the file is not as long as it said: take it as it comes.
        return self._copy(fd, progress, seekable=True)

    def open_stream(self) -> ObjectStream:
        """Contents that arrive piece by piece."""
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
        """Add a temporary that holds the contents of *fd*, or is given them while they are hashed."""
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
        """Drop an object that is not wanted after all; ``False`` when it is not waiting (published or never new)."""
        return self._publisher.discard(digest)

    def commit(self, keep: Collection[bytes] | None = None) -> StoreReport:
        """Publish what is waiting, make it durable, and say what was done; more may be added afterwards.

        With *keep*, objects waiting whose digest is not in it are dropped (of use with ``deferred``).
        """
        return self._publisher.commit(keep)

    def close(self) -> None:
        """Drop what was not published and let go of the store's lock."""
        self._publisher.close()
