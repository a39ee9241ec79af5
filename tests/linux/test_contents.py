"""Input files in memory: of one state, with their holes, within limits."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

from cfstools.api.digest import digest
from cfstools.errors import InputError, LimitExceeded, SourceChanged
from cfstools.linux import contents, files
from cfstools.linux.contents import read_regular, whole_file
from cfstools.verity import digest_bytes


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(300_000))
    return path


@pytest.mark.parametrize("size", [0, 1, 4096, (8 << 20) + 1])
def test_all_of_a_file(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    with whole_file(bytes(tmp_path / "file")) as view:
        assert view == data
        assert view.readonly


def test_holes_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as opened:
        opened.write(b"begin")
        opened.truncate(contents.MAX_FILE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with whole_file(bytes(path)) as view:
        assert len(view) == contents.MAX_FILE
        assert bytes(view[:8]) == b"begin\0\0\0"
        assert bytes(view[-4096:]) == bytes(4096)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    os.truncate(path, contents.MAX_FILE + 1)
    with pytest.raises(LimitExceeded, match=r"file: has 4294967297 bytes, at most"), whole_file(bytes(path)):
        pass


def resident() -> int:
    """The bytes of this process that are in memory now."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def test_large_pages_end_where_holes_begin(tmp_path: Path) -> None:
    """A page of 2 MiB that reached into a hole would be memory for all of it."""
    path = tmp_path / "file"
    size, distance = 256 << 20, 8 << 20
    with path.open("wb") as opened:
        for at in range(0, size, distance):
            opened.seek(at)
            opened.write(b"x" * (2 << 20 if at == distance else 4096))
        opened.truncate(size)
    before = resident()
    with whole_file(bytes(path)) as view:
        assert [view[at] for at in range(0, size, distance)] == [ord("x")] * (size // distance)
        assert view[distance + (2 << 20) - 1] == ord("x")
        assert view[distance + (2 << 20)] == 0
        assert resident() - before < 16 << 20


CHANGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: os.truncate(path, 4096),
    "grown": lambda path: os.truncate(path, 300_001),
    "rewritten": lambda path: path.write_bytes(bytes(300_000)),
    "touched": lambda path: os.utime(path, ns=(0, 0)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_is_no_input(file: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        got = real(fd, [buffers[0][:100_000]], offset)
        if offset == 0:
            CHANGES[change](file)
        return got

    os.utime(file, ns=(10**18, 10**18))
    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(SourceChanged, match="changed while it was read"), whole_file(bytes(file)):
        pass


def test_a_change_that_hides_itself(file: Path) -> None:
    """Size and mtime are as before; the ctime is not."""
    status = file.stat()

    class Changing:
        def stage(self, name: str, total: int | None, unit: str) -> Self:
            return self

        def advance(self, _amount: int) -> None:
            file.write_bytes(bytes(status.st_size))
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))

        def finish(self) -> None:
            pass

    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert next(iter(digest([bytes(file)]))).digest == digest_bytes(file.read_bytes())
    with pytest.raises(SourceChanged, match="file: changed while it was read"):
        list(digest([bytes(file)], progress=Changing()))


@pytest.mark.parametrize("kind", [0x65735546, 0x01021997])
def test_times_that_a_server_makes_up_do_not_count(file: Path, kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        os.utime(file)
        return real(fd, buffers, offset)

    monkeypatch.setattr(files, "filesystem_type", lambda _fd: kind)
    monkeypatch.setattr(os, "preadv", preadv)
    with whole_file(bytes(file)) as view:
        assert view == file.read_bytes()


def test_an_error_says_where(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def preadv(_fd: int, buffers: list[memoryview], offset: int) -> int:
        if offset:
            raise OSError(5, "Input/output error")
        return min(8192, len(buffers[0]))

    monkeypatch.setattr(os, "preadv", preadv)
    with file.open("rb") as opened, pytest.raises(InputError, match=r"^offset 8192: cannot read: Input/output error$"):
        read_regular(opened.fileno())
