"""What the code says about JSON reports: their schema, and their members with types in words."""

from __future__ import annotations

import importlib
import pkgutil
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

import cfstools
from cfstools.report import Report
from cfstools.values import Value

_PLAIN = {str: "text", bytes: "text in hexadecimal", int: "number", bool: "true or false"}
_MANY = {"text": "texts", "text in hexadecimal": "texts in hexadecimal", "number": "numbers"}


def classes() -> dict[str, type[Value]]:
    """Every value and report of the package by its name."""
    for module in pkgutil.walk_packages(cfstools.__path__, "cfstools."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found: dict[str, type[Value]] = {}
    pending: list[type[Value]] = [Value]
    while pending:
        kind = pending.pop()
        found[kind.__name__] = kind
        pending += kind.__subclasses__()
    return found


def schema(kind: type[Value]) -> int | None:
    """The schema number of a report, ``None`` for other values."""
    return kind.schema if issubclass(kind, Report) else None


def members(kind: type[Value]) -> dict[str, str]:
    """The JSON members of a value by name, in their order, with their types in words."""
    return {name: _words(hint) for name, hint in _hints(kind).items()}


def parts(kind: type[Value]) -> Iterator[type[Value]]:
    """The values that a value has among its members, of whatever depth, without itself."""
    for hint in _hints(kind).values():
        for part in _values_in(hint):
            yield part
            yield from parts(part)


def _hints(kind: type[Value]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        own = [name for name in vars(base).get("__annotations__", {}) if name in kind._fields]
        space = {**typing.__dict__, **_enums(), **classes(), **vars(importlib.import_module(base.__module__))}
        found |= {name: eval(vars(base)["__annotations__"][name], space) for name in own}
    return found


def _enums() -> dict[str, type[Enum]]:
    return {kind.__name__: kind for kind in Enum.__subclasses__() if kind.__module__.startswith("cfstools.")}


def _values_in(hint: Any) -> Iterator[type[Value]]:
    if isinstance(hint, type) and issubclass(hint, Value):
        yield hint
    for argument in typing.get_args(hint):
        yield from _values_in(argument)


def _words(hint: Any) -> str:
    arguments = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return " or ".join("null" if one is type(None) else _words(one) for one in arguments)
    kind = typing.get_origin(hint) or hint
    words = _PLAIN.get(kind, f"`{kind.__name__}`")
    if kind is tuple and arguments[-1] is not Ellipsis:
        words = f"[{', '.join(_words(one) for one in arguments)}]"
    elif arguments and issubclass(kind, Mapping):
        words = f"object of {_many(arguments[1])}"
    elif arguments and issubclass(kind, Sequence):
        words = f"list of {_many(arguments[0])}"
    elif issubclass(kind, Enum):
        words = f"one of {', '.join(f'`{one.value}`' for one in kind)}"
    return words


def _many(hint: Any) -> str:
    words = _words(hint)
    return _MANY.get(words, words)
