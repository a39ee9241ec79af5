"""Starting a keeper: in a process of its own that outlives this one, or in this one, which then stays.

In both cases it is the caller who mounts, once the server answers, and says so; until then all ends by itself when the
caller does, because the descriptors of the unfinished mount close with it.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from contextlib import ExitStack, suppress
from functools import cache

from cfstools.errors import CfsError
from cfstools.lifetime import Closable
from cfstools.linux.children import fork
from cfstools.linux.files import close
from cfstools.mount.daemon import messages
from cfstools.mount.daemon.keeper import Keeper, close_all
from cfstools.mount.daemon.log import Log
from cfstools.mount.daemon.namespace import is_lasting, stand_aside
from cfstools.mount.daemon.service import Service

_STANDARD = frozenset({0, 1, 2})
_NUMBER = 32  # more bytes than a number of a mount has


class Started(Closable):
    """A server that was started. Closing it ends it, unless :meth:`placed` said that something is mounted.

    ``pid`` is the number of the keeper's process, once the server answers.
    """

    pid: int

    @abstractmethod
    def await_answer(self) -> None:
        """Wait until the server answers; at once if it is known to. Raises what it raised before that, and CfsError if
        it ended without a word."""

    @abstractmethod
    def placed(self, mount_id: int) -> None:
        """Say which mount needs the server: the number that the kernel gave it."""

    @abstractmethod
    def keep(self) -> int:
        """Stay until the mount is gone, if this process is the keeper; the exit code. Raises Interrupted."""


def start_in_background(service: Service, log: Log) -> Started:
    """Start a keeper that belongs to no terminal and no session; its server is yet to answer.

    Of this process's descriptors it keeps those of the device, which is closed here, and of the log.
    """
    with ExitStack() as stack:
        stack.callback(close, service.device)
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        news, teller = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        started = _InBackground(ours, teller)
        with ExitStack() as failing:
            failing.enter_context(started)
            _fork_away(service, log, ready=theirs, news=news)
            close(theirs)
            close(news)
            failing.pop_all()
        return started


def start_in_foreground(service: Service, log: Log) -> Started:
    """Start a server as a child of this process, which is the keeper and owns the device from then on.

    The server is yet to answer. Raises what *service* raises.
    """
    with ExitStack() as stack:
        foreign = _open_descriptors() - _STANDARD - _kept(service, log)
        stack.callback(close, service.device)
        serve = stack.enter_context(service.prepare(log))
        keeper = Keeper(serve, service.detach, log, foreign=foreign)
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        news = stack.enter_context(_News(ours))
        keeper.start(theirs)
        return _InForeground(keeper, news, stack.pop_all())


class _News(Closable):
    """The pipe at whose other end a server says that it answers, or why not."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def wait(self) -> int | None:
        """Wait for it; the number of the keeper's process, ``None`` for who has heard it already."""
        if self._fd < 0:
            return None
        with self:
            return messages.await_ready(self._fd)

    def close(self) -> None:
        """Hear nothing more. Closing twice is allowed."""
        if self._fd >= 0:
            close(self._fd)
            self._fd = -1


class _InBackground(Started):
    def __init__(self, ours: int, teller: int) -> None:
        self._news = _News(ours)
        self._teller = teller

    def await_answer(self) -> None:
        self.pid = self._news.wait() or self.pid

    def placed(self, mount_id: int) -> None:
        with suppress(OSError):  # it ended meanwhile
            os.write(self._teller, b"%d" % mount_id)

    def keep(self) -> int:
        return 0

    def close(self) -> None:
        self._news.close()
        if self._teller >= 0:
            close(self._teller)
            self._teller = -1


class _InForeground(Started):
    def __init__(self, keeper: Keeper, news: _News, stack: ExitStack) -> None:
        self.pid = os.getpid()
        self._keeper: Keeper | None = keeper
        self._news = news
        self._stack = stack

    def await_answer(self) -> None:
        self._news.wait()

    def placed(self, mount_id: int) -> None:
        assert self._keeper is not None
        self._keeper.placed = lambda: mount_id

    def keep(self) -> int:
        assert self._keeper is not None
        keeper, self._keeper = self._keeper, None
        return keeper.keep()

    def close(self) -> None:
        if self._keeper is not None:
            self._keeper.abandon()
            self._keeper = None
        self._stack.close()


def _fork_away(service: Service, log: Log, *, ready: int, news: int) -> None:
    """Start the keeper as a grandchild: nobody has to wait for its end, and no terminal can become its own."""
    lasting = is_lasting()

    def leave() -> int:
        os.setsid()
        fork(lambda: _run_keeper(service, log, ready=ready, news=news, lasting=lasting))
        return 0

    os.waitpid(fork(leave), 0)


def _run_keeper(service: Service, log: Log, *, ready: int, news: int, lasting: bool) -> int:
    _name_process()
    close_all(_open_descriptors() - _STANDARD - _kept(service, log) - {ready, news})
    _leave_terminal()
    if not lasting:
        stand_aside()
    told = False
    try:
        with service.prepare(log) as serve:
            os.chdir("/")
            keeper = Keeper(serve, service.detach, log)
            keeper.placed = cache(lambda: _placed(news))
            told = True
            keeper.start(ready)
            return keeper.keep()
    except CfsError as error:
        if not told:
            messages.tell_error(ready, error)
        else:
            log.error(error)
        return error.exit_code
    finally:
        log.close()


def _placed(news: int) -> int | None:
    """The number of the mount, if the process that started this one said it."""
    try:
        said = os.read(news, _NUMBER)
    except OSError:
        return None
    return int(said) if said.isdigit() else None


def _kept(service: Service, log: Log) -> frozenset[int | None]:
    return frozenset({service.device, log.descriptor})


def _open_descriptors() -> frozenset[int]:
    # The listing's own descriptor is in it, and closed again.
    return frozenset(int(name) for name in os.listdir("/proc/self/fd"))


def _leave_terminal() -> None:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in _STANDARD:
        os.dup2(null, fd)
    close(null)


def _name_process() -> None:
    with suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write("mkcfs-keeper")
