"""JSON as signatures need it: one way to write a value, and a reader that lets nothing ambiguous through."""

from __future__ import annotations

import json
import math
import re

from cfstools.errors import SignatureInvalid

MAX_DEPTH = 32

_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")


def dump_canonical(value: object) -> bytes:
    """*value* in its one canonical form: members sorted by name, no white space, ASCII only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def load_object(data: bytes, *, limit: int, where: str) -> dict[str, object]:
    """Parse *data* (UTF-8) as one JSON object.

    ``SignatureInvalid`` for more than *limit* bytes, text that is not JSON (RFC 8259), numbers that are not
    finite, nesting beyond ``MAX_DEPTH``, and a member name that appears twice: of two equal names one reader
    takes the first and another the last.
    """
    if len(data) > limit:
        raise SignatureInvalid(f"{len(data)} bytes, at most {limit} are accepted", where=where)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SignatureInvalid(f"not UTF-8 at byte {error.start}", where=where) from None
    _bound_depth(text, where)
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise SignatureInvalid(f"not JSON at character {error.pos}", where=where) from None
    except ValueError as error:
        raise SignatureInvalid(str(error), where=where) from None
    if not isinstance(value, dict):
        raise SignatureInvalid("not a JSON object", where=where)
    return value


def _bound_depth(text: str, where: str) -> None:
    """Refuse deep nesting before the recursive parser sees it."""
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            raise SignatureInvalid(f"nested deeper than {MAX_DEPTH}", where=where)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member name appears twice")
    return members


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value
