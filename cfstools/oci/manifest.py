"""Indexes, manifests and configs of OCI and docker images (docs/oci.md, "What is checked")."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from cfstools.errors import CfsError, LimitExceeded, OciError, Unsupported
from cfstools.oci.descriptor import (
    Descriptor,
    Digest,
    Kind,
    Platform,
    is_lost,
    kind_of,
    layer_compression,
    parse_digest,
    read_descriptor,
)
from cfstools.oci.jsontext import Fields, parse_json
from cfstools.streams.limits import MAX_LAYERS, MAX_MANIFESTS
from cfstools.text import quoted
from cfstools.values import Value


class NoImage(OciError):
    """The manifest describes an artifact, not a container image."""


class OddEntry(Value):
    """An invalid entry of an index, with its error; digest and annotations if they are text."""

    error: CfsError
    digest: str | None = None
    annotations: Mapping[str, str] = MappingProxyType({})


class Index(Value):
    """A list of images or nested indexes; *odd* are its invalid entries."""

    manifests: tuple[Descriptor, ...]
    odd: tuple[OddEntry, ...] = ()


class Manifest(Value):
    """One image: config and layers, base first; *warnings* are pairs of place and text."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    warnings: tuple[tuple[str, str], ...] = ()


class ImageConfig(Value):
    """What the config states: platform, digests of the uncompressed layers, date, author, labels."""

    platform: Platform
    diff_ids: tuple[Digest, ...]
    created: str | None = None
    author: str | None = None
    labels: Mapping[str, str] = MappingProxyType({})
    warnings: tuple[tuple[str, str], ...] = ()


def parse_index(data: bytes) -> Index:
    """Parse an image index or docker manifest list. Raises :class:`OciError`, :class:`LimitExceeded`.

    An invalid entry goes to ``odd`` with its error, and the others stay usable.
    """
    fields = _checked(data, Kind.INDEX)
    entries: list[Descriptor] = []
    odd: list[OddEntry] = []
    for place, value in _limited(fields, "manifests", MAX_MANIFESTS):
        try:
            entries.append(read_descriptor(Fields(value, place)))
        except CfsError as error:
            error.where = error.where or place
            odd.append(_odd(value, error))
    return Index(manifests=tuple(entries), odd=tuple(odd))


def _odd(value: object, error: CfsError) -> OddEntry:
    members = value if isinstance(value, dict) else {}
    digest, annotations = members.get("digest"), members.get("annotations")
    texts = annotations.items() if isinstance(annotations, dict) else ()
    return OddEntry(
        error=error,
        digest=digest if isinstance(digest, str) else None,
        annotations={key: text for key, text in texts if isinstance(text, str)},
    )


def parse_manifest(data: bytes) -> Manifest:
    """Parse an image manifest, all of whose layers must be of readable types.

    Lost media types are accepted with a warning: config and DiffIDs show what the blobs are. Raises
    :class:`OciError` for a broken rule, :class:`NoImage` for an artifact, :class:`Unsupported` for encrypted layers and
    docker schema 1.
    """
    fields = _checked(data, Kind.MANIFEST)
    config_fields = fields.member("config")
    if config_fields is None:
        raise OciError("missing", where="config")
    config = read_descriptor(config_fields, typed=False)
    artifact = fields.text("artifactType") or ""
    lost = is_lost(config.media_type) and not artifact
    if config.kind is not Kind.CONFIG and not lost:
        kind = artifact or config.media_type
        raise NoImage(f"not a container image but an artifact of type {quoted(kind)}", where="config.mediaType")
    warnings = [_lost("config.mediaType", config.media_type)] if lost else []
    layers = []
    for place, value in _limited(fields, "layers", MAX_LAYERS):
        layer = read_descriptor(Fields(value, place), typed=False)
        if is_lost(layer.media_type):
            warnings.append(_lost(f"{place}.mediaType", layer.media_type))
        else:
            _check_layer(layer.media_type, f"{place}.mediaType")
        layers.append(layer)
    return Manifest(config=config, layers=tuple(layers), warnings=tuple(warnings))


def _lost(where: str, media_type: str) -> tuple[str, str]:
    found = f"{quoted(media_type)} does not say what it is to the image" if media_type else "missing"
    return where, f"{found}; a server may have lost the type"


def parse_config(data: bytes, layers: int) -> ImageConfig:
    """Parse the config of an image with that many layers. Raises :class:`OciError` unless it has a DiffID for each."""
    fields = Fields(parse_json(data), "")
    rootfs = fields.member("rootfs")
    kind = None if rootfs is None else rootfs.text("type")
    if rootfs is None or kind not in {None, "", "layers"}:
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
        warnings=() if kind else (("rootfs.type", 'missing; it should be "layers"'),),
    )


def _check_layer(media_type: str, where: str) -> None:
    if kind_of(media_type) is Kind.ENCRYPTED:
        raise Unsupported(f"the layer is encrypted ({quoted(media_type)})", where=where)
    if layer_compression(media_type) is None:
        raise NoImage(f"unknown layer type {quoted(media_type)}", where=where)


def _limited(fields: Fields, name: str, maximum: int) -> list[tuple[str, object]]:
    """The entries of an array with their places. Raises :class:`LimitExceeded` for more than *maximum*."""
    items = fields.array(name)
    if len(items) > maximum:
        raise LimitExceeded(f"{len(items)} entries are more than {maximum}", where=name)
    return [(f"{fields.place(name)}[{number}]", item) for number, item in enumerate(items)]


def _checked(data: bytes, kind: Kind) -> Fields:
    """The members of an index or manifest, checked to be of this kind only."""
    fields = Fields(parse_json(data), "")
    if "fsLayers" in fields or kind_of(fields.text("mediaType") or "") is Kind.SCHEMA1:
        raise Unsupported(
            "a docker schema 1 manifest, which has no layer digests to trust", hint="pull the image again"
        )
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
