"""Answers as callers see them: a head, a body of known length or within a limit, and errors made of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from cfstools.errors import AccessDenied, FormatError, NetworkError, NoRanges, NotFound, TransientError
from cfstools.lifetime import Closable
from cfstools.streams.buffered import read_up_to
from cfstools.strictjson import JsonLimits, parse_json
from cfstools.text import printable
from cfstools.transport import headers
from cfstools.transport.url import Url
from cfstools.transport.wire import Received

MAX_ERROR_BODY = 64 << 10
MAX_MESSAGE = 300
# So much of a body that nobody wants is read to keep the connection.
_DRAINED = 4 << 10
_FRAMING = 64 << 10
_PROBLEM = JsonLimits(size=MAX_ERROR_BODY, depth=16)
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})


class Problem(NamedTuple):
    """What the body of an error answer says, made fit to be shown; empty texts where it says nothing."""

    code: str = ""
    message: str = ""

    def __str__(self) -> str:
        return ": ".join(part for part in self if part)


class Response(Closable):
    """The answer to a request. Close it, or use it as a context manager; the connection is kept if it can be."""

    def __init__(
        self,
        received: Received,
        url: Url,
        method: str,
        *,
        closed: Callable[[], None],
        clean: Callable[[str], str],
    ) -> None:
        self._received = received
        self._closed: Callable[[], None] | None = closed
        self._clean = clean
        self._problem: Problem | None = None
        self.url = url
        self.status = received.status
        self.values = received.values
        length = headers.body_length(received.values)
        bodiless = method == "HEAD" or self.status in {204, 304}
        self.length = length
        self._left = 0 if bodiless else length

    def header(self, name: str) -> str | None:
        """The first value of a header."""
        return next(iter(self.values(name)), None)

    def read(self, count: int) -> bytes:
        """The next bytes of the body, at most *count*, as they come; none at the end.

        Raises ``NetworkError`` for a body without a length, and when it ends too soon or is encoded.
        """
        if self._left is None:
            raise NetworkError("the answer does not say how long it is", subject=str(self.url))
        if not self._left or not count:
            return b""
        part = self._received.read(min(count, self._left))
        if not part:
            raise TransientError("the connection broke: the answer is cut", subject=str(self.url))
        self._left -= len(part)
        return part

    def whole(self, limit: int) -> bytes:
        """All of the body, also one without a length. Raises ``NetworkError`` if it is longer than *limit* bytes."""
        headers.refuse_encoding(self.values)
        if self._left is not None:
            if self._left > limit:
                raise NetworkError(f"the answer is longer than {limit} bytes", subject=str(self.url))
            return read_up_to(self.read, self._left)
        self._received.allow(8 * limit + _FRAMING)
        data = read_up_to(self._received.read, limit + 1)
        if len(data) > limit:
            raise NetworkError(f"the answer is longer than {limit} bytes", subject=str(self.url))
        self._left = 0
        return data

    def problem(self) -> Problem:
        """What an error answer says. A body that is broken or no JSON does not hide its status."""
        if self._problem is None:
            try:
                self._problem = self._read_problem(self.whole(MAX_ERROR_BODY))
            except NetworkError:
                self._problem = Problem()
        return self._problem

    def error(self, subject: str | None = None) -> NetworkError:
        """The error that an answer with this status is; reads :meth:`problem`."""
        subject = subject or str(self.url)
        problem = self.problem()
        said = f" ({problem})" if str(problem) else ""
        if self.status in {401, 403}:
            return AccessDenied(f"access denied{said}", subject=subject)
        if self.status in {404, 410}:
            return NotFound(f"not found{said}", subject=subject)
        if self.status in {416, 501}:
            return NoRanges(f"the server gives no such range{said}", subject=subject)
        if self.status in _TRANSIENT:
            what = "too many requests" if self.status == 429 else f"the server failed with {self.status}"
            hint = "log in, or try later" if self.status == 429 else None
            error = TransientError(f"{what}{said}", subject=subject, hint=hint)
            error.wait = headers.retry_after(self.values)
            error.throttled = self.status == 429
            return error
        return NetworkError(f"the server answered {self.status}{said}", subject=subject)

    def close(self) -> None:
        """Give up what is left of the body. Closing twice is allowed."""
        if self._closed is None:
            return
        closed, self._closed = self._closed, None
        try:
            self._received.close(reuse=self._is_drained())
        finally:
            closed()

    def _is_drained(self) -> bool:
        """Whether nothing of the body is left, after reading a little of it at most."""
        if self._left is None or self._left > _DRAINED:
            return False
        try:
            read_up_to(self.read, self._left)
        except NetworkError:
            return False
        return True

    def _read_problem(self, data: bytes) -> Problem:
        if not headers.mime_type(self.values).endswith("json") and not data.lstrip().startswith(b"{"):
            return Problem()
        try:
            document = parse_json(data, _PROBLEM)
        except FormatError:
            return Problem()
        entries = document.get("errors") if isinstance(document, dict) else None
        first = entries[0] if isinstance(entries, list) and entries else document
        if not isinstance(first, dict):
            return Problem()
        return Problem(self._shown(first.get("code")), self._shown(first.get("message")))

    def _shown(self, value: object) -> str:
        return printable(self._clean(value[:MAX_MESSAGE])) if isinstance(value, str) else ""
