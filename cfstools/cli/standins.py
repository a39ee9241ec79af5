"""Loads click without the modules of Python that it only needs for what ``mkcfs`` never asks of it.

Click loads ``inspect`` to straighten texts, ``datetime`` and ``uuid`` for two types of parameters that no verb has,
``gettext`` for translations that nobody installs, and ``threading`` for one class. With all that these load in turn,
that is half of the time click takes to start. While click is loaded, another module stands in for each. It has the
names that click takes at its start, and loads the real one as soon as somebody wants another name. Afterwards imports
find the real ones again.
"""

from __future__ import annotations

import importlib
import sys
from _thread import _local
from types import ModuleType


class _StandIn(ModuleType):
    """Has some names of a module, and loads the module for the others."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # the machinery of imports asks for these
            raise AttributeError(name)
        _step_down(self)
        return getattr(importlib.import_module(self.__name__), name)


class _NoType:
    """In place of the classes of values that no parameter has."""


def _straightened(text: str) -> str:
    """What ``inspect.cleandoc`` returns: without the indentation that all lines but the first share, nor empty ends."""
    first, *others = text.expandtabs().split("\n")
    margin = min((len(line) - len(line.lstrip()) for line in others if line.strip()), default=0)
    lines = [first.lstrip(), *(line[margin:] for line in others)]
    while lines and not lines[-1]:
        lines.pop()
    while lines and not lines[0]:
        del lines[0]
    return "\n".join(lines)


def _same(message: str) -> str:
    return message


def _counted(one: str, several: str, count: int) -> str:
    return one if count == 1 else several


_NAMES: dict[str, dict[str, object]] = {
    "datetime": {"datetime": _NoType},
    "gettext": {"gettext": _same, "ngettext": _counted},
    "inspect": {"cleandoc": _straightened},
    "threading": {"local": _local},
    "uuid": {"UUID": _NoType},
}


def load_click() -> None:
    """Import click, unless that was done already."""
    if "click" in sys.modules:
        return
    standing = []
    for name, known in _NAMES.items():
        if name not in sys.modules:
            module = _StandIn(name)
            vars(module).update(known)
            sys.modules[name] = module
            standing.append(module)
    try:
        importlib.import_module("click")
    finally:
        for module in standing:
            _step_down(module)


def _step_down(module: ModuleType) -> None:
    """Let imports find the real module again."""
    if sys.modules.get(module.__name__) is module:
        del sys.modules[module.__name__]
