"""Threads that take calls, for work that gives up the interpreter's lock.

What ``concurrent.futures`` does beyond this is not needed here, and importing it, for it brings logging with it, takes
longer than hashing ten megabytes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeVar

from cfstools.errors import CfsError

_P = ParamSpec("_P")
_R = TypeVar("_R")
_T = TypeVar("_T")


class Abandoned(BaseException):
    """Whoever wanted the result of a call has stopped waiting for it."""


_here = threading.local()


def give_up_if_stopped() -> None:
    """To be called now and then by what takes long: raises ``Abandoned`` in a thread whose ``Workers`` were stopped.

    Otherwise an error or a signal elsewhere would wait for, say, the hashing of a file of a terabyte.
    """
    workers: Workers | None = getattr(_here, "workers", None)
    if workers is not None and workers.is_stopped:
        raise Abandoned


class Call(Generic[_R]):
    """A call that is made in another thread."""

    __slots__ = ("_done", "_error", "_function", "_value", "_words")

    def __init__(self, function: Callable[..., _R], words: tuple[Any, ...]) -> None:
        self._function = function
        self._words = words
        self._value: _R
        self._error: BaseException | None = None
        self._done = threading.Lock()
        self._done.acquire()

    def run(self) -> None:
        """Make the call; for :class:`Workers`."""
        try:
            self._value = self._function(*self._words)
        except BaseException as error:  # noqa: BLE001 - raised by result(), in the thread that asks for it
            self._error = error
        finally:
            self._done.release()

    def leave_out(self) -> None:
        """Let :meth:`result` say that the call was never made; for :class:`Workers`."""
        self._error = RuntimeError("was stopped before this call")
        self._done.release()

    def result(self) -> _R:
        """What the call returned, once it has, or the exception it raised."""
        with self._done:
            if self._error is not None:
                raise self._error
            return self._value


class Workers:
    """*threads* threads that make the calls they are given, in the order in which they are given.

    Leaving the ``with`` block stops them. Raises ``CfsError`` when not a single thread can be started; with fewer than
    were asked for everything only takes longer.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._calls: SimpleQueue[Call[Any] | None] = SimpleQueue()
        self._stopped = False
        self._threads: list[threading.Thread] = []
        for number in range(threads):
            thread = threading.Thread(target=self._work, name=f"{name}_{number}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                if not self._threads:
                    raise CfsError("cannot start a thread", hint="use --threads 1") from error
                break
            self._threads.append(thread)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def is_stopped(self) -> bool:
        """Whether nobody waits for results any more."""
        return self._stopped

    @property
    def count(self) -> int:
        """How many threads there are."""
        return len(self._threads)

    def submit(self, function: Callable[_P, _R], *words: _P.args, **_none: _P.kwargs) -> Call[_R]:
        """Have ``function(*words)`` called."""
        call = Call(function, words)
        self._calls.put(call)
        return call

    def help(self) -> None:
        """Make calls in this thread as well, until none is waiting."""
        while not self._stopped:
            try:
                call = self._calls.get_nowait()
            except Empty:
                return
            if call is not None:
                call.run()

    def stop(self) -> None:
        """Leave out the calls that were not begun and wait for the others (see :func:`give_up_if_stopped`).

        Stopping twice is allowed.
        """
        self._stopped = True
        for _ in self._threads:
            self._calls.put(None)
        while self._threads:
            self._threads[-1].join()
            self._threads.pop()

    def _work(self) -> None:
        _here.workers = self
        while (call := self._calls.get()) is not None:
            if self._stopped:
                call.leave_out()
            else:
                call.run()


def map_ahead(
    function: Callable[[_T], _R], items: Iterable[_T], *, threads: int, ahead: int, name: str
) -> Generator[_R, None, None]:
    """``map(function, items)`` in so many threads, with results in the order of *items*.

    At most *ahead* items for each thread are taken before their results are asked for. An exception, also one of
    *items*, ends everything once the calls that were begun are over; so does closing the iterator. With one thread
    everything happens in the caller's.
    """
    if threads <= 1:
        yield from map(function, items)
        return
    with Workers(threads, name) as workers:
        waiting: deque[Call[_R]] = deque()
        for item in items:
            waiting.append(workers.submit(function, item))
            if len(waiting) > threads * ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
