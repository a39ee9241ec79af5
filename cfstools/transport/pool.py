"""Connections, kept alive: the only importer of urllib3, whose own redirects, retries and decoding are off.

urllib3 keeps connections, speaks TLS and to proxies, and frames bodies. Beside it stands one rule that no timeout of a
socket can keep: a server that drips a byte now and then is a stall (:class:`Pace`), in heads as well as in bodies.
"""

from __future__ import annotations

import io
import ssl
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from errno import ECONNABORTED, ECONNRESET
from functools import partial
from http.client import HTTPException, IncompleteRead
from socket import EAI_AGAIN, SHUT_RDWR, gaierror
from socket import socket as Socket  # noqa: N812 - a class
from threading import Lock
from typing import Any, NamedTuple, cast
from weakref import WeakSet

import urllib3
from urllib3 import exceptions
from urllib3.connection import HTTPConnection, HTTPSConnection

from cfstools.errors import CfsError, Exhausted, NetworkError, TransientError, is_exhausted
from cfstools.transport.base import Body, pieces
from cfstools.transport.proxies import NO_PROXIES, Proxies, Proxy
from cfstools.transport.retry import REAL_TIME, Clock
from cfstools.transport.tls import TlsFor, context, system_only, tls_error
from cfstools.transport.url import Origin
from cfstools.transport.wire import Sent

# Errors are raised as they come.
_NO_RETRIES = urllib3.Retry(total=False, redirect=False)

MAX_HEAD = 256 << 10
MAX_ORIGINS = 32
_BUFFER = 16 << 10
_SEND = 64 << 10  # the timeout of a socket is for sending all of a piece


class Patience(NamedTuple):
    """How long a server may take; seconds, and bytes in so many seconds of waiting."""

    connect: float = 10
    read: float = 30
    window: float = 60
    least: int = 60 << 10

    @classmethod
    def of(cls, timeout: float | None) -> Patience:
        """That of who waits so many seconds for an answer; the usual one for ``None``."""
        return cls() if timeout is None else cls(connect=min(10, timeout), read=timeout, window=2 * timeout)


class _StallError(OSError):
    """The server is too slow."""


class _FloodError(OSError):
    """The server says more than it may."""


class Pace:
    """Watches what comes over one connection. Only waiting counts, not what is done with the bytes meanwhile."""

    def __init__(self, patience: Patience, clock: Clock, opened: Callable[[Socket], object]) -> None:
        self._patience = patience
        self._opened = opened
        self.now = clock.now
        self.begin(MAX_HEAD)

    def begin(self, allowed: int) -> None:
        """A new head or body, of at most *allowed* bytes."""
        self._waited = 0.0
        self._came = 0
        self._left = allowed
        self.ended = False

    @contextmanager
    def head(self) -> Iterator[None]:
        """Read a head. One that ends with the connection is cut, whatever it looks like so far."""
        self.begin(MAX_HEAD)
        try:
            yield
        except HTTPException as error:
            if self.ended:
                raise ConnectionResetError(ECONNRESET, "the answer is cut") from error
            raise
        if self.ended:
            raise ConnectionResetError(ECONNRESET, "the answer is cut")

    def watch(self, sock: Any) -> Any:
        """*sock*, watched, with the timeout for sending a piece; that of connecting is for less."""
        self._opened(sock)
        sock.settimeout(self._patience.read)
        return _PacedSocket(sock, self)

    def received(self, count: int, waited: float) -> None:
        """So many bytes came after so many seconds. Raises ``OSError`` for too few or too many."""
        self.ended = not count
        self._left -= count
        self._came += count
        self._waited += waited
        if self._left < 0:
            raise _FloodError("the answer is longer than it may be")
        if self._waited >= self._patience.window:
            if self._came < self._patience.least:
                raise _StallError(f"only {self._came} bytes in {self._waited:.0f} s")
            self._waited = 0.0
            self._came = 0


class _PacedReader(io.RawIOBase):
    """What a socket receives, watched."""

    def __init__(self, raw: io.RawIOBase, pace: Pace) -> None:
        self._raw = raw
        self._pace = pace

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        pace = self._pace
        before = pace.now()
        count: int | None = self._raw.readinto(buffer)
        pace.received(count or 0, pace.now() - before)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _PacedSocket:
    """A socket whose files are watched; all else is the socket's."""

    def __init__(self, sock: Any, pace: Pace) -> None:
        self._sock = sock
        self._pace = pace

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """A reader over what comes."""
        return io.BufferedReader(_PacedReader(self._sock.makefile("rb", buffering=0), self._pace), _BUFFER)


