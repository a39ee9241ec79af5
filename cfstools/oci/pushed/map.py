"""The map of a pushed image: for each object the bytes of a data layer that decompress to it.

It names no digests: its rows stand for the image's objects in byte order, so it can be wrong but cannot mislead
(docs/distribution.md, "Map").
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import starmap

from cfstools.errors import LimitExceeded, OciError
from cfstools.oci.pushed.layout import (
    MAP_HEADER,
    MAP_LAYER,
    MAP_MAGIC,
    MAP_OBJECT,
    MAP_VERSION,
    MAX_LAYERS,
    MAX_OBJECTS,
    MapHeader,
    MapLayer,
    MapObject,
)
from cfstools.values import Value


class ObjectMap(Value):
    """*objects* are in ascending byte order of the image's distinct digests of *digest_size* bytes; *image* is the
    SHA-256 of the image, *layers* are the data layers that objects are in.
    """

    image: bytes
    digest_size: int
    layers: tuple[MapLayer, ...]
    objects: Sequence[MapObject]

    def _check(self) -> None:
        if len(self.layers) > MAX_LAYERS:
            raise LimitExceeded(f"{len(self.layers)} layers are more than {MAX_LAYERS}")
        if len(self.objects) > MAX_OBJECTS:
            raise LimitExceeded(f"{len(self.objects)} objects are more than {MAX_OBJECTS}")

    def pack(self) -> bytes:
        """The map as bytes."""
        counts = (MAP_VERSION, len(self.objects), len(self.layers), self.digest_size)
        header = MAP_HEADER.pack(MAP_MAGIC, *counts, bytes(8), self.image)
        layers = starmap(MAP_LAYER.pack, self.layers)
        return header + b"".join(layers) + b"".join(starmap(MAP_OBJECT.pack, self.objects))


def parse_map(data: bytes) -> ObjectMap:
    """The map that *data* holds and nothing else. Raises :class:`OciError`, :class:`LimitExceeded`."""
    if len(data) < MAP_HEADER.size:
        raise OciError(f"{len(data)} bytes are no map")
    header = MapHeader(*MAP_HEADER.unpack_from(data))
    if header.magic != MAP_MAGIC:
        raise OciError("the magic is not that of a map", where="byte 0")
    if header.version != MAP_VERSION:
        raise OciError(f"version {header.version}, known is {MAP_VERSION}", where="byte 8")
    if header.objects > MAX_OBJECTS or header.layers > MAX_LAYERS:
        what = f"{header.objects} objects in {header.layers} layers, allowed are {MAX_OBJECTS} in {MAX_LAYERS}"
        raise LimitExceeded(what, where="byte 12")
    if header.digest_size not in {32, 64}:
        raise OciError(f"digests of {header.digest_size} bytes, known are 32 and 64", where="byte 20")
    if any(header.zero):
        raise OciError("not zero", where="byte 24")
    first = MAP_HEADER.size + MAP_LAYER.size * header.layers
    expected = first + MAP_OBJECT.size * header.objects
    if len(data) != expected:
        raise OciError(f"{len(data)} bytes instead of the {expected} for {header.objects} objects")
    layers = tuple(map(MapLayer._make, MAP_LAYER.iter_unpack(data[MAP_HEADER.size : first])))
    objects = list(map(MapObject._make, MAP_OBJECT.iter_unpack(data[first:])))
    for number, row in enumerate(objects):
        if problem := _problem(row, layers):
            raise OciError(problem, where=f"object {number} (byte {first + MAP_OBJECT.size * number})")
    return ObjectMap(image=header.image, digest_size=header.digest_size, layers=layers, objects=objects)


def _problem(row: MapObject, layers: tuple[MapLayer, ...]) -> str | None:
    if row.layer >= len(layers):
        return f"layer {row.layer} of {len(layers)}"
    if not row.length or row.offset + row.length > layers[row.layer].size:
        return f"{row.length} bytes at {row.offset}, the layer has {layers[row.layer].size}"
    return "not zero behind the layer" if any(row.zero) else None
