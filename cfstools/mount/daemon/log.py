"""The lines that a daemon says: to standard error, a file or the system's log, at most ten a second."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from cfstools.errors import CfsError, InputError, os_error
from cfstools.lifetime import Closable
from cfstools.linux.files import close
from cfstools.linux.paths import UntrustedPath, resolve
from cfstools.text import printable, shown_path

LINES_A_SECOND = 10
# Never block on a FIFO that nobody reads or acquire a controlling terminal; a link at the end is another file.
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Log(Closable):
    """Writes lines by *write*; what is said beyond ``LINES_A_SECOND`` is counted, and the count is said instead.

    Used from several threads and from signal handlers. *descriptor* is what the lines go to, where that is one of this
    process's own; it is closed with the log.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        descriptor: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self.descriptor = descriptor
        self._clock = clock
        self._lock = threading.RLock()
        self._second = clock()
        self._said = 0
        self._left_out = 0

    def say(self, line: str) -> None:
        """Write one line, unless there were too many within a second."""
        with self._lock:
            now = self._clock()
            if now - self._second >= 1:
                self._tell_left_out()
                self._second, self._said = now, 0
            if self._said < LINES_A_SECOND:
                self._said += 1
                self._write(printable(line))
            else:
                self._left_out += 1

    def error(self, error: CfsError) -> None:
        """Write the line of an error."""
        self.say(str(error))

    def close(self) -> None:
        """Say what was left out, and close the file. Closing twice is allowed."""
        with self._lock:
            self._tell_left_out()
            if self.descriptor is not None:
                close(self.descriptor)
                self.descriptor = None

    def _tell_left_out(self) -> None:
        if self._left_out:
            self._write(f"{self._left_out} more lines are left out")
            self._left_out = 0


def log_to_descriptor(fd: int) -> Log:
    """Lines as the command says them, to a descriptor that stays open. What cannot be written is lost."""
    return Log(lambda line: _put(fd, f"mkcfs: {line}\n"))


def log_to_file(path: bytes) -> Log:
    """Append lines with the time (UTC) and the number of the process to the file *path*, made if it is missing.

    Raises InputError, also for a symbolic link and a path that leads through one of another user.
    """
    fd = _open(path)

    def write(line: str) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        _put(fd, f"{now} mkcfs[{os.getpid()}]: {line}\n")

    return Log(write, descriptor=fd)


def log_to_system() -> Log:
    """Lines to the system's log (syslog(3)); where there is none they are lost."""
    import syslog  # noqa: PLC0415 - only a daemon needs it

    syslog.openlog("mkcfs", syslog.LOG_PID, syslog.LOG_DAEMON)
    return Log(lambda line: syslog.syslog(syslog.LOG_NOTICE, line))


def _open(path: bytes) -> int:
    try:
        place = resolve(path)
        try:
            return os.open(place.name, _FLAGS, 0o600, dir_fd=place.directory)
        finally:
            close(place.directory)
    except UntrustedPath as untrusted:
        raise InputError(untrusted.about(path), subject=shown_path(path), hint=untrusted.hint) from untrusted
    except OSError as error:
        raise os_error(error, "cannot open the log", subject=shown_path(path)) from error


def _put(fd: int, text: str) -> None:
    # A full disk or a reader that has gone must not end a mount.
    with suppress(OSError):
        os.write(fd, text.encode(errors="backslashreplace"))
