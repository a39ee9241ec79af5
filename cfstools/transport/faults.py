"""A place that fails on purpose, for testing whatever reads from and writes to places.

Which calls fail depends on the seed and on the call alone, not on the order of threads: a call is told by what it does,
to which name and offset, and how often that was done before. So a failing run can be repeated, and a retry of the same
call is a new one.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from threading import Lock
from typing import NamedTuple

from cfstools.errors import TransientError
from cfstools.streams.buffered import Read
from cfstools.transport.base import Span, Target


class Faults(NamedTuple):
    """The share of calls, from 0 to 1, that end in an error, read less than is there, or come *delay* seconds late."""

    seed: int = 0
    errors: float = 0
    short: float = 0
    delays: float = 0
    delay: float = 0.01


class _Draw(NamedTuple):
    """Numbers from 0 up to 1 that decide about one call."""

    error: float
    short: float
    delay: float
    where: float


class FaultyTarget:
    """*target* with *faults*. :attr:`injected` counts them by operation and kind."""

    def __init__(self, target: Target, faults: Faults, *, sleep: Callable[[float], object] = time.sleep) -> None:
        self._target = target
        self._faults = faults
        self._sleep = sleep
        self._calls: Counter[tuple[str, str, int]] = Counter()
        self._lock = Lock()
        self.injected: Counter[tuple[str, str]] = Counter()

    def size(self, name: str) -> int | None:
        """Length in bytes, or ``None``."""
        self._begin("size", name)
        return self._target.size(name)

    def read(self, name: str, span: Span) -> bytes:
        """The first bytes of a span, at times fewer than there are."""
        draw = self._begin("read", name, span.offset)
        if draw.short < self._faults.short and span.size > 1:
            self._count("read", "short")
            span = Span(span.offset, 1 + int(draw.where * (span.size - 1)))
        return self._target.read(name, span)

    def describe(self, name: str) -> str:
        """As the target calls it."""
        return self._target.describe(name)

    def close(self) -> None:
        """Close the target."""
        self._target.close()

    def put(self, name: str, read: Read, size: int) -> None:
        """Store what *read* gives; an error may come in the middle of it."""
        draw = self._draw("put", name, 0)
        self._delay("put", draw)
        fails_at = int(draw.where * size) if draw.error < self._faults.errors else None
        done = 0

        def failing(count: int) -> bytes:
            nonlocal done
            if fails_at is not None and done >= fails_at:
                self._fail("put", name)
            part = read(count if fails_at is None else min(count, fails_at - done))
            done += len(part)
            return part

        self._target.put(name, failing, size)

    def names(self) -> Iterator[str]:
        """All names."""
        self._begin("names", "")
        return self._target.names()

    def _begin(self, operation: str, name: str, offset: int = 0) -> _Draw:
        """Let a call come late or fail."""
        draw = self._draw(operation, name, offset)
        self._delay(operation, draw)
        if draw.error < self._faults.errors:
            self._fail(operation, name)
        return draw

    def _draw(self, operation: str, name: str, offset: int) -> _Draw:
        with self._lock:
            number = self._calls[operation, name, offset]
            self._calls[operation, name, offset] += 1
        call = repr((self._faults.seed, operation, name, offset, number)).encode()
        digest = hashlib.blake2b(call, digest_size=32).digest()
        return _Draw(*(int.from_bytes(digest[at : at + 6], "big") / (1 << 48) for at in (0, 6, 12, 18)))

    def _delay(self, operation: str, draw: _Draw) -> None:
        if draw.delay < self._faults.delays:
            self._count(operation, "delay")
            self._sleep(self._faults.delay)

    def _fail(self, operation: str, name: str) -> None:
        self._count(operation, "error")
        raise TransientError(f"injected fault in {operation}", subject=self.describe(name))

    def _count(self, operation: str, kind: str) -> None:
        with self._lock:
            self.injected[operation, kind] += 1
