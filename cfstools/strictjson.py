"""The one reader of JSON from outside: nothing ambiguous, and limits that hold before the text is parsed.

Of two members with one name some readers take the first and others the last; NaN is no JSON; deep nesting exhausts a
recursive parser's stack, and three bytes (``[],``) become ninety in memory. So all of these are refused.
"""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise
from typing import Never

from cfstools.errors import FormatError, LimitExceeded
from cfstools.text import quoted
from cfstools.values import Value


class JsonLimits(Value):
    """What a text may have at most: bytes, levels of nesting, values, and characters of one string or number."""

    size: int
    depth: int
    values: int = 200_000
    string: int = 1 << 20
    number: int = 256


class NotJson(FormatError):
    """A text is not JSON as it is accepted here."""


# Possessive, so that a string without an end is passed over once and not again from each of its characters.
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]|,|[-+.0-9A-Za-z]++', re.DOTALL)


def parse_json(data: bytes, limits: JsonLimits) -> object:
    """The value that a JSON text (RFC 8259, UTF-8) holds.

    Takes time in proportion to the size. Raises LimitExceeded beyond *limits*, and NotJson for anything that is not
    JSON, a member name that stands twice in one object, and numbers that JSON does not have or a float cannot hold.
    """
    if len(data) > limits.size:
        raise LimitExceeded(f"a JSON text of {len(data)} bytes is larger than {limits.size}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotJson(f"not UTF-8 at byte {error.start}") from None
    _check_tokens(text, limits)
    try:
        return json.loads(text, object_pairs_hook=_members, parse_constant=_no_constant, parse_float=_finite)
    except ValueError as error:
        raise NotJson(f"not JSON: {error}") from None


def _check_tokens(text: str, limits: JsonLimits) -> None:
    """Refuse a text beyond *limits*. Where it is not JSON the parser finds that, not later than it goes astray here."""
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
        raise NotJson(f"the key {quoted(twice)} stands twice in one object")
    return members


def _no_constant(name: str) -> Never:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value
