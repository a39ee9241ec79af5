"""Traces: written whole, read with limits, trusted in nothing."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfstools.errors import FormatError, InputError, LimitExceeded
from cfstools.mount.lazy import trace as trace_module
from cfstools.mount.lazy.trace import Recorder, Touch, format_trace, parse_trace, write_trace
from cfstools.transport.retry import Clock
from cfstools.verity import object_path
from tests.mount.lazy.making import make_objects

OBJECTS = list(make_objects(60, *range(1, 20)))
IMAGE = b"i" * 32


def test_what_is_written_is_read(tmp_path: Path) -> None:
    now = 5.0
    recorder = Recorder(Clock(now=lambda: now))
    for digest in OBJECTS[:4]:
        recorder.note(digest)
        now += 0.25
    recorder.note(OBJECTS[0])
    touches = recorder.touches()
    assert touches == [Touch(digest, 250 * number) for number, digest in enumerate(OBJECTS[:4])]
    path = tmp_path / "image.trace"
    write_trace(bytes(path), IMAGE, touches)
    written = json.loads(path.read_bytes())
    assert written["schema"] == 1
    assert written["image"] == IMAGE.hex()
    assert written["objects"][1] == {"digest": OBJECTS[1].hex(), "ms": 250}
    assert parse_trace(path.read_bytes(), set(OBJECTS)) == OBJECTS[:4]
    assert parse_trace(format_trace(IMAGE, []), set(OBJECTS)) == []


def test_it_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        write_trace(bytes(tmp_path / "nowhere" / "trace"), IMAGE, [])
    (tmp_path / "trace").write_bytes(b"old")

    def broken() -> object:
        yield Touch(OBJECTS[0], 0)
        raise InputError("breaks")

    with pytest.raises(InputError):
        write_trace(bytes(tmp_path / "trace"), IMAGE, broken())  # type: ignore[arg-type]
    assert (tmp_path / "trace").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["trace"]


def test_lines_as_other_verbs_print_them() -> None:
    one, two, three = OBJECTS[:3]
    text = b"\n".join([object_path(one), two.hex().encode(), b"", b"sha256:" + three.hex().encode() + b" name"])
    assert parse_trace(text, set(OBJECTS)) == [one, two, three]
    assert parse_trace(text + b"\n" + object_path(one) + b"\r\n", set(OBJECTS)) == [one, two, three]
    assert parse_trace(b"", set(OBJECTS)) == []


def test_foreign_objects_are_passed_over() -> None:
    text = json.dumps({"schema": 1, "objects": [{"digest": "ab" * 32}, {"digest": OBJECTS[0].hex(), "ms": 1}]})
    assert parse_trace(text.encode(), set(OBJECTS)) == [OBJECTS[0]]
    odd = json.dumps(
        {"schema": 1, "objects": [1, None, "zz", [], {}, {"digest": 5}, {"digest": "x"}, {"digest": OBJECTS[1].hex()}]}
    )
    assert parse_trace(odd.encode(), set(OBJECTS)) == [OBJECTS[1]]


@pytest.mark.parametrize(
    "text",
    [b"no digest", b"{", b'{"schema": 2, "objects": []}', b'{"schema": 1}', b'{"schema":1,"objects":{}}', b"\0" * 100],
)
def test_what_is_no_trace_is_refused(text: bytes) -> None:
    with pytest.raises(FormatError):
        parse_trace(text, set(OBJECTS))


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_module, "MAX_TRACE", 2000)
    with pytest.raises(LimitExceeded):
        parse_trace(b" " * 2001, set(OBJECTS))
    monkeypatch.setattr(trace_module, "MAX_TRACE", 1 << 20)
    monkeypatch.setattr(trace_module, "MAX_ENTRIES", 5)
    with pytest.raises(LimitExceeded):
        parse_trace(b"\n".join(digest.hex().encode() for digest in OBJECTS), set(OBJECTS))
    with pytest.raises(LimitExceeded):
        parse_trace(format_trace(IMAGE, [Touch(digest, 0) for digest in OBJECTS]), set(OBJECTS))


@pytest.mark.parametrize("entry", [b"[],", b'{"digest":"aa"},', b'"a",', b"{},", b'{"digest":"' + b"ab" * 32 + b'"},'])
def test_a_large_trace_takes_memory_in_proportion(entry: bytes) -> None:
    text = b'{"schema":1,"objects":[' + entry * ((1 << 18) // len(entry)) + b"1]}"
    tracemalloc.start()
    try:
        parse_trace(text, set(OBJECTS))
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=200))
def test_any_bytes_are_a_trace_or_a_named_error(data: bytes) -> None:
    for text in (data, b'{"schema":1,"objects":[' + data + b"]}"):
        try:
            found = parse_trace(text, set(OBJECTS))
        except FormatError:
            continue
        assert set(found) <= set(OBJECTS)
