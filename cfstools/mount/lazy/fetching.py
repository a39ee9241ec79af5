"""Asking sources for objects: in order, again when that may help, and never the same wrong bytes twice.

A source that failed a few times in a row is asked after the others for a while, so that a mirror that is down costs its
time-out once and not with each object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from cfstools.errors import (
    CfsError,
    ContentsWrong,
    FormatError,
    InputError,
    NetworkError,
    NoRanges,
    NotFound,
    ObjectMissing,
    RemoteObjectWrong,
    RemoteStoreError,
)
from cfstools.mount.lazy.options import LazyOptions
from cfstools.mount.lazy.receiving import paced
from cfstools.streams.buffered import Read
from cfstools.transport.fetch import STRIKES, ObjectSource, as_network_error
from cfstools.transport.retry import REAL_TIME, Clock
from cfstools.verity import object_path

REST = 30.0
"""Seconds that a source is asked after the others, after :data:`STRIKES` failures in a row."""

_PAUSE = 0.2

Take = Callable[[bytes, int, Read], None]
"""Takes an object: its digest, its size, and what reads it. Raises ``ContentsWrong`` for other contents."""

Missing = Callable[[], Mapping[bytes, int]]
"""What else is worth taking, sizes by digest."""


class Try(NamedTuple):
    """A source to be asked, for which time."""

    standing: Standing
    attempt: int


class Standing:
    """A source, and how it did lately."""

    def __init__(self, source: ObjectSource, clock: Clock) -> None:
        self.source = source
        self.place = source.describe()
        self._clock = clock
        self._failures = 0
        self._rests_until = 0.0

    @property
    def rests(self) -> bool:
        """Whether others are asked first."""
        return self._clock.now() < self._rests_until

    def failed(self) -> None:
        """It could not be reached, or broke."""
        self._failures += 1
        if self._failures >= STRIKES:
            self._rests_until = self._clock.now() + REST

    def did_well(self) -> None:
        """It gave something."""
        self._failures = 0
        self._rests_until = 0.0


class Fetcher:
    """Fetches from *sources*, from several threads; *log* is told what goes wrong, a line each."""

    def __init__(
        self,
        sources: Sequence[ObjectSource],
        options: LazyOptions,
        *,
        log: Callable[[str], None],
        clock: Clock = REAL_TIME,
    ) -> None:
        self.options = options
        self.log = log
        self._clock = clock
        self._standings = [Standing(source, clock) for source in sources]

    @property
    def places(self) -> tuple[str, ...]:
        """What messages call the sources."""
        return tuple(standing.place for standing in self._standings)

    def paced(self, read: Read, size: int) -> Read:
        """*read*, as long as the *size* bytes of it do not take too long."""
        return paced(read, size, self.options.timeout, self._clock)

    def standings(self) -> Sequence[Standing]:
        """The sources in the order in which they are to be asked now."""
        return sorted(self._standings, key=lambda standing: standing.rests)

    def tries(self) -> Iterator[Try]:
        """Each source once, then after a pause again, as often as the options say."""
        for attempt in range(1, self.options.attempts + 1):
            if attempt > 1:
                self._clock.sleep(_PAUSE * attempt * (0.5 + self._clock.chance()))
            for standing in self.standings():
                yield Try(standing, attempt)

    def groups(self, wanted: Mapping[bytes, int]) -> list[tuple[bytes, ...]]:
        """What is best fetched together: requests that bring several objects at once are not taken apart."""
        left = dict(wanted)
        made: list[tuple[bytes, ...]] = []
        for standing in self.standings():
            for request in standing.source.plan(left) if left else ():
                if request.requests > 1:
                    made += [(key,) for key in request.keys]
                else:
                    made.append(tuple(request.keys))
                for key in request.keys:
                    left.pop(key, None)
        return made + [(key,) for key in left]

    def fetch(self, wanted: Mapping[bytes, int], take: Take, missing: Missing) -> dict[bytes, CfsError]:
        """Fetch *wanted*, sizes by digest; what did not come, and why.

        Raises what *take* does but for ``ContentsWrong``: it says nothing about a source.
        """
        run = _Run(self, dict(wanted), take)
        for one in self.tries():
            run.ask(one, missing)
            if not run.may_help:
                break
        return {key: run.failures[key].error() for key in run.left}


class Failures:
    """What went wrong with one object, and whom not to ask again."""

    def __init__(self, fetcher: Fetcher, digest: bytes) -> None:
        self._fetcher = fetcher
        self._name = f"object {object_path(digest).decode()}"
        self._wrong: dict[str, CfsError] = {}
        self._failed: dict[str, CfsError] = {}
        self._barred: set[str] = set()
        self.are_missing = True
        """Whether no source has it, as far as was told."""
        self.are_refusals = True
        """Whether no source gives parts of it, as far as was told."""

    def bar(self, one: Try) -> bool:
        """Whether this source must not be asked again."""
        return one.standing.place in self._barred

    @property
    def is_damage(self) -> bool:
        """Whether wrong bytes came, and nothing else went wrong."""
        return bool(self._wrong) and not self._failed

    @property
    def is_over(self) -> bool:
        """Whether no source may be asked again."""
        return self._barred.issuperset(self._fetcher.places)

    def tries(self) -> Iterator[Try]:
        """Those of the fetcher that may help."""
        for one in self._fetcher.tries():
            if not self.bar(one):
                yield one
            if self.is_over:
                return

    def note(self, one: Try, error: CfsError) -> None:
        """Note why it did not come."""
        place, log = one.standing.place, self._fetcher.log
        self.are_missing = self.are_missing and isinstance(error, NotFound)
        self.are_refusals = self.are_refusals and isinstance(error, NoRanges)
        if isinstance(error, NotFound | NoRanges):
            self._barred.add(place)
        elif isinstance(error, ContentsWrong | FormatError):
            self._barred.add(place)
            self._wrong[place] = error
            log(f"{self._name} from {place} is damaged: {error.what}")
        else:
            one.standing.failed()
            self._failed[place] = error
            log(
                f"{self._name}: cannot fetch from {place}: {error.what} "
                f"(attempt {one.attempt} of {self._fetcher.options.attempts})"
            )

    def error(self) -> CfsError:
        """Why it did not come: what cannot be reached may have it, and counts more than what is wrong."""
        for place, error in self._failed.items():
            return RemoteStoreError(f"cannot fetch from {place}: {error.what}", subject=self._name, hint=error.hint)
        for error in self._wrong.values():
            places = " and ".join(self._wrong)
            return RemoteObjectWrong(f"is damaged at {places}: {error.what}", subject=self._name)
        return ObjectMissing(f"is not at {', '.join(self._fetcher.places) or 'any source'}", subject=self._name)


class _Run:
    """Objects that are being fetched."""

    def __init__(self, fetcher: Fetcher, left: dict[bytes, int], take: Take) -> None:
        self.left = left
        self.failures = {key: Failures(fetcher, key) for key in left}
        self._fetcher = fetcher
        self._take = take

    @property
    def may_help(self) -> bool:
        """Whether asking again may bring something."""
        return any(not self.failures[key].is_over for key in self.left)

    def ask(self, one: Try, missing: Missing) -> None:
        """Ask a source for what is left."""
        wanted = {key: size for key, size in self.left.items() if not self.failures[key].bar(one)}
        requests = one.standing.source.plan(wanted, missing) if wanted else ()
        planned = {key for request in requests for key in request.keys}
        for key in wanted.keys() - planned:
            self.note(one, key, NotFound("not found", subject=one.standing.place))
        for request in requests:
            try:
                one.standing.source.fetch(request, _Asking(self, one))
            except (ContentsWrong, FormatError, InputError) as error:
                for key in request.keys:
                    self.note(one, key, as_network_error(error) if isinstance(error, InputError) else error)

    def take(self, one: Try, key: bytes, size: int, read: Read) -> None:
        """Give on an object."""
        self._take(key, size, self._fetcher.paced(read, size))
        one.standing.did_well()
        self.left.pop(key, None)

    def note(self, one: Try, key: bytes, error: CfsError) -> None:
        """Note why an object did not come; those that came without being asked for do not matter."""
        if key in self.left:
            self.failures[key].note(one, error)


class _Asking:
    """One request to one source, as its :class:`cfstools.transport.fetch.Taker`."""

    def __init__(self, run: _Run, one: Try) -> None:
        self._run = run
        self._one = one

    def take(self, key: bytes, size: int, read: Read) -> None:
        """Give on an object; note one that is wrong."""
        try:
            self._run.take(self._one, key, size, read)
        except (ContentsWrong, FormatError) as error:
            self._run.note(self._one, key, error)

    def lost(self, key: bytes, error: NetworkError) -> None:
        """Note that an object cannot be had."""
        self._run.note(self._one, key, error)
