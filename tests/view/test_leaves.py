"""What random reads are compared with, at each level of the Merkle tree."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cfstools.store.base import BytesObject, FileObject, Object
from cfstools.verity import Algorithm, Params, digest_bytes
from cfstools.verity.files import hash_fd
from cfstools.view import leaves as module
from cfstools.view.leaves import Leaves, hash_leaves

BLOCK = 4096
DATA = os.urandom(BLOCK * 300 + 17)


def opened(data: bytes, directory: Path, *, in_file: bool) -> Object:
    if not in_file:
        return BytesObject(data)
    path = directory / "object"
    path.write_bytes(data)
    return FileObject(os.open(path, os.O_RDONLY), len(data))


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("most", [1 << 20, 32 * 40, 64])
@pytest.mark.parametrize("size", [0, 1, BLOCK, BLOCK * 128, BLOCK * 129 - 1, len(DATA)])
def test_every_group_is_told_from_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, algorithm: Algorithm, in_file: bool, most: int, size: int
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", most)
    params, data = Params(algorithm=algorithm), DATA[:size]
    found = opened(data, tmp_path, in_file=in_file)
    leaves, digest, met = hash_leaves(found, size, params)
    found.close()
    assert (digest, met) == (digest_bytes(data, params), size)
    assert leaves.held <= most or leaves.group >= size
    for start in range(0, size, leaves.group):
        part = bytearray(data[start : start + leaves.group])
        assert leaves.match(start, memoryview(part))
        part[-1] ^= 1
        assert not leaves.match(start, memoryview(part))
    assert leaves.match(0, data)


def test_the_memory_for_leaves_has_a_limit() -> None:
    for algorithm in Algorithm:
        for size in (1 << 20, 1 << 31, 1 << 40, 1 << 50):
            leaves = Leaves(size, Params(algorithm=algorithm))
            assert -(-size // leaves.group) * algorithm.digest_size <= 16 << 20
    assert Leaves(2 << 30, Params()).group == BLOCK
    assert Leaves((2 << 30) + 1, Params()).group == BLOCK * 128


@pytest.mark.parametrize("most", [1 << 24, 1 << 15])
def test_holes_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """8 GiB of nothing but two blocks take no time, and each part is compared right."""
    monkeypatch.setattr(module, "MOST_BYTES", most)
    path = tmp_path / "sparse"
    with path.open("xb") as file:
        file.truncate((1 << 33) + 5)
        for at in (BLOCK * 1000 + 3, (1 << 32) + BLOCK * 77):
            file.seek(at)
            file.write(b"data")
    found = FileObject(os.open(path, os.O_RDONLY), (1 << 33) + 5)
    leaves, digest, size = hash_leaves(found, found.size, Params())
    assert (digest, size) == hash_fd(found.fileno())
    for at in (0, BLOCK * 1000, 1 << 32, 1 << 33, (1 << 32) - BLOCK):
        start = at - at % leaves.group
        data = found.read(start, leaves.group)
        assert leaves.match(start, data)
        assert not leaves.match(start, data[:-1] + b"?")
    found.close()


@pytest.mark.parametrize("in_file", [False, True])
def test_an_object_that_is_too_long_is_not_read_on(tmp_path: Path, in_file: bool) -> None:
    found = opened(DATA * 8, tmp_path, in_file=in_file)
    _, _, size = hash_leaves(found, 1000, Params())
    found.close()
    assert 1000 < size <= len(DATA) * 8
