"""Fetching many objects from several sources, with failover: who gives what, what went wrong, and when to stop.

An object is a key, here without a meaning: whoever takes its bytes (a :class:`Sink`) checks them. Each source says
which requests bring what it has; threads carry these out, one connection each. What a source failed to give is asked of
the next one. A source whose bytes were wrong :data:`STRIKES` times, or that failed as often, is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from threading import Lock
from typing import NamedTuple, Protocol

from cfstools.errors import CfsError, ContentsWrong, FormatError, InputError, NetworkError, NotFound
from cfstools.progress import Progress, Stage, running_stage
from cfstools.streams.buffered import Read
from cfstools.text import counted
from cfstools.threadpool import Call, ThreadPool
from cfstools.transport.base import Span

STRIKES = 3


class FetchRequest(Protocol):
    """What is fetched in one go."""

    @property
    def keys(self) -> Sequence[bytes]:
        """The objects."""

    @property
    def size(self) -> int:
        """How many bytes are planned for it."""

    @property
    def requests(self) -> int:
        """How many requests it takes, if none is repeated."""


class Sink(Protocol):
    """Takes objects, from several threads, each at most once."""

    def take(self, key: bytes, size: int, read: Read) -> None:
        """Take the *size* bytes of an object. Raises ``ContentsWrong`` for others; what is read of these is lost."""


class Taker(Protocol):
    """What a source gives to: a :class:`Sink` behind which it is noted what went wrong."""

    def take(self, key: bytes, size: int, read: Read) -> None:
        """Take an object; one that is wrong is noted. Raises ``NetworkError`` as *read* does."""

    def lost(self, key: bytes, error: NetworkError) -> None:
        """Note that an object cannot be had. Raises ``NetworkError`` once the source is left out."""


class ObjectSource(Protocol):
    """Somewhere objects can be fetched from. Its requests are its own kind.

    ``connections`` says how many at once serve it best where nothing else is said.
    """

    connections: int

    def plan(
        self, wanted: Mapping[bytes, int], missing: Callable[[], Mapping[bytes, int]] | None = None
    ) -> Sequence[FetchRequest]:
        """The requests for what it has of *wanted*: sizes by key. Plans of several threads do not affect each other.

        Where more than that has to be read, *missing* is asked what else is worth taking at that moment; without it
        nothing is.
        """

    def fetch(self, request: FetchRequest, taker: Taker) -> int:
        """Carry out a request of :meth:`plan`; how many it took on the wire.

        Raises ``ContentsWrong`` and ``NetworkError`` when nothing more of it can be had, and what *taker* raises.
        """

    def leaves(self, key: bytes, size: int, length: int) -> AbstractContextManager[Read]:
        """The digests of the blocks of the object *key* of *size* bytes, *length* bytes in all, which nobody checked.

        With them parts of the object can be checked. Raises ``NotFound`` where the source has none, ``ContentsWrong``,
        ``NetworkError``; so does reading.
        """

    def part(self, key: bytes, size: int, span: Span) -> AbstractContextManager[Read]:
        """A part of the object *key* of *size* bytes, unchecked.

        Raises ``NotFound``, ``NoRanges`` where only the whole can be had, ``ContentsWrong``, ``NetworkError``.
        """

    def describe(self) -> str:
        """What messages call it."""


class Failure(NamedTuple):
    """Why an object did not come from a source."""

    place: str
    error: CfsError


class FetchReport(NamedTuple):
    """What came of fetching; *failures* has what did not come, and why from each source that was asked."""

    objects: int
    received: int
    requests: int
    failures: Mapping[bytes, Sequence[Failure]]

    def error(self, shown: Callable[[bytes], str]) -> CfsError | None:
        """What to raise, if not all came: wrong contents before what cannot be reached, and that before missing."""
        if not self.failures:
            return None
        for kind in (ContentsWrong, NetworkError):
            for key, failures in sorted(self.failures.items()):
                found = [failure for failure in failures if _is_final(failure.error, kind)]
                if found:
                    return self._first(shown(key), found)
        first = shown(min(self.failures))
        number = len(self.failures)
        what = f"{counted(number, 'object')} {'is' if number == 1 else 'are'} missing at every place, first {first}"
        return InputError(what)

    def _first(self, name: str, failures: Sequence[Failure]) -> CfsError:
        if isinstance(failures[0].error, ContentsWrong):
            places = " and ".join(dict.fromkeys(failure.place for failure in failures))
            return ContentsWrong(
                f"contents are wrong at {places}", subject=f"object {name}", hint=failures[0].error.hint
            )
        return failures[0].error


def fetch_all(
    sources: Sequence[ObjectSource],
    wanted: Mapping[bytes, int],
    sink: Sink,
    *,
    connections: int | None = None,
    progress: Progress,
) -> FetchReport:
    """Fetch *wanted*, sizes by key, from *sources* in their order, with so many connections at once.

    Without *connections* each source has as many as serve it best.

    Nothing that a source does ends it but an error of *sink* and one of this machine.
    """
    run = _Run(dict(wanted), sink)
    for number, source in enumerate(sources):
        requests = source.plan(run.missing) if run.missing else ()
        if not requests:
            continue
        planned = sum(request.size for request in requests)
        name = "fetch" if number == 0 else f"fetch from {source.describe()}"
        with running_stage(progress, name, planned, "B") as stage:
            run.ask(source, requests, connections or source.connections, stage)
    return run.report()


class _Run:
    """What is missing, and what has gone wrong."""

    def __init__(self, missing: dict[bytes, int], sink: Sink) -> None:
        self.missing = missing
        self._failures: dict[bytes, list[Failure]] = {key: [] for key in missing}
        self._sink = sink
        self._lock = Lock()
        self._requests = 0
        self._objects = 0
        self._received = 0

    def ask(self, source: ObjectSource, requests: Iterable[FetchRequest], connections: int, stage: Stage) -> None:
        """Carry out the requests of a source."""
        asking = _Asking(self, source, stage)
        with ThreadPool(connections, "fetch") as workers:
            calls: list[Call[None]] = [workers.submit(asking.fetch, request) for request in requests]
            for call in calls:
                call.result()

    def report(self) -> FetchReport:
        """What came of it."""
        failures = {key: tuple(self._failures[key]) for key in self.missing}
        return FetchReport(self._objects, self._received, self._requests, failures)

    def take(self, key: bytes, size: int, read: Read) -> None:
        """Give an object to the sink."""
        self._sink.take(key, size, read)
        with self._lock:
            del self.missing[key]
            del self._failures[key]
            self._objects += 1

    def count(self, received: int = 0, requests: int = 0) -> None:
        """Count bytes and requests."""
        with self._lock:
            self._received += received
            self._requests += requests

    def fail(self, keys: Collection[bytes], failure: Failure) -> None:
        """Note why objects did not come."""
        with self._lock:
            for key in keys:
                if key in self.missing:
                    self._failures[key].append(failure)


class _Asking:
    """One source that is being asked, as the :class:`Taker` of its requests."""

    def __init__(self, run: _Run, source: ObjectSource, stage: Stage) -> None:
        self._run = run
        self._source = source
        self._stage = stage
        self._place = source.describe()
        self._wrong = 0
        self._failed = 0

    def fetch(self, request: FetchRequest) -> None:
        """Carry out a request, unless the source is left out."""
        try:
            self._refuse_if_out()
            self._run.count(requests=self._source.fetch(request, self))
        except (ContentsWrong, FormatError) as error:
            self._strike(request.keys, error)
        except NetworkError as error:
            self._fail(request.keys, error)

    def take(self, key: bytes, size: int, read: Read) -> None:
        """Give an object to the run."""

        def counted_read(count: int) -> bytes:
            try:
                part = read(count)
            except InputError as error:
                raise as_network_error(error) from error
            self._stage.advance(len(part))
            self._run.count(received=len(part))
            return part

        try:
            self._run.take(key, size, counted_read)
        except (ContentsWrong, FormatError) as error:
            self._strike((key,), error)
            self._refuse_if_out()
        else:
            self._failed = 0

    def lost(self, key: bytes, error: NetworkError) -> None:
        """Note that an object cannot be had."""
        self._fail((key,), error)
        self._refuse_if_out()

    def _refuse_if_out(self) -> None:
        if self._wrong >= STRIKES or self._failed >= STRIKES:
            raise _LeftOutError("is not asked any more", subject=self._place)

    def _fail(self, keys: Collection[bytes], error: NetworkError) -> None:
        if not isinstance(error, NotFound | _LeftOutError):
            self._failed += 1
        self._run.fail(keys, Failure(self._place, error))

    def _strike(self, keys: Collection[bytes], error: CfsError) -> None:
        self._wrong += 1
        wrong = error if isinstance(error, ContentsWrong) else ContentsWrong(str(error))
        self._run.fail(keys, Failure(self._place, wrong))


class _LeftOutError(NetworkError):
    """The source failed too often before."""


def as_network_error(error: InputError) -> NetworkError:
    """An error of a place, whatever kind of place it is; those of a sink are another thing."""
    if isinstance(error, NetworkError):
        return error
    return NetworkError(error.what, where=error.where, subject=error.subject, hint=error.hint)


def _is_final(error: CfsError, kind: type[CfsError]) -> bool:
    """Whether an error is of a kind that tells more than that something is missing."""
    return isinstance(error, kind) and not isinstance(error, NotFound | _LeftOutError)
