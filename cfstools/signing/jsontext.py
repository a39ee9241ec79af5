"""JSON as signatures need it: one way to write a value, and the strict reader with a signature's limits."""

from __future__ import annotations

import json

from cfstools.errors import FormatError, SignatureInvalid
from cfstools.strictjson import JsonLimits, parse_json

MAX_DEPTH = 32
MAX_VALUES = 1 << 14


def dump_canonical(value: object) -> bytes:
    """*value* in its one canonical form: members sorted by name, no white space, ASCII only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def load_object(data: bytes, *, limit: int, where: str) -> dict[str, object]:
    """Parse *data* as one JSON object of at most *limit* bytes.

    Raises SignatureInvalid for whatever :func:`~cfstools.strictjson.parse_json` refuses, and for other values.
    """
    limits = JsonLimits(size=limit, depth=MAX_DEPTH, values=MAX_VALUES)
    try:
        value = parse_json(data, limits)
    except FormatError as error:
        raise SignatureInvalid(error.what, where=where) from None
    if not isinstance(value, dict):
        raise SignatureInvalid("not a JSON object", where=where)
    return value
