"""One span of what a URL names, by one range request: whatever a server makes of it.

A range is always asked for with both ends. The answer must say that it is this range and as long as that; a whole body
instead is read from its start where that is cheap.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cfstools.errors import ContentsWrong, NetworkError, NoRanges, naming
from cfstools.streams.buffered import Read
from cfstools.transport import headers
from cfstools.transport.base import Span, Version
from cfstools.transport.http import Http, Request
from cfstools.transport.response import Response

CHEAP = 8 << 20  # a body that is read through for a part of it
CHEAP_TIMES = 4  # or how many times as long as the part


@contextmanager
def open_range(
    http: Http,
    request: Request,
    span: Span | None,
    *,
    size: int | None = None,
    version: Version | None = None,
    subject: str | None = None,
) -> Iterator[Read]:
    """Read a span of what *request* asks for, or all of it: exactly this many bytes, or an error is raised.

    Where the span is all of the *size* bytes it has, no range is asked for. *subject* is what messages call it. Raises
    ``NoRanges`` where the server sends all of it and that is too much, ``ContentsWrong`` where the answer cannot be of
    the same thing, and ``NetworkError``.
    """
    subject = subject or str(request.url)
    if span is not None and span.size <= 0:
        yield lambda _count: b""
        return
    with http.open(request if span == (0, size) else _ranged(request, span, version)) as response:
        skipped = _before(http, response, span, subject)
        if version is not None:
            version.check(_validator(response), subject)
        _skip(response, skipped)
        yield response.read if span is None else _limited(response, span.size)


def _ranged(request: Request, span: Span | None, version: Version | None) -> Request:
    if span is None:
        return request
    more = {"Range": f"bytes={span.start}-{span.end - 1}"}
    if version is not None and version.value is not None:
        more["If-Range"] = version.value
    return request._replace(headers={**request.headers, **more})


def _before(http: Http, response: Response, span: Span | None, subject: str) -> int:
    """How many bytes of an answer come before the span."""
    if response.status == 416 and span is not None:
        raise ContentsWrong("is shorter there than it should be", subject=subject)
    if response.status not in ({200} if span is None else {200, 206}):
        raise http.failure(response, subject)
    with naming(subject):
        _refuse_encoding(response)
        if response.length is None:
            raise NetworkError("the answer does not say how long it is")
        if span is None:
            return 0
        if response.status == 206:
            _check_range(response, span)
            return 0
        if span.end > response.length:
            raise ContentsWrong("is shorter there than it should be")
        if response.length > max(CHEAP, CHEAP_TIMES * span.size):
            raise NoRanges(f"the server gives no ranges of {response.length} bytes")
    return span.start


def _check_range(response: Response, span: Span) -> None:
    try:
        part = headers.content_range(response.values)
    except NetworkError as error:
        raise ContentsWrong(error.what) from error
    if (part.start, part.end) != span or response.length != span.size:
        raise ContentsWrong("the server sent another range than it was asked for")


def _refuse_encoding(response: Response) -> None:
    try:
        headers.refuse_encoding(response.values)
    except NetworkError as error:
        raise ContentsWrong(error.what, hint=error.hint) from error


def _validator(response: Response) -> str | None:
    """What tells one version from another: a strong ETag, else the time of the last change."""
    tag = response.header("etag")
    if tag is not None:
        return None if tag.startswith("W/") else tag
    return response.header("last-modified")


def _skip(response: Response, count: int) -> None:
    while count:
        count -= len(response.read(min(count, 1 << 16)))


def _limited(response: Response, size: int) -> Read:
    left = size

    def read(count: int) -> bytes:
        nonlocal left
        part = response.read(min(count, left))
        left -= len(part)
        return part

    return read
