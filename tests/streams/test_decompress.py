"""Decompression: whole streams come out, anything else is one error with its offset."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import importlib
import io
import lzma
import random
import struct
import subprocess
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from shutil import which

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cfstools.errors import CfsError, CompressionError, LimitExceeded
from cfstools.streams import decompress
from cfstools.streams.compressed import CompressedInput
from cfstools.streams.decompress import Compression, Decompressed, open_compressed, sniff
from cfstools.streams.limits import DecompressionLimits
from cfstools.streams.readers import HashingReader
from cfstools.streams.zstd_frames import parse_frame_header

Pack = Callable[[bytes], bytes]

RANDOM = random.Random(4)
MIXED = RANDOM.randbytes(6_000) + bytes(12_000) + b"layer " * 1_000
SKIPPABLE = struct.pack("<II", 0x184D2A53, 11) + b"hello frame"


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=3, write_checksum=True).compress(data)


def zstd_plain(data: bytes) -> bytes:
    packer = zstandard.ZstdCompressor(level=1, write_content_size=False).compressobj()
    return packer.compress(data) + packer.flush()


PACKERS: dict[str, tuple[Pack, Compression]] = {
    "gzip": (gzip.compress, Compression.GZIP),
    "zstd": (zstd, Compression.ZSTD),
    "zstd-no-size": (zstd_plain, Compression.ZSTD),
    "bzip2": (bz2.compress, Compression.BZIP2),
    "xz": (lzma.compress, Compression.XZ),
}
packers = pytest.mark.parametrize(("pack", "kind"), PACKERS.values(), ids=PACKERS.keys())


@pytest.fixture(params=["isal", "zlib"])
def accelerate(request: pytest.FixtureRequest) -> bool:
    if request.param == "isal":
        pytest.importorskip("isal")
    return bool(request.param == "isal")


def short_reads(data: bytes, sizes: Iterator[int] | int) -> Callable[[int], bytes]:
    source = io.BytesIO(data)
    return lambda count: source.read(min(count, sizes if isinstance(sizes, int) else next(sizes)))


@packers
@pytest.mark.parametrize("piece", [1 << 10, 1 << 18, 1 << 20])
def test_pieces_have_the_size_asked_for(pack: Pack, kind: Compression, piece: int) -> None:
    """A decoder gives no more with one call; that of zstd, which decodes whole blocks, one block more."""
    data = RANDOM.randbytes(1 << 16) + bytes(3 << 20) + MIXED
    most = piece + (1 << 17) * (kind is Compression.ZSTD)
    stream = open_compressed(io.BytesIO(pack(data)).read, piece=piece)
    parts = []
    while part := stream.read(len(data)):
        parts.append(part)
    assert b"".join(parts) == data
    assert max(map(len, parts)) <= most
    assert len(parts) >= len(data) // most


def drain(stream: Decompressed) -> None:
    while stream.read(1 << 16):
        pass


def unpack(
    data: bytes, *, accelerate: bool = True, step: int = 1 << 20, limits: DecompressionLimits | None = None
) -> bytes:
    stream = open_compressed(short_reads(data, step), accelerate=accelerate, limits=limits)
    parts = []
    while part := stream.read(100_000):
        assert len(part) <= 100_000
        parts.append(part)
    result = b"".join(parts)
    assert stream.size == len(result)
    assert stream.read(10) == b""
    return result


@packers
@pytest.mark.parametrize("step", [1, 7, 4096, 1 << 20])
def test_each_compression_is_recognised_and_undone(pack: Pack, kind: Compression, step: int, accelerate: bool) -> None:
    packed = pack(MIXED)
    assert sniff(packed[:6]) is kind
    assert open_compressed(io.BytesIO(packed).read).kind is kind
    assert unpack(packed, accelerate=accelerate, step=step) == MIXED


@pytest.mark.parametrize("data", [b"", b"x", b"\x1f", MIXED], ids=["empty", "one", "half a magic", "mixed"])
def test_what_is_not_compressed_passes_through(data: bytes) -> None:
    stream = open_compressed(io.BytesIO(data).read)
    assert stream.kind is Compression.NONE
    assert unpack(data) == data
    assert unpack(data, step=1) == data


@packers
def test_members_may_follow_each_other(pack: Pack, kind: Compression, accelerate: bool) -> None:
    packed = b"".join(pack(part) for part in (MIXED, b"", b"small", MIXED[:9]))
    assert unpack(packed, accelerate=accelerate) == MIXED + b"small" + MIXED[:9]
    assert unpack(packed, accelerate=accelerate, step=1000) == MIXED + b"small" + MIXED[:9]


@packers
@pytest.mark.parametrize("tail", [b"x", b"\0x", b"\0" * 512 + b"x", b"\x1f", b"(\xb5", b"BZ", b"garbage" * 100])
def test_anything_behind_the_last_member_is_an_error(
    pack: Pack, kind: Compression, tail: bytes, accelerate: bool
) -> None:
    packed = pack(MIXED)
    with pytest.raises(CompressionError, match=r"follows|ends inside|is truncated") as raised:
        unpack(packed + tail, accelerate=accelerate)
    assert raised.value.where is not None
    # xz allows zeros in fours before another stream.
    at = len(packed) + (512 if kind is Compression.XZ and len(tail) == 513 else 0)
    assert raised.value.where.startswith(f"compressed offset {at:#x}/")


@packers
@pytest.mark.parametrize("zeros", [1, 2, 3, 4, 17, 18, 512, 300_000])
def test_zeros_may_stand_behind_the_last_member(pack: Pack, kind: Compression, zeros: int, accelerate: bool) -> None:
    # What is read back from a block device or a tape is padded.
    assert unpack(pack(MIXED) + bytes(zeros), accelerate=accelerate) == MIXED
    assert unpack(pack(b"") + bytes(zeros), accelerate=accelerate) == b""


@packers
def test_a_cut_at_any_byte_is_an_error(pack: Pack, kind: Compression, accelerate: bool) -> None:
    first, second = pack(b"first member" * 3), pack(b"second member" * 5)
    packed = first + second
    for end in range(6, len(packed)):
        if end == len(first):
            assert unpack(packed[:end], accelerate=accelerate) == b"first member" * 3
            continue
        with pytest.raises(CompressionError):
            unpack(packed[:end], accelerate=accelerate)


@packers
def test_a_changed_byte_never_comes_out_as_other_contents(pack: Pack, kind: Compression, accelerate: bool) -> None:
    original = b"contents of a layer " * 20
    packed = bytearray(pack(original))
    for at in range(len(packed)):
        packed[at] ^= 0x10
        try:
            result = unpack(bytes(packed), accelerate=accelerate)
        except CfsError:
            pass
        else:  # a byte without meaning (gzip time), a changed magic, or zstd without a checksum
            assert result == original or at < 10 or kind is Compression.ZSTD
        packed[at] ^= 0x10


@pytest.mark.parametrize("at", [-1, -5], ids=["length", "crc"])
def test_gzip_trailers_are_checked(at: int, accelerate: bool) -> None:
    packed = bytearray(gzip.compress(MIXED))
    packed[at] ^= 1
    with pytest.raises(CompressionError, match="damaged"):
        unpack(bytes(packed), accelerate=accelerate)


def gzip_member(data: bytes, *, flags: int = 0x1E, crc_error: int = 0, name: bytes = b"layer.tar") -> bytes:
    header = b"\x1f\x8b\x08" + bytes([flags]) + bytes(6)
    if flags & 4:
        header += struct.pack("<H", 5) + b"extra"
    if flags & 8:
        header += name + b"\0"
    if flags & 16:
        header += b"a comment\0"
    if flags & 2:
        header += struct.pack("<H", zlib.crc32(header) & 0xFFFF ^ crc_error)
    return header + gzip.compress(data)[10:]


@pytest.mark.parametrize("step", [1, 2, 7, 13, 1 << 16])
@pytest.mark.parametrize("flags", [0, 1, 4, 8, 16, 2, 0x1E])
def test_all_fields_of_gzip_headers_are_read_however_they_arrive(flags: int, step: int, accelerate: bool) -> None:
    packed = gzip_member(MIXED, flags=flags) + gzip_member(b"more", flags=flags)
    assert unpack(packed, accelerate=accelerate, step=step) == MIXED + b"more"


@pytest.mark.parametrize(
    ("packed", "what"),
    [
        (gzip_member(b"x", flags=0x80), "unknown method or flags"),
        (gzip_member(b"x").replace(b"\x08", b"\x07", 1), "unknown method or flags"),
        (gzip_member(b"x", crc_error=1), "checksum of a gzip header"),
        (gzip_member(b"x", name=b"n" * 70_000), "longer than 65536"),
    ],
    ids=["flags", "method", "header checksum", "endless name"],
)
def test_bad_gzip_headers_are_errors(packed: bytes, what: str, accelerate: bool) -> None:
    with pytest.raises(CompressionError, match=what):
        unpack(packed, accelerate=accelerate)


def test_without_isal_zlib_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    monkeypatch.setattr(decompress, "_ISAL", decompress._import_isal())
    assert isinstance(decompress._gzip_decoder(accelerate=True), decompress._Zlib)
    assert unpack(gzip.compress(MIXED)) == MIXED


def test_skippable_frames_are_passed_over_wherever_they_stand() -> None:
    packed = SKIPPABLE + zstd(MIXED) + SKIPPABLE * 2 + zstd(b"tail") + SKIPPABLE
    assert unpack(packed) == MIXED + b"tail"
    assert unpack(packed, step=3) == MIXED + b"tail"
    assert unpack(SKIPPABLE) == b""


@pytest.mark.parametrize("length", [3, 6, 12, len(SKIPPABLE) - 1])
def test_a_cut_skippable_frame_is_an_error(length: int) -> None:
    with pytest.raises(CompressionError, match=r"skippable|follows"):
        unpack(zstd(b"x") + SKIPPABLE[:length])


def test_many_small_frames_and_large_ones() -> None:
    parts = [RANDOM.randbytes(RANDOM.choice([0, 1, 50, 5000, 300_000])) for _ in range(300)] + [bytes(3 << 20)]
    assert unpack(b"".join(map(zstd, parts))) == b"".join(parts)


@pytest.mark.parametrize("level", [1, 19])
def test_every_kind_of_zstd_block(level: int) -> None:
    data = RANDOM.randbytes(200_000) + bytes(400_000) + MIXED  # raw, RLE, compressed
    assert unpack(zstandard.ZstdCompressor(level=level).compress(data)) == data


def test_a_window_beyond_the_limit_is_refused_by_name() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=24)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = packer.compress(MIXED) + packer.flush()
    assert unpack(packed) == MIXED
    with pytest.raises(LimitExceeded, match="needs a window of 16777216 bytes, allowed are 8388608"):
        unpack(packed, limits=DecompressionLimits(window=8 << 20))


@pytest.mark.parametrize("window_log", [10, 17, 20])
@pytest.mark.parametrize("size", [0, 200, 300, 70_000, 1 << 20])
@pytest.mark.parametrize("known", [False, True])
def test_frame_headers_are_read_as_the_library_reads_them(window_log: int, size: int, known: bool) -> None:
    parameters = zstandard.ZstdCompressionParameters(
        window_log=window_log, write_content_size=known, write_checksum=size % 3 == 0
    )
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size if known else -1)
    packed = packer.compress(bytes(size)) + packer.flush()
    expected = zstandard.get_frame_parameters(packed)
    header = parse_frame_header(packed[:18], "here")
    assert header.window == expected.window_size
    assert header.checksum == expected.has_checksum
    assert header.length == zstandard.frame_header_size(packed)


def test_frames_that_need_a_dictionary_are_refused() -> None:
    samples: list[bytes | bytearray | memoryview] = [
        RANDOM.randbytes(30) + b"common words in all samples" * 3 for _ in range(200)
    ]
    dictionary = zstandard.train_dictionary(2000, samples)
    packed = zstandard.ZstdCompressor(dict_data=dictionary).compress(bytes(samples[0]))
    with pytest.raises(CompressionError, match="dictionary"):
        unpack(packed)


FRAME = b"\x28\xb5\x2f\xfd"


@pytest.mark.parametrize(
    ("packed", "what"),
    [
        (FRAME + b"\x08\x00", "reserved bit"),
        (FRAME, "inside a zstd frame header"),
        (FRAME + b"\xc0\0\0", "inside a zstd frame header"),
        (FRAME + b"\x00\x00" + b"\x07\0\0", "block header is damaged"),  # block type 3
        (FRAME + b"\x00\x00" + struct.pack("<I", 2000 << 3 | 1)[:3] + bytes(2000), "block header is damaged"),
        (FRAME + b"\x00\x00" + struct.pack("<I", 9 << 3 | 5)[:3] + b"\xff" * 9, "stream is damaged"),
        (FRAME + b"\x04\x00" + b"\x01\0\0" + b"sum!", "stream is damaged"),
    ],
)
def test_damaged_frames_are_errors(packed: bytes, what: str) -> None:
    with pytest.raises(CompressionError, match=what):
        unpack(packed)


@packers
def test_a_stream_beyond_the_total_is_stopped(pack: Pack, kind: Compression) -> None:
    packed = pack(bytes(3 << 20))
    with pytest.raises(LimitExceeded, match="more than 2097152 bytes come out") as raised:
        unpack(packed, limits=DecompressionLimits(total=2 << 20))
    assert raised.value.where
    assert raised.value.hint
    assert unpack(packed, limits=DecompressionLimits(total=3 << 20)) == bytes(3 << 20)


def test_the_total_holds_for_what_is_not_compressed_too() -> None:
    with pytest.raises(LimitExceeded, match="more than 100 bytes"):
        unpack(bytes(101), limits=DecompressionLimits(total=100))


@packers
def test_a_ratio_beyond_the_limit_is_stopped(pack: Pack, kind: Compression) -> None:
    packed = pack(bytes(8 << 20))
    with pytest.raises(LimitExceeded, match="grows more than 100 times"):
        unpack(packed, limits=DecompressionLimits(ratio=100, ratio_from=1 << 20))
    assert unpack(packed, limits=DecompressionLimits(ratio=100, ratio_from=8 << 20)) == bytes(8 << 20)


@packers
def test_a_bomb_is_met_with_bounded_memory(pack: Pack, kind: Compression, accelerate: bool) -> None:
    packed = pack(bytes(24 << 20))
    stream = open_compressed(io.BytesIO(packed).read, accelerate=accelerate)
    tracemalloc.start()
    try:
        total = 0
        while part := stream.read(1 << 18):
            total += len(part)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == 24 << 20
    assert peak < 12 << 20  # xz has a window of 8 MiB, the others below 1 MiB


def test_an_error_is_raised_again_and_does_not_become_an_end() -> None:
    stream = open_compressed(io.BytesIO(zstd(MIXED) + b"tail").read)
    with pytest.raises(CompressionError):
        drain(stream)
    with pytest.raises(CompressionError):
        drain(stream)


def test_an_error_of_the_source_passes_through_and_stays() -> None:
    packed = gzip.compress(RANDOM.randbytes(300_000))
    source = io.BytesIO(packed)

    def read(count: int) -> bytes:
        if source.tell() > 150_000:
            raise InterruptedError("gone")
        return source.read(count)

    stream = open_compressed(read)
    for _ in range(2):
        with pytest.raises(InterruptedError):
            drain(stream)


def test_xz_memory_is_limited() -> None:
    packed = lzma.compress(MIXED, preset=9)
    assert unpack(packed) == MIXED
    with pytest.raises(LimitExceeded, match="the xz stream needs a larger window than allowed"):
        unpack(packed, limits=DecompressionLimits(window=1 << 20))


def test_zeros_in_fours_may_follow_xz_streams() -> None:
    packed = lzma.compress(b"one") + bytes(8) + lzma.compress(b"two") + bytes(4)
    assert unpack(packed) == b"onetwo"
    with pytest.raises(CompressionError, match="follows"):
        unpack(lzma.compress(b"one") + bytes(6) + lzma.compress(b"two"))


@pytest.mark.skipif(which("zstd") is None, reason="needs the zstd command")
@pytest.mark.parametrize("options", [["-19"], ["--long=26", "-3"], ["--fast=3", "--no-check"], ["--rsyncable", "-T2"]])
def test_what_the_zstd_command_writes(options: list[str]) -> None:
    packed = subprocess.run(["zstd", "-q", "-c", *options], input=MIXED, check=True, capture_output=True).stdout
    assert unpack(packed) == MIXED


@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(st.binary(max_size=3000), min_size=1, max_size=5),
    packer=st.sampled_from(sorted(PACKERS)),
    sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=8),
    accelerate=st.booleans(),
)
def test_it_does_not_matter_in_what_pieces_a_stream_arrives(
    parts: list[bytes], packer: str, sizes: list[int], accelerate: bool
) -> None:
    pack, _ = PACKERS[packer]
    packed = b"".join(map(pack, parts))

    def endless() -> Iterator[int]:
        while True:
            yield from sizes

    stream = open_compressed(short_reads(packed, endless()), accelerate=accelerate)
    result = b"".join(iter(lambda: stream.read(777), b""))
    assert result == b"".join(parts)


@settings(max_examples=400, deadline=2000)
@given(
    packer=st.sampled_from(sorted(PACKERS)),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    cut=st.integers(0, 400),
    tail=st.binary(max_size=40),
    accelerate=st.booleans(),
)
def test_damaged_streams_raise_nothing_but_their_error(
    packer: str, changes: list[tuple[int, int]], cut: int, tail: bytes, accelerate: bool
) -> None:
    packed = bytearray(PACKERS[packer][0](b"some contents of a layer, some contents of a layer" + bytes(300)))
    for at, value in changes:
        packed[at % len(packed)] = value
    limits = DecompressionLimits(total=8 << 20)
    stream = open_compressed(io.BytesIO(bytes(packed[:cut]) + tail).read, accelerate=accelerate, limits=limits)
    with suppress(CompressionError, LimitExceeded):
        drain(stream)


def test_layer_digest_and_diff_id_come_from_one_pass(accelerate: bool) -> None:
    packed = gzip.compress(MIXED) + gzip.compress(b"end")
    blob = HashingReader(io.BytesIO(packed).read)
    layer = HashingReader(open_compressed(blob.read, accelerate=accelerate).read)
    while layer.read(1 << 16):
        pass
    assert (blob.size, blob.hexdigest()) == (len(packed), hashlib.sha256(packed).hexdigest())
    assert (layer.size, layer.hexdigest()) == (len(MIXED) + 3, hashlib.sha256(MIXED + b"end").hexdigest())


def test_a_source_gives_back_and_looks_ahead() -> None:
    source = CompressedInput(short_reads(b"abcdefgh", 3))
    assert source.peek(5) == b"abcde"
    assert source.read(4) == b"abcd"
    source.unread(2)
    assert source.offset == 2
    assert source.take(4, "word") == b"cdef"
    assert source.peek(9) == b"gh"
    with pytest.raises(CompressionError, match="ends inside a word"):
        source.take(3, "word")
