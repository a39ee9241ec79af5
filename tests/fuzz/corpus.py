"""Where each target starts from: golden dumps and their images, tars with one trap each, documents and envelopes."""

from __future__ import annotations

import json
import tarfile
from functools import cache
from pathlib import Path

from cfstools.errors import CfsError
from cfstools.formats.composefs import write_image
from cfstools.formats.dump import parse_dump
from tests.oci import making

_TESTS = Path(__file__).parent.parent
_LARGEST = 64 << 10
FINDINGS = Path(__file__).parent / "findings"


@cache
def seeds(target: str) -> list[bytes]:
    """Inputs for a target, and whatever was found with it before."""
    found = sorted(FINDINGS.glob(f"{target}-*"))
    return [*_made(target), *(path.read_bytes() for path in found)]


def _made(target: str) -> list[bytes]:
    match target:
        case "image":
            return _images()
        case "dump":
            return _dumps()
        case "tar" | "layer":
            return [*_tars(), *(making.tar(*members) for members in _members())]
        case "documents":
            layout = making.image([making.hello()], "+gzip")
            return [data for data in layout.values() if data[:1] == b"{"]
        case "envelope":
            statement = {"payloadType": "application/vnd.in-toto+json", "payload": "e30=", "signatures": []}
            signed = {**statement, "signatures": [{"keyid": "ab" * 32, "sig": "AAAA"}] * 2}
            return [json.dumps(one).encode() for one in (statement, signed)]
        case _:
            return [b"\0\0", bytes(range(256)) * 40, b"\x02\x10" + bytes(70_000)]


def _dumps() -> list[bytes]:
    paths = [*(_TESTS / "golden/dumps").glob("*.dump"), *(_TESTS / "golden/reject").glob("*")]
    return [path.read_bytes() for path in sorted(paths) if path.is_file() and path.stat().st_size <= _LARGEST]


def _images() -> list[bytes]:
    made = []
    for text in _dumps():
        try:
            image = write_image(parse_dump(text))
        except CfsError:
            continue
        if len(image) <= _LARGEST:
            made.append(image)
    return made


def _tars() -> list[bytes]:
    paths = sorted((_TESTS / "fixtures/tar-edge").glob("*.tar"))
    return [path.read_bytes() for path in paths if path.stat().st_size <= _LARGEST]


def _members() -> list[list[tuple[tarfile.TarInfo, bytes]]]:
    usr = making.member("usr/")
    return [
        [
            usr,
            making.member("usr/a", b"x" * 600),
            making.member("usr/.wh.b", b""),
            making.member("usr/.wh..wh..opq", b""),
        ],
        [usr, making.member("../up", b"y"), making.member("/usr/abs", b"z")],
    ]
