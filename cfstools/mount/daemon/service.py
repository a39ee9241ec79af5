"""What a keeper keeps running, something that answers the kernel's requests at /dev/fuse, and how often it does."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from cfstools.mount.daemon.log import Log

FIRST_PAUSE = 0.1
MOST = 5
WITHIN = 60.0


class Turn(NamedTuple):
    """One run of a server. *resume*: another server answered before, and requests that it had read come again.

    *ready* is to be called once the kernel's first request is answered, and *watch* with a function that says one line
    of counters, for SIGUSR1.
    """

    resume: bool
    ready: Callable[[], None]
    watch: Callable[[Callable[[], str]], None]
    log: Log


class Serve(Protocol):
    """Answers requests until the file system is gone. Raises CfsError for what restarting does not mend."""

    def __call__(self, turn: Turn) -> None:
        """Serve. SIGTERM raises a ``BaseException`` here: leave quickly, but finish what must not be lost."""


class Service(NamedTuple):
    """A server in the making. *device* is the descriptor of /dev/fuse.

    *prepare* opens what all servers need (stores, tables of the image) in the keeper, before the first one is started,
    and closes it at the end; it starts no threads. *detach* takes off the mount with the number that it is given, also
    one in use; it raises CfsError.
    """

    device: int
    prepare: Callable[[Log], AbstractContextManager[Serve]]
    detach: Callable[[int], None]


class Restarts:
    """The restarts of the last ``WITHIN`` seconds: the first after ``FIRST_PAUSE`` seconds, each later one after twice
    the pause before, and no more than ``MOST``.
    """

    def __init__(self) -> None:
        self._times: deque[float] = deque()

    def pause(self, now: float) -> float | None:
        """The seconds to wait before the restart that is due at *now* (monotonic seconds); ``None``: give up."""
        while self._times and now - self._times[0] > WITHIN:
            self._times.popleft()
        if len(self._times) >= MOST:
            return None
        self._times.append(now)
        return FIRST_PAUSE * 2.0 ** (len(self._times) - 1)
