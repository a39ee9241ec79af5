"""Decompression in one bounded pass: gzip, zstd, bzip2 and xz, told by content (docs/oci.md, "What is checked")."""

from __future__ import annotations

import bz2
import importlib
import lzma
import zlib
from collections.abc import Callable, Iterator
from enum import Enum
from types import ModuleType
from typing import Protocol, cast

from cfstools.errors import CompressionError, LimitExceeded
from cfstools.streams.buffered import READ_SIZE, BufferedReader, Read
from cfstools.streams.compressed import CompressedInput
from cfstools.streams.limits import MAX_GZIP_FIELD, XZ_MEMORY_EXTRA, DecompressionLimits
from cfstools.streams.zstd_frames import SKIPPABLE_FIRST, SKIPPABLE_REST, TRUST_HINT, ZSTD_MAGIC, zstd_chunks

_FIRST_PIECE = 1 << 12  # small, because many short members would otherwise copy a whole buffer each

_GZIP_MAGIC, _BZIP2_MAGIC, _XZ_MAGIC = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0"
_HEAD = 6
_GZIP_PLAIN_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
_FHCRC, _FEXTRA, _FNAME, _FCOMMENT, _RESERVED = 0x02, 0x04, 0x08, 0x10, 0xE0


class Compression(Enum):
    """How a byte stream is compressed."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"
    BZIP2 = "bzip2"
    XZ = "xz"


def sniff(head: bytes) -> Compression:
    """Recognise the compression from the first six bytes of a stream."""
    if head.startswith(_GZIP_MAGIC):
        return Compression.GZIP
    if head.startswith(ZSTD_MAGIC) or (head[:1] in SKIPPABLE_FIRST and head[1:4] == SKIPPABLE_REST):
        return Compression.ZSTD
    if head.startswith(_BZIP2_MAGIC):
        return Compression.BZIP2
    if head.startswith(_XZ_MAGIC):
        return Compression.XZ
    return Compression.NONE


class Decompressed(BufferedReader):
    """The decompressed output of a stream: ``kind`` is its compression, ``size`` the bytes produced so far.

    ``read(n)`` returns 1 to *n* bytes, or none at the end, once the source was read to its end, every member was
    complete and no other data followed. Raises :class:`CompressionError` and :class:`LimitExceeded` with the offset in
    the compressed stream, again on every later call.
    """

    def __init__(
        self, kind: Compression, source: CompressedInput, chunks: Iterator[bytes], limits: DecompressionLimits
    ) -> None:
        super().__init__()
        self.kind = kind
        self._source = source
        self._chunks = chunks
        self._limits = limits
        self._failed: BaseException | None = None

    @property
    def size(self) -> int:
        """Bytes produced by the decoder so far."""
        return self.received

    def _fetch(self) -> bytes:
        if self._failed is not None:
            raise self._failed
        try:
            chunk = next(self._chunks, b"")
            self._check(self.received + len(chunk))
        except BaseException as error:
            self._failed = error
            raise
        return chunk

    def _check(self, size: int) -> None:
        limits = self._limits
        if size > limits.total:
            what = f"more than {limits.total} bytes come out of the {self.kind.value} stream"
        elif (
            self.kind is not Compression.NONE
            and size > limits.ratio_from
            and size > limits.ratio * self._source.received
        ):
            what = f"the {self.kind.value} stream grows more than {limits.ratio} times"
            if not limits.ratio:
                what = f"the {self.kind.value} stream occurs in the image more than once, and expands too much in total"
        else:
            return
        raise LimitExceeded(what, where=self._source.where, hint=TRUST_HINT)


def open_compressed(
    read: Read, *, limits: DecompressionLimits | None = None, accelerate: bool = True, piece: int = READ_SIZE
) -> Decompressed:
    """Recognise the compression of the stream ``read(n)`` by its magic, and decompress it while it is read.

    ``read(n)`` returns 1 to *n* bytes, or none at the end. Several gzip members, zstd frames, bzip2 or xz streams may
    follow each other; skippable zstd frames are skipped. Without *accelerate*, or without the package ``isal``, gzip is
    decoded by zlib. A decoder gives *piece* bytes at most with one call (zstd: a block more); memory use is bounded by
    the window and a few buffers of that size.
    """
    limits = limits or DecompressionLimits()
    source = CompressedInput(read, piece)
    kind = sniff(source.peek(_HEAD))
    if kind is Compression.GZIP:
        chunks = _gzip(source, piece, accelerate=accelerate)
    elif kind is Compression.ZSTD:
        chunks = zstd_chunks(source, limits.window, piece)
    elif kind is Compression.BZIP2:
        chunks = _streams(source, "bzip2", piece, _BZIP2_MAGIC, bz2.BZ2Decompressor)
    elif kind is Compression.XZ:
        memory = limits.window + XZ_MEMORY_EXTRA
        chunks = _streams(source, "xz", piece, _XZ_MAGIC, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memory))
    else:
        chunks = _plain(source, piece)
    return Decompressed(kind, source, chunks, limits)


class _Decoder(Protocol):
    """The decoder interface of bz2, lzma and igzip_lib, for one member."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Zlib:
    """zlib's decoder of one gzip member with the same interface."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def needs_input(self) -> bool:
        return not self._decoder.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._decoder.decompress(self._decoder.unconsumed_tail + data, max_length)


def _import_isal() -> ModuleType | None:
    try:
        return importlib.import_module("isal.igzip_lib")
    except ImportError:  # the extra "fast" is not installed
        return None


_ISAL = _import_isal()
_FOREIGN: tuple[type[Exception], ...] = (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError)
if _ISAL is not None:
    _FOREIGN = (*_FOREIGN, _ISAL.IsalError)


def _gzip_decoder(*, accelerate: bool) -> _Decoder:
    if accelerate and _ISAL is not None:
        return cast("_Decoder", _ISAL.IgzipDecompressor(flag=_ISAL.DECOMP_GZIP))
    return _Zlib()


def _plain(source: CompressedInput, piece: int) -> Iterator[bytes]:
    while chunk := source.read(piece):
        yield chunk


def _gzip(source: CompressedInput, piece: int, *, accelerate: bool) -> Iterator[bytes]:
    """Decode all members of a gzip stream; only zero padding may follow the last one."""
    while True:
        _pass_gzip_header(source)
        # isal cannot decode a header that arrives in pieces, so parse headers here and pass it a plain one.
        yield from _member(source, "gzip", piece, _gzip_decoder(accelerate=accelerate), _GZIP_PLAIN_HEADER)
        if source.peek(2) != _GZIP_MAGIC:
            source.skip_padding("gzip stream")
            return


def _pass_gzip_header(source: CompressedInput) -> None:
    """Parse and check one member's header (RFC 1952, section 2.3)."""
    header = source.take(10, "gzip header")
    flags = header[3]
    if header[2] != 8 or flags & _RESERVED:
        raise CompressionError("unknown method or flags in a gzip header", where=source.where)
    if flags & _FEXTRA:
        length = source.take(2, "gzip header")
        header += length + source.take(int.from_bytes(length, "little"), "gzip header")
    for flag in (_FNAME, _FCOMMENT):
        if flags & flag:
            header += source.take_until(b"\0", MAX_GZIP_FIELD, "gzip header")
    if flags & _FHCRC:
        stated = int.from_bytes(source.take(2, "gzip header"), "little")
        if stated != zlib.crc32(header) & 0xFFFF:
            raise CompressionError("the checksum of a gzip header does not hold", where=source.where)


