"""Streams that hash on the way or read ahead give the bytes of their source, its end and its errors."""

from __future__ import annotations

import hashlib
import io
import threading

import pytest

from cfstools.errors import CompressionError
from cfstools.streams.readers import HashingAside, HashingReader, ReadAhead

DATA = bytes(range(251)) * 9_000


def reader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "read-ahead"]


def test_a_hashing_reader_hashes_what_passes() -> None:
    reader = HashingReader(io.BytesIO(DATA).read, "sha256", "sha512")
    assert reader.hexdigest() == hashlib.sha256().hexdigest()
    assert b"".join(iter(lambda: reader.read(9_999), b"")) == DATA
    assert reader.size == len(DATA)
    assert reader.hexdigest() == hashlib.sha256(DATA).hexdigest()
    assert reader.hexdigest("sha512") == hashlib.sha512(DATA).hexdigest()


@pytest.mark.parametrize("count", [999, 9_999, len(DATA)])
def test_hashing_aside_hashes_what_passed_so_far(count: int) -> None:
    source = io.BytesIO(DATA)
    with HashingAside(source.read, "sha256", "sha512") as reader:
        assert reader.hexdigest() == hashlib.sha256().hexdigest()
        assert reader.read(count) == DATA[:count]
        assert (reader.size, reader.hexdigest()) == (count, hashlib.sha256(DATA[:count]).hexdigest())
        assert b"".join(iter(lambda: reader.read(count), b"")) == DATA[count:]
    assert reader.size == len(DATA)
    assert reader.hexdigest("sha512") == hashlib.sha512(DATA).hexdigest()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hash")]


def test_an_error_passes_a_hashing_reader_aside_and_what_came_before_is_hashed() -> None:
    pieces = [DATA, DATA]

    def read(_count: int) -> bytes:
        if not pieces:
            raise CompressionError("cut", where="here")
        return pieces.pop()

    with HashingAside(read) as reader:
        assert reader.read(len(DATA)) + reader.read(len(DATA)) == DATA * 2
        with pytest.raises(CompressionError, match="cut"):
            reader.read(1)
    assert reader.hexdigest() == hashlib.sha256(DATA * 2).hexdigest()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hash")]


@pytest.mark.parametrize("count", [1_000, 1 << 18, 1 << 20])
def test_reading_ahead_gives_the_same_bytes(count: int) -> None:
    with ReadAhead(io.BytesIO(DATA).read) as stream:
        parts = list(iter(lambda: stream.read(count), b""))
        assert stream.read(count) == b""
    assert b"".join(parts) == DATA
    assert max(map(len, parts)) <= count
    assert reader_threads() == []


def test_an_error_comes_where_it_stands_and_again() -> None:
    source = io.BytesIO(DATA[: 1 << 18])

    def read(count: int) -> bytes:
        data = source.read(count)
        if not data:
            raise CompressionError("cut", where="here")
        return data

    with ReadAhead(read) as stream:
        assert stream.read(1 << 18) == DATA[: 1 << 18]
        for _ in range(2):
            with pytest.raises(CompressionError, match="here: cut"):
                stream.read(1)
    assert reader_threads() == []


def test_not_more_than_a_few_pieces_are_read_ahead() -> None:
    reads = threading.Semaphore(0)
    count = 0

    def endless(size: int) -> bytes:
        nonlocal count
        count += 1
        reads.release()
        return bytes(size)

    stream = ReadAhead(endless, depth=2)
    stream.read(1)
    # One piece is in use, two wait, one is in the thread's hand.
    for _ in range(4):
        assert reads.acquire(timeout=60)
    assert not reads.acquire(timeout=0.05)
    stream.close()
    assert reader_threads() == []
    seen = count
    assert stream.read(10) == bytes(10)  # what was in use may be finished
    assert seen == count
    stream.close()


def test_closing_without_reading_starts_nothing() -> None:
    with ReadAhead(io.BytesIO(DATA).read) as stream:
        pass
    assert reader_threads() == []
    assert stream.read(1) == b""
