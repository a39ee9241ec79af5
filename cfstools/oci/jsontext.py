"""The JSON of container images: strict parsing, and typed access to members that names the place in errors."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from cfstools import strictjson
from cfstools.errors import CfsError, OciError
from cfstools.streams.limits import MAX_JSON, MAX_NESTING

_LIMITS = strictjson.JsonLimits(size=MAX_JSON, depth=MAX_NESTING)


@contextmanager
def within(place: str) -> Iterator[None]:
    """Prefix the ``where`` of each :class:`CfsError` that leaves the block with *place*, unless it is that already."""
    try:
        yield
    except CfsError as error:
        if error.where != place:
            error.where = f"{place}: {error.where}" if error.where else place
        raise


def parse_json(data: bytes) -> object:
    """Parse a JSON text; a byte order mark before it is ignored.

    Raises :class:`LimitExceeded` for more than 4 MiB, 64 levels or the other limits of :class:`JsonLimits`, and
    :class:`OciError` for whatever else :func:`cfstools.strictjson.parse_json` refuses.
    """
    try:
        return strictjson.parse_json(data.removeprefix(codecs.BOM_UTF8), _LIMITS)
    except strictjson.NotJson as error:
        raise OciError(error.what) from error


class Fields:
    """Typed access to the members of a JSON object; ``where`` is its place for errors (``"layers[2]"``).

    A member that is absent or ``null`` reads as ``None`` or empty; one of the wrong type raises :class:`OciError`.
    """

    def __init__(self, value: object, where: str) -> None:
        self.where = where
        if not isinstance(value, dict):
            raise OciError("not a JSON object", where=where or None)
        self._members: dict[str, object] = value

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def place(self, name: str) -> str:
        """The place of a member, for errors."""
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

    def member(self, name: str) -> Fields | None:
        """One object."""
        value = self._members.get(name)
        return None if value is None else Fields(value, self.place(name))

    def texts(self, name: str) -> list[str]:
        """An array of strings."""
        place = self.place(name)
        values = []
        for number, value in enumerate(self.array(name)):
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

    def array(self, name: str) -> list[object]:
        """An array of anything."""
        value = self._members.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise OciError("not an array", where=self.place(name))
        return value


def _whole(text: str, where: str) -> str:
    """Refuse lone surrogates: JSON can escape them, but they cannot be encoded."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise OciError("a lone surrogate in a string", where=where) from error
    return text
