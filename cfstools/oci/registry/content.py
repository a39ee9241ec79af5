"""An image in a registry as a :class:`cfstools.oci.content.Content`, read from mirrors first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from threading import Lock
from typing import TypeVar

from cfstools.errors import CheckFailed, LimitExceeded, NetworkError, NotFound
from cfstools.oci.content import Resolved
from cfstools.oci.descriptor import Descriptor, Digest, Kind
from cfstools.oci.registry.reference import PREFIX, ImageReference
from cfstools.oci.registry.referrers import referrers
from cfstools.oci.registry.repository import Repository
from cfstools.streams.buffered import Read, read_up_to
from cfstools.streams.limits import MAX_JSON
from cfstools.transport.base import Open, Span
from cfstools.transport.reading import SpanReader

LAYERS_AT_ONCE = 3
REF_NAME = "org.opencontainers.image.ref.name"
_T = TypeVar("_T")


class RegistryContent:
    """The blobs of one image in *repositories*: mirrors in their order, the registry last.

    The tag is resolved once, everything else is requested by digest. ``size`` sends no request for blobs, because
    registries accept a manifest only after its blobs; opening a blob that is missing fails.
    """

    def __init__(
        self, repositories: Sequence[Repository], reference: ImageReference, *, connections: int = LAYERS_AT_ONCE
    ) -> None:
        self._repositories = list(repositories)
        self._reference = reference
        self.at_once = max(1, min(LAYERS_AT_ONCE, connections))
        self.places = len(self._repositories)
        self._wrong: Counter[Digest] = Counter()
        self._lock = Lock()

    def resolve(self, name: str | None) -> Resolved:
        """Fetch the index or manifest; *name*, a tag or digest, overrides that of the reference.

        Raises :class:`NetworkError`, :class:`CheckFailed`, :class:`OciError`.
        """
        wanted = name or self._reference.wanted
        found = self._any(lambda repository: repository.manifest(wanted))
        descriptor = Descriptor(
            media_type=found.media_type,
            digest=found.digest,
            size=len(found.data),
            data=found.data,
            annotations={REF_NAME: str(self._reference).removeprefix(PREFIX)},
        )
        return Resolved(str(self._reference), descriptor)

    def size(self, descriptor: Descriptor) -> int | None:
        """Length as the descriptor states it; manifests are looked up, because an index may list missing ones."""
        if not _is_document(descriptor):
            return descriptor.size
        try:
            self._any(lambda repository: _look_up(repository, descriptor))
        except NotFound:
            return None
        return descriptor.size

    def read(self, descriptor: Descriptor, limit: int) -> bytes:
        """A small blob or a manifest, from the first repository that gives the right bytes."""
        if descriptor.size > limit:
            raise LimitExceeded(f"longer than {limit} bytes", where=str(descriptor.digest))
        return self._any(lambda repository: descriptor.check(self._document(repository, descriptor)))

    @contextmanager
    def open(self, descriptor: Descriptor) -> Iterator[Read]:
        """Stream the blob; after a broken connection, resume at the same or the next repository.

        If :class:`CheckFailed` leaves the block, the blob was wrong: the next call starts at the next repository.
        """
        first = self._wrong[descriptor.digest] % self.places
        if first:
            repository = self._repositories[first]
            repository.warn(f"{repository.subject}: fetching {descriptor.digest} from here: it is wrong elsewhere")
        with self._reader(descriptor, Span(0, descriptor.size), first) as reader:
            try:
                yield reader.read
            except CheckFailed:
                with self._lock:
                    self._wrong[descriptor.digest] += 1
                raise

    def spans(self, descriptor: Descriptor) -> Sequence[Open]:
        """At each repository, in order."""

        def opener(repository: Repository) -> Open:
            return lambda part: repository.open_blob(descriptor.digest, descriptor.size, part)

        return list(map(opener, self._repositories))

    def referrers(self, subject: Descriptor) -> Iterator[bytes]:
        """What the registry itself, or the first mirror that has any, lists."""
        for repository in self._repositories:
            found = [one.data for one in referrers(repository, subject.digest)]
            if found:
                yield from found
                return

    def close(self) -> None:
        """Close all connections, also those that other threads wait for."""
        self._repositories[0].http.close()

    def _reader(self, descriptor: Descriptor, span: Span, first: int = 0) -> SpanReader:
        http = self._repositories[0].http
        return SpanReader(self.spans(descriptor)[first:], span, rules=http.rules, clock=http.clock)

    def _document(self, repository: Repository, descriptor: Descriptor) -> bytes:
        if _is_document(descriptor):
            return repository.manifest(str(descriptor.digest)).data
        try:
            return self._small(repository, descriptor)
        except NotFound:
            if descriptor.kind is not Kind.UNKNOWN or descriptor.size > MAX_JSON:
                raise
        return repository.manifest(str(descriptor.digest)).data  # an entry of an index whose type was lost

    @staticmethod
    def _small(repository: Repository, descriptor: Descriptor) -> bytes:
        def opener(span: Span) -> AbstractContextManager[Read]:
            return repository.open_blob(descriptor.digest, descriptor.size, span)

        http = repository.http
        with SpanReader([opener], Span(0, descriptor.size), rules=http.rules, clock=http.clock) as reader:
            return read_up_to(reader.read, descriptor.size)

    def _any(self, ask: Callable[[Repository], _T]) -> _T:
        """The result of the first repository for which *ask* succeeds; it is preferred from then on.

        Raises the error of the last repository.
        """
        for repository in self._repositories[:-1]:
            try:
                found = ask(repository)
            except (NetworkError, CheckFailed) as error:
                repository.warn(f"{repository.subject} is skipped: {error}")
                continue
            self._prefer(repository)
            return found
        return ask(self._repositories[-1])

    def _prefer(self, repository: Repository) -> None:
        """Move *repository* to the front."""
        others = [one for one in self._repositories if one is not repository]
        self._repositories = [repository, *others]


def _look_up(repository: Repository, descriptor: Descriptor) -> None:
    """Raise :class:`NotFound` unless a manifest is there."""
    if repository.has_manifest(str(descriptor.digest)) is None:
        raise NotFound("no such manifest", subject=repository.subject)


def _is_document(descriptor: Descriptor) -> bool:
    """Whether registries serve it below ``/manifests/``."""
    return descriptor.kind in {Kind.INDEX, Kind.MANIFEST, Kind.SCHEMA1}
