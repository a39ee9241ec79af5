"""Requests over HTTP, by our rules: who gets credentials, where redirects may lead, how many connections there are.

    http = Http(Pool(connections=8), clock=clock)
    with http.open(Request(url.parse("https://m1.example/a"))) as response:
        if response.status != 200:
            raise response.error()
        data = response.read(1 << 16)

:meth:`Http.open` makes one attempt and gives whatever answer comes; :meth:`Http.document` reads small things whole and
tries again after transient errors. Long bodies resume after such errors in ``reading``.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import NamedTuple, Protocol

from cfstools import __version__
from cfstools.errors import CfsError, NetworkError, TransientError
from cfstools.text import printable
from cfstools.transport import headers
from cfstools.transport.base import Body
from cfstools.transport.response import Response
from cfstools.transport.retry import REAL_TIME, Attempts, Clock, RetryRules
from cfstools.transport.secrets import Secrets
from cfstools.transport.slots import Slots
from cfstools.transport.url import MOST_REDIRECTS, REDIRECTS, Url, follow
from cfstools.transport.wire import Sent, Wire

USER_AGENT = f"mkcfs/{__version__}"
REMEMBERED = 60.0  # seconds that a redirect's target is used again
MAX_REMEMBERED = 1024
MAX_WARNINGS = 100
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_CREDENTIALS = frozenset({"authorization", "cookie", "proxy-authorization"})
_FORGETTING = frozenset({400, 401, 403, 404, 410})
_RENEWALS = 2  # for access at all, and then for more of it
_REPEATABLE = frozenset({"GET", "HEAD"})


class Authorizer(Protocol):
    """Knows what to send as ``Authorization``, for the origin it is asked about only."""

    def header(self, url: Url, scope: str) -> str | None:
        """The header for a request to *url* that needs *scope*; ``None`` for none."""

    def refused(self, url: Url, challenges: Sequence[str], scope: str) -> bool:
        """An answer of 401 or 403 came, with these ``WWW-Authenticate`` headers. ``True``: try once more."""


class Request(NamedTuple):
    """What is asked for. *scope* is the authorizer's; *remember* that the target of a redirect is worth keeping."""

    url: Url
    method: str = "GET"
    headers: Mapping[str, str] = {}
    body: Body | None = None
    authorizer: Authorizer | None = None
    scope: str = ""
    remember: bool = False


class Document(NamedTuple):
    """A small answer as a whole."""

    status: int
    url: Url
    values: headers.Values
    data: bytes

    def header(self, name: str) -> str | None:
        """The first value of a header."""
        return next(iter(self.values(name)), None)


class _Hop(NamedTuple):
    """Where a request is on its way, and whether it may still carry credentials."""

    url: Url
    trusted: bool


def ignore_warning(_text: str) -> None:
    """Show nobody what a server warns of."""


