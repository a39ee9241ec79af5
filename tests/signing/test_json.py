from __future__ import annotations

import contextlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfstools.errors import SignatureInvalid
from cfstools.signing.statement import MAX_DEPTH, load_object
from cfstools.strictjson import dump_canonical

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.text(max_size=5)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def load(data: bytes) -> dict[str, object]:
    return load_object(data, limit=1000, where="envelope")


def test_canonical_form() -> None:
    assert dump_canonical({"b": [1, "é\n"], "a": {"z": None, "y": True}}) == (
        b'{"a":{"y":true,"z":null},"b":[1,"\\u00e9\\n"]}'
    )


@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=4))
def test_what_is_written_is_read(value: dict[str, object]) -> None:
    data = dump_canonical(value)
    assert load_object(data, limit=len(data), where="x") == value
    assert dump_canonical(json.loads(data)) == data


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "not JSON: Expecting value: line 1 column 1 (char 0)"),
        (b"{", "not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b"{} x", "not JSON: Extra data: line 1 column 4 (char 3)"),
        (b"[]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"\xff{}", "not UTF-8 at byte 0"),
        (b"\xef\xbb\xbf{}", "not JSON: Unexpected UTF-8 BOM (decode using utf-8-sig): line 1 column 1 (char 0)"),
        ('{"a":1}'.encode("utf-16"), "not UTF-8 at byte 0"),
        (b'{"a":1,"a":1}', "the key 'a' occurs twice in one object"),
        (b'{"a":{"b":1,"\\u0062":2}}', "the key 'b' occurs twice in one object"),
        (b'{"a":NaN}', "not JSON: NaN is not a JSON number"),
        (b'{"a":-Infinity}', "not JSON: -Infinity is not a JSON number"),
        (b'{"a":1e999}', "not JSON: a number is too large"),
        (b'{"a":"\n"}', "not JSON: Invalid control character at: line 1 column 7 (char 6)"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, f"JSON nested deeper than {MAX_DEPTH}"),
        (b'{"a":"' + b"x" * 1000 + b'"}', "a JSON text of 1008 bytes is larger than 1000"),
    ],
)
def test_refused(data: bytes, what: str) -> None:
    with pytest.raises(SignatureInvalid, match=f"^envelope: {re.escape(what)}$"):
        load(data)


def test_a_number_of_too_many_digits() -> None:
    with pytest.raises(SignatureInvalid):
        load_object(b'{"a":' + b"1" * 5000 + b"}", limit=10000, where="envelope")


def test_a_million_brackets() -> None:
    with pytest.raises(SignatureInvalid, match="nested"):
        load_object(b"[" * 2**20, limit=2**20, where="envelope")


def test_brackets_in_strings_are_text() -> None:
    value = {"a": "[" * 50 + '\\"{' * 50}
    assert load(dump_canonical(value)) == value


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:\\u0123e-. ', max_size=60).map(str.encode))
def test_any_bytes_are_an_object_or_refused(data: bytes) -> None:
    with contextlib.suppress(SignatureInvalid):
        assert isinstance(load(data), dict)
