"""The keeper: a process that holds /dev/fuse, so that the mount outlives its server, and starts that again.

The server is a child. It ends well when the file system is gone; after any other end the kernel's requests wait in
the descriptor that the keeper holds, and a new server takes them over. Signals to the keeper are waited for, not
handled, so none can come at a bad moment.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum

from cfstools.errors import CfsError, Interrupted, NetworkError
from cfstools.linux.children import fork
from cfstools.linux.files import close
from cfstools.mount.daemon import messages
from cfstools.mount.daemon.log import Log
from cfstools.mount.daemon.service import WITHIN, Restarts, Serve, Turn
from cfstools.mount.daemon.signals import WAKING, Signals, Stopped

_STOPS = frozenset({signal.SIGTERM, signal.SIGHUP, signal.SIGINT})
_WAITED_FOR = _STOPS | {signal.SIGCHLD, signal.SIGUSR1}
# The out-of-memory killer takes the server first: that is started again.
_OOM_SCORE = -500


class _End(IntEnum):
    """Exit codes of a server."""

    GONE = 0
    FAILED = 1
    STOPPED = 2
    DEFECT = 70


class Keeper:
    """Keeps the server *serve* running until its file system is gone.

    *detach* takes off the mount with a number, which ``placed`` says; ``None`` while nothing is mounted. Signals are
    blocked from :meth:`start` to the end of :meth:`keep` or :meth:`abandon`. A server closes the descriptors *foreign*,
    which belong to whoever runs the keeper.
    """

    def __init__(
        self, serve: Serve, detach: Callable[[int], None], log: Log, *, foreign: frozenset[int] = frozenset()
    ) -> None:
        self._serve = serve
        self._detach = detach
        self._log = log
        self._foreign = foreign
        self.placed: Callable[[], int | None] = lambda: None
        self._restarts = Restarts()
        self._child = 0
        self._stop: signal.Signals | None = None
        self._asked = False  # for counters, while there was no server
        self._mask: set[signal.Signals] = set()
        self._oom_score = 0

    def start(self, ready: int) -> None:
        """Start the first server, which says at the pipe *ready* that it answers; the pipe is closed here."""
        self._mask = {signal.Signals(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)}
        self._child = self._fork(ready)
        close(ready)
        self._oom_score = _protect()

    def keep(self) -> int:
        """Wait for the end of the file system; the exit code. Raises Interrupted after SIGINT."""
        try:
            code = self._keep()
        finally:
            self._restore()
        if self._stop is signal.SIGINT:
            raise Interrupted("interrupted")
        return code

    def abandon(self) -> None:
        """End the server, whose file system nobody mounted."""
        with suppress(ProcessLookupError):
            os.kill(self._child, signal.SIGTERM)
        os.waitpid(self._child, 0)
        self._restore()

    def _keep(self) -> int:
        while True:
            code = self._wait()
            if code == _End.GONE or self._stop is not None:
                return 0
            if code == _End.FAILED:
                self._take_off()
                return 1
            pause = self._restarts.pause(time.monotonic())
            if pause is None:
                self._log.say(
                    f"the server ended {_how(code)}, too often in {WITHIN:.0f} seconds: the mount is given up"
                )
                self._take_off()
                return 1
            self._log.say(f"the server ended {_how(code)}: started again in {pause:.1f} s")
            if self._rest(pause):
                return 0
            self._child = self._fork(None)
            if self._asked:
                self._asked = False
                os.kill(self._child, signal.SIGUSR1)

    def _wait(self) -> int:
        """Wait for the server; its exit code, negative for a signal. Other signals are answered meanwhile."""
        while True:
            number, status = os.waitpid(self._child, os.WNOHANG)
            if number:
                return os.waitstatus_to_exitcode(status)
            self._answer(signal.Signals(signal.sigwait(_WAITED_FOR)))

    def _answer(self, number: signal.Signals) -> None:
        if number is signal.SIGUSR1:
            os.kill(self._child, number)
        elif number in _STOPS:
            # The server goes on for files that are open; whoever asks again does not want to wait for these.
            again, self._stop = self._stop is not None, self._stop or number
            if again or not self._take_off():
                os.kill(self._child, signal.SIGTERM)

    def _take_off(self) -> bool:
        placed = self.placed()
        if placed is None:
            return False
        try:
            self._detach(placed)
        except CfsError as error:
            self._log.error(error)
            return False
        return True

    def _rest(self, pause: float) -> bool:
        """Wait; whether it was asked to stop meanwhile, with no server to end."""
        end = time.monotonic() + pause
        while (left := end - time.monotonic()) > 0:
            found = signal.sigtimedwait(_WAITED_FOR, left)
            if found is not None and found.si_signo == signal.SIGUSR1:
                self._asked = True
            elif found is not None and found.si_signo in _STOPS:
                self._stop = signal.Signals(found.si_signo)
                self._take_off()
                return True
        return False

    def _restore(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _fork(self, ready: int | None) -> int:
        """Start a server, one that resumes if there is no pipe *ready*."""
        keeper = os.getpid()
        return fork(lambda: self._run(ready, keeper))

    def _run(self, ready: int | None, keeper: int) -> int:
        """The life of a server, in its own process."""
        _set_oom_score(self._oom_score)

        def answered() -> None:
            nonlocal ready
            if ready is not None:
                messages.tell_ready(ready, keeper)
                ready = None

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to both, and the keeper decides
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        close_all(self._foreign - {ready})
        signals = Signals(self._log)
        turn = Turn(ready is None, answered, signals.watch, self._log)
        code = _End.GONE
        try:
            signals.handle()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _WAITED_FOR | {WAKING})
            self._serve(turn)
        except Stopped:
            code = _End.STOPPED
        except CfsError as error:
            # Another place may answer again when the next server asks.
            code = _End.DEFECT if turn.resume and isinstance(error, NetworkError) else _End.FAILED
            self._failed(error, ready)
        except Exception as defect:  # noqa: BLE001 - there is nobody above; the next server may do better
            code = _End.DEFECT
            self._failed(CfsError(f"this is a defect of mkcfs: {type(defect).__name__}: {defect}"), ready)
        self._log.close()
        return code

    def _failed(self, error: CfsError, ready: int | None) -> None:
        if ready is None:
            self._log.error(error)
        else:
            messages.tell_error(ready, error)


def close_all(descriptors: frozenset[int | None]) -> None:
    """Close *descriptors*, of which some may be closed already."""
    for fd in descriptors:
        if fd is not None:
            close(fd)


def _how(code: int) -> str:
    return f"by signal {-code}" if code < 0 else f"with code {code}"


def _protect() -> int:
    """Make this process the last that the kernel ends for want of memory, as root; the score that it had."""
    try:
        with open("/proc/self/oom_score_adj", encoding="ascii") as file:
            before = int(file.read())
    except (OSError, ValueError):
        return 0
    _set_oom_score(min(before, _OOM_SCORE))
    return before


def _set_oom_score(score: int) -> None:
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(f"{score}\n")
