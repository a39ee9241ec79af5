"""The base class of the results that verbs return, and their JSON form."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import Enum
from typing import ClassVar, TypeVar

from cfstools.values import Value

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]


class Report(Value):
    """Base of all reports: value objects whose fields are plain data or value objects.

    ``schema`` is incremented when a field is removed or changes its meaning, but not for new fields.
    """

    schema: ClassVar[int] = 1

    def to_dict(self) -> dict[str, Json]:
        """The report as JSON values, its ``schema`` number first. Bytes appear as hexadecimal text."""
        body = to_json(self)
        assert isinstance(body, dict)
        return {"schema": self.schema, **body}


AnyReport = TypeVar("AnyReport", bound=Report)


def from_dict(kind: type[AnyReport], told: Mapping[str, object]) -> AnyReport:
    """The report of a *kind* that another process has told as JSON values; what the kind has no field for is dropped.

    Its fields must be plain data, lists of texts, or what was left out.
    """
    values: dict[str, object] = {}
    for name in kind._fields:
        if name in told:
            value = told[name]
            values[name] = tuple(map(_from_json, value)) if isinstance(value, list) else value
    return kind(**values)


def _from_json(value: object) -> object:
    return LeftOut(**value) if isinstance(value, dict) else value


class LeftOut(Value):
    """Something of an image that could not be put on disk, or that a mount cannot show.

    *what* it is, of how many names or inodes, and the first of them, escaped as in dump texts, where that is known.
    """

    what: str
    count: int
    first: str | None = None


def to_json(value: object) -> Json:
    """Convert to JSON values: value objects by field, enums by value, bytes to hexadecimal text."""
    match value:
        case Enum():
            return to_json(value.value)
        case None | bool() | int() | float() | str():
            return value
        case bytes():
            return value.hex()
        case Mapping():
            return {str(to_json(key)): to_json(item) for key, item in value.items()}
        case Sequence() | set() | frozenset():
            is_lazy = isinstance(value, Sequence) and not isinstance(value, list | tuple)
            return _Items(value) if is_lazy else [to_json(item) for item in value]
        case Value():
            return {name: to_json(getattr(value, name)) for name in value._fields}
        case _:
            raise TypeError(f"no JSON form for {type(value).__name__}")


class _Items(list[Json]):
    """A list for the JSON encoder that creates its items lazily, because all of them may need much memory."""

    def __init__(self, values: Collection[object]) -> None:
        super().__init__()
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Json]:
        return map(to_json, self._values)
