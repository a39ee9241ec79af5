"""The servers that keepers keep: the tree of an image, or its objects as the last store of an overlay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Protocol

from cfstools.errors import CfsError
from cfstools.mount.choose import Check
from cfstools.mount.daemon.log import Log
from cfstools.mount.daemon.service import Serve, Service, Turn
from cfstools.mount.fuse.base import Files, Nodes
from cfstools.mount.fuse.contents import ObjectContents
from cfstools.mount.fuse.server import Counters, serve
from cfstools.mount.lazy.filler import Filler
from cfstools.mount.lazy.options import FillCounters, LazyOptions
from cfstools.mount.lazy.trace import write_trace
from cfstools.store.base import Store
from cfstools.store.directory import DirectoryStore
from cfstools.store.open import open_directory, open_store
from cfstools.threadpool import ThreadPool
from cfstools.transport.fetch import ObjectSource
from cfstools.values import Value

THREADS = 32
"""Reads that wait at a time for a disk or another place."""

OpenSources = Callable[[Callable[[str], None]], AbstractContextManager[Sequence[ObjectSource]]]
"""Opens where objects come from, in the process that fetches them; what is odd there is told to the argument."""


class NumberedFiles(Nodes, Files, Protocol):
    """Nodes that also say where the contents of each are."""


class Filling(Value):
    """How missing objects come.

    They come from *sources*; *sizes* has those of all objects of the image by digest, in the order of the tree.
    ``ahead`` are fetched before anybody asks for them, in this order. What cannot be published is kept in the directory
    ``scratch``. At the end the order in which objects were wanted is written to ``trace``, for the image with the
    digest ``image``.
    """

    sources: OpenSources
    sizes: Mapping[bytes, int]
    image: bytes
    options: LazyOptions
    scratch: bytes
    ahead: Sequence[bytes] = ()
    trace: bytes | None = None


def service_of(
    device: int,
    nodes: NumberedFiles,
    *,
    stores: Sequence[bytes],
    check: Check,
    filling: Filling | None,
    detach: Callable[[int], None],
    posix_acl: bool = False,
) -> Service:
    """The service of *nodes* at *device*, with their contents in *stores*, then from what *filling* fetches.

    What is fetched is published in the first of *stores*.
    """

    @contextmanager
    def prepare(_log: Log) -> Iterator[Serve]:
        with ExitStack() as stack:
            opened = [stack.enter_context(open_store(store)) for store in stores]
            server = _Server(device, nodes, opened, check, filling, posix_acl=posix_acl)
            yield server.run

    return Service(device, prepare, detach)


class _Server:
    def __init__(
        self,
        device: int,
        nodes: NumberedFiles,
        stores: Sequence[Store],
        check: Check,
        filling: Filling | None,
        *,
        posix_acl: bool,
    ) -> None:
        self._device = device
        self._nodes = nodes
        self._stores = stores
        self._check = check
        self._filling = filling
        self._posix_acl = posix_acl

    def run(self, turn: Turn) -> None:
        """Serve until the file system is gone."""
        counters = Counters()
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPool(THREADS, "fuse"))
            stores = list(self._stores)
            filler = None
            if self._filling is not None:
                # Closed before the pool, whose calls wait for what it fetches.
                filler = stack.enter_context(self._filler(self._filling, turn.log, stack))
                stores.append(filler)
            turn.watch(lambda: _line(counters, filler))
            contents = stack.enter_context(ObjectContents(self._nodes, stores, check=self._check))
            serve(
                self._device,
                self._nodes,
                contents,
                pool=pool,
                resume=turn.resume,
                posix_acl=self._posix_acl,
                ready=turn.ready,
                failed=partial(_failed, turn.log),
                counters=counters,
            )

    @contextmanager
    def _filler(self, filling: Filling, log: Log, stack: ExitStack) -> Iterator[Filler]:
        sources = stack.enter_context(filling.sources(log.say))
        first = self._stores[0] if self._stores else None
        filler = Filler(
            sources,
            filling.sizes,
            local=self._stores,
            store=first if isinstance(first, DirectoryStore) else None,
            scratch=filling.scratch,
            options=filling.options,
            log=log.say,
        )
        try:
            with filler:
                if filling.ahead:
                    filler.want(filling.ahead)
                yield filler
        finally:
            if filling.trace is not None:
                _write_trace(filling, filling.trace, filler, log)


def _write_trace(filling: Filling, path: bytes, filler: Filler, log: Log) -> None:
    try:
        write_trace(path, filling.image, filler.touched.touches())
    except CfsError as error:
        log.error(error)


def _failed(log: Log, _node: int, error: CfsError) -> None:
    log.error(error)


def _line(counters: Counters, filler: Filler | None) -> str:
    """What was done so far, in a line."""
    read = f"{counters.reads} reads of {counters.bytes} bytes"
    words = [f"{counters.requests} requests, {read}, {counters.failed} failed"]
    if filler is not None:
        done: FillCounters = filler.counters
        words.append(
            f"{done.objects} objects of {done.bytes} bytes fetched, {done.hits} hits, {done.failures} failures, "
            f"{done.waiting} waiting"
        )
    return "; ".join(words)


def create_first(stores: Sequence[bytes]) -> None:
    """Make the first of *stores* if it is missing: what is fetched is published there. Raises ``StoreError``."""
    if stores:
        open_directory(stores[0], create=True).close()
