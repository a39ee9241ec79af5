"""The base class of immutable value objects, such as options and reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn, Self, dataclass_transform


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Value:
    """Base of immutable value objects: annotations of the class are the fields, class attributes their defaults.

    Objects are created with keyword arguments and compare by class and fields. A frozen dataclass does the same, but
    compiles five methods when its module is imported, which takes almost a millisecond, and every command imports
    dozens. A subclass can validate its fields in ``_check``.
    """

    _fields: ClassVar[tuple[str, ...]] = ()
    _defaults: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        own = vars(cls)
        names = [name for name, kind in own.get("__annotations__", {}).items() if not kind.startswith("ClassVar")]
        cls._fields = (*cls._fields, *names)
        cls._defaults = {**cls._defaults, **{name: own[name] for name in names if name in own}}

    def __init__(self, **values: Any) -> None:
        if values.keys() != set(self._fields):
            given, values = values, {**self._defaults, **values}
            wrong = sorted(set(self._fields) ^ values.keys())
            if wrong:
                what = "has no field" if wrong[0] in given else "needs"
                raise TypeError(f"{type(self).__name__} {what} {', '.join(wrong)}")
        self.__dict__.update(values)
        self._check()

    def _check(self) -> None:
        """Raise an error if a field is invalid."""

    def _replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return type(self)(**{**{name: getattr(self, name) for name in self._fields}, **changes})

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self._fields)

    def __hash__(self) -> int:
        return hash(tuple([getattr(self, name) for name in self._fields]))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._fields)
        return f"{type(self).__name__}({fields})"

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be removed")
