"""An image with its store and its signature, as files to push and to pull."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from cfstools import api
from cfstools.signing.keys import PublicKey
from tests.servers.faulty import Asked, Part, reply, serve

FILES = {f"dir{number % 3}/file{number}": bytes([number]) * (number * 700 + 100) for number in range(1, 70)}
FILES["dir0/large"] = bytes(range(256)) * 9000  # more than two megabytes


class Made(NamedTuple):
    """``app.cfs``, ``app.cfs.sig`` and ``objects`` in a directory, and the key that made the signature."""

    place: Path
    key: PublicKey
    objects: frozenset[str]

    @property
    def image(self) -> bytes:
        return bytes(self.place / "app.cfs")

    @property
    def store(self) -> bytes:
        return bytes(self.place / "objects")


def make(place: Path, files: dict[str, bytes] | None = None, *, signed: bool = True) -> Made:
    """Build an image of *files* in a directory of its own."""
    for name, data in (files or FILES).items():
        path = place / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    api.keygen(bytes(place / "release"))
    key = api.read_private_key(bytes(place / "release.key"))
    image = bytes(place / "app.cfs")
    api.build(
        bytes(place / "source"),
        image,
        stores=[bytes(place / "objects")],
        signing=api.Signing(keys=[key]) if signed else None,
    )
    names = frozenset(path.decode() for path in api.objects([image]))
    return Made(place, api.read_public_key(bytes(place / "release.pub")), names)


def stored(store: Path) -> frozenset[str]:
    """The objects that are in the directory *store*, by their paths there."""
    found = (str(path.relative_to(store)) for path in store.rglob("*") if path.is_file())
    return frozenset(name for name in found if len(name) == 65)


def contents(store: Path) -> dict[str, bytes]:
    """The same with what they hold."""
    return {name: (store / name).read_bytes() for name in stored(store)}


class Served:
    """Answers as a web server of a directory does, unless *fault* has another answer."""

    def __init__(self, root: Path, fault: Callable[[Asked, bytes], Iterable[Part] | None] | None = None) -> None:
        self._root = root
        self._fault = fault
        self.sent = 0

    def __call__(self, asked: Asked) -> Iterable[Part]:
        path = self._root / path_of(asked)
        data = path.read_bytes() if path.is_file() else None
        if self._fault is not None and (answer := self._fault(asked, data or b"")) is not None:
            return answer
        if data is None:
            return [reply(404)]
        self.sent += 0 if asked.method == "HEAD" else len(data)
        return [serve(data, asked)]


def is_object(asked: Asked) -> bool:
    """Whether a request is for an object."""
    return len(os.path.basename(path_of(asked))) == 62


def path_of(asked: Asked) -> str:
    """The path that a request is for."""
    return asked.target.partition("?")[0].lstrip("/")
