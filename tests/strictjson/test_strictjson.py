"""The strict JSON reader: what it takes is what json takes, each limit holds at the limit, and time grows with size."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfstools.errors import LimitExceeded
from cfstools.strictjson import JsonLimits, NotJson, parse_json
from tests.bounds import bounded

LIMITS = JsonLimits(size=1 << 22, depth=8, values=10, string=20, number=12)
ROOMY = JsonLimits(size=1 << 22, depth=64)


@pytest.mark.parametrize(
    ("most", "beyond", "what"),
    [
        (b"[" * 8 + b"]" * 8, b"[" * 9 + b"]" * 9, "nested deeper than 8"),
        (b'{"a":' * 8 + b"1" + b"}" * 8, b'{"a":' * 9 + b"1" + b"}" * 9, "nested deeper than 8"),
        (b"[1,2,3,4,5,6,7,8,9]", b"[1,2,3,4,5,6,7,8,9,0]", "more than 10 values"),
        (b"[[],[],[],[],0]", b"[[],[],[],[],[]]", "more than 10 values"),
        (b'["%s"]' % (b"x" * 20), b'["%s"]' % (b"x" * 21), "string of more than 20 characters"),
        (b'{"%s":1}' % (b"x" * 20), b'{"%s":1}' % (b"x" * 21), "string of more than 20 characters"),
        (b"123456789012", b"1234567890123", "number of more than 12 characters"),
        (b"-1.2345e-100", b"-1.23456e-100", "number of more than 12 characters"),
        (b"1" + b" " * ((1 << 22) - 1), b"1" + b" " * (1 << 22), "larger than"),
    ],
)
def test_each_limit_at_the_limit(most: bytes, beyond: bytes, what: str) -> None:
    assert parse_json(most, LIMITS) == json.loads(most)
    with pytest.raises(LimitExceeded, match=what):
        parse_json(beyond, LIMITS)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"nul",
        b"01",
        b"1.",
        b".5",
        b"+1",
        b"0x10",
        b"1e",
        b"'a'",
        b"[1,]",
        b"{,}",
        b'{"a"}',
        b'"\\x"',
        b'"\\u12"',
        b"//",
    ],
)
def test_what_json_is_not(text: bytes) -> None:
    with pytest.raises(NotJson, match=r"^not JSON: "):
        parse_json(text, ROOMY)


@pytest.mark.parametrize("text", [b"NaN", b"-Infinity", b"[Infinity]", b"1e400", b"-1e400"])
def test_numbers_that_json_does_not_have(text: bytes) -> None:
    with pytest.raises(NotJson, match=r"is not a JSON number|too large"):
        parse_json(text, ROOMY)


@pytest.mark.parametrize("text", [b'{"a":1,"a":1}', b'[{"\\u0061":1,"b":2,"a":3}]'])
def test_a_name_twice(text: bytes) -> None:
    with pytest.raises(NotJson, match="'a' occurs twice"):
        parse_json(text, ROOMY)


def _filled(piece: bytes, size: int, begin: bytes = b"", end: bytes = b"") -> bytes:
    return begin + piece * ((size - len(begin) - len(end)) // len(piece)) + end


MANY = {
    "escaped quotes without an end": (b'\\"', b'"', b""),
    "escaped quotes": (b'\\"', b'["', b'"]'),
    "backslashes": (b"\\\\", b'"', b""),
    "quotes": (b'"', b"", b""),
    "strings": (b'"",', b"[", b'""]'),
    "empty arrays": (b"[],", b"[", b"[]]"),
    "empty objects": (b"{},", b"[", b"{}]"),
    "objects": (b'{"a":0},', b"[", b"{}]"),
    "digits": (b"9", b"", b""),
    "fraction": (b"9", b"0.", b""),
    "letters": (b"a", b"", b""),
    "openings": (b"[", b"", b""),
    "closings": (b"]", b"", b""),
    "commas": (b",", b"", b""),
    "spaces": (b" ", b"", b""),
    "colons": (b":", b"", b""),
    "one name": (b'"a":1,', b"{", b'"b":1}'),
    "surrogates": (b"\\ud83d", b'"', b'"'),
}


@pytest.mark.parametrize("kind", MANY)
@pytest.mark.parametrize("size", [1 << 17, 1 << 22])
def test_any_text_takes_time_and_memory_by_its_size(kind: str, size: int) -> None:
    piece, begin, end = MANY[kind]
    data = _filled(piece, size, begin, end)
    with bounded(len(data)), contextlib.suppress(LimitExceeded, NotJson):
        parse_json(data, ROOMY)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_what_json_writes_is_read(value: object) -> None:
    assert parse_json(json.dumps(value).encode(), ROOMY) == value
    assert parse_json(json.dumps(value, ensure_ascii=False, indent=1).encode(), ROOMY) == value
