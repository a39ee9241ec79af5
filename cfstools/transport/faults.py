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
from contextlib import contextmanager
from threading import Lock
from typing import NamedTuple

from cfstools.errors import TransientError
from cfstools.streams.buffered import Read
from cfstools.transport.base import Body, Span, Target, Version

SHORT = 4096  # a read that is cut gives at most so many bytes before


class Faults(NamedTuple):
    """The share of calls, from 0 to 1, that end in an error, break while they read, or come *delay* seconds late."""

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


class _FailingBody:
    """A body that calls *fail* instead of going on at *fails_at*."""

    def __init__(self, body: Body, fails_at: int, fail: Callable[[], None]) -> None:
        self._body = body
        self._fails_at = fails_at
        self._fail = fail
        self.size = body.size

    @contextmanager
    def open(self) -> Iterator[Read]:
        """Read it from the start."""
        left = self._fails_at
        with self._body.open() as read:

            def failing(count: int) -> bytes:
                nonlocal left
                if not left:
                    self._fail()
                part = read(min(count, left))
                left -= len(part)
                return part

            yield failing


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

    @contextmanager
    def read(self, name: str, span: Span | None = None, version: Version | None = None) -> Iterator[Read]:
        """Read a span of it, or all; at times that breaks before it is over, and gives less at once."""
        draw = self._begin("read", name, span.start if span else 0)
        with self._target.read(name, span, version) as read:
            if draw.short < self._faults.short:
                self._count("read", "short")
                yield self._short(read, 1 + int(draw.where * SHORT), name)
            else:
                yield read

    def _short(self, read: Read, allowed: int, name: str) -> Read:
        def cut(count: int) -> bytes:
            nonlocal allowed
            part = read(min(count, allowed, 1 + allowed // 2))
            if count and not allowed:
                raise TransientError("injected cut", subject=self.describe(name))
            allowed -= len(part)
            return part

        return cut

    def describe(self, name: str) -> str:
        """As the target calls it."""
        return self._target.describe(name)

    def close(self) -> None:
        """Close the target."""
        self._target.close()

    def put(self, name: str, body: Body, *, replace: bool) -> bool:
        """Store a body; an error may come in the middle of it."""
        draw = self._draw("put", name, 0)
        self._delay("put", draw)
        if draw.error < self._faults.errors:
            body = _FailingBody(body, int(draw.where * body.size), lambda: self._fail("put", name))
        return self._target.put(name, body, replace=replace)

    def names(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """All names with their sizes."""
        self._begin("names", prefix)
        return self._target.names(prefix)

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
