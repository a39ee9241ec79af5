"""Bytes kept aside: the same from memory and from a file, whatever the pieces, and little of either."""

from __future__ import annotations

import errno
import gzip
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfstools.errors import InputError
from cfstools.linux import files as linux_files
from cfstools.linux.files import unnamed_file
from cfstools.sources.oci import read_oci
from cfstools.sources.oci_containers import open_images
from cfstools.store import DirectoryStore, StoreWriter
from cfstools.streams import spool as spool_module
from cfstools.streams.decompress import Decompressed
from cfstools.streams.spool import Replayable, Spool
from tests.oci import making
from tests.oci.making import hello, member, tar


def make_file() -> int:
    fd = os.open("/tmp", os.O_RDONLY | os.O_DIRECTORY)
    try:
        return unnamed_file(fd, b".mkcfs-tmp-")
    finally:
        os.close(fd)


PIECES = st.sampled_from([b"", b"x", bytes(1), bytes(5000), b"\0" * 100 + b"y", os.urandom(3000), bytes(1 << 18)])


@given(st.lists(PIECES, max_size=12), st.sampled_from([0, 1, 4000, 1 << 20]), st.integers(0, 600_000))
def test_what_went_in_comes_out(pieces: list[bytes], in_memory: int, at: int) -> None:
    whole = b"".join(pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool_module, "IN_MEMORY", in_memory)
        spool = Spool(make_file)
        for number, piece in enumerate(pieces):
            spool.write(memoryview(piece) if number % 2 else piece)
            assert spool.pread(100, at) == b"".join(pieces[: number + 1])[at : at + 100]
        assert spool.size == len(whole)
        assert spool.pread(len(whole) + 1, 0) == whole
        spool.close()
        spool.close()


def test_zeros_take_no_room() -> None:
    made: list[int] = []

    def make() -> int:
        made.append(make_file())
        return made[0]

    spool = Spool(make)
    for _ in range(1000):
        spool.write(bytes(1 << 18))
    assert spool.pread(10, (250 << 20) - 10) == bytes(10)
    assert os.fstat(made[0]).st_size == 250 << 20
    assert os.fstat(made[0]).st_blocks * 512 < 20 << 20
    spool.close()


@pytest.mark.parametrize("kept", [True, False])
def test_a_pipe_can_be_read_again_until_it_is_forgotten(kept: bool) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"0123456789")
    os.close(writing)
    source = Replayable(reading, make_file)
    assert source.size is None
    assert source.peek(4) == b"0123"
    assert source.read(6) == b"0123"
    assert source.read(2) == b"45"
    source.rewind()
    if not kept:
        source.forget()
    data = b""
    while part := source.read(3):
        data += part
    assert data == b"0123456789"
    if kept:
        source.rewind()
        assert source.read(3) == b"012"
    source.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reading)


def test_a_file_is_read_from_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"skipped" + hello())
    fd = os.open(tmp_path / "f", os.O_RDONLY)
    os.lseek(fd, 7, os.SEEK_SET)
    with open_images(None, [b"-"], stdin=fd) as container:
        assert read_oci(container).report.layers[0].diff_id == making.digest(hello())
    os.close(fd)


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "IN_MEMORY", 1000)
    (tmp_path / "a").write_bytes(gzip.compress(making.archive(making.image([hello()]))))

    def full(fd: int, data: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(spool_module, "write_all", full)
        refused = pytest.raises(InputError, match="a: cannot keep the archive in a temporary file: No space left")
        with refused as caught, open_images(None, [bytes(tmp_path / "a")]):
            pass
    assert "TMPDIR" in (caught.value.hint or "")
    with (
        pytest.raises(InputError, match="No such file"),
        open_images(None, [bytes(tmp_path / "a")], scratch=b"/no/such"),
    ):
        pass
    with open_images(None, [bytes(tmp_path / "a")], scratch=bytes(tmp_path)) as container:
        assert container.kind == "oci-archive"
        assert os.listdir(tmp_path) == ["a"]


def test_file_systems_without_nameless_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux_files, "open_tmpfile", lambda *_: None)
    monkeypatch.setattr(spool_module, "IN_MEMORY", 1000)
    fd = os.open(tmp_path, os.O_RDONLY)
    file = unnamed_file(fd, b"x-")
    assert os.listdir(tmp_path) == []
    assert os.fstat(file).st_mode & 0o777 == 0o600
    os.close(file)
    os.close(fd)


def many_layers(count: int, size: int) -> tuple[bytes, list[bytes]]:
    """An archive whose layers lie in another order than that in which they are applied."""
    layers = [tar(member("usr/"), member(f"usr/{number}", os.urandom(size))) for number in range(count)]
    return making.archive(dict(sorted(making.image(layers).items(), reverse=True))), layers


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("packing", ["+gzip", "+zstd"])
def test_one_decompression_whatever_the_order(
    packing: str, stored: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, layers = many_layers(40, 800_000)
    (tmp_path / "a").write_bytes(making.COMPRESSORS[packing](data))
    out = 0

    def counted(self: Decompressed, count: int) -> bytes:
        nonlocal out
        part = read(self, count)
        if self.kind.value == packing[1:]:
            out += len(part)
        return part

    read = Decompressed.read
    monkeypatch.setattr(Decompressed, "read", counted)
    before = set(os.listdir("/proc/self/fd"))
    tracemalloc.start()
    if stored:
        with (
            StoreWriter(DirectoryStore(bytes(tmp_path / "s"), create=True), deferred=True) as writer,
            open_images(None, [bytes(tmp_path / "a")], scratch=writer.store.fd) as container,
        ):
            found = [one.diff_id for one in read_oci(container, writer=writer).report.layers]
    else:
        with open_images(None, [bytes(tmp_path / "a")]) as container:
            found = [one.diff_id for one in read_oci(container).report.layers]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [*map(making.digest, layers)]
    assert out == len(data)
    assert peak < 24 << 20 < len(data)
    assert len(set(os.listdir("/proc/self/fd")) - before) <= int(stored)