def _streams(
    source: CompressedInput, name: str, piece: int, magic: bytes, new: Callable[[], _Decoder]
) -> Iterator[bytes]:
    """Decode all streams of a bzip2 or xz file; xz allows padding in multiples of four zeros between them."""
    while True:
        yield from _member(source, name, piece, new(), b"")
        if name == "xz":
            while source.peek(4) == bytes(4):
                source.take(4, "xz stream")
        if source.peek(len(magic)) != magic:
            source.skip_padding(f"{name} stream")
            return


def _member(source: CompressedInput, name: str, piece: int, decoder: _Decoder, data: bytes) -> Iterator[bytes]:
    """Decode one member from *data* followed by the source; leaves the source after its end."""
    wanted = _FIRST_PIECE
    while True:
        if decoder.needs_input:
            more = source.read(wanted)
            if not more:
                raise CompressionError(f"the {name} stream is truncated", where=source.where)
            data += more
            wanted = piece
        try:
            chunk = decoder.decompress(data, piece)
        except _FOREIGN as error:
            if isinstance(error, lzma.LZMAError) and "Memory usage limit" in str(error):
                what = f"the {name} stream needs a larger window than allowed"
                raise LimitExceeded(what, where=source.where, hint=TRUST_HINT) from error
            raise CompressionError(f"the {name} stream is damaged: {error}", where=source.where) from error
        data = b""
        if chunk:
            yield chunk
        if decoder.eof:
            source.unread(len(decoder.unused_data))
            return
