"""Holes stay holes on every way into a store, and digests are those of the zeros they stand for."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cfstools import native
from cfstools.api.build import build
from cfstools.linux import files
from cfstools.store import DirectoryStore, StoreWriter
from cfstools.store.care.fsck import fsck
from cfstools.store.care.repair import RepairOptions, repair
from cfstools.verity import Algorithm, Params, digest_bytes
from cfstools.verity.files import hash_fd
from tests import requirements
from tests.mkcfs import mkcfs
from tests.store.conftest import assert_whole, loop_mount

MIB = 1 << 20
Extents = list[tuple[int, bytes]]
# Size, and what is written where: all else is hole.
SHAPES: dict[str, tuple[int, Extents]] = {
    "empty": (0, []),
    "one byte": (1, []),
    "one block": (4096, []),
    "all hole": (40 * MIB, []),
    "all hole, and a byte": (40 * MIB + 1, []),
    "hole at the end": (40 * MIB, [(0, b"begin" * 1000)]),
    "hole in front": (40 * MIB, [(40 * MIB - 5000, b"e" * 5000)]),
    "not aligned": (40 * MIB + 77, [(777, b"a"), (10 * MIB + 3, b"b" * 70_001), (30 * MIB - 1, b"c")]),
    "one segment": (8 * MIB, [(8 * MIB - 1, b"z")]),
    "small": (MIB, [(MIB // 2, b"middle")]),
}


def make(path: Path, shape: str) -> bytes:
    """A sparse file of this shape; returns what it holds."""
    size, extents = SHAPES[shape]
    data = bytearray(size)
    with path.open("wb") as file:
        file.truncate(size)
        for offset, piece in extents:
            file.seek(offset)
            file.write(piece)
            data[offset : offset + len(piece)] = piece
        os.fsync(file.fileno())
    return bytes(data)


def used(path: Path) -> int:
    """What the file takes on the disk, in bytes."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    return path.stat().st_blocks * 512


