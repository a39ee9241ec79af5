"""The one door to places elsewhere: what callers write becomes a place, whatever kind it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from cfstools.errors import InputError
from cfstools.text import quoted, without_secrets
from cfstools.transport.base import Place, Target
from cfstools.values import Value

if TYPE_CHECKING:
    from cfstools.transport.http import Http
    from cfstools.transport.proxies import Proxies
    from cfstools.transport.url import Origin

WEB = ("https", "http")
CLOUD = ("s3", "gs", "az")
CONNECTIONS = 32  # of one verb to one server; objects are small, and a round trip is long


class NetworkOptions(Value):
    """How to speak to servers. *authorities*: PEM files trusted besides the system's; *cloud*: keys of obstore such as
    ``endpoint``, ``region`` and ``access_key_id``, which come before what it finds in the environment. *timeout*: after
    so many seconds without an answer a server has failed, for those who try again themselves; ``None``: as usual."""

    authorities: tuple[bytes, ...] = ()
    proxies: Proxies | None = None
    connections: int = CONNECTIONS
    cloud: Mapping[str, str] = {}
    timeout: float | None = None

    def with_paths(self, changed: Callable[[bytes], bytes]) -> NetworkOptions:
        """The same with each path *changed*."""
        return self._replace(authorities=tuple(map(changed, self.authorities)))

    def __repr__(self) -> str:
        return f"NetworkOptions(connections={self.connections})"


DEFAULT_NETWORK = NetworkOptions()


def scheme_of(address: bytes) -> str | None:
    """The scheme, if *address* is that of a place over a network; else ``None``."""
    scheme, separator, _ = address.partition(b"://")
    word = scheme.lower().decode("ascii", "replace")
    return word if separator and word in (*WEB, *CLOUD) else None


@contextmanager
def open_place(address: bytes, network: NetworkOptions = DEFAULT_NETWORK) -> Iterator[Place]:
    """Open the place at a URL. Raises ``InputError`` for another scheme, ``Unsupported``, ``NetworkError``."""
    scheme = scheme_of(address)
    if scheme in WEB:
        with open_http(network) as http:
            from cfstools.transport.url import parse  # noqa: PLC0415 - loaded only where a network is used
            from cfstools.transport.web import WebPlace  # noqa: PLC0415

            yield WebPlace(parse(_text(address)), http)
        return
    if scheme is None:
        raise InputError(f"{quoted(without_secrets(_text(address)))} is no place that can be read over a network")
    target = _open_cloud(_text(address), network)
    try:
        yield target
    finally:
        target.close()


@contextmanager
def open_target(address: bytes, network: NetworkOptions = DEFAULT_NETWORK) -> Iterator[Target]:
    """Open the place at a URL to write to it. Raises as :func:`open_place` does, and for servers that only give."""
    if scheme_of(address) in WEB:
        raise InputError(f"{quoted(without_secrets(_text(address)))} can only be read: web servers take no uploads")
    with open_place(address, network) as target:
        yield cast("Target", target)


@contextmanager
def open_http(network: NetworkOptions = DEFAULT_NETWORK) -> Iterator[Http]:
    """Connections for one verb. Raises ``NetworkError`` for files that cannot be used."""
    from cfstools.transport.http import Http  # noqa: PLC0415
    from cfstools.transport.pool import Patience, Pool  # noqa: PLC0415
    from cfstools.transport.proxies import NO_PROXIES  # noqa: PLC0415
    from cfstools.transport.tls import TlsFiles  # noqa: PLC0415

    def tls(_origin: Origin) -> TlsFiles:
        return TlsFiles(network.authorities)

    patience = Patience.of(network.timeout)
    pool = Pool(connections=network.connections, tls=tls, proxies=network.proxies or NO_PROXIES, patience=patience)
    http = Http(pool, connections=network.connections)
    try:
        yield http
    finally:
        http.close()


def _open_cloud(address: str, network: NetworkOptions) -> Target:
    from cfstools.transport.cloud import CloudOptions, CloudTarget  # noqa: PLC0415
    from cfstools.transport.tls import read_authorities  # noqa: PLC0415

    authorities = read_authorities(network.authorities) if network.authorities else None
    options = CloudOptions(config=network.cloud, authorities=authorities, connections=network.connections)
    if network.timeout is not None:
        options = options._replace(timeout=network.timeout, retries=0)
    return CloudTarget(address, options)


def _text(address: bytes) -> str:
    return address.decode("utf-8", "surrogateescape")
