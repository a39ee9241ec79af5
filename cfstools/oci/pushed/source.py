"""A pushed image as it is read: manifest, metadata layer, and where in the layers its objects are.

Nothing here is trusted. The metadata layer is read whole and has the digest that the manifest says; the image it
carries is judged by its own digest or signature, which is its reader's business; objects are judged by theirs
(docs/distribution.md, "Pulling").
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

from cfstools.errors import CheckFailed, LimitExceeded, OciError
from cfstools.oci.content import Content, read_checked
from cfstools.oci.descriptor import Descriptor
from cfstools.oci.images import ImageSource
from cfstools.oci.jsontext import within
from cfstools.oci.pushed.layout import (
    IMAGE_PART,
    MAP_PART,
    MAX_IMAGE,
    MAX_MAP,
    MAX_RANGES,
    MAX_SIGNATURE,
    RANGES_PART,
    SIGNATURE_PART,
    MapLayer,
)
from cfstools.oci.pushed.map import ObjectMap, parse_map
from cfstools.oci.pushed.metadata import MetadataLayer, part_places
from cfstools.oci.pushed.ranges import RangeTable, frames_size, parse_ranges
from cfstools.streams.buffered import Read
from cfstools.streams.compress import MAX_WINDOW
from cfstools.streams.decompress import Decompressed, open_compressed
from cfstools.streams.limits import DecompressionLimits
from cfstools.transport.base import Span
from cfstools.transport.packs import Blob, Frames, Location, PackSource
from cfstools.transport.reading import DEFAULT_RULES
from cfstools.transport.retry import RetryRules
from cfstools.values import Value
from cfstools.verity import ObjectId

MAX_METADATA = MAX_IMAGE + MAX_MAP + MAX_RANGES + MAX_SIGNATURE + (1 << 20)


class NotPushed(OciError):
    """An image is not one that mkcfs pushed."""


class PushedImage(Value):
    """A pushed image. *data* is the composefs image, not looked into; *envelope* its signature as it came, or ``None``.

    *ranges* says how parts of large objects are read, where it does.

    *layers* are the data layers of the manifest, base first, and *diff_ids* theirs.
    """

    manifest: Descriptor
    layers: tuple[Descriptor, ...]
    diff_ids: tuple[str, ...]
    data: bytes
    map: ObjectMap
    ranges: RangeTable | None
    envelope: bytes | None


def read_pushed(content: Content, image: ImageSource) -> PushedImage:
    """Read what *image* of *content* carries.

    Raises :class:`NotPushed` for an image of another kind, :class:`OciError`, :class:`LimitExceeded`,
    ``CompressionError``, :class:`CheckFailed` for a layer that has not its digest, and what *content* raises.
    """
    if image.manifest is None or image.config is None:
        raise NotPushed("was not pushed by mkcfs")
    blobs = [layer.blob for layer in image.layers if layer.blob is not None]
    carriers = [blob for blob in blobs if IMAGE_PART in blob.annotations]
    if not carriers or len(blobs) != len(image.layers):
        raise NotPushed("was not pushed by mkcfs")
    if len(carriers) > 1 or carriers[0] is not blobs[-1]:
        raise OciError(
            "more than one layer carries an image" if len(carriers) > 1 else "the image is not in the last layer"
        )
    metadata = carriers[0]
    with within(f"layer {metadata.digest}"):
        places = part_places(metadata.annotations)
        layer = MetadataLayer(read_checked(content, metadata, MAX_METADATA), places)
        data = layer.part(IMAGE_PART, MAX_IMAGE)
        packed_map = layer.part(MAP_PART, MAX_MAP)
        packed_ranges = layer.part(RANGES_PART, MAX_RANGES)
        envelope = layer.part(SIGNATURE_PART, MAX_SIGNATURE)
        assert data is not None
        if packed_map is None:
            raise OciError("no map", where=MAP_PART)
        with within("map"):
            found = parse_map(packed_map)
            if found.image != hashlib.sha256(data).digest():
                raise CheckFailed("is that of another image")
            _check_layers(found.layers, blobs[:-1])
        with within("ranges"):
            ranges = None if packed_ranges is None else parse_ranges(packed_ranges, len(found.objects))
    return PushedImage(
        manifest=image.manifest,
        layers=tuple(blobs[:-1]),
        diff_ids=tuple(str(digest) for digest in image.config.diff_ids[:-1]),
        data=data,
        map=found,
        ranges=ranges,
        envelope=envelope,
    )


def _check_layers(layers: Sequence[MapLayer], blobs: Sequence[Descriptor]) -> None:
    """The map's layers must be among the image's, as large as there. Raises :class:`OciError`."""
    there = {blob.digest.encoded: blob.size for blob in blobs if blob.digest.algorithm == "sha256"}
    for number, layer in enumerate(layers):
        if there.get(layer.sha256.hex()) != layer.size:
            raise OciError(f"layer {number} is none of the image's, or has another size there")


class ObjectPlace(Value):
    """Where the stored form of an object is: in which blob, from which byte, how many.

    *frames* says how parts of it are read, ``None`` where only the whole can be.
    """

    blob: Descriptor
    offset: int
    length: int
    frames: Frames | None = None


def object_places(image: PushedImage, sizes: Mapping[bytes, int]) -> dict[bytes, ObjectPlace]:
    """Where each object of the image is; *sizes* are those of all its objects by digest, as the image has them.

    Raises :class:`OciError` where the map has another number of them, or more bytes for one than its contents can take:
    whoever made that wants bytes to be read for nothing.
    """
    if len(sizes) != len(image.map.objects):
        what = f"{len(image.map.objects)} objects instead of the {len(sizes)} of the image"
        raise OciError(what, where="map")
    by_digest = {blob.digest.encoded: blob for blob in image.layers}
    blobs = [by_digest[layer.sha256.hex()] for layer in image.map.layers]
    tables = {row.number: row.offset for row in image.ranges.rows} if image.ranges is not None else {}
    places = {}
    for number, (digest, row) in enumerate(zip(sorted(sizes), image.map.objects, strict=True)):
        if len(digest) != image.map.digest_size:
            raise OciError(f"digests of {image.map.digest_size} bytes, the image has other ones", where="map")
        if row.length > most_stored(sizes[digest]):
            what = f"{row.length} bytes for the {sizes[digest]} of object {digest.hex()}"
            raise LimitExceeded(what, where="map")
        blob = blobs[row.layer]
        frames = _frames(image.ranges, tables.get(number), ObjectId.of(digest), sizes[digest], blob)
        places[digest] = ObjectPlace(blob=blob, offset=row.offset, length=row.length, frames=frames)
    return places


def _frames(
    ranges: RangeTable | None, offset: int | None, wanted: ObjectId, size: int, blob: Descriptor
) -> Frames | None:
    """How parts of an object are read whose lengths and leaves are at *offset* in *blob*. Raises :class:`OciError`."""
    if ranges is None or offset is None:
        return None
    table = Span(offset, offset + frames_size(size, ranges.piece, wanted.params))
    if table.end > blob.size:
        raise OciError(f"object {wanted.digest.hex()} at {offset}, the layer has {blob.size} bytes", where="ranges")
    return Frames(table, ranges.piece)


def most_stored(size: int) -> int:
    """How many bytes the frames of contents of *size* may have: they can grow a little, in each of many frames."""
    return size + size // 64 + 4096


def object_source(
    content: Content,
    image: PushedImage,
    places: Mapping[bytes, ObjectPlace],
    place: str,
    *,
    warn: Callable[[str], None] = lambda _text: None,
    rules: RetryRules = DEFAULT_RULES,
) -> PackSource:
    """What the layers of *image* give of the objects at *places*; messages call it *place*."""
    numbers = {layer.digest: number for number, layer in enumerate(image.layers)}
    blobs = [Blob(f"{place}: layer {layer.digest}", layer.size, content.spans(layer)) for layer in image.layers]
    where = {
        digest: Location(numbers[one.blob.digest], Span(one.offset, one.offset + one.length))
        for digest, one in places.items()
    }
    frames = {digest: one.frames for digest, one in places.items() if one.frames is not None}
    return PackSource(place, blobs, where, frames=frames, decode=decoded, warn=warn, rules=rules)


def decoded(read: Read) -> Read:
    """The contents whose frames *read* gives: those of zstd or gzip, and of nothing else.

    Objects end where their sizes say: whoever takes them asks for one byte more at most.
    """
    stream: Decompressed | None = None

    def plain(count: int) -> bytes:
        nonlocal stream
        if stream is None:
            stream = open_compressed(read, limits=DecompressionLimits(window=MAX_WINDOW))
        return stream.read(count)

    return plain
