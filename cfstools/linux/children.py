"""Children of this process: how they end, and those that become commands, with ordinary signals and told of ours."""

from __future__ import annotations

import errno
import os
import select
import signal
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

_FORWARDED = frozenset(
    {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM}
)
_WAITED = _FORWARDED | {signal.SIGCHLD}
# Python ignores them, and what is ignored stays so in a command.
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
_OF_THE_KERNEL = 0x80  # asm-generic/siginfo.h: SI_KERNEL

NOT_FOUND = 127
NOT_EXECUTABLE = 126
SIGNALLED = 128
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR})


def fork(work: Callable[[], int]) -> int:
    """Fork a process that calls *work* and exits with what it returns, or with 1; the process' number.

    The child never returns through code of the caller, not even if the handler of a signal raises at its end.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        try:
            code = work()
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    finally:
        os._exit(code)


@contextmanager
def held_signals() -> Iterator[None]:
    """Hold back signals in this thread, for :func:`wait_for`: none is lost between starting a child and waiting."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def wait_for(pid: int) -> int:
    """Wait for the child *pid* and pass signals on to it; its exit code, or 128 and the number of what ended it.

    The terminal signals all processes of a group itself, so what it sends is not sent a second time.
    """
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return exit_code(status)
        got = signal.sigwaitinfo(_WAITED)
        if got.si_signo != signal.SIGCHLD and got.si_code != _OF_THE_KERNEL:
            with suppress(ProcessLookupError):
                os.kill(pid, got.si_signo)


def end(pid: int) -> None:
    """Kill the child *pid* and wait for its end."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def has_ended(handle: int, seconds: float) -> bool:
    """Wait for the end of the process that *handle* (pidfd_open(2)) stands for, at most so many *seconds*.

    It need not be a child of this process.
    """
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(int(seconds * 1000)))


def exit_code(status: int) -> int:
    """The exit code that a shell shows for the *status* of a process."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else SIGNALLED - code


def restore_signals(ignored: Collection[int] = ()) -> None:
    """Give a new child the signals of an ordinary process: nothing of ours handles or holds them.

    Those in *ignored*, and those that this process ignores, stay ignored, as its caller wanted them.
    """
    for number in _FORWARDED:
        if number in ignored:
            signal.signal(number, signal.SIG_IGN)
        elif signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    for number in _IGNORED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WAITED)


def execute(words: Sequence[bytes], environment: Mapping[bytes, bytes]) -> NoReturn:
    """Become the command *words*, found as a shell finds it: by PATH unless there is a slash in its name.

    Raises ``OSError``: the first that is not about a file that is not there, if there was one.
    """
    name = words[0]
    places = [name] if b"/" in name else [
        os.path.join(place or b".", name) for place in environment.get(b"PATH", os.fsencode(os.defpath)).split(b":")
    ]  # fmt: skip
    failure: OSError | None = None
    for place in places:
        try:
            os.execve(place, list(words), environment)  # noqa: S606 - the caller's own command, as it is
        except OSError as error:
            if failure is None or (failure.errno in _ABSENT and error.errno not in _ABSENT):
                failure = error
    assert failure is not None
    raise failure


def code_of(error: OSError) -> int:
    """The exit code that a shell has for a command that cannot be started for *error*."""
    return NOT_FOUND if error.errno in _ABSENT else NOT_EXECUTABLE
