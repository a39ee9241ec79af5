"""Places: one test body over a directory, memory, and both with faults that must not show."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from cfstools.errors import ContentsWrong, InputError, NetworkError, NotFound, SourceChanged, TransientError
from cfstools.streams.buffered import Read, read_up_to
from cfstools.streams.spool import RangeReader
from cfstools.transport.base import MAX_NAME, BytesBody, Place, Span, Target, check_name
from cfstools.transport.directory import DirectoryTarget
from cfstools.transport.faults import Faults, FaultyTarget
from cfstools.transport.memory import MemoryTarget
from cfstools.transport.reading import PlaceAccess, SpanReader, open_at, read_whole
from cfstools.transport.retry import Clock, RetryRules

T = TypeVar("T")
DATA = bytes(range(256)) * 40
HARMLESS = Faults(seed=3, errors=0.2, short=0.5, delays=0.5, delay=0)
# Many attempts that take no time.
RULES = RetryRules(attempts=60, progress=1)
CLOCK = Clock(sleep=lambda _seconds: None)


def directory(tmp_path: Path) -> DirectoryTarget:
    (tmp_path / "place").mkdir()
    return DirectoryTarget(bytes(tmp_path / "place"))


MAKERS: dict[str, Callable[[Path], Target]] = {
    "directory": directory,
    "memory": lambda _: MemoryTarget(),
    "slow, broken directory": lambda tmp_path: FaultyTarget(directory(tmp_path), HARMLESS),
    "slow, broken memory": lambda _: FaultyTarget(MemoryTarget(), HARMLESS),
}


@pytest.fixture(params=MAKERS)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    return MAKERS[request.param](tmp_path)


def put(target: Target, name: str, data: bytes) -> bool:
    return target.put(name, BytesBody(data), replace=True)


def lasting(call: Callable[[], T]) -> T:
    """What a call gives in the end."""
    while True:
        with suppress(TransientError):
            return call()


def read(place: Place, name: str, span: Span) -> bytes:
    with SpanReader([open_at(place, name)], span, rules=RULES, clock=CLOCK) as reader:
        return read_up_to(reader.read, span.size + 1)


def test_what_was_put_is_there(target: Target) -> None:
    assert lasting(lambda: put(target, "a", b""))
    assert lasting(lambda: put(target, "deep/er/b", DATA))
    assert lasting(lambda: target.size("a")) == 0
    assert lasting(lambda: target.size("deep/er/b")) == len(DATA)
    assert read(target, "deep/er/b", Span(0, len(DATA))) == DATA
    assert read(target, "deep/er/b", Span(300, 307)) == DATA[300:307]
    assert read(target, "a", Span(0, 0)) == b""
    assert read_whole(target, "deep/er/b", len(DATA), rules=RULES, clock=CLOCK) == DATA
    assert read_whole(target, "a", 0, rules=RULES, clock=CLOCK) == b""
    assert sorted(lasting(target.names)) == [("a", 0), ("deep/er/b", len(DATA))]
    target.close()


def test_names_below_a_directory(target: Target) -> None:
    for name in ("a", "objects/ab/c", "objects/ab/d", "objects2/x", "objects/b"):
        lasting(partial(put, target, name, b"12"))
    assert sorted(lasting(lambda: target.names("objects"))) == [
        ("objects/ab/c", 2),
        ("objects/ab/d", 2),
        ("objects/b", 2),
    ]
    assert sorted(lasting(lambda: target.names("objects/ab"))) == [("objects/ab/c", 2), ("objects/ab/d", 2)]
    assert list(lasting(lambda: target.names("nothing"))) == []
    assert list(lasting(lambda: target.names("a"))) == []


def test_what_is_not_there(target: Target) -> None:
    lasting(lambda: put(target, "a", b"x"))
    for name in ("b", "a/b", "b/c"):
        assert lasting(partial(target.size, name)) is None
        with pytest.raises(NotFound, match="not found") as raised:
            read(target, name, Span(0, 1))
        assert raised.value.subject == target.describe(name)
    with pytest.raises(ContentsWrong, match="is shorter there than it should be"):
        read(target, "a", Span(0, 5))
    with pytest.raises(NetworkError, match="is longer than 2 bytes"):
        lasting(lambda: put(target, "a", b"xyz")) and read_whole(target, "a", 2, rules=RULES, clock=CLOCK)


def test_a_name_is_replaced_as_a_whole_or_not_at_all(target: Target) -> None:
    lasting(lambda: put(target, "a", b"old"))
    with pytest.raises(InputError, match="5 of 9 bytes are missing"):
        lasting(lambda: target.put("a", Other(b"newe", 9), replace=True))
    with pytest.raises(InputError, match="more than the 3 bytes expected"):
        lasting(lambda: target.put("a", Other(b"longer", 3), replace=True))
    with pytest.raises(KeyboardInterrupt):
        lasting(lambda: target.put("a", Interrupted(), replace=True))
    assert not lasting(lambda: target.put("a", BytesBody(b"not"), replace=False))
    assert read(target, "a", Span(0, 3)) == b"old"
    assert list(lasting(target.names)) == [("a", 3)]
    lasting(lambda: put(target, "a", b"new"))
    assert read(target, "a", Span(0, 3)) == b"new"


class Other:
    """A body that is not as long as it says."""

    def __init__(self, data: bytes, size: int) -> None:
        self._body = BytesBody(data)
        self.size = size
        self.open = self._body.open


class Interrupted:
    size = 3

    @contextmanager
    def open(self) -> Iterator[Read]:
        raise KeyboardInterrupt
        yield


def test_a_change_while_it_is_read_is_told(target: Target) -> None:
    lasting(lambda: put(target, "a", b"old contents"))
    opener = open_at(target, "a")
    with SpanReader([opener], Span(0, 3), rules=RULES, clock=CLOCK) as reader:
        assert read_up_to(reader.read, 3) == b"old"
    lasting(lambda: put(target, "a", b"new and other"))
    with (
        pytest.raises(SourceChanged, match="changed while it was read"),
        SpanReader([opener], Span(3, 12), rules=RULES, clock=CLOCK) as reader,
    ):
        reader.read(3)


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "..", "a/../b", ".", "a/./b", "a\0b", "n" * (MAX_NAME + 1)])
def test_names_that_lead_elsewhere(name: str, target: Target) -> None:
    with pytest.raises(InputError, match="cannot be a name"):
        lasting(lambda: target.size(name))
    with pytest.raises(InputError, match="cannot be a name"):
        read(target, name, Span(0, 1))
    with pytest.raises(InputError, match="cannot be a name"):
        lasting(lambda: put(target, name, b""))
    assert not list(lasting(target.names))
    with pytest.raises(InputError, match="cannot be a name"):
        check_name(name)


def test_a_place_is_read_at_any_offset_as_a_stream(target: Target) -> None:
    lasting(lambda: put(target, "b", DATA))
    access = PlaceAccess(target, "b", len(DATA), rules=RULES, clock=CLOCK)
    reader = RangeReader(access, 100, 1000)
    assert reader.skip(10)
    assert read_up_to(reader.read, 2000) == DATA[110:1100]
    assert access.pread(10, len(DATA) - 3) == DATA[-3:]
    assert access.pread(10, len(DATA)) == b""
    access.close()
    assert lasting(lambda: target.size("b")) == len(DATA)


# The directory


def test_no_link_is_followed_in_a_directory(tmp_path: Path) -> None:
    target = directory(tmp_path)
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "place/link").symlink_to("../secret")
    (tmp_path / "place/up").symlink_to("..")
    for name in ("link", "up/secret"):
        with pytest.raises(InputError, match="cannot open"):
            read(target, name, Span(0, 6))
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
    assert read(target, "a/b", Span(0, 1)) == b"x"
    target.close()
    target.close()
    assert len(os.listdir("/proc/self/fd")) == before
