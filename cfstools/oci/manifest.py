"""Indexes, manifests and configs of images, OCI's and docker's (OCI reading, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from cfstools.errors import LimitExceeded, OciError, Unsupported
from cfstools.oci.descriptor import (
    Descriptor,
    Digest,
    Kind,
    Platform,
    kind_of,
    layer_compression,
    parse_digest,
    read_descriptor,
)
from cfstools.oci.jsontext import Fields, parse_json
from cfstools.text import quoted
from cfstools.values import Value

MAX_LAYERS = 1000
MAX_MANIFESTS = 1000


class Index(Value):
    """A list of images, or of further indexes."""

    manifests: tuple[Descriptor, ...]


class Manifest(Value):
    """One image: its config and its layers, base first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


class ImageConfig(Value):
    """What a config says of the image: its platform, the digests of its uncompressed layers, when it was made."""

    platform: Platform
    diff_ids: tuple[Digest, ...]
    created: str | None = None
    author: str | None = None
    labels: Mapping[str, str] = MappingProxyType({})


def parse_index(data: bytes) -> Index:
    """An image index or docker manifest list; raises :class:`OciError`, :class:`LimitExceeded`."""
    fields = _checked(data, Kind.INDEX)
    return Index(manifests=tuple(map(read_descriptor, _limited(fields, "manifests", MAX_MANIFESTS))))


def parse_manifest(data: bytes) -> Manifest:
    """An image manifest whose layers can all be read.

    Raises :class:`OciError` for what breaks the rules or is no container image, :class:`Unsupported` for encrypted
    layers and schema 1.
    """
    fields = _checked(data, Kind.MANIFEST)
    config_fields = fields.member("config")
    if config_fields is None:
        raise OciError("missing", where="config")
    config = read_descriptor(config_fields)
    if config.kind is not Kind.CONFIG:
        kind = fields.text("artifactType") or config.media_type
        raise OciError(f"not a container image but an artifact of type {quoted(kind)}", where="config.mediaType")
    layers = tuple(map(read_descriptor, _limited(fields, "layers", MAX_LAYERS)))
    for number, layer in enumerate(layers):
        _check_layer(layer.media_type, f"layers[{number}].mediaType")
    return Manifest(config=config, layers=layers)


def parse_config(data: bytes, layers: int) -> ImageConfig:
    """The config of an image of that many layers; raises :class:`OciError` unless it has one DiffID for each."""
    fields = Fields(parse_json(data), "")
    rootfs = fields.member("rootfs")
    if rootfs is None or rootfs.text("type") != "layers":
        raise OciError('rootfs.type is not "layers"', where="rootfs")
    texts = rootfs.texts("diff_ids")
    if len(texts) != layers:
        raise OciError(f"{len(texts)} entries for {layers} layers", where="rootfs.diff_ids")
    inner = fields.member("config")
    return ImageConfig(
        platform=Platform(
            os=fields.text("os") or "",
            architecture=fields.text("architecture") or "",
            variant=fields.text("variant") or None,
        ),
        diff_ids=tuple(parse_digest(text, f"rootfs.diff_ids[{number}]") for number, text in enumerate(texts)),
        created=fields.text("created"),
        author=fields.text("author"),
        labels=inner.text_map("Labels") if inner else {},
    )


def _check_layer(media_type: str, where: str) -> None:
    if kind_of(media_type) is Kind.ENCRYPTED:
        raise Unsupported(f"the layer is encrypted ({quoted(media_type)})", where=where)
    if layer_compression(media_type) is None:
        raise OciError(f"unknown layer type {quoted(media_type)}", where=where)


def _limited(fields: Fields, name: str, maximum: int) -> list[Fields]:
    items = fields.objects(name)
    if len(items) > maximum:
        raise LimitExceeded(f"{len(items)} entries are more than {maximum}", where=name)
    return items


def _checked(data: bytes, kind: Kind) -> Fields:
    """The members of an index or manifest that is this kind and nothing else besides."""
    fields = Fields(parse_json(data), "")
    if "fsLayers" in fields or kind_of(fields.text("mediaType") or "") is Kind.SCHEMA1:
        raise Unsupported("a docker schema 1 manifest, which has no layer digests to trust", hint="pull the image anew")
    if fields.number("schemaVersion") != 2:
        raise OciError("not 2", where="schemaVersion")
    has_manifests, has_layers = "manifests" in fields, "layers" in fields or "config" in fields
    if has_manifests and has_layers:
        raise OciError("an index and a manifest at once")
    if not (has_manifests if kind is Kind.INDEX else has_layers):
        raise OciError(f"an {kind.value} without manifests" if kind is Kind.INDEX else "a manifest without layers")
    stated = fields.text("mediaType")
    if stated is not None and kind_of(stated) is not kind:
        raise OciError(f"{quoted(stated)} is not the type of an image {kind.value}", where="mediaType")
    return fields
