from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfstools.errors import OciError
from cfstools.oci.registry.challenges import MAX_CHALLENGES, Challenge, choose, parse_challenges, parse_token


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        (['Basic realm="x"'], [("basic", {"realm": "x"})]),
        (["basic"], [("basic", {})]),
        (
            ['BEARER realm="https://a.example/t?a=b",service="s, with comma",scope="repository:a/b:pull"'],
            [
                (
                    "bearer",
                    {"realm": "https://a.example/t?a=b", "service": "s, with comma", "scope": "repository:a/b:pull"},
                )
            ],
        ),
        (
            ["Bearer realm=https://a.example/t , Service=s"],
            [("bearer", {"realm": "https://a.example/t", "service": "s"})],
        ),
        (['Bearer realm="a\\"b\\\\c"'], [("bearer", {"realm": 'a"b\\c'})]),
        (['Bearer realm="a", Basic realm="b"'], [("bearer", {"realm": "a"}), ("basic", {"realm": "b"})]),
        (['Bearer realm="a"', 'Basic realm="b"'], [("bearer", {"realm": "a"}), ("basic", {"realm": "b"})]),
        (['Negotiate YWJj==, Basic realm="b"'], [("negotiate", {}), ("basic", {"realm": "b"})]),
        (['Bearer realm="a", realm="b"'], [("bearer", {"realm": "a"})]),
        (['Bearer realm="never closed'], [("bearer", {})]),
        (["", " , ,"], []),
        (["=", '"x"'], []),
    ],
)
def test_challenges_as_servers_write_them(headers: list[str], found: list[tuple[str, dict[str, str]]]) -> None:
    assert [tuple(one) for one in parse_challenges(headers)] == found


def test_bearer_goes_before_basic_which_needs_a_password() -> None:
    basic, bearer = Challenge("basic", {"realm": "a"}), Challenge("bearer", {"realm": "b"})
    assert choose([basic, bearer], has_password=True) == bearer
    assert choose([basic], has_password=True) == basic
    assert choose([basic], has_password=False) is None
    assert choose([Challenge("bearer", {}), basic], has_password=True) == basic
    assert choose([], has_password=True) is None


def test_hostile_headers_cost_little() -> None:
    start = time.thread_time()
    for header in (
        "Bearer " + "a=" * 50_000,
        'Bearer realm="' + "\\" * 99_999,
        "a " * 50_000,
        "," * 100_000,
        "a" * 100_000,
    ):
        assert len(parse_challenges([header] * 3)) <= MAX_CHALLENGES
    assert time.thread_time() - start < 5


@given(st.lists(st.text(max_size=80), max_size=3))
def test_any_header_is_read(headers: list[str]) -> None:
    assert len(parse_challenges(headers)) <= MAX_CHALLENGES


@pytest.mark.parametrize(
    ("body", "value", "lifetime"),
    [
        ({"token": "t"}, "t", 60),
        ({"access_token": "t", "expires_in": 300}, "t", 300),
        ({"token": "t", "access_token": "u", "expires_in": 1}, "t", 60),
        ({"token": "t", "expires_in": -5}, "t", 60),
        ({"token": "t", "expires_in": 1e30}, "t", 86_400),
        ({"token": "t", "expires_in": "soon"}, "t", 60),
        ({"token": "t", "expires_in": True}, "t", 60),
    ],
)
def test_answers_of_token_servers(body: object, value: str, lifetime: float) -> None:
    token = parse_token(json.dumps(body).encode())
    assert (token.value, token.lifetime) == (value, lifetime)
    assert value not in repr(token).removeprefix("Token")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"s3cret",
        b"[]",
        b"{}",
        b'{"token": 5}',
        b'{"token": ""}',
        b'{"token": "s3cret\\r\\nX: y"}',
        b'{"token": "s3 cret"}',
    ],
)
def test_answers_that_are_no_tokens_are_not_shown(data: bytes) -> None:
    with pytest.raises(OciError) as caught:
        parse_token(data)
    assert "s3" not in str(caught.value)
