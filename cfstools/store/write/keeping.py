"""Keep what is fetched from stores elsewhere in the first store of a chain that can be written to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from cfstools.errors import CfsError, StoreError
from cfstools.store.base import Store
from cfstools.store.directory import DirectoryStore
from cfstools.store.open import StorePlace, open_stores
from cfstools.verity import Algorithm, ObjectId

if TYPE_CHECKING:
    from cfstools.store.write.writer import StoreWriter


class _Keeping:
    """Writers of one store, made when the first object comes. What cannot be kept is not: it was only for next time."""

    def __init__(self, store: DirectoryStore, stack: ExitStack) -> None:
        self._store = store
        self._stack = stack
        self._writers: dict[Algorithm, StoreWriter] = {}
        self._lock = threading.Lock()
        self._failed = False

    def add_bytes(self, data: bytes, wanted: ObjectId) -> None:
        """Keep an object in memory."""
        self._try(wanted, lambda writer: writer.add_bytes(data))

    def add_file(self, fd: int, wanted: ObjectId) -> None:
        """Keep an object in a file."""
        self._try(wanted, lambda writer: writer.add_fd(fd))

    def commit(self) -> None:
        """Give names to what was kept."""
        for writer in self._writers.values():
            with suppress(CfsError):
                if not self._failed:
                    writer.commit()

    def _try(self, wanted: ObjectId, add: Callable[[StoreWriter], object]) -> None:
        try:
            if not self._failed:
                add(self._writer(wanted))
        except CfsError:
            self._failed = True

    def _writer(self, wanted: ObjectId) -> StoreWriter:
        with self._lock:
            writer = self._writers.get(wanted.algorithm)
            if writer is None:
                from cfstools.store.write.writer import StoreWriter  # noqa: PLC0415 - loaded where something is kept

                writer = StoreWriter(self._store, params=wanted.params)
                self._stack.callback(writer.close)
                self._writers[wanted.algorithm] = writer
            return writer


@contextmanager
def keep_fetched(stores: Sequence[Store]) -> Iterator[None]:
    """While the block runs, keep what members of *stores* in other places give in the first directory among them.

    Nothing is kept where there is none, where it cannot be written to, or for members that are directories too.
    """
    first = next((store for store in stores if isinstance(store, DirectoryStore)), None)
    others = [store for store in stores if not isinstance(store, DirectoryStore)]
    if first is None or not others:
        yield
        return
    from cfstools.store.remote import RemoteStore  # noqa: PLC0415 - loaded only where a network is used

    remote = [store for store in others if isinstance(store, RemoteStore)]
    with ExitStack() as stack:
        keeping = _Keeping(first, stack)
        for store in remote:
            store.keep, store.scratch = keeping, first.fd
        try:
            yield
        finally:
            keeping.commit()
            for store in remote:
                store.keep = store.scratch = None
            with suppress(StoreError):
                stack.close()


@contextmanager
def open_and_keep(places: Sequence[StorePlace]) -> Iterator[tuple[Store, ...]]:
    """Open the stores at *places* to read from, with :func:`keep_fetched`. Raises as ``open_stores`` does."""
    with open_stores(places) as stores, keep_fetched(stores):
        yield stores