class Http:
    """Requests over *wire*, from several threads; at most *connections* answers are open at once.

    *warn* is called once for each text that a server wants to be shown. *clock* is also that of whoever retries.
    """

    def __init__(
        self,
        wire: Wire,
        *,
        connections: int = 8,
        clock: Clock = REAL_TIME,
        rules: RetryRules = RetryRules(),  # noqa: B008 - immutable
        warn: Callable[[str], None] = ignore_warning,
    ) -> None:
        self._wire = wire
        self.clock = clock
        self.rules = rules
        self.slots = Slots(connections)
        self._warn = warn
        self._warned: set[str] = set()
        self._secrets = Secrets()
        self._targets: OrderedDict[tuple[str, str], tuple[_Hop, float]] = OrderedDict()
        self._lock = Lock()

    def open(self, request: Request) -> Response:
        """The answer to a request, whatever its status, after redirects and at most two new authorizations.

        Raises ``NetworkError`` where there is no answer, or a redirect must not be followed.
        """
        try:
            remembered = self._remembered(request)
            if remembered is not None:
                try:
                    response = self._follow(request, remembered)
                except NetworkError:
                    self._forget(request)  # the next attempt may be led elsewhere
                    raise
                if response.status not in _FORGETTING:
                    return response
                response.close()
                self._forget(request)
            return self._follow(request, _Hop(request.url, trusted=True))
        except CfsError as error:
            self._secrets.hide_in(error)
            raise

    def document(self, request: Request, *, limit: int, accept: Sequence[int] = (200,)) -> Document:
        """An answer with one of the statuses in *accept*, of at most *limit* bytes.

        What only reads is tried again after transient errors. Raises ``NetworkError``, made by
        :meth:`Response.error` for other statuses.
        """
        attempts = Attempts(self.rules, self.clock)
        while True:
            try:
                with self.open(request) as response:
                    if response.status not in accept:
                        raise self.failure(response)
                    return Document(response.status, response.url, response.values, response.whole(limit))
            except TransientError as error:
                if request.method not in _REPEATABLE:
                    raise
                attempts.failed(error)

    def failure(self, response: Response, subject: str | None = None) -> NetworkError:
        """:meth:`Response.error`; after a 429 there are half as many connections."""
        error = response.error(subject)
        if isinstance(error, TransientError) and error.throttled:
            self.slots.halve()
        return error

    def close(self) -> None:
        """Close all connections."""
        self._wire.close()

    def _follow(self, request: Request, hop: _Hop) -> Response:
        """Send a request from *hop* on."""
        start = request.url
        renewals = 0
        hops = 0
        while True:
            response = self._send(request, hop)
            if response.status in {401, 403} and renewals < _RENEWALS and self._renews(request, hop, response):
                renewals += 1
                continue
            if response.status not in REDIRECTS:
                break
            with response:
                hops += 1
                if hops > MOST_REDIRECTS:
                    raise NetworkError(f"more than {MOST_REDIRECTS} redirects", subject=str(start.origin))
                there = follow(start, hop.url, request.method, response.status, list(response.values("location")))
            hop = _Hop(there, trusted=hop.trusted and there.origin == start.origin)
        if hops and request.remember and response.status < 400:
            self._keep(request, hop)
        return response

    def _renews(self, request: Request, hop: _Hop, response: Response) -> bool:
        """Whether a refused request may be sent once more. The authorizer may send requests of its own meanwhile."""
        if request.authorizer is None or not hop.trusted:
            return False
        challenges = list(response.values("www-authenticate"))
        try:
            response.problem()
            if not request.authorizer.refused(hop.url, challenges, request.scope):
                return False
        except BaseException:
            response.close()
            raise
        response.close()
        return True

    def _send(self, request: Request, hop: _Hop) -> Response:
        sent = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **self._own_headers(request, hop)}
        if request.body is not None or request.method not in _REPEATABLE:
            sent["Content-Length"] = str(request.body.size if request.body else 0)
        if request.authorizer is not None and hop.trusted:
            authorization = request.authorizer.header(hop.url, request.scope)
            if authorization is not None:
                self._secrets.add(authorization)
                sent["Authorization"] = authorization
        if any(_CONTROL.search(value) for value in sent.values()):
            raise NetworkError("the request cannot be sent", subject=str(hop.url.origin))
        slot = self.slots.take(hop.url.origin)
        try:
            received = self._wire.send(Sent(request.method, hop.url, sent, request.body))
            try:
                response = Response(
                    received, hop.url, request.method, closed=lambda: self.slots.give(slot), clean=self._secrets.hide
                )
            except NetworkError:
                received.close(reuse=False)
                raise
        except NetworkError as error:
            self.slots.give(slot)
            error.subject = error.subject or str(hop.url)
            raise
        except BaseException:
            self.slots.give(slot)
            raise
        self._pass_warnings(response)
        return response

    def _own_headers(self, request: Request, hop: _Hop) -> Mapping[str, str]:
        """The headers of a request; credentials among them are for where it began alone, and are hidden as well."""
        secret = [name for name in request.headers if name.lower() in _CREDENTIALS]
        if not secret:
            return request.headers
        for name in secret:
            self._secrets.add(request.headers[name])
        return {name: value for name, value in request.headers.items() if hop.trusted or name not in secret}

    def _pass_warnings(self, response: Response) -> None:
        for text in headers.warnings(response.values):
            shown = printable(self._secrets.hide(text[:300]))
            with self._lock:
                if shown in self._warned or len(self._warned) >= MAX_WARNINGS:
                    continue
                self._warned.add(shown)
            self._warn(f"{response.url.origin}: {shown}")

    def _remembered(self, request: Request) -> _Hop | None:
        with self._lock:
            found = self._targets.get((request.method, request.url.whole)) if request.remember else None
            if found is None or self.clock.now() - found[1] > REMEMBERED:
                return None
            return found[0]

    def _keep(self, request: Request, hop: _Hop) -> None:
        with self._lock:
            self._targets[request.method, request.url.whole] = (hop, self.clock.now())
            if len(self._targets) > MAX_REMEMBERED:
                self._targets.popitem(last=False)

    def _forget(self, request: Request) -> None:
        with self._lock:
            self._targets.pop((request.method, request.url.whole), None)
