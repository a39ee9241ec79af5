"""Objects on their way into a store: looked up, queued, and published in batches.

Every few thousand are published together: first their contents are made durable, then each gets its name, and after the
last batch the names are made durable (``durability`` says how). So no object is ever visible before it is whole and
durable, and after a crash every object that is visible is whole. Existing objects are never rewritten.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from cfstools.errors import CfsError, StoreError
from cfstools.linux import files
from cfstools.report import Report
from cfstools.store.base import Store, Sync, split_digest, store_error
from cfstools.store.directory import DirectoryStore
from cfstools.store.durability import Durability
from cfstools.store.locking import in_turn
from cfstools.store.scratch import Scratch, Temporary
from cfstools.store.waiting import PATIENT, Waiting
from cfstools.workers import Call, Workers

if TYPE_CHECKING:
    from typing_extensions import Buffer


_PUBLISH_TOGETHER = 256
_WRITE_BACK_BYTES = 64 << 20
_NOT_SHARED = "all who build into a store must be able to write to the directories of objects in it"


class StoredObject(NamedTuple):
    """What became of added contents: ``new`` when they were not in any store nor added before."""

    digest: bytes
    size: int
    new: bool


class StoreReport(Report):
    """Objects published, and how often contents were added that were there already (also: twice in one run)."""

    objects_new: int
    bytes_new: int
    objects_shared: int
    bytes_shared: int


class Publisher:
    """The queue of one writer to *store*; used from several threads. Raises ``StoreError``.

    Locks the store and the *others* shared until :meth:`close`; *waiting* says how long to wait for someone who removes
    objects. ``deferred`` publishes only when told to.
    """

    def __init__(
        self,
        store: DirectoryStore,
        others: Sequence[Store],
        scratch: Scratch,
        *,
        batch_files: int,
        batch_bytes: int,
        deferred: bool,
        sync: Sync = "batch",
        waiting: Waiting = PATIENT,
    ) -> None:
        self._store = store
        self._others = tuple(others)
        self._scratch = scratch
        # Anonymous temporaries hold a descriptor each, and two batches may exist while one is published.
        limit = files.fd_limit()
        self._batch_files = max(1, min(batch_files, (limit - min(400, limit // 2)) // 3))
        self._batch_bytes = batch_bytes
        self._deferred = deferred
        self._closed = False
        self._failure: CfsError | None = None
        self._lock = threading.Lock()
        self._publish_lock = threading.Lock()
        self._pending: dict[bytes, Temporary] = {}
        self._pending_bytes = 0
        self._publishing: dict[bytes, Temporary] = {}
        self._write_back: Workers | None = None
        self._written_back: list[Call[None]] = []
        self._written_back_bytes = 0
        self._new = [0, 0]
        self._shared = [0, 0]
        self._was_empty = store.is_empty()
        self._durability = Durability(store, sync)
        self._exit = ExitStack()
        # The others as well: what is found there must not be collected before the image that needs it is in place.
        for locked in (store, *(other for other in self._others if isinstance(other, DirectoryStore))):
            self._exit.enter_context(in_turn(locked, exclusive=False, waiting=waiting))
        self._exit.callback(scratch.close)

    @property
    def report(self) -> StoreReport:
        """What was done so far; objects count as new once they are published."""
        return StoreReport(
            objects_new=self._new[0],
            bytes_new=self._new[1],
            objects_shared=self._shared[0],
            bytes_shared=self._shared[1],
        )

    def create(self) -> Temporary:
        """A new, empty temporary."""
        self._check_open()
        try:
            return self._scratch.create()
        except OSError as error:
            if self._deferred:
                raise store_error(error, "cannot make a temporary file in the store", self._store.path) from error
            # Too many open files: publishing lets go of a batch of them.
            self._publish_batch()
        try:
            return self._scratch.create()
        except OSError as error:
            raise store_error(error, "cannot make a temporary file in the store", self._store.path) from error

    def write(self, temporary: Temporary, data: Buffer) -> None:
        """Append *data* to a temporary; long runs of zeros become holes."""
        try:
            temporary.write(data)
        except OSError as error:
            raise store_error(error, "cannot write an object", self._store.path) from error

    def drop(self, temporary: Temporary) -> None:
        """Forget a temporary that was not accepted."""
        self._scratch.drop(temporary)

    def expects_shared(self) -> bool:
        """Whether contents so far were more often there than not."""
        missed = self._new[0] + len(self._pending) + len(self._publishing)
        hits = self._shared[0]
        return hits > missed or (hits == missed and not self._was_empty)

    def seen(self, digest: bytes, size: int) -> bool:
        """Whether an object is on its way, in the store, or in one of the other stores."""
        # In this order: what leaves the dictionaries is in the store by then.
        if digest in self._pending or digest in self._publishing or self._in_store(digest, size):
            return True
        return any(self._in_other(store, digest, size) for store in self._others)

    def seen_elsewhere(self, digest: bytes, size: int) -> bool:
        """Whether an object that was not in the store a moment ago is on its way or in one of the other stores."""
        if digest in self._pending or digest in self._publishing:
            return True
        return any(self._in_other(store, digest, size) for store in self._others)

    def _in_store(self, digest: bytes, size: int) -> bool:
        there = self._store.size(digest)
        if there is None:
            return False
        if there != size:
            raise StoreError(
                f"damaged object: {there} bytes instead of {size}",
                subject=self._store.describe(digest),
                hint="check the store with: mkcfs store fsck",
            )
        return True

    @staticmethod
    def _in_other(store: Store, digest: bytes, size: int) -> bool:
        try:
            return store.size(digest) == size
        except StoreError:
            return False

    def count_shared(self, digest: bytes, size: int) -> StoredObject:
        """Contents were added that are there already."""
        with self._lock:
            self._shared[0] += 1
            self._shared[1] += size
        return StoredObject(digest, size, new=False)

    def count_many_shared(self, objects: int, size: int) -> None:
        """So many contents with so many bytes were added that are there already."""
        if objects:
            with self._lock:
                self._shared[0] += objects
                self._shared[1] += size

    def write_many(self, arena: bytearray, spans: Sequence[tuple[int, int]]) -> list[Temporary]:
        """Temporaries with these spans (offset, size) of *arena*; fewer than that when one could not be made."""
        self._check_open()
        return self._scratch.create_many(arena, spans)

    def accept_many(self, temporaries: dict[bytes, Temporary]) -> None:
        """Queue complete contents, which were looked up and absent, by their digests."""
        known: list[Temporary] = []
        waiting = dict(temporaries)
        try:
            for temporary in temporaries.values():
                self._scratch.seal(temporary)
            with self._lock:
                self._check_open()
                for digest, temporary in temporaries.items():
                    if digest in self._pending or digest in self._publishing:
                        known.append(temporary)
                    else:
                        self._pending[digest] = temporary
                        self._pending_bytes += temporary.size
                waiting.clear()
        finally:
            for temporary in (*waiting.values(), *known):
                self._scratch.drop(temporary)
        self.count_many_shared(len(known), sum(temporary.size for temporary in known))
        self._after_more()

    def accept(self, temporary: Temporary, digest: bytes, *, looked_up: bool = False) -> StoredObject:
        """Queue complete contents for publication, unless they are there by now (or ``looked_up`` and absent)."""
        size = temporary.size
        try:
            known = not looked_up and self.seen(digest, size)
            if not known:
                self._scratch.seal(temporary)
                with self._lock:
                    self._check_open()
                    known = digest in self._pending or digest in self._publishing
                    if not known:
                        self._pending[digest] = temporary
                        self._pending_bytes += size
        except BaseException:
            self._scratch.drop(temporary)
            raise
        if known:
            self._scratch.drop(temporary)
            return self.count_shared(digest, size)
        self._after_more()
        return StoredObject(digest, size, new=True)

    def _after_more(self) -> None:
        if self._deferred:
            self._begin_write_back()
        elif self._is_full():
            self._publish_batch(unless_small=True)

    def _begin_write_back(self) -> None:
        """Have the disk write what waits for a late commit, so that this finds little to wait for."""
        with self._lock:
            if self._pending_bytes - self._written_back_bytes < _WRITE_BACK_BYTES or not self._durability.is_wanted:
                return
            if self._durability.by_object(len(self._pending), self._pending_bytes):
                return
            self._written_back_bytes = self._pending_bytes
            if self._write_back is None:
                self._write_back = Workers(1, "write-back")
        self._written_back.append(self._write_back.submit(files.syncfs, self._store.fd))

    def discard(self, digest: bytes) -> bool:
        """Drop an object that is not wanted after all; ``False`` when it is not waiting (published or never new)."""
        with self._lock:
            temporary = self._pending.pop(digest, None)
            if temporary is None:
                return False
            self._pending_bytes -= temporary.size
        self._scratch.drop(temporary)
        return True

    def commit(self, keep: Collection[bytes] | None = None) -> StoreReport:
        """Publish what is waiting, make it durable, and say what was done; more may be added afterwards.

        With *keep*, objects waiting whose digest is not in it are dropped (of use with ``deferred``).
        """
        if keep is not None:
            for digest in [digest for digest in self._pending if digest not in keep]:
                self.discard(digest)
        self._publish_batch()
        self._durability.names()
        return self.report

    def close(self) -> None:
        """Drop what was not published and let go of the store's lock."""
        with self._lock:
            self._closed = True
            dropped = [*self._pending.values(), *self._publishing.values()]
            self._pending.clear()
            self._publishing.clear()
        if self._write_back is not None:
            self._write_back.stop()
        for temporary in dropped:
            self._scratch.drop(temporary)
        self._exit.close()

    def _check_open(self) -> None:
        failure = self._failure
        if failure is not None:
            # Whichever thread comes next hears the same as the one that met it.
            raise type(failure)(failure.what, subject=failure.subject, hint=failure.hint) from failure
        if self._closed:
            raise StoreError("the writer is closed", subject=self._store.path)

    def _is_full(self) -> bool:
        return len(self._pending) >= self._batch_files or self._pending_bytes >= self._batch_bytes

    def _publish_batch(self, *, unless_small: bool = False) -> None:
        """Publish what is waiting: contents durable first, then the names."""
        with self._publish_lock:
            with self._lock:
                self._check_open()
                if not self._pending or (unless_small and not self._is_full()):
                    return
                self._publishing, self._pending = self._pending, {}
                self._pending_bytes = 0
            try:
                self._await_write_back()
                self._durability.contents([(self._scratch, one) for one in self._publishing.values()])
                self._durability.will_name({split_digest(digest)[0] for digest in self._publishing})
                self._publish_all(self._publishing)
            except BaseException as error:
                # What is left of the batch goes with close(); no other batch may take its place.
                self._closed = True
                if isinstance(error, CfsError):
                    self._failure = error
                raise
            with self._lock:
                self._publishing = {}

    def _publish_all(self, batch: dict[bytes, Temporary]) -> None:
        """Give the objects of *batch* their names, in their order; each has its name or is an error."""
        digests = sorted(batch)
        for first in range(0, len(digests), _PUBLISH_TOGETHER):
            some = digests[first : first + _PUBLISH_TOGETHER]
            errors = self._scratch.publish([(batch[digest], *split_digest(digest)) for digest in some])
            for digest, error in zip(some, errors, strict=True):
                self._settle(digest, batch[digest].size, error)

    def _settle(self, digest: bytes, size: int, error: OSError | None) -> None:
        if error is None:
            with self._lock:
                self._new[0] += 1
                self._new[1] += size
        elif not isinstance(error, FileExistsError):
            hint = _NOT_SHARED if error.errno in (errno.EACCES, errno.EPERM) else None
            raise store_error(error, "cannot add the object", self._store.describe(digest), hint=hint) from error
        elif self._in_store(digest, size):
            # Another process was faster.
            self.count_shared(digest, size)
        else:
            raise StoreError("the object vanished while it was added", subject=self._store.describe(digest))

    def _await_write_back(self) -> None:
        try:
            # An error of writing is told once, which may have been then.
            while self._written_back:
                self._written_back.pop().result()
        except OSError as error:
            raise store_error(error, "cannot bring objects to stable storage", self._store.path) from error
