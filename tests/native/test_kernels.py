"""Every hash kernel this processor runs gives what hashlib gives."""

from __future__ import annotations

import importlib
import random
import re
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfstools.native import _pure

try:
    _native: ModuleType | None = importlib.import_module("cfstools.native._native")
except ImportError:
    _native = None

pytestmark = pytest.mark.skipif(_native is None, reason="the native functions were not built")

SOURCE = Path(_pure.__file__).with_name("sha2.c").read_text(encoding="utf-8")


def kernels(algorithm: str) -> list[str | None]:
    """The kernels of an algorithm that this processor runs, and ``None`` for the fastest."""
    found: list[str | None] = [None]
    for name in dict.fromkeys(re.findall(r'add\(&algorithms\[\d\], "(.+?)"', SOURCE)):
        with suppress(ValueError):
            if _native is not None:
                _native.hash_blocks(algorithm, b"", 4096, b"", name)
                found.append(name)
    return found


CHOICES = [(algorithm, kernel) for algorithm in ("sha256", "sha512") for kernel in kernels(algorithm)]
UNITS = {"sha256": 64, "sha512": 128}


@pytest.mark.parametrize(("algorithm", "kernel"), CHOICES)
@pytest.mark.parametrize("block_size", [1024, 4096, 65536])
def test_sizes_around_block_and_lane_borders(algorithm: str, kernel: str | None, block_size: int) -> None:
    assert _native is not None
    data = random.Random(0).randbytes(34 * block_size + 1)
    for blocks in (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 34):
        for beyond in (-1, 0, 1):
            size = max(blocks * block_size + beyond, 0)
            for salt in (b"", b"s" * UNITS[algorithm]):
                expected = _pure.hash_blocks(algorithm, data[:size], block_size, salt)
                assert _native.hash_blocks(algorithm, data[:size], block_size, salt, kernel) == expected


@pytest.mark.parametrize(("algorithm", "kernel"), CHOICES)
@given(data=st.binary(max_size=70_000), offset=st.integers(0, 63), salted=st.booleans())
def test_random_buffers_at_any_alignment(
    algorithm: str, kernel: str | None, data: bytes, offset: int, salted: bool
) -> None:
    assert _native is not None
    view = memoryview(data)[offset:]
    salt = b"s" * UNITS[algorithm] if salted else b""
    expected = _pure.hash_blocks(algorithm, view, 4096, salt)
    assert _native.hash_blocks(algorithm, view, 4096, salt, kernel) == expected


def test_what_no_kernel_takes_goes_to_the_library() -> None:
    assert _native is not None
    assert _native.hash_blocks("sha256", b"x" * 1000, 100, b"odd") == _pure.hash_blocks(
        "sha256", b"x" * 1000, 100, b"odd"
    )
    assert _native.hash_blocks("sha3_256", b"x", 4096, b"") == _pure.hash_blocks("sha3_256", b"x", 4096, b"")
    assert kernels("sha3_256") == [None]


def test_wrong_arguments_are_refused() -> None:
    assert _native is not None
    for block_size in (0, -1):
        with pytest.raises(ValueError, match="positive"):
            _native.hash_blocks("sha256", b"x", block_size, b"")
    with pytest.raises(ValueError, match="no kernel"):
        _native.hash_blocks("sha256", b"x", 4096, b"", "nonsense")
    with pytest.raises(BufferError):
        _native.hash_blocks("sha256", memoryview(b"xyz")[::2], 4096, b"")
    with pytest.raises(TypeError):
        _native.hash_blocks("sha256", "text", 4096, b"")
