"""Digests, descriptors and media types: how one blob names another (docs/oci.md, "What is checked")."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from cfstools.errors import CheckFailed, OciError, Unsupported
from cfstools.oci.jsontext import Fields
from cfstools.text import quoted
from cfstools.values import Value

if TYPE_CHECKING:
    from hashlib import _Hash

_GRAMMAR = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[a-zA-Z0-9=_-]+")
_HEX_LENGTHS = {"sha256": 64, "sha512": 128, "blake3": 64}
_HEX = re.compile(r"[0-9a-f]+")


class Digest(NamedTuple):
    """The digest of a blob: a registered algorithm and lower-case hexadecimal digits."""

    algorithm: str
    encoded: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.encoded}"

    def hasher(self) -> _Hash:
        """A new hash object of the algorithm. Raises :class:`Unsupported` for blake3."""
        if self.algorithm == "blake3":
            raise Unsupported("blake3 digests cannot be checked here", where=str(self))
        return hashlib.new(self.algorithm)

    def matches(self, value: str, where: str | None) -> None:
        """Raise :class:`CheckFailed` unless the computed hex digest *value* is this one."""
        if value != self.encoded:
            raise CheckFailed(f"the contents have digest {self.algorithm}:{value}, not {self}", where=where)


def parse_digest(text: str, where: str) -> Digest:
    """Parse a digest: a registered algorithm, then lower-case hexadecimal digits of exactly its length.

    Raises :class:`OciError` for anything else, so that no unchecked text becomes part of a path.
    """
    if not _GRAMMAR.fullmatch(text):
        raise OciError(f"{quoted(text)} is not a digest", where=where)
    algorithm, _, encoded = text.partition(":")
    length = _HEX_LENGTHS.get(algorithm)
    if length is None:
        raise OciError(f"unknown digest algorithm {quoted(algorithm)}", where=where)
    if len(encoded) != length or not _HEX.fullmatch(encoded):
        raise OciError(f"{quoted(text)} is not {length} lower-case hex digits", where=where)
    return Digest(algorithm, encoded)


class Kind(Enum):
    """The kinds of blobs that media types name."""

    INDEX = "index"
    MANIFEST = "manifest"
    CONFIG = "config"
    LAYER = "layer"
    ENCRYPTED = "encrypted layer"
    SCHEMA1 = "schema 1 manifest"
    UNKNOWN = "unknown"


_OCI = "application/vnd.oci.image."
_DOCKER = "application/vnd.docker."
_LAYER_COMPRESSION = {"tar": "none", "tar+gzip": "gzip", "tar+zstd": "zstd"}

_LAYERS: dict[str, str] = {
    **{f"{_OCI}layer.v1.{suffix}": name for suffix, name in _LAYER_COMPRESSION.items()},
    **{f"{_OCI}layer.nondistributable.v1.{suffix}": name for suffix, name in _LAYER_COMPRESSION.items()},
    f"{_DOCKER}image.rootfs.diff.tar": "none",
    f"{_DOCKER}image.rootfs.diff.tar.gzip": "gzip",
    f"{_DOCKER}image.rootfs.diff.tar.zstd": "zstd",
    f"{_DOCKER}image.rootfs.foreign.diff.tar": "none",
    f"{_DOCKER}image.rootfs.foreign.diff.tar.gzip": "gzip",
    f"{_DOCKER}image.rootfs.foreign.diff.tar.zstd": "zstd",
}

_KINDS: dict[str, Kind] = {
    f"{_OCI}index.v1+json": Kind.INDEX,
    f"{_OCI}manifest.v1+json": Kind.MANIFEST,
    f"{_OCI}config.v1+json": Kind.CONFIG,
    f"{_DOCKER}distribution.manifest.list.v2+json": Kind.INDEX,
    f"{_DOCKER}distribution.manifest.v2+json": Kind.MANIFEST,
    f"{_DOCKER}container.image.v1+json": Kind.CONFIG,
    f"{_DOCKER}distribution.manifest.v1+json": Kind.SCHEMA1,
    f"{_DOCKER}distribution.manifest.v1+prettyjws": Kind.SCHEMA1,
    **dict.fromkeys(_LAYERS, Kind.LAYER),
}


def kind_of(media_type: str) -> Kind:
    """The kind that a media type names; docker's types are treated as OCI's."""
    kind = _KINDS.get(media_type)
    if kind is None:
        return Kind.ENCRYPTED if media_type.endswith("+encrypted") else Kind.UNKNOWN
    return kind


_LOST = frozenset(
    {
        "",
        "application/octet-stream",
        "binary/octet-stream",
        "application/json",
        "application/x-tar",
        "application/tar",
        "application/gzip",
        "application/x-gzip",
        "application/zstd",
        "text/html",
        "text/plain",
    }
)


def is_lost(media_type: str) -> bool:
    """Whether a media type is generic and tells nothing, as from a server that did not keep the original."""
    return media_type.partition(";")[0].strip().lower() in _LOST


def layer_compression(media_type: str) -> str | None:
    """The compression stated by a layer's media type: ``"none"``, ``"gzip"``, ``"zstd"``; ``None`` for other types."""
    return _LAYERS.get(media_type)


