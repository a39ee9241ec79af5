"""A wire without a network: a function answers, so that all rules above can be run with no server and no waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from typing import NamedTuple

from cfstools.errors import NetworkError
from cfstools.streams.buffered import read_up_to
from cfstools.transport.wire import Sent


class Reply(NamedTuple):
    """What the function answers. The length is told unless *headers* tell it, or *untold* says that nothing does."""

    status: int = 200
    body: bytes = b""
    headers: Sequence[tuple[str, str]] = ()
    breaks: NetworkError | None = None  # raised once the body is over
    untold: bool = False


class Seen(NamedTuple):
    """A request that came, with the body it had."""

    request: Sent
    body: bytes

    def header(self, name: str) -> str | None:
        """A header of it."""
        return next((value for key, value in self.request.headers.items() if key.lower() == name.lower()), None)


class ScriptedAnswer:
    """A reply as :class:`cfstools.transport.wire.Received`."""

    def __init__(self, reply: Reply, method: str) -> None:
        self._reply = reply
        self._data = b"" if method == "HEAD" else reply.body
        self.status = reply.status
        self._headers = [(name.lower(), value) for name, value in reply.headers]
        names = {name for name, _ in self._headers}
        if not reply.untold and not names & {"content-length", "transfer-encoding"}:
            self._headers.append(("content-length", str(len(reply.body))))

    def values(self, name: str) -> Sequence[str]:
        """All values of a header."""
        return [value for key, value in self._headers if key == name.lower()]

    def read(self, count: int) -> bytes:
        """The next bytes of the body."""
        part, self._data = self._data[:count], self._data[count:]
        if not part and self._reply.breaks is not None:
            raise self._reply.breaks
        return part

    def allow(self, count: int) -> None:
        """Nothing frames the bytes here."""

    def close(self, *, reuse: bool) -> None:
        """There is no connection."""


class ScriptedWire:
    """Answers each request by *answer*, and keeps what was :attr:`seen`."""

    def __init__(self, answer: Callable[[Seen], Reply | NetworkError]) -> None:
        self._answer = answer
        self._lock = Lock()
        self.seen: list[Seen] = []

    def send(self, request: Sent) -> ScriptedAnswer:
        """The answer; a ``NetworkError`` that the function returns is raised."""
        body = b""
        if request.body is not None:
            with request.body.open() as read:
                body = read_up_to(read, request.body.size + 1)
        seen = Seen(request, body)
        with self._lock:
            self.seen.append(seen)
        reply = self._answer(seen)
        if isinstance(reply, NetworkError):
            raise reply
        return ScriptedAnswer(reply, request.method)

    def close(self) -> None:
        """Nothing is open."""


def in_turn(replies: Iterable[Reply | NetworkError]) -> Callable[[Seen], Reply | NetworkError]:
    """A function that gives one reply after the other, whatever is asked."""
    waiting = iter(replies)
    return lambda _seen: next(waiting)
