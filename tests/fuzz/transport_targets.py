"""The target for what web servers answer: heads and bodies, as our rules for HTTP take them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from cfstools.errors import CfsError
from cfstools.streams.buffered import read_up_to
from cfstools.transport import url
from cfstools.transport.base import Span, Version
from cfstools.transport.http import Http, Request
from cfstools.transport.ranges import open_range
from cfstools.transport.retry import Clock
from cfstools.transport.scripted import Reply, ScriptedWire, Seen

_HERE = url.parse("https://fuzz.example/a/b?c")
_LIMIT = 4096
_CLOCK = Clock(sleep=lambda _seconds: None, chance=lambda: 0)


def answer(data: bytes) -> None:
    """Each answer is a status, headers and a body: a document in its limit, a span as long as it was asked for."""
    head, _, body = data.partition(b"\n\n")
    status, *lines = head.decode("latin-1").split("\n")
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    number = int(status[:3]) if status[:3].isdecimal() and status.isascii() else 200
    untold = any(name.lower() == "content-length" for name, _ in headers) or status.endswith("-")
    reply = Reply(number, body, headers, untold=untold)
    span = Span(3, 9)
    first: CfsError | None = None
    try:
        with open_range(_http(reply), Request(_HERE), span, version=Version()) as read:
            part = read_up_to(read, _LIMIT)
        assert len(part) == span.size
    except CfsError as error:
        first = error
    try:
        assert len(_http(reply).document(Request(_HERE), limit=_LIMIT).data) <= _LIMIT
    except CfsError as error:
        if first is not None:
            raise first from error
    for _, value in headers:
        with suppress(CfsError):
            joined = url.join(_HERE, value)
            assert url.parse(joined.whole) == joined


def _http(reply: Reply) -> Http:
    """Connections that answer a few times, and then that there is nothing."""
    left = [reply] * 8

    def once(_seen: Seen) -> Reply:
        return left.pop() if left else Reply(404)

    return Http(ScriptedWire(once), clock=_CLOCK)


TRANSPORT_TARGETS: dict[str, Callable[[bytes], None]] = {"answer": answer}
