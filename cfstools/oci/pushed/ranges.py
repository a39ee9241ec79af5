"""The table of ranges of a pushed image: what it takes to read parts of its large objects, and to check them.

Behind the frames of a large object, its layer has a skippable frame with the length of each of them and the leaves of
the object's Merkle tree. The table says where these are. Like the map it names no digests, and can be wrong but not
mislead: leaves count only if their root is the digest that the image names (docs/distribution.md, "Ranges").
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, starmap
from struct import pack

from cfstools.errors import LimitExceeded, OciError
from cfstools.oci.pushed.layout import (
    MAX_OBJECTS,
    RANGES_HEADER,
    RANGES_LENGTH,
    RANGES_MAGIC,
    RANGES_ROW,
    RANGES_VERSION,
    SKIP,
    SKIP_MAGIC,
    RangesHeader,
    RangesRow,
)
from cfstools.values import Value
from cfstools.verity import Params
from cfstools.verity.merkle import leaves_size

MIN_PIECE, MAX_PIECE = 4096, 8 << 20


class RangeTable(Value):
    """*rows* are in the order of the map; each frame of an object has *piece* bytes of it, the last one fewer.

    Raises :class:`OciError` for rows out of order.
    """

    piece: int
    rows: Sequence[RangesRow]

    def _check(self) -> None:
        if any(one.number >= two.number for one, two in pairwise(self.rows)):
            raise OciError("rows are out of order")

    def pack(self) -> bytes:
        """The table as bytes."""
        header = RANGES_HEADER.pack(RANGES_MAGIC, RANGES_VERSION, len(self.rows), self.piece, bytes(12))
        return header + b"".join(starmap(RANGES_ROW.pack, self.rows))


def parse_ranges(data: bytes, objects: int) -> RangeTable:
    """The table that *data* holds and nothing else, of an image with so many objects.

    Raises :class:`OciError`, :class:`LimitExceeded`.
    """
    if len(data) < RANGES_HEADER.size:
        raise OciError(f"{len(data)} bytes are no table of ranges")
    header = RangesHeader(*RANGES_HEADER.unpack_from(data))
    if header.magic != RANGES_MAGIC:
        raise OciError("the magic is not that of a table of ranges", where="byte 0")
    if header.version != RANGES_VERSION:
        raise OciError(f"version {header.version}, known is {RANGES_VERSION}", where="byte 8")
    if header.rows > MAX_OBJECTS:
        raise LimitExceeded(f"{header.rows} rows, allowed are {MAX_OBJECTS}", where="byte 12")
    if not MIN_PIECE <= header.piece <= MAX_PIECE or header.piece % MIN_PIECE:
        raise OciError(f"pieces of {header.piece} bytes", where="byte 16")
    if any(header.zero):
        raise OciError("not zero", where="byte 20")
    expected = RANGES_HEADER.size + RANGES_ROW.size * header.rows
    if len(data) != expected:
        raise OciError(f"{len(data)} bytes instead of the {expected} for {header.rows} rows")
    rows = list(map(RangesRow._make, RANGES_ROW.iter_unpack(data[RANGES_HEADER.size :])))
    for number, row in enumerate(rows):
        if row.number >= objects or any(row.zero):
            where = f"row {number} (byte {RANGES_HEADER.size + RANGES_ROW.size * number})"
            raise OciError(f"object {row.number} of {objects}" if row.number >= objects else "not zero", where=where)
    return RangeTable(piece=header.piece, rows=rows)


def pack_frames(lengths: Sequence[int], leaves: bytes) -> bytes:
    """The skippable frame behind the frames of an object: their *lengths*, then its *leaves*."""
    payload = pack(f"<{len(lengths)}I", *lengths) + leaves
    return SKIP.pack(SKIP_MAGIC, len(payload)) + payload


def frames_size(size: int, piece: int, params: Params) -> int:
    """How many bytes lengths and leaves of an object of *size* bytes have."""
    return RANGES_LENGTH * -(-size // piece) + leaves_size(size, params)
