"""A server that fails as it is told to: bytes, pauses and cuts, scripted for each request.

    def answer(asked: Asked) -> Iterable[Part]:
        if asked.number == 0:
            return [head(200, length=10), b"half", CUT]
        return [reply(206, b"rest", content_range="bytes 5-8/9")]

    with FaultyServer(answer) as server:
        ...  # server.url("name")

Nothing checks what is sent: that is its purpose.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from threading import Event, Lock, Thread
from typing import BinaryIO, NamedTuple, Self

from cfstools.transport import url
from cfstools.transport.url import Url


class Wait(NamedTuple):
    """Send nothing for so many seconds."""

    seconds: float


class Cut(NamedTuple):
    """End the connection: with a reset, or as a server does that has nothing more to say."""

    reset: bool


class Tunnel(NamedTuple):
    """From here on pass everything to and from a port of loopback, as a proxy does."""

    port: int


CUT = Cut(reset=True)
END = Cut(reset=False)
Part = bytes | Wait | Cut | Tunnel


class Asked(NamedTuple):
    """A request: which it was, counted from 0 on, and what it said."""

    number: int
    connection: int
    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def span(self) -> tuple[int, int] | None:
        """The range it asked for, half open."""
        text = self.headers.get("range")
        if text is None:
            return None
        start, _, last = text.removeprefix("bytes=").partition("-")
        return int(start), int(last) + 1


Answer = Callable[[Asked], Iterable[Part]]


def head(status: int, *headers: str, length: int | str | None = None) -> bytes:
    """The head of an answer; *headers* are whole lines."""
    lines = [f"HTTP/1.1 {status} Because", *headers]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1")


def reply(status: int, body: bytes = b"", *headers: str) -> bytes:
    """A whole answer with its length."""
    return head(status, *headers, length=len(body)) + body


def serve(data: bytes, asked: Asked) -> bytes:
    """What a good server answers to a request for *data* or a range of it."""
    span = asked.span
    if span is None:
        return head(200, length=len(data)) if asked.method == "HEAD" else reply(200, data)
    start, end = span
    return reply(206, data[start:end], f"Content-Range: bytes {start}-{end - 1}/{len(data)}")


class FaultyServer:
    """Answers what comes on a port of loopback, each connection in a thread; over TLS with *certificate* and key."""

    def __init__(self, answer: Answer, certificate: tuple[str, str] | None = None) -> None:
        self._answer = answer
        self._context: ssl.SSLContext | None = None
        if certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(*certificate)
        self._lock = Lock()
        self._stop = Event()
        self._open: set[socket.socket] = set()
        self.asked: list[Asked] = []
        self.connections = 0
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listening.getsockname()[1]
        self._thread = Thread(target=self._accept, daemon=True)

    def url(self, name: str = "") -> Url:
        """The URL of a name on it."""
        return url.parse(self.address(name))

    def address(self, name: str = "") -> str:
        """The same as text."""
        return f"{'https' if self._context else 'http'}://127.0.0.1:{self.port}/{name}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _accept(self) -> None:
        threads = []
        while not self._stop.is_set():
            try:
                connection, _ = self._listening.accept()
            except OSError:
                break
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open.add(connection)
                number = self.connections
                self.connections += 1
            threads.append(Thread(target=self._serve, args=(connection, number), daemon=True))
            threads[-1].start()
        for thread in threads:
            thread.join()

    def _serve(self, connection: socket.socket, number: int) -> None:
        # A client that goes away, or does not trust us, is no fault of a test.
        with suppress(OSError), connection:
            wrapped = connection
            try:
                wrapped = self._context.wrap_socket(connection, server_side=True) if self._context else connection
                with self._lock:
                    self._open.add(wrapped)
                with wrapped, wrapped.makefile("rb") as stream:
                    while (asked := self._next(stream, number)) is not None:
                        if not self._send(wrapped, self._answer(asked)):
                            return
                    wrapped.sendall(reply(400))
            finally:
                with self._lock:
                    self._open -= {connection, wrapped}

    def _next(self, stream: BinaryIO, connection: int) -> Asked | None:
        first = stream.read(1)
        if not first.isalpha():
            return None  # TLS, whose first message need not have the end of a line
        words = (first + stream.readline()).decode("latin-1").split()
        if len(words) != 3:
            return None
        headers: dict[str, str] = {}
        while line := stream.readline().strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        body = stream.read(int(headers.get("content-length", 0)))
        with self._lock:
            asked = Asked(len(self.asked), connection, words[0], words[1], headers, body)
            self.asked.append(asked)
        return asked

    def _send(self, connection: socket.socket, parts: Iterable[Part]) -> bool:
        """Send an answer; whether the connection goes on."""
        for part in parts:
            if isinstance(part, Wait):
                if self._stop.wait(part.seconds):
                    return False
            elif isinstance(part, Cut):
                if part.reset:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
            elif isinstance(part, Tunnel):
                _pass(connection, part.port)
                return False
            else:
                connection.sendall(part)
        return True


def _pass(here: socket.socket, port: int) -> None:
    """Pass bytes both ways until one side has no more."""
    with socket.create_connection(("127.0.0.1", port)) as there:
        while True:
            for ready in select.select([here, there], [], [])[0]:
                data = ready.recv(1 << 16)
                if not data:
                    return
                (there if ready is here else here).sendall(data)
