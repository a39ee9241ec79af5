"""One repository of a registry: reading manifests and blobs, and the requests that writing is made of.

A registry is asked over TLS. Plain HTTP is used where an option or registries.conf allows it, and on loopback if the
server does not speak TLS.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import NamedTuple

from cfstools.errors import AccessDenied, CfsError, CheckFailed, NetworkError, NoRanges, NotFound, NoTls, OciError
from cfstools.oci.descriptor import Digest, Kind, is_lost, kind_of, parse_digest
from cfstools.oci.jsontext import Fields, parse_json
from cfstools.oci.registry.authorize import Access
from cfstools.oci.registry.credentials import Credential
from cfstools.oci.registry.reference import api_host
from cfstools.streams.buffered import Read
from cfstools.streams.limits import MAX_JSON
from cfstools.text import quoted
from cfstools.transport import headers, url
from cfstools.transport.base import Body, Span
from cfstools.transport.http import Document, Http, Request
from cfstools.transport.ranges import open_range
from cfstools.transport.response import Response
from cfstools.transport.url import Url

MANIFEST_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
# Asked for one type only, some registries answer 404 where they have another.
_ACCEPT = {"Accept": ", ".join(MANIFEST_TYPES)}

FindCredential = Callable[[str, str], Credential | None]
"""The credential for a repository (the second word) of a registry."""


class ManifestDocument(NamedTuple):
    """A manifest or index: media type, digest (computed from the bytes), bytes."""

    media_type: str
    digest: Digest
    data: bytes


class Registry:
    """A registry: where its API is, and who may use it.

    *plain_http* means no TLS at all; *insecure* means plain HTTP if the server does not speak TLS, as on loopback.
    """

    def __init__(self, http: Http, host: str, *, plain_http: bool = False, insecure: bool = False) -> None:
        self.http = http
        self.host = host
        secure = url.parse(f"https://{api_host(host)}/")
        plain = url.parse(f"http://{api_host(host)}/")
        self._plain = plain.origin
        self._may_be_plain = not plain_http and (insecure or is_loopback(secure.origin.host))
        self.origin = plain.origin if plain_http else secure.origin
        self._lock = Lock()
        self._accesses: dict[str, Access] = {}

    def access(self, repository: str, find: FindCredential) -> Access:
        """The authorizer for requests to a repository; the same for all of its scopes."""
        with self._lock:
            access = self._accesses.get(repository)
            if access is None:
                access = Access(self.http, self.origin, lambda: find(self.host, repository))
                self._accesses[repository] = access
            return access

    def fall_back(self) -> bool:
        """Switch to plain HTTP after the server turned out not to speak TLS; whether that is allowed."""
        with self._lock:
            if not self._may_be_plain:
                return False
            self.origin = self._plain
            for access in self._accesses.values():
                access.origin = self._plain
            return True


class Repository:
    """One repository; thread-safe. *subject* names it in messages, *actions* are those of the token's scope."""

    def __init__(
        self,
        registry: Registry,
        name: str,
        find: FindCredential,
        *,
        actions: str = "pull",
        mount_from: str | None = None,
        subject: str | None = None,
        warn: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.name = name
        self.registry = registry
        self.subject = subject or f"{registry.host}/{name}"
        self.http = registry.http
        self.warn = warn
        self._access = registry.access(name, find)
        self.scope = f"repository:{name}:{actions}"
        if mount_from is not None:
            self.scope += f" repository:{mount_from}:pull"

    def url(self, path: str) -> Url:
        """The URL of *path* below the repository."""
        return Url(self.registry.origin, f"/v2/{self.name}/{path}")

    def request(
        self,
        path: str | Url,
        method: str = "GET",
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        remember: bool = False,
    ) -> Request:
        """A request with the repository's authorizer and scope; *path* is below it, or a URL that the registry gave."""
        where = self.url(path) if isinstance(path, str) else path
        return Request(
            where,
            method,
            headers=headers or {},
            body=body,
            authorizer=self._access,
            scope=self.scope,
            remember=remember,
        )

    def open(self, request: Request) -> Response:
        """Make one attempt. Raises :class:`NetworkError`."""
        try:
            return self.http.open(request)
        except NoTls:
            if not self._falls_back(request):
                raise
        return self.http.open(self._moved(request))

    def document(self, request: Request, *, limit: int = MAX_JSON, accept: tuple[int, ...] = (200,)) -> Document:
        """Read a small answer, with retries. Raises :class:`NetworkError` naming the repository."""
        try:
            try:
                return self.http.document(request, limit=limit, accept=accept)
            except NoTls:
                if not self._falls_back(request):
                    raise
            return self.http.document(self._moved(request), limit=limit, accept=accept)
        except NetworkError as error:
            raise self.named(error) from None

    def _falls_back(self, request: Request) -> bool:
        own = request.url.origin == self.registry.origin or request.url.origin.scheme == "https"
        return own and self.registry.fall_back()

    def _moved(self, request: Request) -> Request:
        return request._replace(url=request.url._replace(origin=self.registry.origin))

    def named(self, error: NetworkError, subject: str | None = None) -> NetworkError:
        """*error* with this repository, or *subject*, as its subject, and a hint where access is denied."""
        error.subject = subject or self.subject
        if isinstance(error, AccessDenied) and error.hint is None:
            error.hint = f"log in with: skopeo login {self.registry.host}"
        return error

    def manifest(self, wanted: str) -> ManifestDocument:
        """Fetch the manifest of a tag or digest.

        Raises :class:`CheckFailed` unless its digest is the requested one and the one that the registry states,
        :class:`OciError` for a wrong media type, :class:`NetworkError`.
        """
        try:
            answer = self.document(self.request(f"manifests/{wanted}", headers=_ACCEPT))
        except NotFound as error:
            said = error.what.removeprefix("not found")
            raise NotFound(f"no such image{said}", subject=self.subject) from error
        digest = self._checked(answer, wanted)
        return ManifestDocument(_media_type(answer, str(digest)), digest, answer.data)

    def has_manifest(self, wanted: str) -> Digest | None:
        """The digest of a manifest by a HEAD request; ``None`` if there is no such manifest."""
        answer = self.document(self.request(f"manifests/{wanted}", "HEAD", headers=_ACCEPT), accept=(200, 404))
        if answer.status == 404:
            return None
        stated = _stated_digest(answer)
        return stated if stated is not None else self.manifest(wanted).digest

    def blob_size(self, digest: Digest) -> int | None:
        """Length of a blob in bytes by a HEAD request; ``None`` if there is no such blob."""
        answer = self.document(self.request(f"blobs/{digest}", "HEAD"), accept=(200, 404))
        if answer.status == 404:
            return None
        size = headers.body_length(answer.values)
        if size is None:
            raise NetworkError(f"does not say how long the blob {digest} is", subject=self.subject)
        return size

    @contextmanager
    def open_blob(self, digest: Digest, size: int, span: Span) -> Iterator[Read]:
        """Read a span of a blob of *size* bytes; one attempt. Raises :class:`NetworkError`, :class:`ContentsWrong`."""
        request = self.request(f"blobs/{digest}", remember=True)
        subject = f"{self.subject}: blob {digest}"
        with ExitStack() as stack:
            try:
                read = self._opened(request, span, size, subject, stack)
            except NetworkError as error:
                raise self.named(error, subject) from None
            yield read

    def _opened(self, request: Request, span: Span, size: int, subject: str, stack: ExitStack) -> Read:
        try:
            return stack.enter_context(open_range(self.http, request, span, size=size, subject=subject))
        except NoTls:
            if not self._falls_back(request):
                raise
            return self._opened(self._moved(request), span, size, subject, stack)
        except NoRanges:
            self.warn(f"{subject}: the registry gives no ranges; fetching all {size} bytes")
        read = stack.enter_context(open_range(self.http, request, None, subject=subject))
        left = span.start
        while left and (data := read(min(left, 1 << 16))):
            left -= len(data)
        return read

    def _checked(self, answer: Document, wanted: str) -> Digest:
        """The digest of a manifest. Raises :class:`CheckFailed` unless it is the requested and the stated one."""
        asked = parse_digest(wanted, "digest") if ":" in wanted else None
        algorithm = "sha256" if asked is None else asked.algorithm
        digest = Digest(algorithm, hashlib.new(algorithm, answer.data).hexdigest())
        stated = _stated_digest(answer)
        for promised in (asked, stated):
            if promised is None:
                continue
            hasher = promised.hasher()
            hasher.update(answer.data)
            try:
                promised.matches(hasher.hexdigest(), f"manifest {wanted}")
            except CheckFailed as error:
                error.subject = self.subject
                raise
        return digest


def _stated_digest(answer: Document) -> Digest | None:
    """The digest in ``Docker-Content-Digest``; ``None`` if there is none, or of an algorithm not known here."""
    text = answer.header("docker-content-digest")
    if not text:
        return None
    try:
        digest = parse_digest(text, "Docker-Content-Digest")
        digest.hasher()
    except CfsError:
        return None
    return digest


def _media_type(answer: Document, where: str) -> str:
    """The media type of a manifest. Raises :class:`OciError` if header and document contradict each other."""
    stated = headers.mime_type(answer.values)
    try:
        fields = Fields(parse_json(answer.data), "")
        own = fields.text("mediaType") or ""
    except CfsError as error:
        error.where = f"{where}: {error.where}" if error.where else where
        raise
    if own and not is_lost(stated) and stated != own.lower() and kind_of(stated) is not Kind.UNKNOWN:
        raise OciError(f"the registry calls it {quoted(stated)}, it calls itself {quoted(own)}", where=where)
    if own or not is_lost(stated):
        return own or stated
    return MANIFEST_TYPES[0] if "manifests" in fields and "layers" not in fields else MANIFEST_TYPES[1]


def is_loopback(host: str) -> bool:
    """Whether *host* is written as this machine: ``localhost``, 127/8, ``[::1]``; a name that begins so is another."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
