"""The option string of mount.composefs, with words of our own (docs/mount.md, "Options of mount.composefs")."""

from __future__ import annotations

import re

from cfstools.errors import UsageError
from cfstools.mount.layers import OverlayVerity
from cfstools.text import shown_path
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
    b"noatime": ("noatime", True),
    b"atime": ("noatime", False),
}
_FLAGS = frozenset({b"verity", b"tryverity", *_SWITCHES})
# What the command has options of its own for, by their names there with "_" for "-"; several may be given.
SETTINGS = frozenset(
    {
        "attempts",
        "authfile",
        "ca_file",
        "cache_size",
        "cert_dir",
        "check",
        "connections",
        "fetch_timeout",
        "jobs",
        "key",
        "lazy",
        "log",
        "map",
        "method",
        "platform",
        "prefetch",
        "readahead",
        "trace",
    }
)
SETTING_FLAGS = frozenset({"allow_other", "plain_http"})
# What fstab(5) has for others: mount(8), the start of the system, and times that never change here.
_IGNORED = frozenset(
    b"_netdev auto async defaults group noauto nofail norelatime nostrictatime nouser owner relatime user users".split()
)
_IGNORED_PREFIXES = (b"x-", b"X-", b"comment=", b"user=")


class HelperOptions(Value):
    """What an option string asks for; ``None`` and empty where it says nothing.

    ``digest`` is the text behind ``digest=``, which may be empty. ``settings`` are the words of :data:`SETTINGS` with
    their values and of :data:`SETTING_FLAGS` with ``None``, in order.
    """

    stores: tuple[bytes, ...] = ()
    digest: str | None = None
    objects: OverlayVerity | None = None
    writable: bool | None = None
    upper: bytes | None = None
    work: bytes | None = None
    idmap: bytes | None = None
    nosuid: bool | None = None
    nodev: bool | None = None
    noexec: bool | None = None
    noatime: bool | None = None
    settings: tuple[tuple[str, bytes | None], ...] = ()


def parse_options(text: bytes, *, sloppy: bool = False) -> HelperOptions:
    """Read options joined by commas. A backslash takes the next character as it is, also a comma or a colon.

    Of an option given twice the last counts, but settings are all kept. Words of fstab(5) for others are passed over.
    Unknown ones are passed over if *sloppy*. Raises UsageError.
    """
    values: dict[bytes, bytes] = {}
    switches: dict[str, bool] = {}
    settings: list[tuple[str, bytes | None]] = []
    for part in _split(text, b",") if text else ():
        if part in _IGNORED or part.startswith(_IGNORED_PREFIXES):
            continue
        name, equals, value = part.partition(b"=")
        word = name.decode("ascii", "replace")
        if word in (SETTINGS if equals else SETTING_FLAGS):
            settings.append((word, _plain(value) if equals else None))
        elif name not in (_VALUES if equals else _FLAGS):
            if not sloppy:
                raise UsageError(f"unknown mount option: {shown_path(part)}")
        elif name in _SWITCHES:
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
        noatime=switches.get("noatime"),
        settings=tuple(settings),
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


def _objects(values: dict[bytes, bytes]) -> OverlayVerity | None:
    if b"verity" in values or b"digest" in values:
        return OverlayVerity.REQUIRE
    return OverlayVerity.TRY if b"tryverity" in values else None


def _path(values: dict[bytes, bytes], name: bytes) -> bytes | None:
    if name not in values:
        return None
    path = _plain(values[name])
    if not path:
        raise UsageError(f"{shown_path(name)}= has an empty path")
    return path


def _plain(text: bytes) -> bytes:
    return _ESCAPED.sub(rb"\1", text)
