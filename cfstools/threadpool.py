"""A small thread pool for work that releases the GIL.

A stand-in for ``concurrent.futures``, whose import (it pulls in logging) costs more than hashing 10 MB.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from queue import Empty, SimpleQueue
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

from cfstools.errors import CfsError, Phrase, Remedy
from cfstools.lifetime import Closable

_P = ParamSpec("_P")
_R = TypeVar("_R")
_T = TypeVar("_T")


class Abandoned(BaseException):
    """Raised in a thread whose result nobody waits for any more."""


class Stoppable(Protocol):
    """Whoever threads work for."""

    @property
    def is_stopped(self) -> bool:
        """Whether nobody waits for results any more."""


_here = threading.local()


def give_up_if_stopped() -> None:
    """Raise ``Abandoned`` in a thread whose ``ThreadPool`` (or other owner) stopped; long work calls this regularly.

    Otherwise an error or a signal would have to wait, for example for the hashing of a terabyte.
    """
    workers: Stoppable | None = getattr(_here, "workers", None)
    if workers is not None and workers.is_stopped:
        raise Abandoned


def stop_with(workers: Stoppable) -> None:
    """From now on :func:`give_up_if_stopped` in this thread looks at *workers*."""
    _here.workers = workers


class Call(Generic[_R]):
    """A call that is run in another thread, and its result."""

    __slots__ = ("_done", "_error", "_function", "_value", "_words")

    def __init__(self, function: Callable[..., _R], words: tuple[Any, ...]) -> None:
        self._function = function
        self._words = words
        self._value: _R
        self._error: BaseException | None = None
        self._done = threading.Lock()
        self._done.acquire()

    def run(self) -> None:
        """Run the call; used by :class:`ThreadPool`."""
        try:
            self._value = self._function(*self._words)
        except BaseException as error:  # noqa: BLE001 - raised by result(), in the thread that asks for it
            self._error = error
        finally:
            self._words = ()  # whoever waits for the result need not keep them in memory
            self._done.release()

    def leave_out(self) -> None:
        """Cancel the call, so that :meth:`result` raises RuntimeError; used by :class:`ThreadPool`."""
        self._error = RuntimeError("was stopped before this call")
        self._done.release()

    def result(self) -> _R:
        """Wait for the call and return its result, or raise its exception."""
        with self._done:
            if self._error is not None:
                raise self._error
            return self._value


class ThreadPool(Closable):
    """*threads* threads that run the submitted calls in order; closing it stops them.

    Raises ``CfsError`` if no thread can be started; fewer threads than wanted only take longer.
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
                    raise CfsError("cannot start a thread", hint=Phrase("use {}", Remedy.ONE_THREAD)) from error
                break
            self._threads.append(thread)

    @property
    def is_stopped(self) -> bool:
        """Whether the pool was closed: nobody waits for results any more."""
        return self._stopped

    @property
    def count(self) -> int:
        """The number of threads."""
        return len(self._threads)

    def submit(self, function: Callable[_P, _R], *words: _P.args, **_none: _P.kwargs) -> Call[_R]:
        """Queue ``function(*words)`` to be called in a thread."""
        call = Call(function, words)
        self._calls.put(call)
        return call

    def help(self) -> None:
        """Run queued calls in the calling thread too, until the queue is empty."""
        while not self._stopped:
            try:
                call = self._calls.get_nowait()
            except Empty:
                return
            if call is not None:
                call.run()

    def close(self) -> None:
        """Cancel the calls that have not started and wait for the others (see :func:`give_up_if_stopped`).

        Closing twice is allowed.
        """
        self._stopped = True
        for _ in self._threads:
            self._calls.put(None)
        while self._threads:
            self._threads[-1].join()
            self._threads.pop()

    def _work(self) -> None:
        stop_with(self)
        while (call := self._calls.get()) is not None:
            if self._stopped:
                call.leave_out()
            else:
                call.run()


def map_ahead(
    function: Callable[[_T], _R], items: Iterable[_T], *, threads: int, ahead: int, name: str
) -> Generator[_R, None, None]:
    """``map(function, items)`` in several threads, with the results in the order of *items*.

    At most *ahead* items for each thread are in progress. An exception, also one raised by *items*, cancels the rest
    and waits for running calls; so does closing the iterator. With one thread everything runs in the caller's.
    """
    if threads <= 1:
        yield from map(function, items)
        return
    with ThreadPool(threads, name) as workers:
        waiting: deque[Call[_R]] = deque()
        for item in items:
            waiting.append(workers.submit(function, item))
            if len(waiting) > threads * ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
