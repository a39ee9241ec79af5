"""Contents of a layer on their way to the store: batches in a thread, streams, errors."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import pytest

from cfstools.errors import StoreError, TarError
from cfstools.formats.tar import TarReader
from cfstools.sources.oci_contents import SMALL, LayerContents
from cfstools.store import DirectoryStore, StoreWriter
from cfstools.tree.model import Content, External
from cfstools.verity import DEFAULT, digest_bytes, object_path
from tests.oci.making import member, tar

SIZES = [1, 64, 65, 4096, 70_000, 1 << 18, SMALL, SMALL + 1, *[200_000] * 40]
DATA = [bytes([number]) * size for number, size in enumerate(SIZES)]


def reader_of(*contents: bytes) -> TarReader:
    return TarReader(io.BytesIO(tar(*(member(f"f{number}", data) for number, data in enumerate(contents)))).read)


@pytest.mark.parametrize("stored", [True, False])
def test_each_content_goes_where_it_belongs(stored: bool, tmp_path: Path) -> None:
    store = DirectoryStore(os.fsencode(tmp_path), create=True)
    with StoreWriter(store) as writer:
        taken = take_all(reader_of(*DATA), writer if stored else None)
    for found, data in zip(taken, DATA, strict=True):
        if len(data) <= 64:
            assert found == data
        else:
            assert isinstance(found, External)
            digest = digest_bytes(data)
            assert (found.digest, found.payload) == (digest, object_path(digest))
            assert store.size(digest) == (len(data) if stored else None)


def take_all(reader: TarReader, writer: StoreWriter | None) -> list[Content]:
    with LayerContents(writer, DEFAULT) as contents:
        taken = [contents(reader, one) for one in reader]
        contents.finish()
    return taken


@pytest.mark.parametrize("count", [1, 100])
def test_what_the_thread_meets_is_raised(count: int, tmp_path: Path) -> None:
    writer = StoreWriter(DirectoryStore(os.fsencode(tmp_path), create=True))
    writer.close()
    reader = reader_of(*[b"x" * SMALL] * count)
    with pytest.raises(StoreError, match="closed"):
        take_all(reader, writer)


def test_an_error_leaves_neither_thread_nor_object(tmp_path: Path) -> None:
    store = DirectoryStore(os.fsencode(tmp_path), create=True)
    cut = tar(*(member(f"f{number}", bytes([number]) * SMALL) for number in range(20)))[: 15 * SMALL]
    with StoreWriter(store, deferred=True) as writer:
        reader = TarReader(io.BytesIO(cut).read)
        with pytest.raises(TarError, match="ends inside"):
            take_all(reader, writer)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("contents")]
    assert os.listdir(tmp_path) == [".mkcfs-lock"]
