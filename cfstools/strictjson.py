"""A strict JSON parser that rejects ambiguity and checks limits before parsing, and a canonical writer.

Of duplicate member names some parsers use the first and some the last; NaN is not JSON; deep nesting exhausts a
recursive parser's stack, and three bytes (``[],``) take ninety in memory. All of these are rejected.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Never

from cfstools.errors import FormatError, LimitExceeded
from cfstools.text import quoted
from cfstools.values import Value


class JsonLimits(Value):
    """Limits of a JSON text: bytes, nesting depth, number of values, characters of a string and of a number."""

    size: int
    depth: int
    values: int = 200_000
    string: int = 1 << 20
    number: int = 256


class NotJson(FormatError):
    """A text is not acceptable JSON."""


# Possessive, so that an unterminated string is scanned once, not again from each of its characters.
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]|,|[-+.0-9A-Za-z]++', re.DOTALL)


def _as_it_is(members: dict[str, object]) -> object:
    return members


def parse_json(data: bytes, limits: JsonLimits, shrink: Callable[[dict[str, object]], object] = _as_it_is) -> object:
    """Parse a JSON text (RFC 8259, UTF-8) in linear time.

    What *shrink* makes of an object takes its place at once, so that many of them need less memory.

    Raises LimitExceeded beyond *limits*, and NotJson for invalid JSON, duplicate member names, NaN and infinities, and
    numbers that overflow a float.
    """
    import json  # noqa: PLC0415 - most verbs that can read a signature meet none

    if len(data) > limits.size:
        raise LimitExceeded(f"a JSON text of {len(data)} bytes is larger than {limits.size}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotJson(f"not UTF-8 at byte {error.start}") from None
    _check_tokens(text, limits)
    try:
        return json.loads(
            text,
            object_pairs_hook=lambda pairs: shrink(_members(pairs)),
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except ValueError as error:
        raise NotJson(f"not JSON: {error}") from None


def dump_canonical(value: object) -> bytes:
    """*value* in its one canonical form: members sorted by name, no white space, ASCII only."""
    import json  # noqa: PLC0415 - most verbs that can read a signature meet none

    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _check_tokens(text: str, limits: JsonLimits) -> None:
    """Raise LimitExceeded for a text beyond *limits*; invalid JSON is left to the parser."""
    depth = 0
    values = 1
    for token in _TOKEN.finditer(text):
        first = text[token.start()]
        if first in "[{":
            depth += 1
            values += 1
            if depth > limits.depth:
                raise LimitExceeded(f"JSON nested deeper than {limits.depth}")
        elif first in "]}":
            depth -= 1
        elif first == ",":
            values += 1
        elif first == '"':
            if token.end() - token.start() - 2 > limits.string:
                raise LimitExceeded(f"a JSON string of more than {limits.string} characters")
        elif token.end() - token.start() > limits.number:
            raise LimitExceeded(f"a JSON number of more than {limits.number} characters")
    if values > limits.values:
        raise LimitExceeded(f"more than {limits.values} values in a JSON text")


def _members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = sorted(name for name, _ in pairs)
        twice = next(name for name, after in pairwise(names) if name == after)
        raise NotJson(f"the key {quoted(twice)} occurs twice in one object")
    return members


def _no_constant(name: str) -> Never:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value
