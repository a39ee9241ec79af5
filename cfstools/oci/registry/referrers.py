"""Referrers of an image (signatures and other artifacts), by the referrers API or the tag that replaces it.

A list is only a hint: each manifest is fetched, and must have the image as its subject.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import NamedTuple

from cfstools.errors import CfsError, CheckFailed, FormatError, NetworkError, NotFound, OciError
from cfstools.oci.descriptor import Descriptor, Digest, Kind, kind_of, parse_digest
from cfstools.oci.jsontext import Fields, parse_json
from cfstools.oci.manifest import parse_index
from cfstools.oci.registry.reference import ImageReference
from cfstools.oci.registry.repository import MANIFEST_TYPES, ManifestDocument, Repository
from cfstools.oci.registry.uploads import Blob, Uploader
from cfstools.oci.sink import Advance
from cfstools.streams.limits import MAX_JSON
from cfstools.transport import url
from cfstools.transport.base import Body
from cfstools.transport.http import Document
from cfstools.transport.url import Url

MAX_PAGES = 8
MAX_REFERRERS = 32
TRIES = 3
_INDEX_TYPE = MANIFEST_TYPES[0]
_ACCEPT = {"Accept": _INDEX_TYPE}


class Referrer(NamedTuple):
    """An artifact that has the image as its subject: its digest, its own type, its manifest."""

    digest: Digest
    artifact_type: str
    data: bytes


def tag_of(subject: Digest) -> str:
    """The tag of the list of referrers in registries without the referrers API."""
    return f"{subject.algorithm[:32]}-{subject.encoded[:64]}"


def referrers(repository: Repository, subject: Digest) -> Iterator[Referrer]:
    """The referrers of *subject*, at most 32. Raises :class:`NetworkError`.

    Entries that are missing, damaged or have another subject are skipped.
    """
    seen: set[Digest] = set()
    for descriptor in _listed(repository, subject):
        if descriptor.digest in seen or descriptor.kind is Kind.INDEX or descriptor.size > MAX_JSON:
            continue
        if len(seen) == MAX_REFERRERS:
            repository.warn(f"{repository.subject}: more than {MAX_REFERRERS} referrers; the others are skipped")
            return
        seen.add(descriptor.digest)
        found = _read(repository, descriptor, subject)
        if found is not None:
            yield found


def attach(uploader: Uploader, subject: Digest, document: ManifestDocument) -> None:
    """Put the manifest of an artifact of *subject*, and make sure that it is listed. Its blobs must be there.

    Raises :class:`NetworkError`; :class:`OciError` if the tag for referrers is taken by something else.
    """
    answer = uploader.manifest(str(document.digest), document)
    if answer.header("oci-subject"):
        return  # the registry lists it
    repository = uploader.repository
    entry = _entry(document)
    for _ in range(TRIES):
        listed = _at_tag(repository, subject)
        if any(one.get("digest") == str(document.digest) for one in listed):
            return
        uploader.manifest(tag_of(subject), _index([*listed, entry]))
    if not any(one.get("digest") == str(document.digest) for one in _at_tag(repository, subject)):
        raise NetworkError("others change the list of referrers all the time", subject=repository.subject)


def _listed(repository: Repository, subject: Digest) -> Iterator[Descriptor]:
    """The entries that the API lists; those at the tag if there is no API."""
    where: Url | None = repository.url(f"referrers/{subject}")
    for page in range(MAX_PAGES):
        if where is None:
            return
        entries = None
        try:
            answer = repository.document(repository.request(where, headers=_ACCEPT))
            entries = _entries(answer)
        except NetworkError:
            if page:
                raise
        if entries is None:
            yield from _tagged(repository, subject)
            return
        yield from entries
        where = _next(answer)


def _entries(answer: Document) -> tuple[Descriptor, ...] | None:
    """The entries of a page; ``None`` if it is not an index."""
    try:
        return parse_index(answer.data).manifests
    except CfsError:
        return None


def _next(answer: Document) -> Url | None:
    """The next page, which must be at the same origin. Raises :class:`NetworkError`."""
    for line in answer.values("link"):
        target, _, parameters = line.partition(">")
        if target.startswith("<") and 'rel="next"' in parameters.replace("rel=next", 'rel="next"'):
            there = url.join(answer.url, target[1:])
            if there.origin != answer.url.origin:
                raise NetworkError(f"the next page of referrers is refused: it is at {there.origin}")
            return there
    return None


def _tagged(repository: Repository, subject: Digest) -> tuple[Descriptor, ...]:
    try:
        found = repository.manifest(tag_of(subject))
    except NotFound:
        return ()
    if found.digest == subject or kind_of(found.media_type) is not Kind.INDEX:
        return ()  # GitLab resolves the tag to the image itself
    try:
        return parse_index(found.data).manifests
    except CfsError:
        return ()


def _read(repository: Repository, descriptor: Descriptor, subject: Digest) -> Referrer | None:
    """The artifact, or ``None`` if it is missing, damaged or of another subject."""
    try:
        found = repository.manifest(str(descriptor.digest))
        fields = Fields(parse_json(found.data), "")
        named = fields.member("subject")
        if named is None or parse_digest(named.required_text("digest"), "subject") != subject:
            return None
        return Referrer(found.digest, _artifact_type(fields), found.data)
    except (NotFound, FormatError, CheckFailed):
        return None


def _artifact_type(fields: Fields) -> str:
    """``artifactType``, else the media type of the config."""
    config = fields.member("config")
    return fields.text("artifactType") or (config.text("mediaType") if config is not None else None) or ""


def _at_tag(repository: Repository, subject: Digest) -> list[dict[str, object]]:
    """The raw entries at the tag. Raises :class:`OciError` for anything but an index."""
    try:
        found = repository.manifest(tag_of(subject))
    except NotFound:
        return []
    value = parse_json(found.data)
    entries = value.get("manifests") if isinstance(value, dict) else None
    if found.media_type != _INDEX_TYPE or found.digest == subject or not isinstance(entries, list):
        raise OciError(f"the tag {tag_of(subject)} is no list of referrers", subject=repository.subject)
    parse_index(found.data)
    return [entry for entry in entries if isinstance(entry, dict)]


def _entry(document: ManifestDocument) -> dict[str, object]:
    fields = Fields(parse_json(document.data), "")
    annotations = dict(fields.text_map("annotations"))
    return {
        "mediaType": document.media_type,
        "digest": str(document.digest),
        "size": len(document.data),
        "artifactType": _artifact_type(fields),
        **({"annotations": annotations} if annotations else {}),
    }


def _index(entries: list[dict[str, object]]) -> ManifestDocument:
    body = {"schemaVersion": 2, "mediaType": _INDEX_TYPE, "manifests": entries}
    data = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return ManifestDocument(_INDEX_TYPE, Digest("sha256", hashlib.sha256(data).hexdigest()), data)


class RegistrySink:
    """Puts one image where *reference* says: at its tag, or by digest alone."""

    def __init__(self, uploader: Uploader, reference: ImageReference) -> None:
        self._uploader = uploader
        self._reference = reference

    def put(self, descriptor: Descriptor, body: Body, advance: Advance) -> bool:
        """Send the blob, unless it is there or can be mounted."""
        return self._uploader.blob(Blob(descriptor.digest, body), advance)

    def finish(self, manifest: Descriptor, data: bytes) -> None:
        """Put the manifest at the tag."""
        document = ManifestDocument(manifest.media_type, manifest.digest, data)
        self._uploader.manifest(
            self._reference.wanted if self._reference.digest is None else str(manifest.digest), document
        )

    def attach(self, manifest: Descriptor, data: bytes, subject: Descriptor) -> None:
        """Put a manifest that refers to *subject*, and have it listed."""
        attach(self._uploader, subject.digest, ManifestDocument(manifest.media_type, manifest.digest, data))

    def close(self) -> None:
        """Nothing is held here."""
