"""registries.conf, version 2: relocated registries, mirrors and blocked registries.

Only ``[[registry]]`` tables are read; short names, aliases and version 1 are not. In later files (drop-ins) a table
replaces an earlier one with the same prefix.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from cfstools.errors import LimitExceeded, OciError
from cfstools.oci.registry.reference import ImageReference, is_host, is_repository
from cfstools.text import quoted
from cfstools.values import Value

MAX_CONF = 1 << 20
_PULLS = ("all", "digest-only", "tag-only")


class Mirror(Value):
    """Where a registry's images may be read as well."""

    location: str
    insecure: bool = False
    pulls: str = "all"


class RegistryEntry(Value):
    """A ``[[registry]]`` table: the prefix it applies to, and where the images are."""

    prefix: str
    location: str
    insecure: bool = False
    blocked: bool = False
    mirrors: tuple[Mirror, ...] = ()

    def matches(self, name: str) -> bool:
        """Whether the table applies to ``HOST/REPOSITORY``."""
        if self.prefix.startswith("*."):
            host, _, _ = name.partition("/")
            return host.partition(":")[0].endswith(self.prefix[1:]) or host.endswith(self.prefix[1:])
        return name == self.prefix or (name.startswith(self.prefix) and name[len(self.prefix)] in "/:")

    def moved(self, name: str, location: str) -> str:
        """*name* with the prefix replaced by *location*; unchanged if that is empty."""
        if not location:
            return name
        if self.prefix.startswith("*."):
            return location + name[len(name.partition("/")[0]) :]
        return location + name[len(self.prefix) :]


class Endpoint(NamedTuple):
    """A place to read an image from; *insecure* allows plain HTTP."""

    host: str
    repository: str
    insecure: bool
    is_mirror: bool


def parse_registries(files: Iterable[tuple[str, bytes]]) -> tuple[RegistryEntry, ...]:
    """Parse *files* (names and contents), in the order they apply. Raises :class:`OciError`."""
    entries: dict[str, RegistryEntry] = {}
    for name, data in files:
        for number, table in enumerate(_tables(name, data)):
            entry = _Table(table, f"registry[{number}]", name).entry()
            entries[entry.prefix] = entry
    return tuple(entries.values())


def endpoints(entries: Sequence[RegistryEntry], reference: ImageReference) -> tuple[Endpoint, ...]:
    """Where to read an image, in this order: mirrors, then its location. Raises :class:`OciError` if it is blocked."""
    name = f"{reference.host}/{reference.repository}"
    entry = max((one for one in entries if one.matches(name)), key=lambda one: len(one.prefix), default=None)
    if entry is None:
        return (Endpoint(reference.host, reference.repository, insecure=False, is_mirror=False),)
    if entry.blocked:
        raise OciError(f"registries.conf blocks {quoted(entry.prefix)}", subject=str(reference))
    wanted = "tag-only" if reference.digest is None else "digest-only"
    found = [
        _endpoint(entry.moved(name, mirror.location), insecure=mirror.insecure, is_mirror=True)
        for mirror in entry.mirrors
        if mirror.pulls in {"all", wanted}
    ]
    found.append(_endpoint(entry.moved(name, entry.location), insecure=entry.insecure, is_mirror=False))
    return tuple(found)


def writing_endpoint(entries: Sequence[RegistryEntry], reference: ImageReference) -> Endpoint:
    """Where to write an image: never to a mirror."""
    return endpoints(entries, reference)[-1]


def _endpoint(name: str, *, insecure: bool, is_mirror: bool) -> Endpoint:
    host, _, repository = name.partition("/")
    if not (is_host(host) and is_repository(repository)):
        raise OciError(f"registries.conf leads to {quoted(name)}, which is no repository of a registry")
    return Endpoint(host, repository, insecure, is_mirror)


def _tables(name: str, data: bytes) -> list[object]:
    if len(data) > MAX_CONF:
        raise LimitExceeded(f"larger than {MAX_CONF} bytes", subject=name)
    try:
        value = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise OciError(f"not TOML: {error}", subject=name) from error
    tables = value.get("registry", [])
    if not isinstance(tables, list):
        raise OciError("not an array of tables", where="registry", subject=name)
    return tables


class _Table:
    """The members of one table, by type."""

    def __init__(self, value: object, where: str, name: str) -> None:
        self._where = where
        self._name = name
        if not isinstance(value, dict):
            raise self._error("not a table")
        self._members: Mapping[str, object] = value

    def entry(self) -> RegistryEntry:
        """The table as a registry."""
        prefix, location = self._text("prefix"), self._text("location")
        prefix = prefix or location
        if not prefix:
            raise self._error("has neither prefix nor location")
        if "*" in prefix and (not prefix.startswith("*.") or "*" in prefix[2:] or "/" in prefix):
            raise self._error(f"{quoted(prefix)} is no prefix: a star may only stand for the first names of a host")
        mirrors = self._members.get("mirror", [])
        if not isinstance(mirrors, list):
            raise self._error("mirror is not an array of tables")
        tables = [_Table(one, f"{self._where}.mirror[{at}]", self._name) for at, one in enumerate(mirrors)]
        by_digest = self._flag("mirror-by-digest-only")
        location = location or ("" if prefix.startswith("*.") else prefix)
        return RegistryEntry(
            prefix=prefix.rstrip("/"),
            location=location.rstrip("/"),
            insecure=self._flag("insecure"),
            blocked=self._flag("blocked"),
            mirrors=tuple(one.mirror(by_digest=by_digest) for one in tables),
        )

    def mirror(self, *, by_digest: bool) -> Mirror:
        """The table as a mirror."""
        location = self._text("location").rstrip("/")
        if not location:
            raise self._error("a mirror without location")
        pulls = self._text("pull-from-mirror") or ("digest-only" if by_digest else "all")
        if pulls not in _PULLS:
            raise self._error(f"pull-from-mirror {quoted(pulls)} is none of {', '.join(_PULLS)}")
        return Mirror(location=location, insecure=self._flag("insecure"), pulls=pulls)

    def _text(self, key: str) -> str:
        value = self._members.get(key, "")
        if not isinstance(value, str):
            raise self._error(f"{key} is not a string")
        return value

    def _flag(self, key: str) -> bool:
        value = self._members.get(key, False)
        if not isinstance(value, bool):
            raise self._error(f"{key} is neither true nor false")
        return value

    def _error(self, what: str) -> OciError:
        return OciError(what, where=self._where, subject=self._name)