class _PlainConnection(HTTPConnection):
    def __init__(self, *words: Any, pace: Pace, **named: Any) -> None:
        self.pace = pace
        super().__init__(*words, **named)

    def connect(self) -> None:
        super().connect()
        self.sock = cast("Socket", self.pace.watch(self.sock))

    def getresponse(self) -> Any:
        with self.pace.head():
            return super().getresponse()


class _TlsConnection(HTTPSConnection):
    def __init__(self, *words: Any, pace: Pace, **named: Any) -> None:
        self.pace = pace
        super().__init__(*words, **named)

    def connect(self) -> None:
        super().connect()
        self.sock = cast("ssl.SSLSocket", self.pace.watch(self.sock))

    def getresponse(self) -> Any:
        with self.pace.head():
            return super().getresponse()


class Answer:
    """An answer of urllib3 as :class:`cfstools.transport.wire.Received`."""

    __slots__ = ("_connection", "_response", "_subject", "status")

    def __init__(self, response: urllib3.BaseHTTPResponse, subject: Origin) -> None:
        self._response = response
        self._connection = cast("_PlainConnection | _TlsConnection | None", response.connection)
        self._subject = subject
        self.status: int = response.status
        self.allow((1 << 63) - 1)

    def values(self, name: str) -> Sequence[str]:
        """All values of a header."""
        return self._response.headers.getlist(name, [])

    def read(self, count: int) -> bytes:
        """The next bytes as they come; none at the end. Raises ``NetworkError``."""
        try:
            return self._response.read1(count, decode_content=False)
        except (exceptions.HTTPError, OSError) as error:
            raise translated(error, self._subject) from error

    def allow(self, count: int) -> None:
        """Let so many bytes come from here on."""
        if self._connection is not None:
            self._connection.pace.begin(count)

    def close(self, *, reuse: bool) -> None:
        """Give up the connection, or keep it."""
        if reuse:
            # Nothing is left, but of a body without bytes that is known only once it is read.
            self._response.drain_conn()
        else:
            self._response.close()
        self._response.release_conn()


class Pool:
    """Kept connections to any number of origins; a :class:`cfstools.transport.wire.Wire`.

    *connections* are kept for each origin. Beyond :data:`MAX_ORIGINS` those of the origin used longest ago are closed.
    """

    def __init__(
        self,
        *,
        connections: int = 8,
        tls: TlsFor = system_only,
        proxies: Proxies = NO_PROXIES,
        patience: Patience = Patience(),  # noqa: B008 - immutable
        clock: Clock = REAL_TIME,
    ) -> None:
        self._connections = connections
        self._tls = tls
        self._proxies = proxies
        self._patience = patience
        self._clock = clock
        self._pools: OrderedDict[Origin, urllib3.HTTPConnectionPool] = OrderedDict()
        self._lock = Lock()
        self._sockets: WeakSet[Socket] = WeakSet()
        self._closed = False

    def send(self, request: Sent) -> Answer:
        """The answer to one request. Raises ``NetworkError``."""
        origin = request.url.origin
        pool = self._pool(origin)
        forwarded = pool.proxy is not None and origin.scheme == "http"
        try:
            with _sending(request.body, str(origin)) as body:
                response = pool.urlopen(
                    request.method,
                    request.url.whole if forwarded else request.url.target,
                    body=body,
                    headers=request.headers,
                    retries=_NO_RETRIES,
                    redirect=False,
                    assert_same_host=False,
                    timeout=urllib3.Timeout(connect=self._patience.connect, read=self._patience.read),
                    preload_content=False,
                    decode_content=False,
                    enforce_content_length=True,
                )
        except (exceptions.HTTPError, OSError, HTTPException) as error:
            raise translated(error, origin) from error
        except ValueError:
            # Its text repeats the header that cannot be sent.
            raise NetworkError("the request cannot be sent", subject=str(origin)) from None
        return Answer(response, origin)

    def close(self) -> None:
        """Close all connections. Those that other threads wait for end at once, and nothing is sent any more."""
        with self._lock:
            self._closed = True
            pools = list(self._pools.values())
            self._pools.clear()
            sockets = list(self._sockets)
        for sock in sockets:
            with suppress(OSError):
                Socket.shutdown(sock, SHUT_RDWR)  # that of TLS would change what the other thread uses
        for pool in pools:
            pool.close()

    def _pool(self, origin: Origin) -> urllib3.HTTPConnectionPool:
        with self._lock:
            if self._closed:
                raise NetworkError("the connections are closed", subject=str(origin))
            pool = self._pools.get(origin)
            if pool is not None:
                self._pools.move_to_end(origin)
                return pool
            pool = self._pools[origin] = self._new_pool(origin)
            if len(self._pools) > MAX_ORIGINS:
                self._pools.popitem(last=False)[1].close()
            return pool

    def _new_pool(self, origin: Origin) -> urllib3.HTTPConnectionPool:
        words: dict[str, Any] = {"maxsize": self._connections, "block": False}
        if origin.scheme == "https":
            words["ssl_context"] = context(self._tls(origin))
        proxy = self._proxies.for_origin(origin)
        manager = urllib3.PoolManager(**words) if proxy is None else self._through(proxy, words)
        pool = manager.connection_from_host(origin.host, origin.port, origin.scheme)
        kind = _TlsConnection if pool.scheme == "https" else _PlainConnection
        # Called as a class would be.
        pool.ConnectionCls = cast("type[HTTPConnection]", partial(self._connect, kind))
        return pool

    def _through(self, proxy: Proxy, words: dict[str, Any]) -> urllib3.ProxyManager:
        headers = {} if proxy.authorization is None else {"Proxy-Authorization": proxy.authorization}
        secure = context(self._tls(proxy.origin)) if proxy.origin.scheme == "https" else None
        return urllib3.ProxyManager(str(proxy.origin), proxy_headers=headers, proxy_ssl_context=secure, **words)

    def _connect(self, kind: Callable[..., HTTPConnection], **words: Any) -> HTTPConnection:
        return kind(pace=Pace(self._patience, self._clock, self._opened), **words)

    def _opened(self, sock: Socket) -> None:
        """Note a connection. Raises ``OSError`` if all have been closed meanwhile."""
        with self._lock:
            if self._closed:
                raise ConnectionAbortedError(ECONNABORTED, "the connections are closed")
            self._sockets.add(sock)


