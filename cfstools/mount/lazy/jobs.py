"""The threads that fetch: what somebody waits for comes first, and what nobody waits for leaves a thread free."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from time import monotonic

from cfstools.errors import StoreError
from cfstools.lifetime import Closable
from cfstools.threadpool import Abandoned, stop_with

Job = Callable[[], None]
"""Work for one thread; deals with its errors itself."""

MAX_WAITING = 4096
"""Jobs of one urgency that wait at most."""


_PATIENCE = 2.0  # seconds


class Urgency(IntEnum):
    """Which jobs come first."""

    MISS = 0  # somebody waits
    AHEAD = 1  # somebody may soon
    BEHIND = 2  # nobody does


class Crew(Closable):
    """So many *threads*, started with the first job: a process that makes a crew can still fork.

    *more* is asked for a job when nothing else is to be done, until it has none; :meth:`look` asks it again. All jobs
    but those somebody waits for leave one of several threads free.
    """

    def __init__(self, threads: int, more: Callable[[], Job | None] = lambda: None) -> None:
        self._count = threads
        self._more = more
        self._has_more = False
        self._queues: tuple[deque[Job], ...] = tuple(deque() for _ in Urgency)
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._calm = 0  # threads at what is not urgent
        self._stopped = False
        self._process = 0  # whose the threads are

    @property
    def is_stopped(self) -> bool:
        """Whether it was closed."""
        return self._stopped

    def add(self, urgency: Urgency, job: Job, *, first: bool = False) -> None:
        """Queue a job, as the *first* of its urgency or the last. Raises ``StoreError`` when too many wait."""
        with self._changed:
            if self._stopped:
                raise StoreError("the lazy store is closed")
            queue = self._queues[urgency]
            if len(queue) >= MAX_WAITING:
                raise StoreError(f"{MAX_WAITING} fetches are waiting already")
            if first:
                queue.appendleft(job)
            else:
                queue.append(job)
            self._changed.notify()
        self._start()

    def clear(self, urgency: Urgency) -> int:
        """Forget the jobs of this urgency that wait; how many."""
        with self._changed:
            count = len(self._queues[urgency])
            self._queues[urgency].clear()
            return count

    def look(self) -> None:
        """There is more to be asked for."""
        with self._changed:
            self._has_more = True
            self._changed.notify()
        self._start()

    def close(self) -> None:
        """Forget what waits, and wait a moment for the jobs that run. Closing twice is allowed."""
        with self._changed:
            self._stopped = True
            for queue in self._queues:
                queue.clear()
            self._changed.notify_all()
            threads, self._threads = self._threads, []
        # Whoever waits for a network ends when that is closed, which is its owner's business.
        end = monotonic() + _PATIENCE
        for thread in threads:
            thread.join(max(0.0, end - monotonic()))

    def _start(self) -> None:
        """Start what is missing of the threads; one that cannot be started is done without, if there is another."""
        with self._changed:
            if self._process != os.getpid():
                self._threads, self._process = [], os.getpid()
            while len(self._threads) < self._count and not self._stopped:
                thread = threading.Thread(target=self._work, name=f"lazy_{len(self._threads)}", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    if not self._threads:
                        raise StoreError("cannot start a thread") from error
                    return
                self._threads.append(thread)

    def _work(self) -> None:
        stop_with(self)
        with suppress(Abandoned):
            self._work_on()

    def _work_on(self) -> None:
        while (found := self._next()) is not None:
            urgency, job = found
            try:
                job()
            finally:
                if urgency is not Urgency.MISS:
                    with self._changed:
                        self._calm -= 1
                        self._changed.notify()

    def _next(self) -> tuple[Urgency, Job] | None:
        """The next job; ``None`` at the end."""
        with self._changed:
            while not self._stopped:
                found = self._take()
                if found is not None:
                    return found
                self._changed.wait()
        return None

    def _take(self) -> tuple[Urgency, Job] | None:
        urgent, ahead, behind = self._queues
        if urgent:
            return Urgency.MISS, urgent.popleft()
        if self._calm >= max(1, self._count - 1):
            return None
        job = None
        urgency = Urgency.AHEAD if ahead else Urgency.BEHIND
        if ahead:
            job = ahead.popleft()
        elif behind:
            job = behind.popleft()
        elif self._has_more:
            job = self._more()
            self._has_more = job is not None
        if job is None:
            return None
        self._calm += 1
        return urgency, job
