"""The files of the digest cache: only what this user alone can have written is read, and nothing else is touched."""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from cfstools import native
from cfstools.linux.volume import Volume
from cfstools.store.cache import files as cache_files
from cfstools.store.cache.files import Records, Shelf
from cfstools.verity import Algorithm
from tests.store.conftest import as_nobody

BOOT = b"01234567-89ab-cdef-0123-456789abcdef"
SHELF = Shelf(Volume(BOOT, 0xEF53, 5, 2**64 - 2, 77), Algorithm.SHA256)
DATA = b"".join(native.KNOWN_RECORD.pack(number, 100, 7, 8, 30, 0) + bytes([number]) * 32 for number in range(3))
CLOCK = 10**18


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "home/cache"


@pytest.fixture
def directory(place: Path) -> Iterator[int]:
    place.parent.mkdir()
    fd = cache_files.open_directory(os.fsencode(place))
    assert fd is not None
    yield fd
    os.close(fd)


@pytest.fixture
def file(place: Path, directory: int) -> Path:
    """A cache as it should be."""
    cache_files.write(directory, SHELF, Records(CLOCK, memoryview(DATA)))
    assert read(directory) == DATA
    return place / os.fsdecode(SHELF.name)


def read(directory: int, clock: int = CLOCK) -> bytes | None:
    found = cache_files.read(directory, SHELF, clock)
    return None if found is None else bytes(found.data)


def rewrite(file: Path, change: Callable[[bytearray], object]) -> None:
    data = bytearray(file.read_bytes())
    change(data)
    file.write_bytes(data)


def test_what_is_written_is_read(file: Path, directory: int) -> None:
    assert file.stat().st_mode == 0o100600
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert read(directory, CLOCK + 10**12) == DATA
    other = Shelf(SHELF.volume, Algorithm.SHA512)
    assert cache_files.read(directory, other, CLOCK) is None
    file.rename(file.with_name(os.fsdecode(other.name)))
    assert cache_files.read(directory, other, CLOCK) is None


def test_the_directory_is_made_with_the_one_it_lies_in(tmp_path: Path) -> None:
    for path in ("a/b", "c"):
        fd = cache_files.open_directory(os.fsencode(tmp_path / path))
        assert fd is not None
        os.close(fd)
        assert (tmp_path / path).stat().st_mode == 0o40700
    assert (tmp_path / "a").stat().st_mode == 0o40700
    with pytest.raises(FileNotFoundError):
        cache_files.open_directory(os.fsencode(tmp_path / "d/e/f"))


@pytest.mark.parametrize("path", ["c", "c/", "./c", "a/c//"])
def test_a_directory_given_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    fd = cache_files.open_directory(os.fsencode(path))
    assert fd is not None
    os.close(fd)
    assert (tmp_path / path).is_dir()


@pytest.mark.parametrize("end", ["", "/", "//"])
def test_a_directory_that_is_a_link(tmp_path: Path, end: str) -> None:
    (tmp_path / "there").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("there")
    with pytest.raises(NotADirectoryError):
        cache_files.open_directory(os.fsencode(f"{tmp_path}/link{end}"))


@pytest.mark.parametrize("mode", [0o770, 0o757, 0o702, 0o1777, 0o2720])
def test_a_directory_that_others_can_write(place: Path, file: Path, mode: int) -> None:
    place.chmod(mode)
    assert cache_files.open_directory(os.fsencode(place)) is None
    assert place.stat().st_mode & 0o7777 == mode
    assert file.exists()


@pytest.mark.parametrize("mode", [0o755, 0o500, 0o700])
def test_a_directory_that_others_can_read(place: Path, file: Path, mode: int) -> None:
    place.chmod(mode)
    fd = cache_files.open_directory(os.fsencode(place))
    assert fd is not None
    assert read(fd) == DATA
    os.close(fd)


