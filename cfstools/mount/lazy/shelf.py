"""Objects that have come: served from where they arrived, and published in batches into the store.

The lock of the store is held for a batch only, not as long as the mount: a collection waits a moment for a mount, and
never for its end. What the store does not take goes to the cache.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import monotonic

from cfstools.errors import CfsError, Exhausted, StoreBusy, StoreError
from cfstools.lifetime import Closable
from cfstools.linux.files import close, fd_limit, open_tmpfile
from cfstools.mount.lazy.cache import Cache, read_only
from cfstools.mount.lazy.options import LazyOptions
from cfstools.store.base import BytesObject, FileObject, Object, store_error
from cfstools.store.directory import DirectoryStore
from cfstools.store.locking import Waiting
from cfstools.store.write.writer import StoreWriter
from cfstools.verity import ObjectId

BATCH_SECONDS = 1.0
BATCH_OBJECTS = 256
BATCH_BYTES = 64 << 20

_LOCK_SECONDS = 1.0
_MOST_BATCHES = 2  # that wait before what comes goes to the cache
_DESCRIPTORS = 512


class NewFile:
    """A file without a name for an object that comes, open for writing and for reading."""

    __slots__ = ("fd", "in_store")

    def __init__(self, fd: int, *, in_store: bool) -> None:
        self.fd = fd
        self.in_store = in_store

    def close(self) -> None:
        """Close it; what was written is gone. Closing twice is allowed."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            close(fd)


class _Held:
    """An object that waits to be published: its bytes, or a file with a descriptor to write and one to read."""

    __slots__ = ("data", "file", "reader", "size")

    def __init__(self, size: int, data: bytes | None = None, file: NewFile | None = None) -> None:
        self.size = size
        self.data = data
        self.file = file
        self.reader = -1 if file is None else read_only(file.fd)

    def open(self) -> Object:
        # A file gets a name in the store, where others may change it: whoever reads it compares it once more.
        return FileObject(os.dup(self.reader), self.size) if self.data is None else BytesObject(self.data, checked=True)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        if self.reader >= 0:
            close(self.reader)
            self.reader = -1


