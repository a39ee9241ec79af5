"""Reading a span to its end although connections break: from where it stopped, from the same place or the next."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from cfstools.errors import CfsError, ContentsWrong, NetworkError, SourceChanged, TransientError
from cfstools.lifetime import Closable
from cfstools.streams.buffered import Read, read_up_to
from cfstools.transport.base import Open, Place, Span, Version
from cfstools.transport.retry import REAL_TIME, Attempts, Clock, RetryRules

DEFAULT_RULES = RetryRules()


class SpanReader(Closable):
    """The bytes of *span*, from the first of *openers* that gives them; close it, or use it as a context manager.

    What broke is asked for again from where it stopped, as *rules* say; what fails for good is asked of the next. All
    must give the same bytes: whoever checks them finds out. Raises the error of the last in :meth:`read`.
    """

    def __init__(
        self, openers: Sequence[Open], span: Span, *, rules: RetryRules = DEFAULT_RULES, clock: Clock = REAL_TIME
    ) -> None:
        self._openers = list(openers)
        self._rules = rules
        self._clock = clock
        self._attempts = Attempts(rules, clock)
        self._at = span.start
        self._end = span.end
        self._began = span.start  # where the attempt that goes on began
        self._stack = ExitStack()
        self._read: Read | None = None
        self.requests = 0

    def read(self, count: int) -> bytes:
        """The next bytes, at most *count*; none only at the end of the span."""
        while self._at < self._end and count:
            try:
                part = self._next(min(count, self._end - self._at))
            except TransientError as error:
                self._drop()
                self._try_again(error)
            except (NetworkError, ContentsWrong, SourceChanged) as error:
                self._drop()
                self._move_on(error)
            else:
                self._at += len(part)
                return part
        return b""

    def close(self) -> None:
        """Give up the connection. Closing twice is allowed."""
        self._drop()

    def _next(self, count: int) -> bytes:
        if self._read is None:
            self._began = self._at
            self.requests += 1
            self._read = self._stack.enter_context(self._openers[0](Span(self._at, self._end)))
        part = self._read(count)
        if not part:
            raise TransientError("the connection broke: the answer is cut")
        return part

    def _try_again(self, error: TransientError) -> None:
        """Wait; if there were enough attempts go on to the next opener."""
        try:
            self._attempts.failed(error, self._at - self._began)
        except NetworkError as final:
            self._move_on(final)

    def _move_on(self, error: CfsError) -> None:
        if len(self._openers) == 1:
            raise error
        del self._openers[0]
        self._attempts = Attempts(self._rules, self._clock)

    def _drop(self) -> None:
        self._read = None
        self._stack.close()


def open_at(place: Place, name: str) -> Open:
    """How spans of one thing in a place are opened, which must not change meanwhile."""
    version = Version()
    return lambda span: place.read(name, span, version)


def read_whole(
    place: Place, name: str, limit: int, *, rules: RetryRules = DEFAULT_RULES, clock: Clock = REAL_TIME
) -> bytes:
    """All of something small. Raises ``NetworkError``, also for more than *limit* bytes."""
    attempts = Attempts(rules, clock)
    while True:
        try:
            with place.read(name) as read:
                data = read_up_to(read, limit + 1)
        except TransientError as error:
            attempts.failed(error)
            continue
        if len(data) > limit:
            raise NetworkError(f"is longer than {limit} bytes", subject=place.describe(name))
        return data


class PlaceAccess:
    """The bytes of one name at any offset, as :class:`cfstools.streams.spool.RandomAccess`; *place* stays open."""

    def __init__(
        self, place: Place, name: str, size: int, *, rules: RetryRules = DEFAULT_RULES, clock: Clock = REAL_TIME
    ) -> None:
        self._open = open_at(place, name)
        self._size = size
        self._rules = rules
        self._clock = clock

    def pread(self, count: int, offset: int) -> bytes:
        """*count* bytes at *offset*; fewer only at the end."""
        span = Span(offset, min(offset + count, self._size))
        with SpanReader([self._open], span, rules=self._rules, clock=self._clock) as reader:
            return read_up_to(reader.read, max(0, span.size))

    def close(self) -> None:
        """Nothing: *place* is its owner's."""
