"""URLs of http and https: parsing, joining, origins, and where redirects may lead.

A :class:`Url` that is formatted into a message shows neither its query, where credentials of presigned URLs travel, nor
a user name, which it cannot have: only :attr:`Url.target` and :attr:`Url.whole`, for the wire, have the query.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple
from urllib.parse import quote, urljoin

from cfstools.errors import NetworkError
from cfstools.text import quoted, without_secrets

MAX_URL = 8192
PORTS = {"http": 80, "https": 443}

# RFC 3986, appendix B, with an authority. The port is empty or a number.
_PARTS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#.*)?", re.DOTALL)
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{0,5}))?")
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f]")
_SAFE = "/%:@!$&'()*+,;=-._~"
MOST_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})
# These repeat a request with its method and body; the others turn anything but HEAD into GET.
_KEEP_METHOD = frozenset({307, 308})
_SAFE_METHODS = frozenset({"GET", "HEAD"})
_NUMERIC = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)(?:\.(?:0x[0-9a-f]*|[0-9]+))*\.?")


class Origin(NamedTuple):
    """Whom a URL speaks to. Credentials are for one origin only."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        port = "" if PORTS.get(self.scheme) == self.port else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}"


class Url(NamedTuple):
    """A URL in parts; ``path`` and ``query`` are percent-encoded, an IPv6 ``host`` has its brackets."""

    origin: Origin
    path: str = "/"
    query: str | None = None

    @property
    def target(self) -> str:
        """What the request line asks for."""
        return self.path if self.query is None else f"{self.path}?{self.query}"

    @property
    def whole(self) -> str:
        """All of it, for the wire."""
        return f"{self.origin}{self.target}"

    def below(self, name: str) -> Url:
        """The URL of *name*, a path in plain text, below this one."""
        return Url(self.origin, f"{self.path.rstrip('/')}/{quote(name)}", self.query)

    def with_query(self, more: str) -> Url:
        """The same with *more*, which is encoded already, after what the query has."""
        return self._replace(query=f"{self.query}&{more}" if self.query else more)

    def __str__(self) -> str:
        return f"{self.origin}{self.path}"


def parse(text: str) -> Url:
    """A URL as users and servers write it. Raises :class:`NetworkError`, whose text repeats no credentials."""
    parts = None if len(text) > MAX_URL or _UNPRINTABLE.search(text) else _PARTS.fullmatch(text)
    if parts is None:
        raise NetworkError(f"{quoted(without_secrets(text))} is not a URL")
    scheme, authority, path, query = parts[1].lower(), parts[2], parts[3], parts[4]
    if scheme not in PORTS:
        raise NetworkError(f"the scheme {quoted(scheme)} is none that can be fetched from")
    if "@" in authority:
        raise NetworkError("a URL must not have a user name or a password in it")
    named = _AUTHORITY.fullmatch(authority)
    port = int(named[2] or PORTS[scheme]) if named else 0
    if named is None or not 0 < port < 1 << 16 or not _is_host(named[1]):
        raise NetworkError(f"{quoted(authority)} names no host")
    return Url(
        Origin(scheme, named[1].lower(), port),
        quote(path, safe=_SAFE) or "/",
        None if query is None else quote(query, safe=_SAFE + "?"),
    )


def join(base: Url, reference: str) -> Url:
    """The URL that a header of an answer from *base* means (RFC 3986, section 5). Raises :class:`NetworkError`."""
    if len(reference) > MAX_URL:
        raise NetworkError("a URL is too long")
    try:
        joined = urljoin(base.whole, reference)
    except ValueError:
        raise NetworkError(f"{quoted(without_secrets(reference))} is not a URL") from None
    return parse(joined)


def is_local(host: str) -> bool:
    """Whether *host* is written as this machine or its link: loopback, link-local, unspecified, in any notation."""
    if host == "localhost" or host.endswith((".localhost", "localhost.")):
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        # The resolver takes 127.1, 0x7f000001 and alike for addresses; nobody writes them for any good reason.
        return _NUMERIC.fullmatch(host) is not None
    mapped = getattr(address, "ipv4_mapped", None)
    address = mapped or address
    return address.is_loopback or address.is_link_local or address.is_unspecified


def mistrust(here: Origin, there: Origin) -> str | None:
    """Why a server at *here* must not send us to *there*; ``None`` if it may."""
    if here.scheme == "https" and there.scheme != "https":
        return "it leaves https"
    if is_local(there.host) and not is_local(here.host):
        return "it leads to this machine or its link"
    return None


def follow(start: Url, here: Url, method: str, status: int, locations: list[str]) -> Url:
    """Where a redirect from *here* leads, for a request that began at *start*. Raises :class:`NetworkError`.

    Nothing leads from https to http, to another scheme, to a URL with a user name, or to this machine or its link
    unless the start was there. What writes is only repeated where the answer says so.
    """
    who = str(here.origin)
    if len(locations) != 1:
        raise NetworkError("redirect refused: it does not say where to", subject=who)
    try:
        there = join(here, locations[0])
    except NetworkError as error:
        raise NetworkError(f"redirect refused: {error.what}", subject=who) from error
    if method not in _SAFE_METHODS and status not in _KEEP_METHOD:
        raise NetworkError(f"redirect of {method} to {there} refused", subject=who)
    reason = mistrust(start.origin._replace(scheme=here.origin.scheme), there.origin)
    if reason is not None:
        raise NetworkError(f"redirect to {there} refused: {reason}", subject=who)
    return there


def _is_host(host: str) -> bool:
    if not host.startswith("["):
        return len(host) <= 253
    try:
        ipaddress.IPv6Address(host[1:-1])
    except ValueError:
        return False
    return True
