"""How a reader waits for what is on its way: until it comes, it is too late, or nobody wants it any more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from cfstools.errors import CfsError, Interrupted, StoreError


class Interruption:
    """Ends the waiting of the thread that is inside :func:`interruptible` with it; used once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._condition: threading.Condition | None = None
        self.is_set = False

    def interrupt(self) -> None:
        """From now on waiting raises ``Interrupted``; to be called from another thread."""
        with self._lock:
            self.is_set = True
            condition = self._condition
        if condition is not None:
            with condition:
                condition.notify_all()

    def watch(self, condition: threading.Condition | None) -> None:
        """Note what the thread waits for."""
        with self._lock:
            self._condition = condition


_here = threading.local()


@contextmanager
def interruptible(interruption: Interruption) -> Iterator[None]:
    """Whatever this thread waits for in the block, *interruption* ends it."""
    _here.interruption = interruption
    try:
        yield
    finally:
        _here.interruption = None


def wait_until(condition: threading.Condition, is_over: Callable[[], bool], seconds: float) -> bool:
    """Wait so long at most for *is_over*, which is called with *condition* held; whether it is.

    Raises ``Interrupted``.
    """
    interruption: Interruption | None = getattr(_here, "interruption", None)
    if interruption is not None:
        interruption.watch(condition)
    end = monotonic() + seconds
    try:
        with condition:
            while not is_over():
                if interruption is not None and interruption.is_set:
                    raise Interrupted("the reader gave up")
                left = end - monotonic()
                if left <= 0:
                    return False
                condition.wait(left)
            return True
    finally:
        if interruption is not None:
            interruption.watch(None)


class Flight:
    """Something on its way that any number of threads wait for."""

    __slots__ = ("_changed", "_error", "is_over", "is_wanted")

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._error: CfsError | None = None
        self.is_over = False
        self.is_wanted = False
        """Whether anybody waits, or did."""

    def end(self, error: CfsError | None = None) -> None:
        """It is there, or does not come because of *error*."""
        with self._changed:
            if not self.is_over:
                self._error, self.is_over = error, True
                self._changed.notify_all()

    def wait(self, seconds: float, subject: str) -> None:
        """Wait for it. Raises the error that it failed with, ``StoreError`` if it takes longer, ``Interrupted``."""
        self.is_wanted = True
        if not wait_until(self._changed, lambda: self.is_over, seconds):
            raise StoreError(f"did not come within {seconds:.0f} s", subject=subject)
        if self._error is not None:
            raise again(self._error)


def again(error: CfsError) -> CfsError:
    """*error* anew, for one of several threads that get it."""
    made = type(error)(error.what, where=error.where, subject=error.subject, hint=error.hint)
    made.__cause__ = error
    return made
