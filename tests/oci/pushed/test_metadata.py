"""What the metadata layer carries, and hostile ones."""

from __future__ import annotations

import gzip
import hashlib
import os

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cfstools.errors import CfsError, CompressionError, FormatError, LimitExceeded, OciError
from cfstools.oci.pushed.layout import (
    EMPTY_TAR,
    EMPTY_TAR_DIFF_ID,
    IMAGE_PART,
    MAP_HEADER,
    MAP_PART,
    MAX_OBJECTS,
    SIGNATURE_PART,
    MapLayer,
    MapObject,
)
from cfstools.oci.pushed.map import ObjectMap, parse_map
from cfstools.oci.pushed.metadata import MetadataLayer, Parts, pack_metadata, part_places
from cfstools.streams.decompress import Compression

FORMS = [Compression.ZSTD, Compression.GZIP]
PARTS = Parts(image=os.urandom(200_000), map=b"map" * 1000, signature=b"{}")


@pytest.mark.parametrize("compression", FORMS)
@pytest.mark.parametrize("parts", [PARTS, PARTS._replace(signature=None), Parts(image=b"i", map=b"m")])
def test_parts_come_back(compression: Compression, parts: Parts) -> None:
    blob, annotations = pack_metadata(parts, compression)
    layer = MetadataLayer(blob, part_places(annotations))
    assert layer.part(IMAGE_PART, 1 << 20) == parts.image
    assert layer.part(MAP_PART, 1 << 20) == parts.map
    assert layer.part(SIGNATURE_PART, 1 << 20) == parts.signature


def test_the_layer_is_an_empty_tar() -> None:
    assert f"sha256:{hashlib.sha256(EMPTY_TAR).hexdigest()}" == EMPTY_TAR_DIFF_ID
    blob, _ = pack_metadata(PARTS, Compression.GZIP)
    assert gzip.decompress(blob) == EMPTY_TAR
    blob, _ = pack_metadata(PARTS, Compression.ZSTD)
    assert zstandard.ZstdDecompressor().decompressobj(read_across_frames=True).decompress(blob) == EMPTY_TAR


@pytest.mark.parametrize("text", ["", "1:2", "1:2:3:4", "-1:2:3", "1:0:3", "01:2:3", "1:2:x", "1:2:" + "9" * 20])
def test_annotations_that_are_no_place(text: str) -> None:
    with pytest.raises(OciError, match="OFFSET:LENGTH:SIZE"):
        part_places({IMAGE_PART: text})


def test_places_that_lie() -> None:
    blob, annotations = pack_metadata(PARTS, Compression.ZSTD)
    offset, length, size = map(int, annotations[IMAGE_PART].split(":"))
    for place, what in [
        ((offset + 1, length, size), "no skippable frame"),
        ((offset, length - 1, size), "no skippable frame"),
        ((4, length, size), "no skippable frame"),
        ((offset, length, size - 1), "more bytes"),
        ((offset, length, size + 1), f"{size} bytes come out"),
        ((len(blob) + 100, length, size), "no skippable frame"),
    ]:
        with pytest.raises(FormatError, match=what):
            MetadataLayer(blob, part_places({IMAGE_PART: ":".join(map(str, place))})).part(IMAGE_PART, 1 << 20)
    with pytest.raises(LimitExceeded):
        MetadataLayer(blob, part_places(annotations)).part(IMAGE_PART, size - 1)


def test_a_frame_that_grows_is_cut_at_its_size() -> None:
    blob, annotations = pack_metadata(Parts(image=bytes(64 << 20), map=b"m"), Compression.ZSTD)
    offset, length, _ = map(int, annotations[IMAGE_PART].split(":"))
    with pytest.raises(CompressionError, match="more bytes"):
        MetadataLayer(blob, part_places({IMAGE_PART: f"{offset}:{length}:1000"})).part(IMAGE_PART, 1 << 30)


@settings(max_examples=200)
@given(data=st.data())
def test_damaged_layers_give_named_errors(data: st.DataObject) -> None:
    compression = data.draw(st.sampled_from(FORMS))
    blob, annotations = pack_metadata(Parts(image=b"image" * 100, map=b"map" * 50, signature=b"{}"), compression)
    damaged = bytearray(blob)
    damaged[data.draw(st.integers(0, len(blob) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.integers(0, len(blob)))
    for variant in (bytes(damaged), blob[:cut]):
        try:
            layer = MetadataLayer(variant, part_places(annotations))
            for key in (IMAGE_PART, MAP_PART, SIGNATURE_PART):
                layer.part(key, 1 << 20)
        except CfsError:
            pass


def _map(objects: int = 3) -> ObjectMap:
    layers = (MapLayer(bytes(32), 1000), MapLayer(bytes([1]) * 32, 2000))
    rows = [MapObject(10 * number, 10, number % 2, bytes(6)) for number in range(objects)]
    return ObjectMap(image=bytes([2]) * 32, digest_size=32, layers=layers, objects=rows)


def test_a_map_comes_back() -> None:
    for each in (_map(), _map(0), _map()._replace(digest_size=64)):
        packed = each.pack()
        assert len(packed) == 64 + 40 * 2 + 24 * len(each.objects)
        assert parse_map(packed) == each


def test_maps_that_lie() -> None:
    packed = _map().pack()
    for data, what in [
        (b"", "no map"),
        (packed[:63], "no map"),
        (packed[:-1], "bytes instead of"),
        (packed + b"\0", "bytes instead of"),
        (b"x" + packed[1:], "magic"),
        (packed[:8] + b"\2" + packed[9:], "version 2"),
        (packed[:20] + b"\x21" + packed[21:], "digests of 33 bytes"),
        (packed[:24] + b"\1" + packed[25:], "not zero"),
        (packed[:-8] + b"\2" + packed[-7:], "layer 2 of 2"),
        (packed[:-1] + b"\1", "not zero behind"),
        (packed[:-16] + bytes(8) + packed[-8:], "0 bytes at 20"),
        (packed[:-24] + b"\xff" * 8 + packed[-16:], "the layer has 1000"),
    ]:
        with pytest.raises(OciError, match=what):
            parse_map(data)
    huge = MAP_HEADER.pack(b"cfs:map\n", 1, MAX_OBJECTS + 1, 0, 32, bytes(8), bytes(32))
    with pytest.raises(LimitExceeded):
        parse_map(huge)
