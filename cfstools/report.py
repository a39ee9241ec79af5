"""Results of verbs as frozen values, and their one JSON form."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import Enum
from typing import ClassVar

from cfstools.values import Value

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]


class Report(Value):
    """Base of all reports: values whose fields are plain or such values.

    ``schema`` is raised when a field is removed or changes its meaning; new fields do not raise it.
    """

    schema: ClassVar[int] = 1

    def to_dict(self) -> dict[str, Json]:
        """The report as JSON values, its ``schema`` number first. Bytes appear as hexadecimal text."""
        body = to_json(self)
        assert isinstance(body, dict)
        return {"schema": self.schema, **body}


def to_json(value: object) -> Json:
    """*value* as JSON values: values by field, enums by value, bytes as hexadecimal text."""
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
    """A list for the JSON encoder whose items are made as they are written: together they may need much memory."""

    def __init__(self, values: Collection[object]) -> None:
        super().__init__()
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Json]:
        return map(to_json, self._values)
