"""Objects that arrive from elsewhere: what is wrong leaves nothing behind."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cfstools.errors import ContentsWrong
from cfstools.store.directory import DirectoryStore
from cfstools.store.write.arriving import ArrivingObjects
from cfstools.store.write.writer import StoreWriter
from cfstools.verity import digest_bytes

SIZES = [65, 4096, 4097, 1 << 20, (1 << 20) + 1, 3 << 20]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DirectoryStore]:
    with DirectoryStore(bytes(tmp_path / "objects"), create=True) as opened:
        yield opened


def _contents(size: int) -> bytes:
    return (b"%d-" % size * size)[:size]


def test_objects_of_all_sizes(store: DirectoryStore) -> None:
    with StoreWriter(store) as writer:
        arriving = ArrivingObjects(writer)
        for size in (*SIZES, *range(66, 400)):  # more than fit into one batch
            data = _contents(size)
            arriving.take(digest_bytes(data), size, io.BytesIO(data).read)
        arriving.finish()
    for size in SIZES:
        with closing(store.open(digest_bytes(_contents(size)))) as found:
            assert found.read(0, size + 1) == _contents(size)
    assert len(list(store.objects())) == len(SIZES) + 334


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("change", ["flipped", "short", "long", "empty"])
def test_wrong_contents(size: int, change: str, store: DirectoryStore) -> None:
    data = _contents(size)
    wrong = {"flipped": b"?" + data[1:], "short": data[:-1], "long": data + b"x", "empty": b""}[change]
    with StoreWriter(store) as writer:
        arriving = ArrivingObjects(writer)
        with pytest.raises(ContentsWrong):
            arriving.take(digest_bytes(data), size, io.BytesIO(wrong).read)
        arriving.finish()
    assert not list(store.objects())


def test_a_stream_without_end_is_not_read_to_its_end(store: DirectoryStore) -> None:
    asked = 0

    def endless(count: int) -> bytes:
        nonlocal asked
        asked += count
        return bytes(count)

    with StoreWriter(store) as writer, pytest.raises(ContentsWrong, match="more bytes"):
        ArrivingObjects(writer).take(bytes(32), 2 << 20, endless)
    assert asked <= (2 << 20) + 1
