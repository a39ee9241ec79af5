"""Sparse objects stay sparse on disk, however they get there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cfstools.api.build import build
from cfstools.api.cat import cat
from cfstools.api.extract import CopyMode, ExtractOptions, ExtractReport, extract, extract_view
from cfstools.errors import CheckFailed
from cfstools.store import DirectoryStore
from cfstools.tree import Directory, External, RegularFile
from cfstools.verity import object_path
from cfstools.verity.files import digest_file
from cfstools.view.nodes import View

MIB = 1 << 20
SHAPES = {
    "only a hole": ([], 64 * MIB),
    "starts with one": ([60 * MIB], 61 * MIB),
    "ends with one": ([0], 64 * MIB + 17),
    "between": ([0, 20 * MIB, 40 * MIB - 4096], 40 * MIB),
    "not whole blocks": ([5 * MIB + 1000], 10 * MIB + 1),
}


def sparse(path: Path, marks: list[int], size: int) -> int:
    """Make a file with some data at *marks*; returns how many blocks it takes, if it is sparse at all here."""
    with path.open("wb") as file:
        for mark in marks:
            file.seek(mark)
            file.write(b"data" * 512)
        file.truncate(size)
    blocks = path.stat().st_blocks
    if blocks * 512 >= size:
        pytest.skip("files cannot be sparse here")
    return blocks


def put_object(store: Path, made: Path) -> External:
    digest = digest_file(bytes(made))
    path = store / os.fsdecode(object_path(digest))
    path.parent.mkdir(parents=True, exist_ok=True)
    made.rename(path)
    path.chmod(0o644)
    return External(digest, None)


def put(store: Path, content: External, size: int, target: Path, mode: CopyMode, *, threads: int = 1) -> ExtractReport:
    status = (store / os.fsdecode(object_path(content.digest or b""))).stat()
    inode = RegularFile(mode=0o100644, uid=status.st_uid, gid=status.st_gid, size=size, content=content)
    root = Directory(mode=stat.S_IFDIR | 0o755, uid=status.st_uid, gid=status.st_gid, entries={b"f": inode})
    with DirectoryStore(bytes(store)) as opened:
        options = ExtractOptions(contents=mode)
        return extract_view(View(root, opened), bytes(target), options=options, threads=threads)


@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", [CopyMode.AUTO, CopyMode.COPY, CopyMode.HARDLINK])
@pytest.mark.parametrize("threads", [1, 3])
def test_holes_stay(*, tmp_path: Path, shape: str, mode: CopyMode, threads: int) -> None:
    marks, size = SHAPES[shape]
    blocks = sparse(tmp_path / "made", marks, size)
    data = (tmp_path / "made").read_bytes()
    content = put_object(tmp_path / "store", tmp_path / "made")
    report = put(tmp_path / "store", content, size, tmp_path / "out", mode, threads=threads)
    assert report.bytes_copied + report.bytes_linked + report.bytes_cloned == size
    assert (tmp_path / "out/f").read_bytes() == data
    # The file system may hand out a little more at a time.
    assert (tmp_path / "out/f").stat().st_blocks <= blocks + 512


@pytest.mark.usefixtures("each_implementation")
def test_a_hole_larger_than_the_disk(tmp_path: Path) -> None:
    """15 TiB, as much as ext4 has in one file, and some data."""
    size = 15 << 40
    made = tmp_path / "made"
    with made.open("wb") as file:
        try:
            file.truncate(size)
        except OSError as error:
            pytest.skip(f"no file of this size here: {error.strerror}")
        file.seek(size // 2)
        file.write(b"data" * 1024)
    content = put_object(tmp_path / "store", made)
    put(tmp_path / "store", content, size, tmp_path / "out", CopyMode.COPY)
    status = (tmp_path / "out/f").stat()
    assert status.st_size == size
    assert status.st_blocks < 1024
    with (tmp_path / "out/f").open("rb") as file:
        file.seek(size // 2)
        assert file.read(4096) == b"data" * 1024


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Path, External]:
    """A sparse object, and its path, to be damaged."""
    sparse(tmp_path / "made", [MIB], 20 * MIB)
    content = put_object(tmp_path / "store", tmp_path / "made")
    return tmp_path / "store" / os.fsdecode(object_path(content.digest or b"")), content


@pytest.mark.parametrize("how", ["data in a hole", "hole for data", "longer", "shorter", "much longer"])
def test_damaged_sparse_objects(tmp_path: Path, damaged: tuple[Path, External], how: str) -> None:
    path, content = damaged
    with path.open("r+b") as file:
        match how:
            case "data in a hole":
                file.seek(10 * MIB)
                file.write(b"x")
            case "hole for data":
                file.truncate(MIB)
                file.truncate(20 * MIB)
            case "longer":
                file.truncate(20 * MIB + 1)
            case "shorter":
                file.truncate(20 * MIB - 1)
            case _:
                file.truncate(15 << 40)
    with pytest.raises(CheckFailed, match=r"^/f: object .* (is damaged|has .* bytes instead of)"):
        put(tmp_path / "store", content, 20 * MIB, tmp_path / "out", CopyMode.COPY)
    assert not (tmp_path / "out").exists()


def test_from_source_to_disk(tmp_path: Path) -> None:
    """A sparse file through build and extract; cat gives it out in pieces."""
    source = tmp_path / "source"
    source.mkdir()
    blocks = sparse(source / "f", [3 * MIB], 300 * MIB)
    image, store = bytes(tmp_path / "image"), bytes(tmp_path / "store")
    build(bytes(source), image, stores=[store])
    extract(image, bytes(tmp_path / "out"), stores=[store], options=ExtractOptions(owners=False))
    assert (tmp_path / "out/f").stat().st_blocks <= blocks + 512
    done = 0
    with (source / "f").open("rb") as file:
        for piece in cat(image, b"/f", stores=[store]):
            assert len(piece) <= MIB
            assert piece == file.read(len(piece))
            done += len(piece)
    assert done == 300 * MIB
