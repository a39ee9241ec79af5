"""The option string of mount.composefs (composefs format, section 9.1)."""

from __future__ import annotations

import re

from cfstools.errors import UsageError, shown_path
from cfstools.mount.layers import ObjectCheck
from cfstools.values import Value

_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_VALUES = frozenset({b"basedir", b"digest", b"upperdir", b"workdir", b"idmap"})
# What each switch sets; of several that set the same the last counts.
_SWITCHES = {
    b"rw": ("writable", True),
    b"ro": ("writable", False),
    b"nosuid": ("nosuid", True),
    b"suid": ("nosuid", False),
    b"nodev": ("nodev", True),
    b"dev": ("nodev", False),
    b"noexec": ("noexec", True),
    b"exec": ("noexec", False),
}
_FLAGS = frozenset({b"verity", b"tryverity", *_SWITCHES})


class HelperOptions(Value):
    """What an option string asks for; ``None`` and empty where it says nothing.

    ``digest`` is the text behind ``digest=``, which may be empty.
    """

    stores: tuple[bytes, ...] = ()
    digest: str | None = None
    objects: ObjectCheck | None = None
    writable: bool | None = None
    upper: bytes | None = None
    work: bytes | None = None
    idmap: bytes | None = None
    nosuid: bool | None = None
    nodev: bool | None = None
    noexec: bool | None = None


def parse_options(text: bytes) -> HelperOptions:
    """Read options joined by commas. A backslash takes the next character as it is, also a comma or a colon.

    Of an option given twice the last counts. Raises UsageError.
    """
    values: dict[bytes, bytes] = {}
    switches: dict[str, bool] = {}
    for part in _split(text, b",") if text else ():
        name, equals, value = part.partition(b"=")
        if name not in (_VALUES if equals else _FLAGS):
            raise UsageError(f"unknown mount option: {shown_path(part)}")
        if name in _SWITCHES:
            switch, on = _SWITCHES[name]
            switches[switch] = on
        else:
            values[name] = value
    return HelperOptions(
        stores=_stores(values.get(b"basedir")),
        digest=_digest(values.get(b"digest")),
        objects=_objects(values),
        writable=switches.get("writable"),
        upper=_path(values, b"upperdir"),
        work=_path(values, b"workdir"),
        idmap=_path(values, b"idmap"),
        nosuid=switches.get("nosuid"),
        nodev=switches.get("nodev"),
        noexec=switches.get("noexec"),
    )


def _split(text: bytes, separator: bytes) -> list[bytes]:
    """The parts between separators that no backslash stands before, with all backslashes still in place."""
    parts = [bytearray()]
    position = 0
    while position < len(text):
        taken = text[position : position + (2 if text[position : position + 1] == b"\\" else 1)]
        if taken == b"\\":
            raise UsageError(f"mount options end in a backslash: {shown_path(text)}")
        if taken == separator:
            parts.append(bytearray())
        else:
            parts[-1] += taken
        position += len(taken)
    return [bytes(part) for part in parts]


def _stores(value: bytes | None) -> tuple[bytes, ...]:
    if value is None:
        return ()
    stores = tuple(_plain(part) for part in _split(value, b":"))
    if not all(stores):
        raise UsageError("basedir= has an empty path")
    return stores


def _digest(value: bytes | None) -> str | None:
    return None if value is None else shown_path(_plain(value))


def _objects(values: dict[bytes, bytes]) -> ObjectCheck | None:
    if b"verity" in values or b"digest" in values:
        return ObjectCheck.REQUIRE
    return ObjectCheck.TRY if b"tryverity" in values else None


def _path(values: dict[bytes, bytes], name: bytes) -> bytes | None:
    if name not in values:
        return None
    path = _plain(values[name])
    if not path:
        raise UsageError(f"{shown_path(name)}= has an empty path")
    return path


def _plain(text: bytes) -> bytes:
    return _ESCAPED.sub(rb"\1", text)
