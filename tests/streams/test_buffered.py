"""The buffer over a stream, whatever pieces the stream comes in."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfstools.errors import InputError
from cfstools.streams.buffered import READ_SIZE, BufferedReader, read_up_to
from cfstools.streams.spool import RangeReader

OPERATIONS = st.lists(st.tuples(st.sampled_from(("read", "peek", "unread")), st.integers(0, 40)), max_size=40)


def in_pieces(data: bytes, sizes: list[int]) -> Callable[[int], bytes]:
    """A stream of *data* in pieces of the *sizes*, over and over."""
    file = io.BytesIO(data)
    number = 0

    def read(count: int) -> bytes:
        nonlocal number
        number += 1
        return file.read(min(count, sizes[number % len(sizes)]))

    return read


@given(st.binary(max_size=200), st.lists(st.integers(1, 30), min_size=1, max_size=5), OPERATIONS)
def test_reads_as_one_piece(data: bytes, sizes: list[int], operations: list[tuple[str, int]]) -> None:
    reader = BufferedReader(in_pieces(data, sizes))
    at = last = 0
    for name, count in operations:
        if name == "peek":
            assert reader.peek(count) == data[at : at + count]
            last = 0
        elif name == "read":
            piece = reader.read(count)
            assert piece == data[at : at + len(piece)]
            assert len(piece) <= count
            assert piece or not count or at == len(data)
            at += len(piece)
            last = len(piece)
        else:
            back = min(count, last)
            reader.unread(back)
            at, last = at - back, last - back
        assert reader.offset == at
        assert at <= reader.received <= len(data)


def test_whole_pieces_are_not_copied() -> None:
    piece = bytes(READ_SIZE)
    assert BufferedReader(lambda _: piece).read(READ_SIZE) is piece
    reader = BufferedReader(lambda _: piece)
    assert reader.peek(1) == b"\0"
    assert reader.read(READ_SIZE) is piece


def test_an_error_below_comes_each_time_and_loses_nothing() -> None:
    pieces: Iterator[bytes] = iter([b"ab", b"c"])

    def read(_count: int) -> bytes:
        for piece in pieces:
            return piece
        raise InputError("unplugged")

    reader = BufferedReader(read)
    assert reader.read(1) == b"a"
    for _ in range(2):
        with pytest.raises(InputError, match="unplugged"):
            reader.peek(3)
    assert reader.read(5) == b"bc"
    assert reader.offset == 3


@given(st.binary(max_size=100), st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(0, 120))
def test_read_up_to(data: bytes, sizes: list[int], count: int) -> None:
    assert read_up_to(in_pieces(data, sizes), count) == data[:count]


class Memory:
    """Bytes at any offset, of which at most seven come at once."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def pread(self, count: int, offset: int) -> bytes:
        return self.data[offset : offset + min(count, 7)]

    def close(self) -> None:
        pass


def test_a_range_is_read_and_skipped_within_its_bounds() -> None:
    reader = RangeReader(Memory(bytes(range(100))), 10, 50)
    assert reader.read(5) == bytes(range(10, 15))
    assert reader.skip(20)
    assert not reader.skip(26)
    assert read_up_to(reader.read, 100) == bytes(range(35, 60))
    assert reader.skip(0)
    assert not reader.skip(1)


def test_a_range_that_is_not_there() -> None:
    reader = RangeReader(Memory(b"abc"), 1, 5)
    assert reader.read(9) == b"bc"
    with pytest.raises(InputError, match="became shorter"):
        reader.read(1)
