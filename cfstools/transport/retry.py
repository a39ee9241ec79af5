"""When to try again, and after how long: pure, with the clock and chance as arguments."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import NamedTuple

from cfstools.errors import NetworkError, TransientError
from cfstools.threadpool import give_up_if_stopped

_NAP = 0.5


def patient_sleep(seconds: float) -> None:
    """Sleep, in a thread of ``ThreadPool`` no longer than somebody waits for its result."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        give_up_if_stopped()
        time.sleep(min(left, _NAP))


class Clock(NamedTuple):
    """Time as :mod:`cfstools.transport` sees it: seconds that only grow, sleeping, and chance from 0 up to 1."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = patient_sleep
    chance: Callable[[], float] = random.random


REAL_TIME = Clock()


class RetryRules(NamedTuple):
    """How long a failing place is tried; times in seconds."""

    attempts: int = 5  # without progress
    first: float = 0.25  # then twice as long each time
    longest: float = 10
    obeyed: float = 120  # what a server may ask us to wait
    progress: int = 64 << 10  # bytes that count as progress


class Attempts:
    """The failures of one piece of work. :meth:`failed` waits, or raises the error that ends it."""

    def __init__(self, rules: RetryRules = RetryRules(), clock: Clock = REAL_TIME) -> None:  # noqa: B008 - immutable
        self._rules = rules
        self._clock = clock
        self._failures = 0

    def failed(self, error: TransientError, received: int = 0) -> None:
        """Wait before the next attempt, where *received* bytes came in the one that failed with *error*.

        Raises *error* when there have been enough, and ``NetworkError`` when the server asks to wait too long.
        """
        goes_on = received >= self._rules.progress
        self._failures = 1 if goes_on else self._failures + 1
        if error.wait is not None and error.wait > self._rules.obeyed:
            raise NetworkError(
                f"{error.what}; it asks to wait {error.wait:.0f} s", subject=error.subject, hint=error.hint
            ) from error
        if self._failures >= self._rules.attempts and not goes_on:
            raise error
        self._clock.sleep(self._pause() if error.wait is None else error.wait)

    def _pause(self) -> float:
        """Between half of and the whole time that it is the turn of: not all come back at the same moment."""
        whole: float = min(self._rules.longest, self._rules.first * 2 ** (self._failures - 1))
        return whole * (1 + self._clock.chance()) / 2
