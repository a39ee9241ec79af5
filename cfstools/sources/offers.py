"""What a place offers of an image: its bytes, its signatures, and where its objects come from.

None of it is trusted. Whoever takes an offer judges its bytes before it looks into them, and each object by its digest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from cfstools.errors import AccessDenied, NotFound, naming
from cfstools.oci.content import Content
from cfstools.oci.pushed.layout import MAX_IMAGE, MAX_SIGNATURE
from cfstools.oci.pushed.referrers import envelopes
from cfstools.oci.pushed.source import PushedImage, object_places, object_source
from cfstools.signing import MAX_TRAILER
from cfstools.signing.files import SIGNATURE_SUFFIX, split_trailer
from cfstools.sources.places import read_file
from cfstools.transport.base import Place
from cfstools.transport.fetch import ObjectSource
from cfstools.transport.reading import DEFAULT_RULES, read_whole
from cfstools.transport.retry import RetryRules


class Offer(Protocol):
    """An image in another place."""

    @property
    def data(self) -> bytes:
        """The image."""

    @property
    def manifest(self) -> str | None:
        """The digest of its manifest, where images have one."""

    @property
    def envelopes(self) -> Sequence[bytes]:
        """The signatures that came with it."""

    def further(self) -> Iterator[bytes]:
        """Signatures that have to be asked for."""

    def sources(self, sizes: Mapping[bytes, int]) -> Sequence[ObjectSource]:
        """Where its objects, sizes by digest, can be fetched from, in the order in which that is tried."""


class ContainerOffer:
    """An image in a registry or layout. *mirrors* have its objects too, and are asked before its layers."""

    def __init__(
        self,
        content: Content,
        pushed: PushedImage,
        shown: str,
        mirrors: Sequence[ObjectSource],
        warn: Callable[[str], None],
        *,
        rules: RetryRules = DEFAULT_RULES,
    ) -> None:
        self._rules = rules
        self._content = content
        self._pushed = pushed
        self._shown = shown
        self._mirrors = mirrors
        self._warn = warn
        self.data = pushed.data
        self.manifest: str | None = str(pushed.manifest.digest)
        self.envelopes = () if pushed.envelope is None else (pushed.envelope,)

    def further(self) -> Iterator[bytes]:
        """The envelopes that refer to the manifest."""
        return envelopes(self._content, self._pushed.manifest)

    def sources(self, sizes: Mapping[bytes, int]) -> Sequence[ObjectSource]:
        """The mirrors, then the layers. Raises ``OciError``."""
        places = object_places(self._pushed, sizes)
        layers = object_source(self._content, self._pushed, places, self._shown, warn=self._warn, rules=self._rules)
        return (*self._mirrors, layers)


class FileOffer:
    """An image in a file, with its signature behind it or beside it. *stores* have its objects."""

    manifest: str | None = None

    def __init__(self, data: bytes, envelopes: Sequence[bytes], stores: Sequence[ObjectSource]) -> None:
        self._stores = stores
        self.data = data
        self.envelopes = envelopes

    def further(self) -> Iterator[bytes]:
        """None."""
        return iter(())

    def sources(self, sizes: Mapping[bytes, int]) -> Sequence[ObjectSource]:  # noqa: ARG002 - part of the protocol
        """The stores."""
        return self._stores


def read_offer(place: Place, name: str, stores: Sequence[ObjectSource], warn: Callable[[str], None]) -> FileOffer:
    """The image in the file *name* of *place*, and ``NAME.sig``. *warn* is told of a signature that nobody may read.

    Raises ``NetworkError``, ``InputError``, ``LimitExceeded``, ``SignatureInvalid`` for a damaged signature behind it.
    """
    data = read_file(place, name, MAX_IMAGE + MAX_TRAILER)
    with naming(place.describe(name)):
        image, attached = split_trailer(memoryview(data))
    beside = _read_signature(place, name + SIGNATURE_SUFFIX.decode(), warn)
    found = tuple(envelope for envelope in (attached, beside) if envelope is not None)
    return FileOffer(data if attached is None else bytes(image), found, stores)


def _read_signature(place: Place, name: str, warn: Callable[[str], None]) -> bytes | None:
    try:
        return read_whole(place, name, MAX_SIGNATURE)
    except NotFound:
        return None
    except AccessDenied as error:
        # Object storage answers so for what is not there, to those who may not list it.
        warn(f"no signature is used: {error}")
        return None
