"""zstd streams frame by frame (RFC 8878).

Frame and block headers are parsed here, so that a truncated stream, data outside of frames and a window above the limit
are errors with an offset, and no decoder call produces more than a few blocks. The library decodes the blocks and
checks sizes and checksums.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import zstandard

from cfstools.errors import CompressionError, LimitExceeded, Phrase, Remedy
from cfstools.streams.compressed import CompressedInput

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
SKIPPABLE_FIRST = frozenset(bytes((value,)) for value in range(0x50, 0x60))
SKIPPABLE_REST = b"\x2a\x4d\x18"
TRUST_HINT = Phrase(
    "if the source is trusted, raise the limit: {}, {} or {}",
    Remedy.MAX_UNPACKED,
    Remedy.MAX_RATIO,
    Remedy.MAX_WINDOW,
)

_BLOCK_MAX = 1 << 17
_BATCH_PIECES = 256  # feed the decoder when this many pieces are pending, or its output may reach the size wanted
_WINDOW_MIN = 1 << 10
_RAW, _RLE, _COMPRESSED = range(3)


class FrameHeader(NamedTuple):
    """A frame header: its length including the magic, the window size, and whether a checksum ends the frame."""

    length: int
    window: int
    checksum: bool


def parse_frame_header(head: bytes, where: str) -> FrameHeader:
    """Parse the frame header at the start of *head* (RFC 8878, section 3.1.1.1): 18 bytes, or fewer at the end.

    Raises :class:`CompressionError`.
    """
    if len(head) < 5:
        raise CompressionError("the stream ends inside a zstd frame header", where=where)
    descriptor = head[4]
    single = bool(descriptor & 0x20)
    dictionary = (0, 1, 2, 4)[descriptor & 3]
    content = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
    at = 5 + (not single)
    length = at + dictionary + content
    if len(head) < length:
        raise CompressionError("the stream ends inside a zstd frame header", where=where)
    if descriptor & 0x08:
        raise CompressionError("a zstd frame header uses a reserved bit", where=where)
    if any(head[at : at + dictionary]):
        raise CompressionError("a zstd frame needs a dictionary", where=where)
    if single:
        window = int.from_bytes(head[at + dictionary : length], "little") + (256 if content == 2 else 0)
    else:
        base = 1 << (10 + (head[5] >> 3))
        window = base + (base >> 3) * (head[5] & 7)
    return FrameHeader(length, window, bool(descriptor & 0x04))


def zstd_chunks(source: CompressedInput, window_limit: int, size: int) -> Iterator[bytes]:
    """Decode all frames of *source* in chunks of *size* bytes and a block at most, skipping skippable frames.

    Raises :class:`CompressionError`, and :class:`LimitExceeded` for a window above *window_limit*.
    """
    context = zstandard.ZstdDecompressor(max_window_size=max(window_limit, _WINDOW_MIN))
    decoder = context.decompressobj(read_across_frames=True)
    pending: list[bytes] = []
    bound = 0
    for piece, grows in _pieces(source, window_limit):
        pending.append(piece)
        bound += grows
        if bound >= size or len(pending) >= _BATCH_PIECES:
            yield from _decode(decoder, pending, source)
            bound = 0
    yield from _decode(decoder, pending, source)


def _decode(decoder: zstandard.ZstdDecompressionObj, pending: list[bytes], source: CompressedInput) -> Iterator[bytes]:
    data = b"".join(pending)
    pending.clear()
    if not data:
        return
    try:
        chunk = decoder.decompress(data)
    except zstandard.ZstdError as error:
        raise CompressionError(f"the zstd stream is damaged: {error}", where=source.where) from error
    if chunk:
        yield chunk


def _pieces(source: CompressedInput, window_limit: int) -> Iterator[tuple[bytes, int]]:
    """Yield the frame headers and blocks in order, each with its maximum output size."""
    while head := source.peek(18):
        if head[1:4] == SKIPPABLE_REST and head[:1] in SKIPPABLE_FIRST:
            size = int.from_bytes(source.take(8, "skippable zstd frame")[4:], "little")
            source.skip(size, "skippable zstd frame")
            continue
        if not head.startswith(ZSTD_MAGIC):
            source.skip_padding("zstd frames")
            return
        header = parse_frame_header(head, source.where)
        if header.window > window_limit:
            what = f"a zstd frame needs a window of {header.window} bytes, allowed are {window_limit}"
            raise LimitExceeded(what, where=source.where, hint=TRUST_HINT)
        yield source.take(header.length, "zstd frame header"), 0
        yield from _blocks(source, min(header.window, _BLOCK_MAX))
        if header.checksum:
            yield source.take(4, "zstd checksum"), 0


def _blocks(source: CompressedInput, block_max: int) -> Iterator[tuple[bytes, int]]:
    last = False
    while not last:
        head = source.take(3, "zstd block header")
        fields = int.from_bytes(head, "little")
        last, kind, size = bool(fields & 1), fields >> 1 & 3, fields >> 3
        if kind == _RLE:
            yield head + source.take(1, "zstd block"), size
        elif kind in {_RAW, _COMPRESSED} and size <= block_max:
            yield head + source.take(size, "zstd block"), size if kind == _RAW else block_max
        else:
            raise CompressionError("a zstd block header is damaged", where=source.where)
