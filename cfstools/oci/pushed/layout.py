"""The bytes and names of a pushed image: metadata layer, map, annotations, media types (docs/distribution.md)."""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from cfstools.verity import Algorithm

# Media types
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
EMPTY = "application/vnd.oci.empty.v1+json"

# Annotations of the manifest
IMAGE_FORMAT = "cfstools.image.format"


def image_digest_key(algorithm: Algorithm) -> str:
    """The manifest's annotation with the fs-verity digest of the image in hex."""
    return f"cfstools.image.fsverity-{algorithm.value}-12"


def merged_digest_key(algorithm: Algorithm) -> str:
    """The annotation by which composefs-rs names the image that its mapping makes of all layers."""
    return f"composefs.merged.erofs.v1.fsverity-{algorithm.value}-12"


# Annotations of the metadata layer: where a part is, as OFFSET:LENGTH:SIZE.
IMAGE_PART = "cfstools.image.v1"
MAP_PART = "cfstools.map.v1"
SIGNATURE_PART = "cfstools.signature.v1"
RANGES_PART = "cfstools.ranges.v1"

# The metadata layer
EMPTY_TAR = bytes(1024)
EMPTY_TAR_DIFF_ID = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
SKIP = Struct("<II")  # magic and length of a skippable zstd frame
SKIP_MAGIC = 0x184D2A50
GZIP_FIELD_ID = b"CF"
GZIP_FIELD_MAX = 65_531  # bytes of one FEXTRA subfield beside its own four

# The map
MAP_MAGIC = b"cfs:map\n"
MAP_VERSION = 1
MAP_HEADER = Struct("<8s4I8s32s")
MAP_LAYER = Struct("<32sQ")
MAP_OBJECT = Struct("<QQH6s")
MAX_LAYERS = 127
MAX_OBJECTS = 1 << 22
MAX_IMAGE = 1 << 30
MAX_MAP = 256 << 20
MAX_SIGNATURE = 1 << 20


class MapHeader(NamedTuple):
    """The first 64 bytes of a map."""

    magic: bytes  # 0
    version: int  # 8
    objects: int  # 12
    layers: int  # 16
    digest_size: int  # 20
    zero: bytes  # 24
    image: bytes  # 32, SHA-256


class MapLayer(NamedTuple):
    """One data layer: 40 bytes."""

    sha256: bytes  # 0
    size: int  # 32


class MapObject(NamedTuple):
    """Where one object is: 24 bytes."""

    offset: int  # 0
    length: int  # 8
    layer: int  # 16
    zero: bytes  # 18


# The table of ranges
RANGES_MAGIC = b"cfs:rng\n"
RANGES_VERSION = 1
RANGES_HEADER = Struct("<8s3I12s")
RANGES_ROW = Struct("<I4sQ")
RANGES_LENGTH = 4  # bytes of the length of a frame
MAX_RANGES = RANGES_HEADER.size + RANGES_ROW.size * MAX_OBJECTS


class RangesHeader(NamedTuple):
    """The first 32 bytes of a table of ranges."""

    magic: bytes  # 0
    version: int  # 8
    rows: int  # 12
    piece: int  # 16, bytes of contents in a frame
    zero: bytes  # 20


class RangesRow(NamedTuple):
    """Where the lengths of an object's frames and its leaves are: 16 bytes."""

    number: int  # 0, of the object in the map
    zero: bytes  # 4
    offset: int  # 8, in the layer that has the object


# What podman reads of a zstd layer (docs/distribution.md, "Data layers")
CHUNKED_FOOTER = Struct("<7Q8s")
CHUNKED_TYPE = 1
CHUNKED_MAGIC = b"GNUlInUx"
CHUNKED_CHECKSUM = "io.github.containers.zstd-chunked.manifest-checksum"
CHUNKED_POSITION = "io.github.containers.zstd-chunked.manifest-position"
CHUNKED_TAR_SPLIT = "io.github.containers.zstd-chunked.tarsplit-position"
# The same under the names that podman before 4.4 looks for, Debian 12's among them.
CHUNKED_OLD_CHECKSUM = "io.containers.zstd-chunked.manifest-checksum"
CHUNKED_OLD_POSITION = "io.containers.zstd-chunked.manifest-position"
MAX_TOC = 150 << 20  # podman reads no larger one


def toc_digest_key(algorithm: Algorithm) -> str:
    """The member of a TOC entry with the fs-verity digest of the file's contents in hex."""
    return f"composefs.fsverity-{algorithm.value}-12"
