"""Uploading blobs and manifests to a repository.

A blob that the repository has is skipped, one that another repository of the registry has is mounted, any other is sent
in one PUT. Chunks are used only on request, or after the server answered 413. A failed upload is retried as a whole,
three attempts in all, each in a new session.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from cfstools.errors import CheckFailed, NetworkError, OciError, TransientError
from cfstools.oci.descriptor import Digest
from cfstools.oci.registry.repository import ManifestDocument, Repository
from cfstools.streams.buffered import Read
from cfstools.streams.limits import MAX_JSON
from cfstools.transport import url
from cfstools.transport.base import Body, BytesBody
from cfstools.transport.response import Response
from cfstools.transport.retry import Attempts
from cfstools.transport.url import Url

ATTEMPTS = 3
CHUNK = 16 << 20
MAX_CHUNK = 1 << 30
_OCTETS = {"Content-Type": "application/octet-stream"}
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,19})")
_TOO_LARGE = 413


class Blob(NamedTuple):
    """A blob to upload: its digest, and its bytes, which can be read again for a retry."""

    digest: Digest
    body: Body


class Uploader:
    """Uploads to *repository*; thread-safe.

    *mount_from* is another repository of the same registry to mount blobs from. *chunk* is the chunk size in bytes;
    ``None`` sends whole blobs unless the server answers 413.
    """

    def __init__(self, repository: Repository, *, mount_from: str | None = None, chunk: int | None = None) -> None:
        self.repository = repository
        self._mount_from = mount_from
        self._chunk = chunk

    def blob(self, blob: Blob, advance: Callable[[int], object] = lambda _count: None) -> bool:
        """Upload a blob unless it is there; whether it was sent. *advance* is called with bytes sent, retries included.

        Raises :class:`NetworkError`.
        """
        repository = self.repository
        if repository.blob_size(blob.digest) is not None:
            return False
        rules = repository.http.rules._replace(attempts=ATTEMPTS)
        attempts = Attempts(rules, repository.http.clock)
        while True:
            try:
                return self._send(blob, advance)
            except TransientError as error:
                try:
                    attempts.failed(error)
                except NetworkError as final:
                    raise repository.named(final) from None
            except NetworkError as error:
                raise repository.named(error) from None

    def manifest(self, name: str, document: ManifestDocument) -> Response:
        """Put a manifest at a tag or digest, after everything that it refers to; the answer is returned closed.

        Raises :class:`NetworkError`, :class:`CheckFailed` if the registry states another digest.
        """
        repository = self.repository
        if len(document.data) > MAX_JSON:
            raise OciError(f"a manifest of {len(document.data)} bytes is larger than {MAX_JSON}")
        request = repository.request(
            f"manifests/{name}",
            "PUT",
            headers={"Content-Type": document.media_type},
            body=BytesBody(document.data),
        )
        attempts = Attempts(repository.http.rules, repository.http.clock)
        while True:
            try:
                with repository.open(request) as response:
                    if response.status not in {200, 201, 202}:
                        raise repository.http.failure(response)
                    self._check(response, document.digest)
                    return response
            except TransientError as error:
                attempts.failed(error)
            except NetworkError as error:
                raise repository.named(error) from None

    def _check(self, response: Response, digest: Digest) -> None:
        stated = response.header("docker-content-digest")
        if stated and stated.startswith(f"{digest.algorithm}:") and stated != str(digest):
            raise CheckFailed(f"the registry took it as {stated}, not {digest}", subject=self.repository.subject)

    def _send(self, blob: Blob, advance: Callable[[int], object]) -> bool:
        """One attempt. Raises :class:`NetworkError`."""
        session = self._begin(blob.digest)
        if session is None:
            return False
        try:
            if self._chunk is None and self._whole(session, blob, advance):
                return True
            if self._chunk is None:  # too large in one piece: the server may have lost the session
                self._abandon(session)
                begun = self._begin(blob.digest)
                if begun is None:
                    return False
                session = begun
            self._in_chunks(session, blob, self._chunk or CHUNK, advance)
        except NetworkError:
            self._abandon(session)
            raise
        return True

    def _begin(self, digest: Digest) -> _Session | None:
        """Start an upload session; ``None`` if the blob was mounted instead."""
        query = ""
        if self._mount_from is not None:
            query = f"mount={digest}&from={self._mount_from}"
        where = self.repository.url("blobs/uploads/")
        request = self.repository.request(where.with_query(query) if query else where, "POST")
        with self.repository.open(request) as response:
            if response.status == 201 and query:
                return None
            if response.status != 202:
                raise self.repository.http.failure(response)
            least = response.header("oci-chunk-min-length") or "0"
            least_chunk = int(least) if least.isdigit() and len(least) < 12 else 0
            return _Session(self._location(response), min(least_chunk, MAX_CHUNK))

    def _location(self, response: Response) -> Url:
        """The session's next URL, query included."""
        found = list(response.values("location"))
        if len(found) != 1:
            raise NetworkError("the registry does not say where to send a blob")
        there = url.join(response.url, found[0])
        reason = url.mistrust(response.url.origin, there.origin)
        if reason is not None:
            raise NetworkError(f"sending a blob to {there} refused: {reason}")
        return there

    def _whole(self, session: _Session, blob: Blob, advance: Callable[[int], object]) -> bool:
        """Send all in one PUT; ``False`` if the server answers 413."""
        body = _Counted(blob.body, 0, blob.body.size, advance)
        where = session.where.with_query(f"digest={blob.digest}")
        with self.repository.open(self.repository.request(where, "PUT", headers=_OCTETS, body=body)) as response:
            if response.status == _TOO_LARGE:
                return False
            if response.status not in {201, 204}:
                raise self.repository.http.failure(response)
            self._check(response, blob.digest)
        return True

    def _in_chunks(self, session: _Session, blob: Blob, chunk: int, advance: Callable[[int], object]) -> None:
        """Send PATCH requests in order, then the PUT that completes the blob."""
        chunk, where, sent = max(chunk, session.least), session.where, 0
        rules = self.repository.http.rules._replace(attempts=ATTEMPTS)
        attempts = Attempts(rules, self.repository.http.clock)
        while sent < blob.body.size:
            end = min(sent + chunk, blob.body.size)
            try:
                where = self._patch(where, blob, sent, end, advance)
            except TransientError as error:
                attempts.failed(error)
                end = self._received(where, end, error)
            sent = end
        ending = where.with_query(f"digest={blob.digest}")
        with self.repository.open(self.repository.request(ending, "PUT", headers=_OCTETS)) as response:
            if response.status not in {201, 204}:
                raise self.repository.http.failure(response)
            self._check(response, blob.digest)

    def _patch(self, where: Url, blob: Blob, start: int, end: int, advance: Callable[[int], object]) -> Url:
        """Send one chunk; returns the URL for the next."""
        body = _Counted(blob.body, start, end - start, advance)
        more = {**_OCTETS, "Content-Range": f"{start}-{end - 1}"}
        with self.repository.open(self.repository.request(where, "PATCH", headers=more, body=body)) as response:
            if response.status not in {201, 202, 204}:
                raise self.repository.http.failure(response)
            return self._location(response) if response.values("location") else where

    def _received(self, where: Url, most: int, error: TransientError) -> int:
        """How many bytes the session has after a broken connection. Raises *error* if that is not clear."""
        with self.repository.open(self.repository.request(where)) as response:
            found = _RANGE.fullmatch(response.header("range") or "") if response.status == 204 else None
        # "0-0" means one byte to some registries and none to others.
        if found is None or not 0 < int(found[1]) < most:
            raise error
        return int(found[1]) + 1

    def _abandon(self, session: _Session) -> None:
        """Cancel a session; the answer does not matter."""
        with suppress(NetworkError), self.repository.open(self.repository.request(session.where, "DELETE")):
            pass


class _Session(NamedTuple):
    """An upload session: its URL, and the registry's minimum chunk size."""

    where: Url
    least: int


class _Counted:
    """A part of a body that reports the bytes read from it."""

    def __init__(self, body: Body, start: int, size: int, advance: Callable[[int], object]) -> None:
        self._body = body
        self._start = start
        self.size = size
        self._advance = advance

    @contextmanager
    def open(self) -> Iterator[Read]:
        """Read the part from its start."""
        with self._body.open() as read:
            _skip(read, self._start)
            left = self.size

            def part(count: int) -> bytes:
                nonlocal left
                data = read(min(count, left)) if left else b""
                left -= len(data)
                self._advance(len(data))
                return data

            yield part


def _skip(read: Read, count: int) -> None:
    while count and (data := read(min(count, 1 << 20))):
        count -= len(data)
