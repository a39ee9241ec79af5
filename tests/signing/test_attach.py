from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfstools.errors import SignatureInvalid, UsageError
from cfstools.signing import MAX_TRAILER, Attached, find_trailer, make_trailer, starts_trailer
from cfstools.signing.envelope import MAX_ENVELOPE

IMAGE = bytes(8192)
ENVELOPE = b'{"payload":"..."}'
SIGNED = IMAGE + make_trailer(len(IMAGE), ENVELOPE)


def find(file: bytes) -> Attached | None:
    return find_trailer(file[-MAX_TRAILER:], len(file))


def test_it_is_found_from_the_end() -> None:
    assert find(SIGNED) == (8192, ENVELOPE)
    assert find(SIGNED[:8192]) is None
    assert starts_trailer(SIGNED[8192:])
    assert not starts_trailer(IMAGE)


def test_the_bytes() -> None:
    footer = struct.pack("<QII8s", 8192, len(ENVELOPE), 1, b"\ncfs:end")
    assert make_trailer(8192, ENVELOPE) == (b"cfs:sig\n" + ENVELOPE).ljust(512 - 24, b"\0") + footer


@given(st.integers(1, 20000) | st.integers(MAX_ENVELOPE - 5000, MAX_ENVELOPE))
def test_sizes(size: int) -> None:
    trailer = make_trailer(4096, b"x" * size)
    assert len(trailer) % 512 == 0
    assert len(trailer) % 4096 != 0
    assert len(trailer) <= MAX_TRAILER
    assert find(bytes(4096) + trailer) == (4096, b"x" * size)


@pytest.mark.parametrize("size", [-4096, 0, 1, 4095, 4097])
def test_images_that_cannot_carry_one(size: int) -> None:
    with pytest.raises(UsageError, match="not a multiple of 4096"):
        make_trailer(size, ENVELOPE)


def test_an_envelope_that_is_too_large() -> None:
    with pytest.raises(UsageError, match="too large"):
        make_trailer(4096, bytes(MAX_ENVELOPE + 1))


@pytest.mark.parametrize("envelope", [b"", b"{}\0"])
def test_what_is_no_envelope(envelope: bytes) -> None:
    with pytest.raises(UsageError, match="not an envelope"):
        make_trailer(4096, envelope)


def test_the_tail_has_to_be_the_tail() -> None:
    with pytest.raises(UsageError, match="not the tail"):
        find_trailer(SIGNED[-100:], len(SIGNED))


def test_every_truncation_is_noticed() -> None:
    for kept in range(8193, len(SIGNED)):
        with pytest.raises(SignatureInvalid, match="no whole signature behind the image") as caught:
            find(SIGNED[:kept])
        assert caught.value.hint


def test_every_flipped_bit_outside_the_envelope_is_noticed() -> None:
    start, end = 8192 + 8, 8192 + 8 + len(ENVELOPE)
    for place in [*range(8192, start), *range(end, len(SIGNED))]:
        for bit in range(8):
            damaged = bytearray(SIGNED)
            damaged[place] ^= 1 << bit
            with pytest.raises(SignatureInvalid):
                find(bytes(damaged))


def with_footer(image_size: int, envelope_size: int, version: int = 1) -> bytes:
    return SIGNED[:-24] + struct.pack("<QII8s", image_size, envelope_size, version, b"\ncfs:end")


@pytest.mark.parametrize(
    ("file", "what"),
    [
        (with_footer(8192, 17, 2), "version 2 is not known"),
        (with_footer(4096, 17), "do not make a file of 8704 bytes"),
        (with_footer(8192, 16), "start or its padding"),
        (with_footer(8192, 18), "start or its padding"),
        (with_footer(8192, 0), "start or its padding"),
        (with_footer(8192, 2**32 - 1), "do not make a file"),
        (with_footer(2**64 - 1, 17), "do not make a file"),
        (with_footer(8192 - 512, 512), "an image cannot have 7680 bytes"),
        (SIGNED[8192:-24] + struct.pack("<QII8s", 0, 17, 1, b"\ncfs:end"), "an image cannot have 0 bytes"),
        (IMAGE + b"x" + SIGNED[8192:], "do not make a file of 8705 bytes"),
        (SIGNED[-8:], "its footer is truncated"),
    ],
)
def test_trailers_that_are_not_whole(file: bytes, what: str) -> None:
    with pytest.raises(SignatureInvalid, match=what):
        find(file)


def test_two_trailers_are_not_one() -> None:
    with pytest.raises(SignatureInvalid, match="do not make"):
        find(SIGNED + make_trailer(8192, ENVELOPE))
    twice = SIGNED + struct.pack("<QII8s", len(SIGNED), len(ENVELOPE), 1, b"\ncfs:end").rjust(512, b"\0")
    with pytest.raises(SignatureInvalid, match="an image cannot have 8704 bytes"):
        find(twice)


@given(st.binary(max_size=200), st.booleans())
def test_any_tail_is_a_trailer_or_none_or_refused(tail: bytes, magic: bool) -> None:
    file = tail + b"\ncfs:end" if magic else tail
    try:
        assert find(file) is None
    except SignatureInvalid:
        pass
    else:
        assert file == b""
