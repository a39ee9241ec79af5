"""The metadata layer: an empty tar that carries image, map and signature where no tar reader looks.

zstd has skippable frames for that, gzip members with an extra field. Annotations of the layer's descriptor say where
each part is (docs/distribution.md, "Metadata layer").
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from cfstools.errors import CompressionError, LimitExceeded, OciError
from cfstools.oci.pushed.layout import (
    EMPTY_TAR,
    GZIP_FIELD_ID,
    GZIP_FIELD_MAX,
    IMAGE_PART,
    MAP_PART,
    RANGES_PART,
    SIGNATURE_PART,
    SKIP,
    SKIP_MAGIC,
)
from cfstools.streams.compress import piece_compressor, whole_frame
from cfstools.streams.decompress import Compression, sniff
from cfstools.values import Value

_BEST, _FAST, _LARGE = 19, 9, 8 << 20  # level 19 takes half a second for each megabyte
_PLACE = re.compile(r"(0|[1-9][0-9]{0,18}):([1-9][0-9]{0,18}):(0|[1-9][0-9]{0,18})")
_GZIP_EXTRA_HEADER = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff"
_GZIP_EMPTY = b"\x03\0" + bytes(8)  # deflate's empty block, then CRC and length of nothing


class Parts(Value):
    """What a metadata layer carries: the image, the map, the DSSE envelope and the table of ranges, or ``None``."""

    image: bytes
    map: bytes
    signature: bytes | None = None
    ranges: bytes | None = None


class PartPlace(NamedTuple):
    """Where a part is: offset of its bytes in the sequence, their number, and their number when decompressed."""

    offset: int
    length: int
    size: int

    def __str__(self) -> str:
        return f"{self.offset}:{self.length}:{self.size}"


def pack_metadata(parts: Parts, compression: Compression) -> tuple[bytes, dict[str, str]]:
    """The layer as a blob, and the annotations of its descriptor; *compression* is zstd or gzip."""
    named = (
        (IMAGE_PART, parts.image),
        (MAP_PART, parts.map),
        (SIGNATURE_PART, parts.signature),
        (RANGES_PART, parts.ranges),
    )
    zstd = compression is Compression.ZSTD
    first = piece_compressor(Compression.ZSTD, _BEST)(EMPTY_TAR) if zstd else b""
    pieces = [first]
    places = {}
    at = len(first)
    for key, data in named:
        if data is None:
            continue
        packed = piece_compressor(Compression.ZSTD, _BEST if len(data) <= _LARGE else _FAST)(data)
        pieces += [SKIP.pack(SKIP_MAGIC, len(packed)), packed]
        at += SKIP.size
        places[key] = str(PartPlace(at, len(packed), len(data)))
        at += len(packed)
    sequence = b"".join(pieces)
    return (sequence if zstd else _hidden_in_gzip(sequence)), places


def _hidden_in_gzip(sequence: bytes) -> bytes:
    blob = [gzip.compress(EMPTY_TAR, mtime=0)]
    for start in range(0, len(sequence), GZIP_FIELD_MAX):
        piece = sequence[start : start + GZIP_FIELD_MAX]
        length, field = (len(piece) + 4).to_bytes(2, "little"), len(piece).to_bytes(2, "little")
        blob += [_GZIP_EXTRA_HEADER, length, GZIP_FIELD_ID, field, piece, _GZIP_EMPTY]
    return b"".join(blob)


def part_places(annotations: Mapping[str, str]) -> dict[str, PartPlace]:
    """Where the annotations of a layer's descriptor say that parts are. Raises :class:`OciError`."""
    places = {}
    for key in (IMAGE_PART, MAP_PART, SIGNATURE_PART, RANGES_PART):
        text = annotations.get(key)
        if text is None:
            continue
        match = _PLACE.fullmatch(text)
        if match is None:
            raise OciError("not OFFSET:LENGTH:SIZE", where=f"annotation {key}")
        places[key] = PartPlace(*map(int, match.groups()))
    return places


class MetadataLayer:
    """A metadata layer whose digest has been checked; parts are decompressed when they are asked for."""

    def __init__(self, blob: bytes, places: Mapping[str, PartPlace]) -> None:
        """Take the *blob* and the places from its annotations. Raises :class:`OciError`."""
        self._places = places
        self._sequence = b"".join(_gzip_fields(blob)) if sniff(blob[:6]) is Compression.GZIP else blob

    def part(self, key: str, limit: int) -> bytes | None:
        """A part of at most *limit* bytes, ``None`` where there is none.

        Raises :class:`OciError`, :class:`CompressionError`, :class:`LimitExceeded`.
        """
        place = self._places.get(key)
        if place is None:
            return None
        if place.size > limit:
            raise LimitExceeded(f"{place.size} bytes are more than {limit}", where=key)
        start, end = place.offset - SKIP.size, place.offset + place.length
        if start < 0 or self._sequence[start : place.offset] != SKIP.pack(SKIP_MAGIC, place.length & 0xFFFFFFFF):
            raise OciError(f"no skippable frame of {place.length} bytes at {place.offset}", where=key)
        if end > len(self._sequence):
            raise OciError(f"the layer ends before byte {end}", where=key)
        return whole_frame(self._sequence[place.offset : end], place.size, key)


def _gzip_fields(blob: bytes) -> Iterator[bytes]:
    """What the extra fields of the members behind the first hold. Raises :class:`OciError`."""
    decoder = zlib.decompressobj(31)
    try:
        plain = decoder.decompress(blob, len(EMPTY_TAR) + 1)
    except zlib.error as error:
        raise CompressionError(f"the gzip member is damaged: {error}", where="metadata layer") from error
    if plain != EMPTY_TAR or not decoder.eof:
        raise OciError("the layer is no empty tar", where="metadata layer")
    at = len(blob) - len(decoder.unused_data)
    while at < len(blob):
        fields = at + len(_GZIP_EXTRA_HEADER)
        length = int.from_bytes(blob[fields : fields + 2], "little")
        end = fields + 2 + length
        if (
            blob[at:fields] != _GZIP_EXTRA_HEADER
            or blob[fields + 2 : fields + 4] != GZIP_FIELD_ID
            or int.from_bytes(blob[fields + 4 : fields + 6], "little") != length - 4
            or blob[end : end + len(_GZIP_EMPTY)] != _GZIP_EMPTY
        ):
            raise OciError("not an empty gzip member with one field", where=f"metadata layer, byte {at}")
        yield blob[fields + 6 : end]
        at = end + len(_GZIP_EMPTY)