@pytest.mark.root
def test_a_directory_of_somebody_else(tmp_path: Path, place: Path, file: Path) -> None:
    os.chown(place, 65534, 65534)
    assert cache_files.open_directory(os.fsencode(place)) is None
    os.chown(place, 0, 0)
    place.chmod(0o755)
    place.parent.chmod(0o755)
    with as_nobody(tmp_path):
        assert cache_files.open_directory(os.fsencode(place)) is None
    assert file.exists()


@pytest.mark.parametrize("kind", ["link", "file", "fifo"])
def test_a_directory_that_is_none(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "cache"
    if kind == "link":
        (tmp_path / "other").mkdir(mode=0o700)
        place.symlink_to("other")
    elif kind == "file":
        place.touch()
    else:
        os.mkfifo(place)
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        cache_files.open_directory(os.fsencode(place))


def as_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file, 0o600)


def as_link(file: Path) -> None:
    moved = file.with_name("moved")
    file.rename(moved)
    file.symlink_to("moved")


def as_loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def as_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


PLANTED: list[Callable[[Path], object]] = [
    as_fifo,
    as_link,
    as_directory,
    as_loop,
    lambda file: os.link(file, file.with_name("second name")),
    lambda file: file.chmod(0o620),
    lambda file: file.chmod(0o602),
    lambda file: os.truncate(file, 1 << 40),
    lambda file: os.truncate(file, 0),
    lambda file: os.truncate(file, file.stat().st_size - 1),
    lambda file: os.truncate(file, 103),
    lambda file: file.write_bytes(b"SQLite format 3\0" + bytes(5000)),
]


@pytest.mark.parametrize("plant", PLANTED)
def test_what_is_no_file_of_ours_is_passed_over(file: Path, directory: int, plant: Callable[[Path], object]) -> None:
    plant(file)
    if file.is_dir():
        with pytest.raises(OSError, match="directory"):
            cache_files.write(directory, SHELF, Records(CLOCK, memoryview(DATA)))
        assert read(directory) is None
        return
    with pytest.raises(OSError, match="symbolic links") if file.is_symlink() else nullcontext():
        assert read(directory) is None
    cache_files.write(directory, SHELF, Records(CLOCK, memoryview(DATA)))
    assert read(directory) == DATA


@pytest.mark.root
def test_a_file_of_somebody_else(file: Path, directory: int) -> None:
    os.chown(file, 65534, 0)
    assert read(directory) is None


@pytest.mark.parametrize("at", [0, 8, 12, 16, 51, 56, 64, 72, 80, 88, 96, 104, 104 + 40, -1])
def test_every_damage_is_noticed(file: Path, directory: int, at: int) -> None:
    def flip(data: bytearray) -> None:
        data[at] ^= 1

    rewrite(file, flip)
    assert read(directory) is None


@pytest.mark.parametrize("field", range(1, 7))
def test_another_volume_with_a_right_checksum(file: Path, directory: int, field: int) -> None:
    """Such as a file that was given another's name."""

    def change(data: bytearray) -> None:
        header = list(struct.unpack_from("=II36s4xQQQQqQ", data, 8))
        header[field] = b"0" * 36 if field == 2 else header[field] + 1
        struct.pack_into("=II36s4xQQQQqQ", data, 8, *header)
        struct.pack_into("=I", data, 8, zlib.crc32(data[12:]))

    rewrite(file, change)
    assert read(directory) is None


@pytest.mark.parametrize("count", [0, 2, 4, 2**64 - 1])
def test_another_count_with_a_right_checksum(file: Path, directory: int, count: int) -> None:
    def change(data: bytearray) -> None:
        struct.pack_into("=Q", data, 96, count)
        struct.pack_into("=I", data, 8, zlib.crc32(data[12:]))

    rewrite(file, change)
    assert read(directory) is None


def test_the_clock_was_set_back(file: Path, directory: int) -> None:
    assert read(directory, CLOCK - 10**9) == DATA
    assert read(directory, CLOCK - 2 * 10**9) is None
    assert not file.exists()


