"""Signals to a server, none of which is lost.

Python runs handlers in the main thread, when that looks for signals. One that comes after it looked and before it waits
in the kernel for the next request does not end this wait: the handler would run with that request, on an idle mount
never. So a second thread hears of all signals. It says the counters itself, and wakes the main thread until that stops.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

from cfstools.mount.daemon.log import Log
from cfstools.threadpool import ThreadPool

# Ends waits in the kernel; the handler of what came before runs then.
WAKING = signal.SIGUSR2
_AGAIN = 0.05  # seconds


class Stopped(BaseException):
    """SIGTERM came to a server."""


class Signals:
    """What a server does on SIGTERM, which raises :class:`Stopped` in the main thread, and on SIGUSR1.

    That says a line of each function given to :meth:`watch`, or of the first one that will be.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._watched: list[Callable[[], str]] = []
        self._asked = False
        self._stopped = False
        self._main = threading.get_ident()

    def handle(self) -> None:
        """Install the handlers; to be called in the main thread. Raises CfsError."""
        signal.signal(signal.SIGTERM, self._stop)
        for number in (signal.SIGUSR1, WAKING):
            signal.signal(number, lambda *_signal: None)
        heard, told = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(told, False)
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        ThreadPool(1, "signals").submit(self._listen, heard)  # ends with the process

    def watch(self, line: Callable[[], str]) -> None:
        """From now on SIGUSR1 says *line* too, and now if it came before there was one."""
        with self._lock:
            self._watched.append(line)
            asked, self._asked = self._asked, False
        if asked:
            self._log.say(line())

    def _stop(self, *_signal: object) -> None:
        self._stopped = True
        raise Stopped

    def _listen(self, heard: int) -> None:
        while number := os.read(heard, 1):
            if number[0] == signal.SIGUSR1:
                self._say()
            elif number[0] == signal.SIGTERM:
                # Only for the first one: with that the main thread has left the loop in which it waits for requests.
                while not self._stopped:
                    signal.pthread_kill(self._main, WAKING)
                    time.sleep(_AGAIN)

    def _say(self) -> None:
        with self._lock:
            watched = list(self._watched)
            self._asked = not watched
        for line in watched:
            self._log.say(line())
