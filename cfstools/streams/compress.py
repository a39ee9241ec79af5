"""Compression: pieces that are each a frame or member of their own, and streams that grow."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable

import zstandard

from cfstools.errors import CompressionError, UsageError
from cfstools.streams.decompress import Compression

MAX_WINDOW = 64 << 20


def piece_compressor(kind: Compression, level: int) -> Callable[[bytes], bytes]:
    """What makes one zstd frame or gzip member of each piece; may be called from several threads.

    Equal pieces give equal bytes. Raises UsageError for another kind.
    """
    if kind is Compression.GZIP:
        return lambda data: gzip.compress(data, level, mtime=0)
    if kind is not Compression.ZSTD:
        raise UsageError(f"nothing is written with {kind.value} here")
    local = threading.local()

    def compress(data: bytes) -> bytes:
        compressor: zstandard.ZstdCompressor | None = getattr(local, "compressor", None)
        if compressor is None:
            compressor = zstandard.ZstdCompressor(level=level, write_checksum=True)
            local.compressor = compressor
        return compressor.compress(data)

    return compress


class GrowingFrame:
    """One zstd frame of everything that is written to it; ``size`` counts the plain bytes."""

    def __init__(self, level: int) -> None:
        self._compressor = zstandard.ZstdCompressor(level=level, write_checksum=True).compressobj()
        self._pieces: list[bytes] = []
        self.size = 0

    def write(self, data: bytes) -> None:
        """Append *data*."""
        self.size += len(data)
        if piece := self._compressor.compress(data):
            self._pieces.append(piece)

    def finish(self) -> bytes:
        """The whole frame."""
        return b"".join([*self._pieces, self._compressor.flush()])


def whole_frame(data: bytes, size: int, where: str) -> bytes:
    """The contents of the zstd frame that *data* is, exactly *size* bytes; at most one more is decompressed.

    Raises :class:`CompressionError` for anything else.
    """
    reader = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).stream_reader(data)
    pieces = []
    left = size + 1
    try:
        while left and (piece := reader.read(min(left, 1 << 20))):
            pieces.append(piece)
            left -= len(piece)
    except zstandard.ZstdError as error:
        raise CompressionError(f"the zstd frame is damaged: {error}", where=where) from error
    if left != 1:
        found = "more" if not left else str(size + 1 - left)
        raise CompressionError(f"{found} bytes come out of the frame instead of {size}", where=where)
    return b"".join(pieces)
