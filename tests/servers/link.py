"""A long or bad way to a server of loopback: a proxy that passes bytes late, cuts connections, and counts both.

Half a round trip is added each way, and one round trip for each connection: what its handshake would take. With a rate
the bytes of all connections also share that many per second, in each direction. It knows no slow start and loses
nothing, so what is measured over it is a lower bound of what a network costs.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from queue import Queue
from threading import Lock, Thread
from typing import NamedTuple, Self

_PIECE = 128 << 10
_PIECES = 64  # on their way at most, in each direction of a connection


class Passed(NamedTuple):
    """What went over a link: connections, bytes to the server and bytes from it."""

    connections: int
    sent: int
    received: int

    def since(self, earlier: Passed) -> Passed:
        """Return what was added since."""
        return Passed(*(now - then for now, then in zip(self, earlier, strict=True)))


class _Direction:
    """When what all connections send one way arrives, and how much that was."""

    def __init__(self, delay: float, rate: float | None) -> None:
        self._delay = delay
        self._rate = rate
        self._lock = Lock()
        self._free = 0.0  # when the last byte has left
        self.passed = 0

    def arrival(self, size: int, earliest: float = 0) -> float:
        """Return when so many bytes arrive that come to the link now, or when it opens."""
        with self._lock:
            self.passed += size
            leaves = max(time.monotonic(), earliest)
            if self._rate is not None:
                leaves = self._free = max(leaves, self._free) + size / self._rate
        return leaves + self._delay


class Link:
    """Passes what comes to ``port`` of loopback on to the port *to*, as over a network with this round trip (seconds).

    *rate* is in bytes per second. Each connection is cut when *allowed* bytes have come back; ``cut`` counts these.
    """

    def __init__(
        self, to: int, *, round_trip: float = 0, rate: float | None = None, allowed: int | None = None
    ) -> None:
        self._to = to
        self._round_trip = round_trip
        self._allowed = allowed
        self.cut = 0
        self._there = _Direction(round_trip / 2, rate)
        self._back = _Direction(round_trip / 2, rate)
        self._connections = 0
        self._open: set[socket.socket] = set()
        self._lock = Lock()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listening.getsockname()[1]
        self._thread = Thread(target=self._accept, daemon=True)

    @property
    def passed(self) -> Passed:
        """What went over it until now."""
        return Passed(self._connections, self._there.passed, self._back.passed)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        with self._lock:
            for end in self._open:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _accept(self) -> None:
        threads: list[Thread] = []
        while True:
            try:
                here, _ = self._listening.accept()
            except OSError:
                break
            threads.append(Thread(target=self._connect, args=(here, time.monotonic()), daemon=True))
            threads[-1].start()
        for thread in threads:
            thread.join()

    def _connect(self, here: socket.socket, since: float) -> None:
        """Pass bytes between a client and the server until both have ended."""
        with here, suppress(OSError), socket.create_connection(("127.0.0.1", self._to)) as there:
            with self._lock:
                self._connections += 1
                self._open |= {here, there}
            for end in (here, there):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            back = Thread(target=self._answer, args=(there, here, since), daemon=True)
            back.start()
            _pass(here, there, self._there, since + self._round_trip)
            back.join()
            with self._lock:
                self._open -= {here, there}

    def _answer(self, there: socket.socket, here: socket.socket, since: float) -> None:
        if _pass(there, here, self._back, since, self._allowed) != self._allowed:
            return
        with self._lock:
            self.cut += 1
        for end in (there, here):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _pass(
    source: socket.socket, target: socket.socket, direction: _Direction, opens: float, allowed: int | None = None
) -> int:
    """Pass bytes one way until *source* has no more, the first not before the connection *opens*; how many."""
    waiting: Queue[tuple[float, bytes]] = Queue(_PIECES)
    late = Thread(target=_send, args=(target, waiting), daemon=True)
    late.start()
    data, passed = b"any", 0
    while data:
        try:
            data = source.recv(_PIECE if allowed is None else min(_PIECE, allowed - passed))
        except OSError:  # reset: for the other side as good as an end
            data = b""
        passed += len(data)
        waiting.put((direction.arrival(len(data), opens), data))
    late.join()
    return passed


def _send(target: socket.socket, waiting: Queue[tuple[float, bytes]]) -> None:
    """Send each piece when it arrives; nothing more where nobody listens."""
    gone = False
    data = b"any"
    while data:
        due, data = waiting.get()
        time.sleep(max(0, due - time.monotonic()))
        try:
            if data and not gone:
                target.sendall(data)
            elif not gone:
                target.shutdown(socket.SHUT_WR)
        except OSError:
            gone = True