def room(shape: str) -> int:
    """What a file of this shape may take: unwritten units of 64 KiB take nothing."""
    return sum(-(-len(piece) // 65536) * 65536 + 65536 for _, piece in SHAPES[shape][1]) + 65536


@pytest.fixture(params=["here", "btrfs", "xfs", "ext4", "unknown"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system that keeps holes and tells of them (btrfs and xfs clone), or one not known to tell the truth."""
    if request.param == "here":
        yield tmp_path
        return
    if request.param == "unknown":
        monkeypatch.setattr(files, "filesystem_type", lambda _fd: 0x0BAD)
        yield tmp_path
        return
    requirements.need_mounts()
    requirements.need_command(f"mkfs.{request.param}")
    yield from loop_mount(tmp_path, request.param, 512 * MIB)


@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize("shape", SHAPES)
def test_a_file_keeps_its_holes_in_the_store(place: Path, shape: str) -> None:
    (place / "src").mkdir()
    data = make(place / "src/file", shape)
    digest = digest_bytes(data)
    with (place / "src/file").open("rb") as file:
        for threads in (1, 3):
            file.seek(17)
            assert hash_fd(file.fileno(), threads=threads) == (digest, len(data))
            assert file.tell() == 17
    report = build(bytes(place / "src"), None, stores=[bytes(place / "store")])
    assert report.objects_new == (len(data) > 64)
    if len(data) > 64:
        found = place / "store" / digest.hex()[:2] / digest.hex()[2:]
        assert found.read_bytes() == data
        assert used(found) <= max(room(shape), used(place / "src/file"))


@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize("params", [Params(algorithm=Algorithm.SHA512), Params(block_size=1024, salt=b"salt")])
def test_other_parameters(tmp_path: Path, params: Params) -> None:
    data = make(tmp_path / "file", "not aligned")
    with (tmp_path / "file").open("rb") as file, (tmp_path / "copy").open("wb+") as copy:
        assert hash_fd(file.fileno(), params) == (digest_bytes(data, params), len(data))
        assert hash_fd(file.fileno(), params, copy_fd=copy.fileno()) == (digest_bytes(data, params), len(data))
    assert (tmp_path / "copy").read_bytes() == data


@pytest.mark.usefixtures("each_implementation")
def test_a_file_of_many_tebibytes_takes_no_time(tmp_path: Path) -> None:
    """15 TiB, where reading would take an hour."""
    path = tmp_path / "huge"
    with path.open("wb") as file:
        try:
            file.truncate(15 << 40)
        except OSError:
            pytest.skip("this file system has no files of 15 TiB")
        file.seek(7 << 40)
        file.write(b"x")
    with path.open("rb") as file, (tmp_path / "copy").open("wb+") as copy:
        found, size = hash_fd(file.fileno(), threads=2, copy_fd=copy.fileno())
        assert hash_fd(copy.fileno()) == (found, size) == (found, 15 << 40)
    assert used(tmp_path / "copy") <= 2 << 16


@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize("format_", ["gnu", "posix"])
def test_holes_of_a_sparse_member_are_kept(tmp_path: Path, format_: str) -> None:
    data = make(tmp_path / "file", "not aligned")
    subprocess.run(
        ["tar", "--sparse", f"--format={format_}", "-C", tmp_path, "-cf", tmp_path / "layer.tar", "file"], check=True
    )
    assert (tmp_path / "layer.tar").stat().st_size < MIB
    report = build(b"layers:" + bytes(tmp_path / "layer.tar"), None, stores=[bytes(tmp_path / "store")])
    assert report.objects_new == 1
    name = digest_bytes(data).hex()
    found = tmp_path / "store" / name[:2] / name[2:]
    assert found.read_bytes() == data
    assert used(found) <= room("not aligned")


@pytest.mark.usefixtures("each_implementation")
def test_long_runs_of_zeros_become_holes(tmp_path: Path) -> None:
    """As written by those who know no holes: an archive of /var/log/lastlog without a map of it."""
    data = b"begin" + bytes(20 * MIB) + b"end"
    with tarfile.open(tmp_path / "layer.tar", "w") as archive:
        member = tarfile.TarInfo("file")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    build(b"layers:" + bytes(tmp_path / "layer.tar"), None, stores=[bytes(tmp_path / "store")])
    name = digest_bytes(data).hex()
    found = tmp_path / "store" / name[:2] / name[2:]
    assert found.read_bytes() == data
    assert used(found) <= 3 * 65536


@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize("shape", ["all hole, and a byte", "not aligned", "small"])
def test_a_repair_keeps_holes(tmp_path: Path, shape: str) -> None:
    data = make(tmp_path / "donor", shape)
    (tmp_path / "from").mkdir()
    (tmp_path / "donor").rename(tmp_path / "from/file")
    with DirectoryStore(str(tmp_path / "store"), create=True) as store:
        with StoreWriter(store) as writer:
            digest = writer.add_bytes(data).digest
        place = Path(store.describe(digest))
        place.write_bytes(b"damaged")
        result = fsck(store, now=0)
        repair(store, result, RepairOptions(replace=True, donors=[bytes(tmp_path / "from")]), now=0)
    assert place.read_bytes() == data
    assert used(place) <= room(shape)
    assert assert_whole(tmp_path / "store") == 1


@pytest.mark.usefixtures("each_implementation")
def test_streams_and_holes(tmp_path: Path) -> None:
    """Written in pieces of any size, with holes between, at the end and alone."""
    pieces: list[list[bytes | int]] = [
        [3 * MIB],
        [b"a" * 100, 5 * MIB],
        [5 * MIB + 1, b"a" * 100],
        [4096, b"x" * 5000, 300_000, b"y" * (2 * MIB), 8191, 1, b"z"],
        [10, 20, b"w" * 70],
        [2 * MIB, 2 * MIB],
    ]
    with DirectoryStore(str(tmp_path / "store"), create=True) as store, StoreWriter(store) as writer:
        for wanted in pieces:
            data = b"".join(piece if isinstance(piece, bytes) else bytes(piece) for piece in wanted)
            with writer.open_stream() as stream:
                for piece in wanted:
                    if isinstance(piece, bytes):
                        stream.write(piece)
                    else:
                        stream.write_hole(piece)
                    assert stream.size <= len(data)
                assert stream.finish()[:2] == (digest_bytes(data), len(data))
    assert assert_whole(tmp_path / "store") == len(pieces)


@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize("offset", [0, 1, 4096, 65536, 65535, 3 * 65536 - 7])
def test_writing_around_zeros(tmp_path: Path, offset: int) -> None:
    for data in (
        b"",
        b"\0",
        bytes(65536),
        bytes(65537),
        b"a" + bytes(200_000) + b"b",
        bytes(200_000),
        b"\0" * 9 + b"x",
    ):
        with (tmp_path / "file").open("wb+") as file:
            is_short = native.write_sparse(file.fileno(), data, offset)
            size = os.fstat(file.fileno()).st_size
            assert is_short == (size < offset + len(data) and bool(data))
            file.truncate(offset + len(data))
            assert file.read() == bytes(offset) + data


def test_every_verb_takes_sparse_files(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    data = make(tmp_path / "src/file", "not aligned")
    image, store = tmp_path / "image.cfs", tmp_path / "store"
    mkcfs("build", tmp_path / "src", image, "--store", store)
    mkcfs("verify", image, "--store", store)
    mkcfs("store", "fsck", "--store", store)
    assert mkcfs("cat", image, "/file", "--store", store).stdout == data
    assert mkcfs("digest", tmp_path / "src/file").stdout.split()[0] == b"sha256:" + digest_bytes(data).hex().encode()
