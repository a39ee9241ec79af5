"""What a store holds, looked up and listed: the same in C and in Python."""

from __future__ import annotations

import os
import random
from array import array
from itertools import accumulate
from pathlib import Path
from types import ModuleType

import pytest

from cfstools.native import _pure
from cfstools.store import DirectoryStore
from cfstools.verity import object_path

_native = pytest.importorskip("cfstools.native._native")

LOOPS = pytest.mark.parametrize("loops", [_native, _pure], ids=["native", "pure"])
SIZES = b"\x20\x40"


def digests(count: int, length: int) -> list[bytes]:
    numbers = random.Random(length)
    return [numbers.randbytes(length) for _ in range(count)]


@LOOPS
@pytest.mark.parametrize("length", [32, 64])
def test_an_object_is_found_by_its_size(loops: ModuleType, length: int, tmp_path: Path) -> None:
    right, empty, longer, link, directory, fifo, missing, elsewhere = digests(8, length)
    for digest, size in ((right, 5), (empty, 0), (longer, 6)):
        path = tmp_path / os.fsdecode(object_path(digest))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(size))
    for digest in (link, directory, fifo, missing):
        (tmp_path / digest.hex()[:2]).mkdir(exist_ok=True)
    (tmp_path / os.fsdecode(object_path(link))).symlink_to(tmp_path / os.fsdecode(object_path(right)))
    (tmp_path / os.fsdecode(object_path(directory))).mkdir()
    os.mkfifo(tmp_path / os.fsdecode(object_path(fifo)))
    asked = [(right, 5), (empty, 0), (longer, 5), *((one, 5) for one in (link, directory, fifo, missing, elsewhere))]
    packed = b"".join(digest for digest, _ in asked)
    ends = array("Q", accumulate(size for _, size in asked))
    with DirectoryStore(bytes(tmp_path)) as store:
        found = loops.find_objects(store.prefix_fds, packed, ends, 0, len(asked), length)
        assert found == bytes([1, 1, 0, 0, 0, 0, 0, 0])
        assert loops.find_objects(store.prefix_fds, packed, ends, 1, 3, length) == b"\1\0"
        assert loops.find_objects(store.prefix_fds, b"", b"", 0, 0, length) == b""


@LOOPS
@pytest.mark.parametrize(
    ("prefixes", "packed", "ends", "first", "end", "length"),
    [
        (255, 64, 2, 0, 2, 32),
        (256, 63, 2, 0, 2, 32),
        (256, 64, 2, -1, 2, 32),
        (256, 64, 2, 1, 0, 32),
        (256, 64, 2, 0, 3, 32),
        (256, 2, 2, 0, 2, 1),
        (256, 130, 2, 0, 2, 65),
    ],
)
def test_what_does_not_fit_together_is_refused(  # noqa: PLR0917 - as they are called
    loops: ModuleType,
    prefixes: int,
    packed: int,
    ends: int,
    first: int,
    end: int,
    length: int,
) -> None:
    fds = array("i", [-1]) * prefixes
    with pytest.raises(ValueError, match=r"there are no such objects|256 prefixes"):
        loops.find_objects(fds, bytes(packed), bytes(8 * ends), first, end, length)


@LOOPS
def test_a_directory_is_listed_in_byte_order(loops: ModuleType, tmp_path: Path) -> None:
    objects = [b"\xab" + rest for length in (31, 63) for rest in digests(20, length)]
    for number, digest in enumerate(objects):
        (tmp_path / digest.hex()[2:]).write_bytes(bytes(number * 300))
    link, directory, upper, odd = (digest.hex() for digest in digests(24, 31)[20:])
    (tmp_path / link).symlink_to("nowhere")
    (tmp_path / directory).mkdir()
    (tmp_path / upper.upper()).touch()
    (tmp_path / odd[:-1]).touch()
    names = [b"\xff\n", b"a" * 255, b"ab" * 8, b"x" * 62, b"..."]
    for name in names:
        (tmp_path / os.fsdecode(name)).touch()
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    try:
        found, packed, others = loops.list_objects(fd, 0xAB, SIZES, 3)
        only, sizes, rest = loops.list_objects(fd, 0xAB, b"\x20", 3)
        brief = loops.list_objects(fd, 0xAB, SIZES, 0)
        none = loops.list_objects(fd, 0xAB, b"", 3)
    finally:
        os.close(fd)
    statuses = {digest: (tmp_path / digest.hex()[2:]).stat() for digest in objects}
    expected = sorted(statuses.items())
    assert found == sorted(objects)
    assert [*memoryview(packed).cast("q")] == [
        *[status.st_size for _, status in expected],
        *[status.st_blocks for _, status in expected],
        *[status.st_ctime_ns for _, status in expected],
    ]
    others_there = [*names, *(name.encode() for name in (link, directory, upper.upper(), odd[:-1]))]
    assert others == sorted(others_there)
    assert brief == (found, b"", others)
    assert none[:2] == ([], b"")
    assert only == [digest for digest in found if len(digest) == 32]
    assert [*memoryview(sizes).cast("q")][: len(only)] == [statuses[digest].st_size for digest in only]
    assert rest == sorted([*others_there, *(digest.hex()[2:].encode() for digest in objects if len(digest) == 64)])


@LOOPS
def test_what_is_no_directory_cannot_be_listed(loops: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fd = os.open(tmp_path / "file", os.O_PATH)
    try:
        for columns in (0, 3):
            with pytest.raises(NotADirectoryError):
                loops.list_objects(fd, 0, SIZES, columns)
    finally:
        os.close(fd)