class Shelf(Closable):
    """What came for *store*, which may be ``None``; *warn* is told once what is not published, and why. Thread-safe.

    Raises ``StoreError`` and ``Exhausted`` where an object cannot be kept at all.
    """

    def __init__(
        self, store: DirectoryStore | None, cache: Cache, options: LazyOptions, warn: Callable[[str], None]
    ) -> None:
        self._store = store
        self._cache = cache
        self._options = options
        self._warn = warn
        self._changed = threading.Condition()
        self._held: dict[bytes, _Held] = {}
        self._batch: dict[bytes, _Held] = {}  # is being published
        self._bytes = 0  # of what is held
        self._since = 0.0  # the first of what is held
        self._files = 0
        self._stopped = False
        self._thread: threading.Thread | None = None
        self.published = 0
        if store is not None and not os.access(b".", os.W_OK, dir_fd=store.fd, effective_ids=True):
            self._give_up("the store cannot be written to")

    @property
    def kept(self) -> int:
        """Objects that are only in temporary files."""
        return self._cache.count

    def new_file(self) -> NewFile:
        """A file for a large object."""
        store = self._store
        if store is not None:
            try:
                fd = open_tmpfile(store.fd, 0o600)
            except OSError as error:
                fd = None
                self._give_up(f"no temporary file can be made in it: {error.strerror}")
            if fd is not None:
                return NewFile(fd, in_store=True)
        return NewFile(self._cache.new_file(), in_store=False)

    def put(self, digest: bytes, data: bytes) -> None:
        """Keep and publish an object in memory."""
        self._check_open()
        if not self._hold(digest, len(data), lambda: _Held(len(data), data)):
            self._cache.put(digest, data)

    def put_file(self, digest: bytes, file: NewFile, size: int) -> None:
        """Keep and publish an object in a file of :meth:`new_file`; takes it over."""
        try:
            self._check_open()
            if file.in_store and self._hold(digest, size, lambda: _Held(size, file=file)):
                return
            fd, file.fd = file.fd, -1
            self._cache.put_file(digest, fd, size)
        except BaseException:
            file.close()
            raise

    def has(self, digest: bytes) -> bool:
        """Whether an object is here."""
        return digest in self._held or digest in self._batch or self._cache.has(digest)

    def open(self, digest: bytes) -> Object | None:
        """An object that is here; ``None`` for others, also where it was published."""
        with self._changed:
            held = self._held.get(digest) or self._batch.get(digest)
            if held is not None:
                try:
                    return held.open()
                except OSError as error:
                    raise store_error(error, "cannot open a temporary file", digest.hex()) from error
        return self._cache.open(digest)

    def close(self) -> None:
        """Publish what waits, and forget the rest. Closing twice is allowed."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        with self._changed:
            left, self._held = self._held, {}
        for held in left.values():
            held.close()
        self._cache.close()

    def _check_open(self) -> None:
        if self._stopped:
            raise StoreError("the lazy store is closed")

    def _hold(self, digest: bytes, size: int, make: Callable[[], _Held]) -> bool:
        """Keep an object until it is published; ``False`` if the cache has to."""
        with self._changed:
            if self._store is None or self._stopped:
                return False
            if digest in self._held or digest in self._batch:
                made = make()
                made.close()
                return True
            if self._is_crowded(size):
                return False
            if not self._held:
                self._since = monotonic()
            held = self._held[digest] = make()
            self._bytes += size
            self._files += held.file is not None
            self._start()
            self._changed.notify()
            return True

    def _is_crowded(self, size: int) -> bool:
        """Whether publishing does not keep up."""
        if not self._held:
            return False
        return (
            len(self._held) >= _MOST_BATCHES * BATCH_OBJECTS
            or self._bytes + size > _MOST_BATCHES * BATCH_BYTES
            or self._files >= min(_DESCRIPTORS, fd_limit() // 4)
        )

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="lazy_publish", daemon=True)
            self._thread.start()

    # The thread that publishes

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._is_due() and not self._stopped:
                    self._changed.wait(self._wait_for())
                if not self._held:
                    return
                self._batch, self._held = self._held, {}
                self._bytes = self._files = 0
                last = self._stopped
            self._settle(self._batch, last=last)

    def _is_due(self) -> bool:
        if not self._held:
            return False
        full = len(self._held) >= BATCH_OBJECTS or self._bytes >= BATCH_BYTES
        return full or monotonic() >= self._since + BATCH_SECONDS

    def _wait_for(self) -> float | None:
        return max(0.0, self._since + BATCH_SECONDS - monotonic()) if self._held else None

    def _settle(self, batch: dict[bytes, _Held], *, last: bool) -> None:
        """Publish a batch, or keep it otherwise."""
        try:
            left = self._publish(batch)
        except StoreBusy as error:
            left = batch
            if not last:
                self._put_back(batch)
                return
            self._warn(f"{len(batch)} objects are not published: {error}")
        except Exhausted:
            left = batch  # says nothing about the store
        except CfsError as error:
            left = batch
            self._give_up(str(error))
        for digest, held in left.items():
            # What cannot be kept is fetched again: it was only for the next time.
            with suppress(CfsError):
                self._to_cache(digest, held)
        with self._changed:
            self._batch = {}
        for held in batch.values():
            held.close()

    def _put_back(self, batch: dict[bytes, _Held]) -> None:
        with self._changed:
            self._held = {**batch, **self._held}
            self._batch = {}
            self._bytes = sum(held.size for held in self._held.values())
            self._files = sum(held.file is not None for held in self._held.values())
            self._since = monotonic()

    def _to_cache(self, digest: bytes, held: _Held) -> None:
        if held.data is not None:
            self._cache.put(digest, held.data)
        else:
            # A copy of the descriptor: until the batch is settled, readers open what it has.
            self._cache.put_file(digest, read_only(held.reader), held.size)

    def _publish(self, batch: dict[bytes, _Held]) -> dict[bytes, _Held]:
        """Publish what the store lacks of a batch; what is left has a damaged object in its place there."""
        store, options = self._store, self._options
        if store is None:
            return batch
        missing: dict[bytes, _Held] = {}
        left: dict[bytes, _Held] = {}
        for digest, held in batch.items():
            there = store.size(digest)
            if there is None:
                missing[digest] = held
            elif there != held.size:
                left[digest] = held
        if not missing:
            return left
        with StoreWriter(
            store,
            params=ObjectId.of(next(iter(missing))).params,
            object_mode=options.object_mode,
            fs_verity=options.fs_verity,
            sync=options.sync,
            waiting=Waiting(timeout=_LOCK_SECONDS),
        ) as writer:
            _add(writer, missing)
        self.published += len(missing)
        return left

    def _give_up(self, why: str) -> None:
        """From now on nothing is published."""
        store, self._store = self._store, None
        if store is not None:
            self._warn(f"{store.path}: objects that are fetched are not kept in the store: {why}")


def _add(writer: StoreWriter, objects: Mapping[bytes, _Held]) -> None:
    """Add objects whose digests are known to be right."""
    arena = bytearray()
    rows = []
    block = writer.params.block_size
    for digest, held in objects.items():
        if held.data is not None:
            rows.append((digest, held.size, len(arena)))
            arena += held.data
            arena += bytes(-held.size % block)
        else:
            assert held.file is not None
            fd, held.file.fd = held.file.fd, -1
            writer.add_unnamed(fd, held.size, digest)
    if rows:
        writer.add_hashed(arena, rows)
