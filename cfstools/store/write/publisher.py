"""Look up new objects, queue them, and publish them in batches.

A batch has some hundred to some thousand objects: first their contents are made durable, then each gets its name, and
after the last batch the names are made durable (see ``durability``). So an object is complete and durable before it
becomes visible, also after a crash. Existing objects are never rewritten.

A disk takes as long as processors do, so batches are published in the background while more objects arrive, one at a
time. Where publishing has to wait for :meth:`Publisher.commit`, contents are written back in the background, and those
that are durable by then get names while the last ones are synced.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, NamedTuple

from cfstools.errors import CfsError, Phrase, Remedy, StoreError
from cfstools.linux import files
from cfstools.report import Report
from cfstools.store.base import Store, Sync, split_digest, store_error
from cfstools.store.directory import DirectoryStore
from cfstools.store.locking import PATIENT, Waiting, in_turn
from cfstools.store.write.durability import Durability
from cfstools.store.write.scratch import Scratch, Temporary
from cfstools.threadpool import Call, ThreadPool

if TYPE_CHECKING:
    from typing_extensions import Buffer


_PUBLISH_TOGETHER = 256
_BEGIN_BYTES = 16 << 20
_WRITE_BACK_BYTES = 64 << 20
_NOT_SHARED = "all who build into a store must be able to write to the directories of objects in it"


class StoredObject(NamedTuple):
    """Result of adding contents: ``new`` if no store had them and they were not added before."""

    digest: bytes
    size: int
    new: bool


class StoreReport(Report):
    """Objects published, and additions of contents that existed already (also twice in one run). Sizes in bytes."""

    objects_new: int
    bytes_new: int
    objects_shared: int
    bytes_shared: int


class Publisher:
    """The queue of one writer to *store*; thread-safe. Raises ``StoreError``.

    Holds shared locks on the store and the *others* until :meth:`close`; *waiting* says how long to wait for a process
    that removes objects. ``deferred`` publishes only in :meth:`commit`.
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
        # Each anonymous temporary holds a descriptor, and a second batch may grow while one is published.
        limit = files.fd_limit()
        self._batch_files = max(1, min(batch_files, (limit - min(400, limit // 2)) // 3))
        self._batch_bytes = batch_bytes
        self._begin_files = max(_PUBLISH_TOGETHER, self._batch_files // 2)
        self._deferred = deferred
        self._closed = False
        self._failure: CfsError | None = None
        self._lock = threading.Lock()
        self._publish_lock = threading.Lock()
        self._pending: dict[bytes, Temporary] = {}
        self._pending_bytes = 0
        self._publishing: dict[bytes, Temporary] = {}
        self._background: ThreadPool | None = None
        self._begun: list[Call[None]] = []  # calls in the background
        self._is_busy = False
        self._written_back_bytes = 0
        self._new = [0, 0]
        self._shared = [0, 0]
        self._was_empty = store.is_empty()
        self._durability = Durability(store, sync)
        self._exit = ExitStack()
        # Lock the others too: objects found there must not be collected before the image is in place.
        for locked in (store, *(other for other in self._others if isinstance(other, DirectoryStore))):
            self._exit.enter_context(in_turn(locked, exclusive=False, waiting=waiting))
        self._exit.callback(scratch.close)

    @property
    def report(self) -> StoreReport:
        """The totals so far; objects count as new once they are published."""
        return StoreReport(
            objects_new=self._new[0],
            bytes_new=self._new[1],
            objects_shared=self._shared[0],
            bytes_shared=self._shared[1],
        )

    def create(self) -> Temporary:
        """Create an empty temporary."""
        self._check_open()
        try:
            return self._scratch.create()
        except OSError as error:
            if self._deferred:
                raise store_error(error, "cannot make a temporary file in the store", self._store.path) from error
            # Too many open files: publishing a batch closes some.
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
        """Remove a temporary that was not accepted."""
        self._scratch.drop(temporary)

    def expects_shared(self) -> bool:
        """Whether most contents so far already existed."""
        missed = self._new[0] + len(self._pending) + len(self._publishing)
        hits = self._shared[0]
        return hits > missed or (hits == missed and not self._was_empty)

    def seen(self, digest: bytes, size: int) -> bool:
        """Whether an object is queued, in the store, or in one of the other stores."""
        # In this order: an object is in the store before it leaves the dictionaries.
        if digest in self._pending or digest in self._publishing or self._in_store(digest, size):
            return True
        return any(self._in_other(store, digest, size) for store in self._others)

    def seen_elsewhere(self, digest: bytes, size: int) -> bool:
        """Whether an object is queued or in one of the other stores; the caller has looked in the store itself."""
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
                hint=Phrase("check the store with: {}", Remedy.FSCK),
            )
        return True

    @staticmethod
    def _in_other(store: Store, digest: bytes, size: int) -> bool:
        try:
            return store.size(digest) == size
        except StoreError:
            return False

    def count_shared(self, digest: bytes, size: int) -> StoredObject:
        """Count contents that exist already."""
        with self._lock:
            self._shared[0] += 1
            self._shared[1] += size
        return StoredObject(digest, size, new=False)

    def count_many_shared(self, objects: int, size: int) -> None:
        """Count *objects* contents with *size* bytes in all that exist already."""
        if objects:
            with self._lock:
                self._shared[0] += objects
                self._shared[1] += size

    def write_many(self, arena: bytearray, spans: Sequence[tuple[int, int]]) -> list[Temporary]:
        """Write each span (offset, size) of *arena* to a temporary; the list is shorter if one failed."""
        self._check_open()
        return self._scratch.create_many(arena, spans)

    def accept_many(self, temporaries: dict[bytes, Temporary]) -> None:
        """Queue complete contents by digest; the caller has found them missing from all stores."""
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
        """Queue complete contents unless they exist by now; ``looked_up`` says that the caller found them missing."""
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
        else:
            self._begin_batch()

    def _begin_batch(self) -> None:
        """Publish what is queued in the background, if it is half a full batch or takes the disk some time."""
        with self._lock:
            if len(self._pending) >= self._begin_files or self._pending_bytes >= _BEGIN_BYTES:
                self._begin(self._publish_batch)

    def _begin_write_back(self) -> None:
        """Start writing back queued objects in the background, so that a late commit has little to sync."""
        with self._lock:
            if self._pending_bytes - self._written_back_bytes < _WRITE_BACK_BYTES or not self._durability.is_wanted:
                return
            if self._durability.by_object(len(self._pending), self._pending_bytes):
                return
            self._begin(self._write_back)

    def _write_back(self) -> None:
        with self._lock:
            self._written_back_bytes = self._pending_bytes
            queued = [temporary for temporary in self._pending.values() if not temporary.is_durable]
        try:
            files.syncfs(self._store.fd)
        except OSError as error:
            raise store_error(error, "cannot bring objects to stable storage", self._store.path) from error
        for temporary in queued:
            temporary.is_durable = True

    def _begin(self, function: Callable[[], None]) -> None:
        """Call *function* in the background, unless something runs there; the caller holds the lock."""
        if self._is_busy or self._closed:
            return
        self._is_busy = True
        if self._background is None:
            with suppress(CfsError):  # without a thread, all waits for a full batch or the commit
                self._background = ThreadPool(1, "publish")
        if self._background is not None:
            self._begun.append(self._background.submit(self._run, function))

    def _run(self, function: Callable[[], None]) -> None:
        try:
            function()
        finally:
            self._is_busy = False

    def discard(self, digest: bytes) -> bool:
        """Drop an object that is not wanted after all; ``False`` if it is not queued (published or never new)."""
        with self._lock:
            temporary = self._pending.pop(digest, None)
            if temporary is None:
                return False
            self._pending_bytes -= temporary.size
        self._scratch.drop(temporary)
        return True

    def commit(self, keep: Collection[bytes] | None = None) -> StoreReport:
        """Publish the queued objects durably and return the totals; more may be added afterwards.

        With *keep*, queued objects whose digest is not in it are dropped (useful with ``deferred``).
        """
        if keep is not None:
            for digest in [digest for digest in self._pending if digest not in keep]:
                self.discard(digest)
        if not self._deferred:
            for call in self._taken_begun():
                call.result()
        self._publish_batch()
        self._durability.names()
        return self.report

    def close(self) -> None:
        """Drop unpublished objects and release the locks."""
        with self._lock:
            self._closed = True
        if self._background is not None:
            self._background.close()
        with self._lock:
            dropped = [*self._pending.values(), *self._publishing.values()]
            self._pending.clear()
            self._publishing.clear()
        for temporary in dropped:
            self._scratch.drop(temporary)
        self._exit.close()

    def _check_open(self) -> None:
        failure = self._failure
        if failure is not None:
            # Every later caller gets the error that the first one got.
            raise type(failure)(failure.what, subject=failure.subject, hint=failure.hint) from failure
        if self._closed:
            raise StoreError("the writer is closed", subject=self._store.path)

    def _is_full(self) -> bool:
        return len(self._pending) >= self._batch_files or self._pending_bytes >= self._batch_bytes

    def publish(self, digests: Collection[bytes]) -> None:
        """Publish those of *digests* that are waiting; the others go on waiting.

        The names are made durable by :meth:`commit`.
        """
        self._publish_batch(only=digests)

    def _publish_batch(self, *, unless_small: bool = False, only: Collection[bytes] | None = None) -> None:
        """Publish the queued objects, or *only* these of them: make their contents durable, then give them names."""
        with self._publish_lock:
            with self._lock:
                self._check_open()
                if not self._pending or (unless_small and not self._is_full()):
                    return
                self._publishing = self._taken(only)
                if not self._publishing:
                    return
            try:
                self._durability.will_name(b"%02x" % first for first in {digest[0] for digest in self._publishing})
                self._publish_durable(self._publishing)
            except BaseException as error:
                # close() drops the rest of the batch; no further batch may start.
                self._closed = True
                if isinstance(error, CfsError):
                    self._failure = error
                raise
            with self._lock:
                self._publishing = {}

    def _taken(self, only: Collection[bytes] | None) -> dict[bytes, Temporary]:
        """Take what is to be published out of what waits."""
        if only is None:
            taken, self._pending = self._pending, {}
        else:
            taken = {digest: self._pending.pop(digest) for digest in only if digest in self._pending}
        self._pending_bytes -= sum(temporary.size for temporary in taken.values())
        self._written_back_bytes = min(self._written_back_bytes, self._pending_bytes)
        return taken

    def _publish_durable(self, batch: dict[bytes, Temporary]) -> None:
        """Give each object of *batch* its name once its contents are durable."""
        waiting = [(self._scratch, temporary) for temporary in batch.values() if not temporary.is_durable]
        if self._background is None or not self._deferred:
            self._durability.contents(waiting)
        else:  # those written back get names while the last ones are synced
            last = self._background.submit(self._durability.contents, waiting)
            for call in (*self._taken_begun(), last):
                batch = self._publish_those_durable(batch)
                call.result()
        self._publish_all(batch)

    def _publish_those_durable(self, batch: dict[bytes, Temporary]) -> dict[bytes, Temporary]:
        """Give names to the durable objects of *batch*; return the others."""
        durable = {digest: temporary for digest, temporary in batch.items() if temporary.is_durable}
        self._publish_all(durable)
        return {digest: temporary for digest, temporary in batch.items() if digest not in durable}

    def _publish_all(self, batch: dict[bytes, Temporary]) -> None:
        """Give the objects of *batch* their names in digest order; raise the first error."""
        digests = sorted(batch)
        for first in range(0, len(digests), _PUBLISH_TOGETHER):
            some = digests[first : first + _PUBLISH_TOGETHER]
            errors = self._scratch.publish([(batch[digest], *split_digest(digest)) for digest in some])
            sizes = [batch[digest].size for digest, error in zip(some, errors, strict=True) if error is None]
            with self._lock:
                self._new[0] += len(sizes)
                self._new[1] += sum(sizes)
            for digest, error in zip(some, errors, strict=True):
                if error is not None:
                    self._settle(digest, batch[digest].size, error)

    def _settle(self, digest: bytes, size: int, error: OSError) -> None:
        if not isinstance(error, FileExistsError):
            hint = _NOT_SHARED if error.errno in (errno.EACCES, errno.EPERM) else None
            raise store_error(error, "cannot add the object", self._store.describe(digest), hint=hint) from error
        if self._in_store(digest, size):
            # Another process has published it first.
            self.count_shared(digest, size)
        else:
            raise StoreError("the object vanished while it was added", subject=self._store.describe(digest))

    def _taken_begun(self) -> list[Call[None]]:
        """Take the calls in the background, to wait for them and hear their errors."""
        with self._lock:
            begun, self._begun = self._begun, []
        return begun