def test_what_nobody_replaced_is_not_read_again(file: Path, directory: int) -> None:
    first = cache_files.read(directory, SHELF, CLOCK)
    assert first is not None
    assert cache_files.read(directory, SHELF, CLOCK + 5, first) is first
    assert cache_files.read(directory, SHELF, CLOCK, Records(CLOCK, first.data)) is not first, "of no known file"
    cache_files.write(directory, SHELF, Records(CLOCK, memoryview(DATA[:-72])))
    second = cache_files.read(directory, SHELF, CLOCK, first)
    assert second is not None
    assert bytes(second.data) == DATA[:-72]
    file.unlink()
    assert cache_files.read(directory, SHELF, CLOCK, second) is None


def test_what_was_read_is_dropped_when_the_clock_was_set_back(file: Path, directory: int) -> None:
    first = cache_files.read(directory, SHELF, CLOCK)
    assert cache_files.read(directory, SHELF, CLOCK - 2 * 10**9, first) is None
    assert not file.exists()


def test_a_write_that_fails_leaves_the_old_file(file: Path, directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("write_all", "os.rename"):
        with monkeypatch.context() as patch:
            patch.setattr(f"cfstools.store.cache.files.{name}", fail)
            with pytest.raises(OSError, match="No space"):
                cache_files.write(directory, SHELF, Records(CLOCK, memoryview(b"")))
        assert read(directory) == DATA
        assert len(os.listdir(directory)) == 1


def test_the_lock_is_not_waited_for(place: Path, directory: int) -> None:
    other = os.open(place, os.O_RDONLY)
    with cache_files.alone(other):
        start = time.monotonic()
        with cache_files.alone(directory):
            assert time.monotonic() - start < 5
    os.close(other)


def age(file: Path, seconds: float) -> None:
    os.utime(file, (time.time() - seconds,) * 2)


def test_what_is_of_no_use_any_more_goes(file: Path, directory: int, tmp_path: Path) -> None:
    """But nothing that is not ours, and nothing outside."""
    outside = tmp_path / "outside"
    outside.touch()
    name = file.name
    gone = [name.replace("01234567", "11111111"), ".tmp-0123456789abcdef", name.replace("01234567", "22222222")]
    stay = [
        name.replace("ef53", "ef54"),
        name.replace("01234567", "33333333") + ".bak",
        "x" + name,
        "notes",
        ".tmp-0123456789abcdefg",
        name.replace("01234567", "44444444"),
    ]
    for one in (*gone, *stay):
        file.with_name(one).touch()
        age(file.with_name(one), 8 * 86_400)
    age(file.with_name(stay[-1]), 6 * 86_400)
    file.with_name(gone[2]).unlink()
    file.with_name(gone[2]).symlink_to(outside)
    os.utime(file.with_name(gone[2]), (0, 0), follow_symlinks=False)
    file.with_name(name.replace("01234567", "55555555")).mkdir()
    cache_files.write(directory, SHELF, Records(CLOCK, memoryview(DATA)))
    left = set(os.listdir(directory))
    assert left == {name, *stay, name.replace("01234567", "55555555")}
    assert outside.exists()


@pytest.mark.parametrize("limit", ["_MAX_BYTES", "_MAX_FILES"])
def test_the_oldest_go_when_there_are_too_many(
    file: Path, directory: int, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [file.name.replace("ef53", f"ef{number}") for number in range(10, 20)]
    for number, name in enumerate(names):
        file.with_name(name).write_bytes(bytes(1000))
        age(file.with_name(name), 100 - number)
    monkeypatch.setattr(cache_files, limit, 5 if limit == "_MAX_FILES" else 4500)
    cache_files.write(directory, SHELF, Records(CLOCK, memoryview(DATA)))
    assert set(os.listdir(directory)) == {file.name, *names[-4:]}
