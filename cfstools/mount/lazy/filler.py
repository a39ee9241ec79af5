"""A store whose objects come when they are opened: the last member of a chain, and what a lazy data layer shows.

    filler = Filler(sources, sizes, local=[store], store=store)
    with filler.open(digest) as …: read(offset, count)      # waits, and gives checked bytes only

Many may wait for one object, which is fetched once. What fails is an error for those who wait, and the next access
tries again. No thread runs before the first object is wanted, so a process can make a filler and fork.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

from cfstools.errors import CfsError, Interrupted, ObjectMissing, StoreError
from cfstools.lifetime import Closable
from cfstools.mount.lazy.cache import Cache
from cfstools.mount.lazy.fetching import Fetcher
from cfstools.mount.lazy.jobs import Crew, Job, Urgency
from cfstools.mount.lazy.large import LargeObjects
from cfstools.mount.lazy.options import FillCounters, LazyOptions
from cfstools.mount.lazy.order import Order
from cfstools.mount.lazy.receiving import receive
from cfstools.mount.lazy.shelf import Shelf
from cfstools.mount.lazy.trace import Recorder
from cfstools.mount.lazy.waiting import Flight, again
from cfstools.store.base import Object, Store, digest_of
from cfstools.store.chain import StoreChain
from cfstools.store.directory import DirectoryStore
from cfstools.streams.buffered import Read
from cfstools.text import shown_path
from cfstools.transport.fetch import ObjectSource
from cfstools.transport.retry import REAL_TIME, Clock
from cfstools.verity import object_path
from cfstools.verity.object_id import LARGE

MAX_WAITING = 4096
"""Readers that wait at most; those that come then get an error at once."""

MAX_FAILURES = 100
"""So many failures in a row end what is fetched before anybody asks for it."""

_TRIES = 3  # to open what came, if the cache is too small for all that comes

DEFAULT_LAZY = LazyOptions()


class Filler(Closable):
    """A :class:`cfstools.store.base.Store` of the objects in *sizes*, sizes by digest in the order of the tree.

    Each is looked for in the stores *local*, then fetched from *sources*, compared with its digest, served, and
    published in *store*, one of *local*. What cannot be published is kept in files without a name in the directory
    *scratch*. *log* is told what goes wrong, a line at a time. The stores and sources stay their owner's.

    Thread-safe. A thread inside of ``waiting.interruptible`` stops waiting when it is told to, here and in reads of an
    object that is open.
    """

    def __init__(
        self,
        sources: Sequence[ObjectSource],
        sizes: Mapping[bytes, int],
        *,
        local: Sequence[Store] = (),
        store: DirectoryStore | None = None,
        scratch: bytes = b"/var/tmp",
        options: LazyOptions = DEFAULT_LAZY,
        log: Callable[[str], None] = lambda _text: None,
        clock: Clock = REAL_TIME,
    ) -> None:
        self._sizes = sizes
        self._options = options
        self._local = StoreChain(local)
        self._log = log
        self._fetcher = Fetcher(sources, options, log=log, clock=clock)
        self._shelf = Shelf(store, Cache(scratch, options.cache_size), options, log)
        self._order = Order(sizes)
        self._crew = Crew(options.connections, self._behind)
        self._lock = threading.Lock()
        self._large = LargeObjects(
            self._fetcher, self._shelf, options.cache_size, submit=self._crew.add, counted=self._count_part
        )
        self._flights: dict[bytes, Flight] = {}
        self._in_a_row = 0  # failures of what nobody waited for
        self._counts: dict[str, int] = {}
        self.touched = Recorder(clock)
        """The order in which objects were opened first."""

    # The store

    def size(self, digest: bytes) -> int | None:
        """The object's length in bytes as the image has it, ``None`` for others; nothing is fetched."""
        return self._sizes.get(digest)

    def open(self, digest: bytes) -> Object:
        """Open the object, which is fetched first if it is missing; what comes is right.

        Raises ``ObjectMissing`` for one that is nowhere, ``StoreError`` where it cannot be had now, ``Interrupted``.
        """
        size = self._sizes.get(digest)
        if size is None:
            raise ObjectMissing("is no object of the image", subject=self.describe(digest))
        self.touched.note(digest)
        found = self._here(digest, size)
        self._read_ahead(digest, missed=found is None)
        if found is not None:
            self._count(hits=1)
            return found
        self._count(misses=1)
        for _ in range(_TRIES):
            self._await(digest)
            found = self._here(digest, size)
            if found is not None:
                return found
        raise StoreError("was dropped before it could be read: the cache is too small", subject=self.describe(digest))

    def open_path(self, path: bytes) -> Object:
        """Open the object at *path*, which must be one made of a digest; raises as :meth:`open` does."""
        parts = [part for part in path.split(b"/") if part]
        digest = digest_of(*parts) if len(parts) == 2 else None
        if digest is None:
            raise ObjectMissing("is no object of the image", subject=shown_path(path))
        return self.open(digest)

    def objects(self) -> Iterator[bytes]:
        """Yield the digest of each object of the image, in byte order."""
        return iter(sorted(self._sizes))

    def describe(self, digest: bytes) -> str:
        """The object's name; where it comes from is not known before."""
        return f"object {object_path(digest).decode()}"

    # What else it does

    def is_here(self, digest: bytes) -> bool:
        """Whether :meth:`open` would not have to wait."""
        size = self._sizes.get(digest)
        return size is not None and self._has(digest, size)

    def want(self, digests: Iterable[bytes]) -> None:
        """Fetch these behind everything else, in this order; what is no object of the image is ignored.

        Stops after :data:`MAX_FAILURES` failures in a row.
        """
        self._order.add(digests)
        self._crew.look()

    @property
    def counters(self) -> FillCounters:
        """What was done so far; also after :meth:`close`."""
        with self._lock:
            counts = dict(self._counts)
        return FillCounters(**counts, published=self._shelf.published, kept=self._shelf.kept)

    def close(self) -> None:
        """Publish what waits, and end all threads. Those who wait get an error. Closing twice is allowed."""
        with self._lock:
            flights, self._flights = list(self._flights.values()), {}
        for flight in flights:
            flight.end(StoreError("the lazy store is closed"))
        self._crew.close()
        self._large.close()
        self._shelf.close()

    # Misses

    def _here(self, digest: bytes, size: int) -> Object | None:
        """The object, if it is on the shelf or in a store."""
        found: Object | None = self._shelf.open(digest) or self._large.open(digest)
        if found is not None:
            return found
        # Two steps, as most misses are in no store at all: looking up is cheaper than a failing open.
        try:
            if self._local.size(digest) != size:
                return None
            found = self._local.open(digest)
        except StoreError:
            return None
        if found.size == size:
            return found
        found.close()
        return None

    def _has(self, digest: bytes, size: int) -> bool:
        if self._shelf.has(digest):
            return True
        try:
            return self._local.size(digest) == size
        except StoreError:
            return False

    def _await(self, digest: bytes) -> None:
        """Wait until an object is here. Raises ``StoreError``, ``Interrupted``."""
        self._enter(digest)
        try:
            self._flight(digest).wait(self._options.deadline, self.describe(digest))
        except Interrupted:
            raise
        except CfsError:
            self._count(failures=1)
            raise
        finally:
            self._count(waiting=-1)

    def _enter(self, digest: bytes) -> None:
        with self._lock:
            waiting = self._counts.get("waiting", 0)
            if waiting < MAX_WAITING:
                self._counts["waiting"] = waiting + 1
                return
        raise StoreError(f"too many readers wait: {MAX_WAITING}", subject=self.describe(digest))

    def _flight(self, digest: bytes) -> Flight:
        """The flight that brings an object; one that is on its way already, or a new one."""
        with self._lock:
            flight = self._flights.get(digest)
            if flight is not None:
                return flight
            flight = self._flights[digest] = Flight()
        try:
            self._crew.add(Urgency.MISS, partial(self._fetch_missed, digest))
        except StoreError as error:
            self._end(digest, error)
        return flight

    def _claim(self, digests: Iterable[bytes]) -> list[bytes]:
        """Those of *digests* that nobody fetches; they are ours now."""
        claimed = []
        for digest in digests:
            with self._lock:
                if digest in self._flights or self._crew.is_stopped:
                    continue
                self._flights[digest] = Flight()
            claimed.append(digest)
        return claimed

    def _end(self, digest: bytes, error: CfsError | None) -> None:
        """A flight is over."""
        with self._lock:
            flight = self._flights.pop(digest, None)
        if flight is not None:
            flight.end(error)

    # Jobs

    def _fetch_missed(self, digest: bytes) -> None:
        self._fetch([digest])

    def _bring(self, wanted: dict[bytes, int]) -> dict[bytes, CfsError]:
        """Fetch objects, or begin the large ones; what did not come, and why. Raises ``CfsError``."""
        errors: dict[bytes, CfsError] = {}
        for digest, size in list(wanted.items()):
            if size <= LARGE:
                continue
            try:
                if self._large.begin(digest, size):
                    del wanted[digest]
            except CfsError as error:
                errors[digest] = error
                del wanted[digest]
        return errors | (self._fetcher.fetch(wanted, self._take, self._missing) if wanted else {})

    def _fetch(self, digests: Sequence[bytes]) -> dict[bytes, CfsError]:
        """Fetch objects whose flights are ours; what did not come, and why. Each flight is over afterwards."""
        errors: dict[bytes, CfsError] = {}
        wanted = {}
        for digest in digests:
            if self._has(digest, self._sizes[digest]):
                self._end(digest, None)
            else:
                wanted[digest] = self._sizes[digest]
        try:
            errors = self._bring(dict(wanted))
        except CfsError as error:
            errors = {digest: again(error) for digest in wanted}
        except BaseException:
            errors = {digest: StoreError("was given up", subject=self.describe(digest)) for digest in wanted}
            raise
        finally:
            for digest in wanted:
                self._end(digest, errors.get(digest))
        return errors

    def _take(self, digest: bytes, size: int, read: Read) -> None:
        if not self._shelf.has(digest):
            receive(digest, size, read, self._shelf)
            flight = self._flights.get(digest)
            self._count(objects=1, bytes=size, ahead=flight is None or not flight.is_wanted)
        self._end(digest, None)

    def _missing(self) -> Mapping[bytes, int]:
        return {digest: size for digest, size in self._sizes.items() if not self._has(digest, size)}

    def _read_ahead(self, digest: bytes, *, missed: bool) -> None:
        group = self._order.following(digest, self._options.readahead, missed=missed)
        if group:
            try:
                self._crew.add(Urgency.AHEAD, self._group(Urgency.AHEAD, group))
            except StoreError:
                return  # there is enough to do

    def _behind(self) -> Job | None:
        """The next job that nobody waits for."""
        number, group = self._order.next_group()
        return self._group(Urgency.BEHIND, group, number) if group else None

    def _group(self, urgency: Urgency, digests: Sequence[bytes], number: int | None = None) -> Job:
        """A job that splits a group into what is fetched together, and does the first part itself.

        With a *number*, until the round of that number is forgotten.
        """

        def run() -> None:
            missing = [digest for digest in digests if not self._has(digest, self._sizes[digest])]
            if not missing:
                return
            groups = self._fetcher.groups({digest: self._sizes[digest] for digest in missing})
            for group in groups[1:]:
                try:
                    self._crew.add(urgency, partial(self._calm_fetch, group, number))
                except StoreError:
                    return
            self._calm_fetch(groups[0], number)

        return run

    def _calm_fetch(self, digests: Sequence[bytes], number: int | None) -> None:
        """Fetch what nobody waits for, unless that keeps failing."""
        if number is not None and self._order.is_forgotten(number):
            return
        claimed = self._claim(digest for digest in digests if not self._has(digest, self._sizes[digest]))
        if not claimed:
            return
        errors = self._fetch(claimed)
        for digest in claimed:
            if self._large.has(digest):
                self._large.fetch_rest(digest, lambda: not self._crew.is_stopped)
        if number is not None:
            self._judge(number, came=len(claimed) - len(errors), failed=len(errors))

    def _judge(self, number: int, *, came: int, failed: int) -> None:
        """Stop fetching what nobody waits for once that keeps failing; what was forgotten meanwhile does not count."""
        with self._lock:
            if self._order.is_forgotten(number):
                return
            self._in_a_row = 0 if came else self._in_a_row + failed
            if self._in_a_row < MAX_FAILURES:
                return
            self._in_a_row = 0
            is_more = self._order.forget()
        if self._crew.clear(Urgency.BEHIND) or is_more:
            self._log(f"nothing more is fetched ahead: {MAX_FAILURES} failures in a row")

    def _count_part(self, size: int) -> None:
        self._count(parts=1, part_bytes=size)

    def _count(self, **changes: int) -> None:
        with self._lock:
            for name, change in changes.items():
                self._counts[name] = self._counts.get(name, 0) + change
