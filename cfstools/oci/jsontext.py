"""Strict JSON from outside: bounded in size and depth, no key twice, typed access with the place in errors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Never

from cfstools.errors import CfsError, LimitExceeded, OciError

MAX_JSON = 4 * 1024 * 1024
MAX_NESTING = 64

_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


@contextmanager
def within(place: str) -> Iterator[None]:
    """Put *place* before where each :class:`CfsError` that leaves the block says it happened, unless it is that."""
    try:
        yield
    except CfsError as error:
        if error.where != place:
            error.where = f"{place}: {error.where}" if error.where else place
        raise


def parse_json(data: bytes) -> object:
    """The value a JSON text holds, UTF-8 only.

    Raises :class:`LimitExceeded` beyond 4 MiB or 64 levels, :class:`OciError` for anything that is not JSON, for
    an object with one key twice (which tools read differently) and for numbers JSON does not have.
    """
    if len(data) > MAX_JSON:
        raise LimitExceeded(f"a JSON text of {len(data)} bytes is larger than {MAX_JSON}")
    _check_nesting(data)
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_members, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise OciError(f"not UTF-8 at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise OciError(f"not JSON: {error}") from error


def _check_nesting(data: bytes) -> None:
    depth = 0
    for token in _TOKEN.finditer(data):
        first = token.group()[:1]
        if first in b"[{":
            depth += 1
            if depth > MAX_NESTING:
                raise LimitExceeded(f"JSON nested deeper than {MAX_NESTING}")
        elif first in b"]}":
            depth -= 1


def _members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        keys = sorted(key for key, _ in pairs)
        twice = next(key for key, after in pairwise(keys) if key == after)
        raise OciError(f"the key {quoted(twice)} stands twice in one object")
    return members


def _no_constant(name: str) -> Never:
    raise ValueError(f"{name} is no JSON number")


def quoted(text: str) -> str:
    """Text from outside as part of one line, cut where it would drown the message."""
    return ascii(text if len(text) <= 150 else text[:147] + "...")


class Fields:
    """The members of a JSON object, by type; ``where`` is its place for errors (``"layers[2]"``).

    A member that is absent or ``null`` gives ``None`` (or nothing); one of the wrong type raises :class:`OciError`.
    """

    def __init__(self, value: object, where: str) -> None:
        self.where = where
        if not isinstance(value, dict):
            raise OciError("not a JSON object", where=where or None)
        self._members: dict[str, object] = value

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def place(self, name: str) -> str:
        """Where a member stands."""
        return f"{self.where}.{name}" if self.where else name

    def text(self, name: str) -> str | None:
        """A string."""
        value = self._members.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise OciError("not a string", where=self.place(name))
        return _whole(value, self.place(name))

    def required_text(self, name: str) -> str:
        """A string that must be there."""
        value = self.text(name)
        if value is None:
            raise OciError("missing", where=self.place(name))
        return value

    def number(self, name: str) -> int:
        """An integer that must be there, 0 or more and below 2^63."""
        value = self._members.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
            raise OciError("missing" if value is None else "not a size", where=self.place(name))
        return value

    def objects(self, name: str) -> list[Fields]:
        """An array of objects."""
        return [Fields(value, f"{self.place(name)}[{number}]") for number, value in enumerate(self._array(name))]

    def member(self, name: str) -> Fields | None:
        """One object."""
        value = self._members.get(name)
        return None if value is None else Fields(value, self.place(name))

    def texts(self, name: str) -> list[str]:
        """An array of strings."""
        place = self.place(name)
        values = []
        for number, value in enumerate(self._array(name)):
            if not isinstance(value, str):
                raise OciError("not a string", where=f"{place}[{number}]")
            values.append(_whole(value, f"{place}[{number}]"))
        return values

    def text_map(self, name: str) -> Mapping[str, str]:
        """An object of strings, such as annotations."""
        value = self._members.get(name)
        if value is None:
            return {}
        fields = Fields(value, self.place(name))
        return {_whole(key, fields.where): fields.text(key) or "" for key in fields._members}

    def _array(self, name: str) -> list[object]:
        value = self._members.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise OciError("not an array", where=self.place(name))
        return value


def _whole(text: str, where: str) -> str:
    """Refuse half surrogate pairs, which JSON can escape but no output can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise OciError("half a surrogate pair in a string", where=where) from error
    return text
