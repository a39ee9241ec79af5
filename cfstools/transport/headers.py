"""What headers of answers say, apart from any connection: lengths, ranges, waits. Wrong ones raise ``NetworkError``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from cfstools.errors import NetworkError
from cfstools.text import quoted

Values = Callable[[str], Sequence[str]]
"""Gives all values of a header, one for each line of this name."""

MAX_SIZE = (1 << 63) - 1
_NUMBER = re.compile(r"[0-9]{1,19}")
_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/(?:([0-9]{1,19})|\*)")
_WARNING = re.compile(r'299 [^ ]+ "((?:[^"\\]|\\.)*)"')


class ContentRange(NamedTuple):
    """The part of a body that an answer holds, from *start* up to *end*; *size* of the whole, if it says so."""

    start: int
    end: int
    size: int | None


def body_length(values: Values) -> int | None:
    """How many bytes the body has; ``None`` where only its end tells. Two lengths, or two ways to tell, are refused."""
    lengths, codings = values("content-length"), values("transfer-encoding")
    if len(lengths) > 1:
        raise NetworkError("the answer has two lengths")
    if codings and (lengths or [coding.strip().lower() for coding in codings] != ["chunked"]):
        raise NetworkError("the answer does not say clearly how long it is")
    if not lengths:
        return None
    text = lengths[0].strip(" \t")
    if not _NUMBER.fullmatch(text) or int(text) > MAX_SIZE:
        raise NetworkError(f"the answer has a length of {quoted(text)}")
    return int(text)


def refuse_encoding(values: Values) -> None:
    """Raise ``NetworkError`` for a body that is encoded, though we ask for it as it is."""
    for value in values("content-encoding"):
        if value.strip().lower() not in {"", "identity"}:
            raise NetworkError(f"the contents are encoded as {quoted(value)}", hint="a proxy compresses")


def content_range(values: Values) -> ContentRange:
    """The part that a 206 says it holds. Several parts in one body, and none, are refused."""
    found = values("content-range")
    match = _RANGE.fullmatch(found[0].strip()) if len(found) == 1 else None
    if match is None:
        raise NetworkError("the answer does not say which part it is")
    start, last, size = int(match[1]), int(match[2]), match[3] and int(match[3])
    if start > last or last >= (size or MAX_SIZE):
        raise NetworkError(f"the answer says it is the part {quoted(found[0])}")
    return ContentRange(start, last + 1, size or None)


def retry_after(values: Values) -> float | None:
    """How many seconds the server asks to wait. A date is compared with the server's own clock."""
    for value in values("retry-after"):
        if _NUMBER.fullmatch(value.strip()):
            return float(value)
        try:
            date = parsedate_to_datetime(value)
            now = parsedate_to_datetime(values("date")[0])
            return max(0.0, (date - now).total_seconds())
        except (ValueError, IndexError, TypeError, OverflowError):
            continue
    return None


def warnings(values: Values) -> list[str]:
    """The texts that a server wants to be shown (RFC 7234, code 299)."""
    found = [_WARNING.match(value.strip()) for value in values("warning")]
    return [re.sub(r"\\(.)", r"\1", match[1]) for match in found if match]


def mime_type(values: Values) -> str:
    """The type of the body without its parameters, in lower case; empty where there is none."""
    found = values("content-type")
    return found[0].partition(";")[0].strip().lower() if found else ""