class Platform(Value):
    """What an image runs on: ``os``, ``architecture``, and a variant of it or ``None``."""

    os: str
    architecture: str
    variant: str | None = None

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(Value):
    """A reference to a blob: media type, digest and size, and optional properties."""

    media_type: str
    digest: Digest
    size: int
    data: bytes | None = None
    platform: Platform | None = None
    annotations: Mapping[str, str] = MappingProxyType({})
    artifact_type: str | None = None

    @property
    def kind(self) -> Kind:
        """What the media type names."""
        return kind_of(self.media_type)

    @property
    def is_attestation(self) -> bool:
        """Whether this is a build tool's attestation about another image, not an image."""
        unknown = self.platform is not None and "unknown" in {self.platform.os, self.platform.architecture}
        return unknown or "vnd.docker.reference.type" in self.annotations

    def check(self, blob: bytes) -> bytes:
        """Return *blob* if it has this size and digest. Raises :class:`OciError`, :class:`CheckFailed`."""
        if len(blob) != self.size:
            raise OciError(f"{len(blob)} bytes long, its descriptor says {self.size}", where=str(self.digest))
        hasher = self.digest.hasher()
        hasher.update(blob)
        self.digest.matches(hasher.hexdigest(), None)
        return blob


def parse_platform(text: str) -> Platform:
    """Parse ``os/architecture[/variant]``. Raises ``ValueError`` for anything else."""
    parts = text.split("/")
    if len(parts) not in {2, 3} or not all(parts):
        raise ValueError(f"{quoted(text)} is not os/architecture or os/architecture/variant")
    return Platform(os=parts[0], architecture=parts[1], variant=parts[2] if len(parts) == 3 else None)


def read_descriptor(fields: Fields, *, typed: bool = True) -> Descriptor:
    """Read a descriptor from its JSON object. Raises :class:`OciError` with the member's place.

    Embedded ``data`` must have the stated size and digest. ``urls`` are ignored. A missing media type is an error if
    *typed*, else it reads as empty.
    """
    digest = parse_digest(fields.required_text("digest"), fields.place("digest"))
    descriptor = Descriptor(
        media_type=fields.required_text("mediaType") if typed else fields.text("mediaType") or "",
        digest=digest,
        size=fields.number("size"),
        data=_embedded(fields),
        platform=_platform(fields.member("platform")),
        annotations=fields.text_map("annotations"),
        artifact_type=fields.text("artifactType") or None,
    )
    if descriptor.data is not None:
        descriptor.check(descriptor.data)
    return descriptor


def _embedded(fields: Fields) -> bytes | None:
    text = fields.text("data")
    if text is None:
        return None
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise OciError(f"not base64: {error}", where=fields.place("data")) from error


def _platform(fields: Fields | None) -> Platform | None:
    if fields is None:
        return None
    platform = Platform(
        os=fields.text("os") or "",
        architecture=fields.text("architecture") or "",
        variant=fields.text("variant") or None,
    )
    return platform if platform.os or platform.architecture else None
