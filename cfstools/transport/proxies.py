"""Which proxy a request goes through, as HTTP_PROXY, HTTPS_PROXY and NO_PROXY say; the caller read these."""

from __future__ import annotations

import ipaddress
from base64 import b64encode
from typing import NamedTuple
from urllib.parse import unquote

from cfstools.errors import NetworkError
from cfstools.transport import url
from cfstools.transport.url import Origin


class Proxy(NamedTuple):
    """A proxy, and what it wants to see of us; credentials go to nobody else."""

    origin: Origin
    authorization: str | None = None

    def __repr__(self) -> str:
        return f"Proxy({self.origin})"


class Proxies(NamedTuple):
    """The proxies for each scheme, and hosts that are reached without one."""

    http: Proxy | None = None
    https: Proxy | None = None
    direct: tuple[str, ...] = ()

    def for_origin(self, origin: Origin) -> Proxy | None:
        """The proxy on the way to *origin*, if any."""
        proxy = self.https if origin.scheme == "https" else self.http
        if proxy is None or any(_matches(pattern, origin) for pattern in self.direct):
            return None
        return proxy


NO_PROXIES = Proxies()


def parse_proxies(http: str | None, https: str | None, direct: str | None) -> Proxies:
    """The proxies that the three variables name; empty ones name none. Raises ``NetworkError``."""
    patterns = tuple(part.strip().lower() for part in (direct or "").replace(" ", ",").split(",") if part.strip())
    return Proxies(_proxy(http), _proxy(https), patterns)


def _proxy(text: str | None) -> Proxy | None:
    if not text:
        return None
    scheme, separator, rest = text.strip().partition("://")
    if not separator:
        scheme, rest = "http", scheme
    user, at, host = rest.rpartition("@")
    try:
        origin = url.parse(f"{scheme}://{host}").origin
    except NetworkError as error:
        raise NetworkError(f"the proxy cannot be used: {error.what}") from error
    return Proxy(origin, "Basic " + b64encode(unquote(user).encode()).decode() if at else None)


def _matches(pattern: str, origin: Origin) -> bool:
    """Whether a part of NO_PROXY means *origin*: all, an address, a network, a name or what is below it."""
    host = origin.host.strip("[]")
    if pattern == "*":
        return True
    name, _, port = pattern.rpartition(":")
    if (port.isdigit() and ":" not in name.strip("[]")) or name.startswith("["):
        if port != str(origin.port):
            return False
        pattern = name
    pattern = pattern.strip("[]")
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(pattern, strict=False)
    except ValueError:
        suffix = pattern.removeprefix("*").removeprefix(".")
        return host == suffix or host.endswith(f".{suffix}")
