"""Places: one test body over a directory, memory, and both with faults that must not show."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cfstools.errors import InputError
from cfstools.streams.buffered import read_up_to
from cfstools.streams.spool import RangeReader
from cfstools.transport.base import MAX_NAME, PlaceAccess, Retry, Span, Target, check_name, read_whole
from cfstools.transport.directory import DirectoryTarget
from cfstools.transport.faults import Faults, FaultyTarget
from cfstools.transport.memory import MemoryTarget

DATA = bytes(range(256)) * 40
HARMLESS = Faults(seed=3, short=0.8, delays=0.5, delay=0)


def directory(tmp_path: Path) -> DirectoryTarget:
    (tmp_path / "place").mkdir()
    return DirectoryTarget(bytes(tmp_path / "place"))


MAKERS: dict[str, Callable[[Path], Target]] = {
    "directory": directory,
    "memory": lambda _: MemoryTarget(),
    "slow, short directory": lambda tmp_path: FaultyTarget(directory(tmp_path), HARMLESS),
    "slow, short memory": lambda _: FaultyTarget(MemoryTarget(), HARMLESS),
}


@pytest.fixture(params=MAKERS)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    return MAKERS[request.param](tmp_path)


def put(target: Target, name: str, data: bytes) -> None:
    target.put(name, io.BytesIO(data).read, len(data))


def test_what_was_put_is_there(target: Target) -> None:
    put(target, "a", b"")
    put(target, "deep/er/b", DATA)
    assert target.size("a") == 0
    assert target.size("deep/er/b") == len(DATA)
    assert read_whole(target, "deep/er/b", Span(0, len(DATA))) == DATA
    assert read_whole(target, "deep/er/b", Span(300, 7)) == DATA[300:307]
    assert target.read("a", Span(0, 10)) == b""
    assert target.read("deep/er/b", Span(len(DATA), 10)) == b""
    assert sorted(target.names()) == ["a", "deep/er/b"]
    target.close()


def test_a_read_gives_at_least_a_byte_and_no_more_than_asked_for(target: Target) -> None:
    put(target, "b", DATA)
    for offset in range(0, len(DATA), 997):
        part = target.read("b", Span(offset, 100))
        assert part
        assert DATA[offset : offset + 100].startswith(part)


def test_what_is_not_there(target: Target) -> None:
    put(target, "a", b"x")
    for name in ("b", "a/b", "b/c"):
        assert target.size(name) is None
        with pytest.raises(InputError, match="not found") as raised:
            target.read(name, Span(0, 1))
        assert raised.value.subject == target.describe(name)
    with pytest.raises(InputError, match="ends at 1, 4 bytes are missing"):
        read_whole(target, "a", Span(0, 5))


def test_a_name_is_replaced_as_a_whole_or_not_at_all(target: Target) -> None:
    put(target, "a", b"old")
    with pytest.raises(InputError, match="5 of 9 bytes are missing"):
        target.put("a", io.BytesIO(b"newe").read, 9)
    with pytest.raises(InputError, match="more than the 3 bytes expected"):
        target.put("a", io.BytesIO(b"longer").read, 3)
    with pytest.raises(KeyboardInterrupt):
        target.put("a", interrupted, 3)
    assert read_whole(target, "a", Span(0, 3)) == b"old"
    assert list(target.names()) == ["a"]
    put(target, "a", b"new")
    assert read_whole(target, "a", Span(0, 3)) == b"new"


def interrupted(_count: int) -> bytes:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "..", "a/../b", ".", "a/./b", "a\0b", "n" * (MAX_NAME + 1)])
def test_names_that_lead_elsewhere(name: str, target: Target) -> None:
    with pytest.raises(InputError, match="cannot be a name"):
        target.size(name)
    with pytest.raises(InputError, match="cannot be a name"):
        target.read(name, Span(0, 1))
    with pytest.raises(InputError, match="cannot be a name"):
        put(target, name, b"")
    assert not list(target.names())
    with pytest.raises(InputError, match="cannot be a name"):
        check_name(name)


def test_a_place_is_read_at_any_offset_as_a_stream(target: Target) -> None:
    put(target, "b", DATA)
    access = PlaceAccess(target, "b", Retry(attempts=3))
    reader = RangeReader(access, 100, 1000)
    assert reader.skip(10)
    assert read_up_to(reader.read, 2000) == DATA[110:1100]
    access.close()
    assert target.size("b") == len(DATA)


# The directory


def test_no_link_is_followed_in_a_directory(tmp_path: Path) -> None:
    target = directory(tmp_path)
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "place/link").symlink_to("../secret")
    (tmp_path / "place/up").symlink_to("..")
    for name in ("link", "up/secret"):
        with pytest.raises(InputError, match="cannot open"):
            target.read(name, Span(0, 6))
        with pytest.raises(InputError, match="cannot open"):
            put(target, name, b"changed")
    with pytest.raises(InputError, match="cannot "):
        put(target, "up/other/file", b"new")
    assert sorted(os.listdir(tmp_path)) == ["place", "secret"]
    assert (tmp_path / "secret").read_bytes() == b"secret"
    assert not list(target.names())


def test_only_regular_files_are_in_a_directory(tmp_path: Path) -> None:
    target = directory(tmp_path)
    os.mkfifo(tmp_path / "place/fifo")
    (tmp_path / "place/directory").mkdir()
    for name in ("fifo", "directory"):
        with pytest.raises(InputError, match="is not a regular file"):
            target.size(name)
        with pytest.raises(InputError, match="is not a regular file"):
            put(target, name, b"")
    (tmp_path / "place/.out.0123456789abcdef.tmp").write_bytes(b"of a killed writer")
    assert not list(target.names())
    with pytest.raises(InputError, match="cannot open"):
        DirectoryTarget(bytes(tmp_path / "nowhere"))


def test_a_closed_directory_holds_nothing(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    target = directory(tmp_path)
    put(target, "a/b", b"x")
    assert target.read("a/b", Span(0, 1)) == b"x"
    target.close()
    target.close()
    assert len(os.listdir("/proc/self/fd")) == before
