"""What is below a URL of http or https as a place, for reading."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cfstools.errors import NetworkError, TransientError
from cfstools.streams.buffered import Read
from cfstools.transport.base import Span, Version, check_name
from cfstools.transport.http import Http, Request
from cfstools.transport.ranges import open_range
from cfstools.transport.retry import Attempts
from cfstools.transport.url import Url


class WebPlace:
    """The names below *base*. *http* stays open: it is its owner's."""

    def __init__(self, base: Url, http: Http) -> None:
        self.base = base
        self._http = http

    def size(self, name: str) -> int | None:
        """Length in bytes as the server tells it without sending it; ``None`` where there is nothing."""
        request = Request(self._url(name), method="HEAD")
        attempts = Attempts(self._http.rules, self._http.clock)
        while True:
            try:
                with self._http.open(request) as response:
                    if response.status in {404, 410}:
                        return None
                    if response.status != 200:
                        raise self._http.failure(response, self.describe(name))
                    if response.length is None:
                        raise NetworkError("the answer does not say how long it is", subject=self.describe(name))
                    return response.length
            except TransientError as error:
                attempts.failed(error)

    @contextmanager
    def read(self, name: str, span: Span | None = None, version: Version | None = None) -> Iterator[Read]:
        """Read a span of it, or all."""
        request = Request(self._url(name), remember=True)
        with open_range(self._http, request, span, version=version, subject=self.describe(name)) as read:
            yield read

    def describe(self, name: str) -> str:
        """The URL without its query."""
        return str(self.base.below(name) if name else self.base)

    def close(self) -> None:
        """Nothing: the connections are those of *http*."""

    def _url(self, name: str) -> Url:
        return self.base.below(check_name(name))