@contextmanager
def _sending(body: Body | None, subject: str) -> Iterator[Iterator[bytes] | None]:
    """The pieces of a body; exactly as many bytes as it says, whatever it gives."""
    if body is None:
        yield None
        return
    with body.open() as read:
        yield pieces(lambda count: read(min(count, _SEND)), body.size, subject)


def translated(error: Exception, origin: Origin) -> CfsError:
    """An error of urllib3 as ours; a ``TransientError`` where a retry may help."""
    subject = str(origin)
    causes = list(_causes(error))
    proxied = any(isinstance(cause, exceptions.ProxyError) for cause in causes)
    what = "cannot connect through the proxy" if proxied else "cannot connect"
    for cause in causes:
        if (found := _telling(cause, what, subject)) is not None:
            return found
    reason = _reason(causes[-1])
    if proxied and "Tunnel connection failed" in reason:
        return NetworkError(f"{what}: {reason}", subject=subject)
    if isinstance(error, exceptions.ConnectTimeoutError | exceptions.ProxyError):
        return TransientError(f"{what}: {reason}", subject=subject)
    return _broken(error, causes, reason, subject)


def _telling(cause: BaseException, what: str, subject: str) -> CfsError | None:
    """The error that one cause alone makes, whatever is around it."""
    match cause:
        case ssl.SSLError():
            return tls_error(cause, subject)
        case gaierror():
            kind = TransientError if cause.errno == EAI_AGAIN else NetworkError
            return kind(f"{what}: {cause.strerror}", subject=subject)
        case _FloodError():
            return NetworkError(str(cause), subject=subject)
        case _StallError():
            return TransientError(f"the server stalls: {cause}", subject=subject)
        case OSError() if is_exhausted(cause):
            return Exhausted(f"{what}: {cause.strerror}", subject=subject)
    return None


def _broken(error: Exception, causes: list[BaseException], reason: str, subject: str) -> NetworkError:
    """What came is cut off, so that a retry may help, or is no HTTP."""
    if isinstance(error, exceptions.ReadTimeoutError):
        return TransientError("the server does not answer any more", subject=subject)
    if any(isinstance(cause, OSError | IncompleteRead) for cause in causes):
        return TransientError(f"the connection broke: {reason}", subject=subject)
    if isinstance(error, exceptions.InvalidHeader):
        return NetworkError("the answer has two lengths", subject=subject)
    return NetworkError(f"the answer is not HTTP: {reason}", subject=subject)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it is made of, the innermost last."""
    seen: list[BaseException] = []
    inner: object = error
    while isinstance(inner, BaseException) and inner not in seen:
        seen.append(inner)
        yield inner
        inner = next((word for word in reversed(inner.args) if isinstance(word, BaseException)), inner.__cause__)


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError | exceptions.TimeoutError) and not getattr(error, "strerror", None):
        return "no answer in time"
    if isinstance(error, IncompleteRead):
        return "the answer is cut"
    return str(getattr(error, "strerror", None) or error)
