"""What headers say: lengths, ranges, waits and warnings, and what is refused in them."""

from __future__ import annotations

import pytest

from cfstools.errors import NetworkError
from cfstools.transport import headers
from cfstools.transport.headers import ContentRange, Values


def values(*lines: str) -> Values:
    pairs = [line.split(": ", 1) for line in lines]
    return lambda name: [value for key, value in pairs if key.lower() == name]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((), None),
        (("Content-Length: 0",), 0),
        (("Content-Length:  12 ",), 12),
        (("Transfer-Encoding: chunked",), None),
        (("Transfer-Encoding: Chunked ",), None),
    ],
)
def test_lengths(lines: tuple[str, ...], expected: int | None) -> None:
    assert headers.body_length(values(*lines)) == expected


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        (("Content-Length: 1", "Content-Length: 1"), "two lengths"),
        (("Content-Length: 1", "Content-Length: 2"), "two lengths"),
        (("Content-Length: 1, 1",), "a length of '1, 1'"),
        (("Content-Length: -1",), "a length of '-1'"),
        (("Content-Length: +1",), r"a length of '\+1'"),
        (("Content-Length: 0x1",), "a length of '0x1'"),
        (("Content-Length: \u0663",), "a length of"),
        (("Content-Length: 9223372036854775808",), "a length of"),
        (("Content-Length: 99999999999999999999999",), "a length of"),
        (("Content-Length: 1", "Transfer-Encoding: chunked"), "does not say clearly"),
        (("Transfer-Encoding: gzip, chunked",), "does not say clearly"),
        (("Transfer-Encoding: identity",), "does not say clearly"),
        (("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), "does not say clearly"),
    ],
)
def test_lengths_that_are_refused(lines: tuple[str, ...], what: str) -> None:
    with pytest.raises(NetworkError, match=what):
        headers.body_length(values(*lines))


def test_encodings() -> None:
    headers.refuse_encoding(values("Content-Encoding: identity"))
    headers.refuse_encoding(values())
    with pytest.raises(NetworkError, match="the contents are encoded as 'gzip'") as raised:
        headers.refuse_encoding(values("Content-Encoding: gzip"))
    assert raised.value.hint == "a proxy compresses"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes 0-0/1", ContentRange(0, 1, 1)),
        ("bytes 5-8/9", ContentRange(5, 9, 9)),
        ("bytes 5-8/*", ContentRange(5, 9, None)),
    ],
)
def test_ranges(text: str, expected: ContentRange) -> None:
    assert headers.content_range(values(f"Content-Range: {text}")) == expected


@pytest.mark.parametrize(
    "lines",
    [
        (),
        ("Content-Range: bytes 5-4/9",),
        ("Content-Range: bytes 0-9/9",),
        ("Content-Range: bytes */9",),
        ("Content-Range: items 0-1/9",),
        ("Content-Range: bytes 0-1/9", "Content-Range: bytes 0-1/9"),
        ("Content-Range: bytes 0-99999999999999999999/*",),
    ],
)
def test_ranges_that_are_none(lines: tuple[str, ...]) -> None:
    with pytest.raises(NetworkError, match="the answer "):
        headers.content_range(values(*lines))


DATE = "Date: Sat, 28 Nov 2026 20:00:00 GMT"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((), None),
        (("Retry-After: 7",), 7),
        (("Retry-After: Sat, 28 Nov 2026 20:01:30 GMT", DATE), 90),
        (("Retry-After: Sat, 28 Nov 2026 19:01:30 GMT", DATE), 0),
        (("Retry-After: Sat, 28 Nov 2026 20:01:30 GMT",), None),
        (("Retry-After: Sat, 28 Nov 2026 20:01:30 -0000", DATE), None),
        (("Retry-After: soon",), None),
        (("Retry-After: -1",), None),
    ],
)
def test_waits(lines: tuple[str, ...], expected: float | None) -> None:
    assert headers.retry_after(values(*lines)) == expected


def test_warnings() -> None:
    given = values(
        'Warning: 299 - "say \\"it\\""', 'Warning: 110 x "stale"', "Warning: 299 - none", 'Warning: 299 a "b" "date"'
    )
    assert headers.warnings(given) == ['say "it"', "b"]


def test_types() -> None:
    assert headers.mime_type(values("Content-Type: Application/JSON; charset=x")) == "application/json"
    assert headers.mime_type(values()) == ""
