"""Authorization for one registry, as its challenge demands (distribution, "Token Authentication").

The first request has no credentials. One token is cached per scope until it expires or is refused. The token server is
a host that the registry names, and it receives the password: so it must use TLS if the registry does, and must not be
this machine unless the registry is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock, local
from typing import NamedTuple
from urllib.parse import quote, urlencode

from cfstools.errors import AccessDenied, NetworkError
from cfstools.oci.registry.challenges import MAX_TOKEN_ANSWER, Challenge, choose, parse_challenges, parse_token
from cfstools.oci.registry.credentials import Credential
from cfstools.transport import url
from cfstools.transport.base import BytesBody
from cfstools.transport.http import Http, Request
from cfstools.transport.url import Origin, Url

CLIENT_ID = "mkcfs"
_FORM = "application/x-www-form-urlencoded"
# Renew tokens a little early: one may expire while a request is under way.
_EARLY = 5.0
_MAX_SCOPES = 16


class _Held(NamedTuple):
    """A header, when its token expires, and the scopes it was requested for."""

    header: str
    until: float
    scopes: tuple[str, ...]


class _Sent(local):
    """The header given to this thread last: ``Http`` reports a refusal in the thread that asked for the header."""

    header: str | None = None
    was_fetched = False  # a token was fetched, and no request was made since
    is_fresh = False  # the header was fetched for the current request


class Access:
    """The :class:`cfstools.transport.http.Authorizer` for the registry at *origin*; thread-safe.

    *find* returns the credential or ``None``; it is called once, at the first challenge. A scope is that of the token
    protocol, several joined by spaces.
    """

    def __init__(self, http: Http, origin: Origin, find: Callable[[], Credential | None]) -> None:
        self.origin = origin
        self._http = http
        self._find = find
        self._lock = Lock()
        self._found: list[Credential | None] = []
        self._basic: str | None = None
        self._held: dict[str, _Held] = {}
        self._sent = _Sent()

    def header(self, url: Url, scope: str) -> str | None:
        """The header for a request to *url* that needs *scope*; none for any other origin."""
        if url.origin != self.origin:
            return None
        with self._lock:
            header = self._current(scope)
        sent = self._sent
        sent.header, sent.is_fresh, sent.was_fetched = header, sent.was_fetched, False
        return header

    def refused(self, url: Url, challenges: Sequence[str], scope: str) -> bool:
        """Get another header; whether there is one. Raises :class:`AccessDenied` if the token server refuses."""
        if url.origin != self.origin:
            return False
        sent = self._sent
        with self._lock:
            current = self._current(scope)
            if current is not None and current != sent.header:
                return True  # another thread was faster
            parsed = parse_challenges(challenges) or self._asked()
            credential = self._credential()
            challenge = choose(parsed, has_password=credential is not None and not credential.identity_token)
            if challenge is None:
                return False
            if challenge.scheme == "basic":
                assert credential is not None
                self._basic = credential.basic
                return sent.header != self._basic
            scopes = self._scopes(challenge, scope)
            held = self._held.pop(scope, None)
            if held is not None and sent.is_fresh and set(held.scopes) >= set(scopes):
                return False
            self._held[scope] = self._fetch(challenge, scopes, credential)
            sent.was_fetched = True
            return True

    def _current(self, scope: str) -> str | None:
        held = self._held.get(scope)
        if held is not None and self._http.clock.now() < held.until:
            return held.header
        return self._basic

    def _credential(self) -> Credential | None:
        if not self._found:
            self._found.append(self._find())
        return self._found[0]

    def _asked(self) -> list[Challenge]:
        """The challenge of ``/v2/``, for a refusal that had none."""
        answer = self._http.document(
            Request(Url(self.origin, "/v2/")), limit=MAX_TOKEN_ANSWER, accept=(200, 401, 403, 404)
        )
        return parse_challenges(list(answer.values("www-authenticate")))

    def _scopes(self, challenge: Challenge, scope: str) -> tuple[str, ...]:
        """Our scopes, and those that the server adds for ``insufficient_scope``."""
        scopes = scope.split()
        if challenge.parameters.get("error", "").lower() == "insufficient_scope":
            wanted = challenge.parameters.get("scope", "").split()[:_MAX_SCOPES]
            scopes += [one for one in wanted if one.startswith("repository:") and one not in scopes]
        return tuple(scopes)

    def _fetch(self, challenge: Challenge, scopes: tuple[str, ...], credential: Credential | None) -> _Held:
        realm = self._realm(challenge.parameters["realm"])
        service = challenge.parameters.get("service")
        asked = self._http.clock.now()
        if credential is not None and credential.identity_token is not None:
            request = _exchange(realm, service, scopes, credential.identity_token)
        else:
            request = _plain(realm, service, scopes, credential)
        try:
            answer = self._http.document(request, limit=MAX_TOKEN_ANSWER)
        except AccessDenied as error:
            error.subject = str(self.origin)
            raise
        token = parse_token(answer.data)
        return _Held(f"Bearer {token.value}", asked + token.lifetime - _EARLY, scopes)

    def _realm(self, text: str) -> Url:
        """The token server's URL. Raises ``NetworkError`` for one that must not receive a password."""
        subject = str(self.origin)
        try:
            realm = url.parse(text)
        except NetworkError as error:
            raise NetworkError(f"the token server cannot be used: {error.what}", subject=subject) from error
        reason = url.mistrust(self.origin, realm.origin)
        if reason is not None:
            raise NetworkError(f"the token server {realm} refused: {reason}", subject=subject)
        return realm


class _Password:
    """The authorizer for a request to a token server."""

    def __init__(self, origin: Origin, header: str) -> None:
        self._origin = origin
        self._header = header

    def header(self, url: Url, scope: str) -> str | None:
        """The password, for the token server itself."""
        del scope
        return self._header if url.origin == self._origin else None

    def refused(self, url: Url, challenges: Sequence[str], scope: str) -> bool:
        """There is no other one."""
        del url, challenges, scope
        return False


def _plain(realm: Url, service: str | None, scopes: tuple[str, ...], credential: Credential | None) -> Request:
    """A token request with the password, or an anonymous one."""
    query = [("scope", scope) for scope in scopes]
    if service is not None:
        query.insert(0, ("service", service))
    if credential is None:
        return Request(_with(realm, query))
    query.append(("account", credential.user))
    return Request(_with(realm, query), authorizer=_Password(realm.origin, credential.basic))


def _with(realm: Url, query: list[tuple[str, str]]) -> Url:
    more = urlencode(query, quote_via=quote, safe=":/,")
    return realm.with_query(more) if more else realm


def _exchange(realm: Url, service: str | None, scopes: tuple[str, ...], identity: str) -> Request:
    """A request that exchanges an identity token for an access token."""
    form = {"grant_type": "refresh_token", "service": service or "", "client_id": CLIENT_ID, "scope": " ".join(scopes)}
    body = urlencode({**form, "refresh_token": identity}, quote_via=quote).encode()
    return Request(realm, "POST", headers={"Content-Type": _FORM}, body=BytesBody(body))
