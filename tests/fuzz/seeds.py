"""Where each target starts from: golden dumps and their images, tars with one trap each, documents and envelopes."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from cfstools import native
from cfstools.errors import CfsError
from cfstools.formats.composefs import write_image
from cfstools.formats.dump import parse_dump
from cfstools.formats.overlay import HIDING_NAMES
from cfstools.signing import ImageDigests, make_statement, sign_envelope
from cfstools.signing.keys import PrivateKey
from cfstools.store.kept import KeptImage, kept_text
from tests.formats.tar import tarbytes
from tests.fuzz.trust import Trusting
from tests.oci import making
from tests.signing import test_key_forms

_TESTS = Path(__file__).parent.parent
_LARGEST = 64 << 10
# One folder for each target: small inputs that reach what the others do not, and inputs that once were findings.
CORPUS = Path(__file__).parent / "corpus"
FINDINGS = Path(__file__).parent / "findings"


def kept(target: str) -> list[Path]:
    """The inputs of a target that are kept as files: its corpus, and whatever was found with it and is not mended."""
    return [*sorted((CORPUS / target).glob("*")), *sorted(FINDINGS.glob(f"{target}-*"))]


@cache
def seeds(target: str) -> list[bytes]:
    """All inputs that a target starts from."""
    return [*made(target), *(path.read_bytes() for path in kept(target))]


def made(target: str) -> list[bytes]:
    """The inputs of a target that are made here."""
    plain = [b"\0\0", bytes(range(256)) * 40, b"\x02\x10" + bytes(60_000)]
    makers: dict[str, Callable[[], list[bytes]]] = {
        "image": _images,
        "canonical": _images,
        "reading": _images,
        "dump": _dumps,
        "encoding": _dumps,
        "tar": _tars,
        "layer": _layers,
        "documents": _documents,
        "envelope": _envelopes,
        "keys": _keys,
        "record": _record,
        "hashing": lambda: plain,
        "files": lambda: [*plain, (b"\x10\x27" + b"z" * 10_000) * 4 + b"\1\6d/file" * 30],
    }
    return makers[target]()


def _dumps() -> list[bytes]:
    paths = [*(_TESTS / "golden/dumps").glob("*.dump"), *(_TESTS / "golden/reject").glob("*")]
    return [path.read_bytes() for path in sorted(paths) if path.is_file() and path.stat().st_size <= _LARGEST]


def _images() -> list[bytes]:
    """Images of the golden dumps as they are, and without the 256 whiteouts, which only take time after the first."""
    before, hiding = native.IMPLEMENTATION, [*HIDING_NAMES]
    native.use("pure")
    HIDING_NAMES.clear()
    try:
        small = _images_of(_dumps())
    finally:
        HIDING_NAMES[:] = hiding
        native.use(before)
    return [*small, *_images_of(_dumps()[:3])]


def _images_of(dumps: list[bytes]) -> list[bytes]:
    made = []
    for number, text in enumerate(dumps):
        try:
            made.append(write_image(parse_dump(text), min_version=number % 2, max_version=1))
        except CfsError:
            continue
    return [image for image in made if len(image) <= _LARGEST]


# Each goes on for as long as a limit of the reader of JSON allows, or a little longer.
_JSON = [
    b'{"a":"' + b'\\"' * 4000,
    b'{"a":' * 31 + b"1" + b"}" * 31,
    b'{"a":[' + b"[]," * 4000 + b"0]}",
    b'{"a":' + b"9" * 257 + b"}",
    b'{"a":1e400,"a":NaN}',
]


def _envelopes() -> list[bytes]:
    statement = make_statement(b"a", ImageDigests(size=4096, sha256=bytes(32), fsverity=bytes(32)), "v1-sha256-12")
    one = sign_envelope(statement, [Trusting()])
    several = json.loads(one)
    several["signatures"] = [*several["signatures"] * 2, {"keyid": "cd" * 32, "sig": "AAAA"}, {"sig": "AAAA"}]
    empty = {"payloadType": "application/vnd.in-toto+json", "payload": "e30=", "signatures": []}
    return [one, *(json.dumps(other).encode() for other in (several, empty)), *_JSON]


def _record() -> list[bytes]:
    images = [KeptImage(b"/srv/a b%\n.cfs", bytes(range(32)), 4096), KeptImage(b"/x", bytes(32), 0)]
    return [kept_text([]), kept_text(images), kept_text(images)[:-1], b"mkcfs images 1\n" + b"\n" * 50]


def _keys() -> list[bytes]:
    """Keys that are always the same, in every form that is read, and some that are not."""
    private = [
        PrivateKey(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))),
        PrivateKey(ec.derive_private_key(12345, ec.SECP256R1())),
        PrivateKey(ec.derive_private_key(12345, ec.SECP384R1())),
    ]
    traditional = private[1].numbers.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    costly = [
        test_key_forms.pbkdf2_key(2048),
        test_key_forms.pbkdf2_key(2**31),
        test_key_forms.scrypt_key(1 << 14, 8, 1),
        test_key_forms.scrypt_key(1 << 30, 8, 1),
        test_key_forms.old_scheme_key(2048),
    ]
    pairs = [text for key in private for text in (key.pem(), key.verifier.pem())]
    return [*pairs, traditional, *costly, b"-----BEGIN PUBLIC KEY-----\n" * 300]


def _documents() -> list[bytes]:
    layout = making.Layout()
    one = layout.manifest([making.hello()], compression="+gzip", platform={"architecture": "arm64", "os": "linux"})
    two = layout.manifest([making.hello()], annotations={"a": "b"})
    files = layout.tag(layout.index([one, two]), "latest").files()
    return [*(data for data in files.values() if data[:1] == b"{"), *_JSON]


def _tars() -> list[bytes]:
    paths = sorted((_TESTS / "fixtures/tar-edge").glob("*.tar"))
    small = [path.read_bytes() for path in paths if path.stat().st_size <= _LARGEST]
    return [*small, *(making.tar(*members) for members in _members()), *_odd_headers()]


def _odd_headers() -> list[bytes]:
    """Headers that other readers understand in another way, and access control lists."""
    acl = (b"SCHILY.acl.access", b"user::rw-,user:x:r--:7,group::r--,mask::rw-,other::---")
    encoded = [(b"SCHILY.xattr.user.a%3Db", b"v"), (b"LIBARCHIVE.xattr.user.a%253Db", b"dg")]
    return [
        tarbytes.pax(acl, (b"SCHILY.acl.default", b"u::7"), (b"SCHILY.acl.ace", b"owner@:r:allow"))
        + file
        + tarbytes.END
        for file in (tarbytes.file(b"f", b"abc"), tarbytes.header(b"d/", b"5"))
    ] + [
        tarbytes.pax(*records, kind=kind) + tarbytes.file(b"f", b"abc") + tarbytes.END
        for kind in (b"x", b"g")
        for records in (encoded, [(b"comment", b"x")], [(b"SCHILY.realsize", b"3")], [(b"SCHILY.devmajor", b"1")])
    ]


def _layers() -> list[bytes]:
    """Layers as they are and packed, and archives of whole images."""
    plain = [making.hello(), *(making.tar(*members) for members in _members())]
    packed = [making.COMPRESSORS[name](layer) for layer in plain for name in ("+gzip", "+zstd")]
    archives = [making.archive(made) for made in (making.image(plain, "+gzip"), making.docker(plain))]
    # Parts of images beside what no image has, and the form of docker and of OCI in one.
    mixed = [{**making.image(plain), "README": b"x"}, {**making.docker(plain), **making.image(plain, "+gzip")}]
    mixed += [{**making.image(plain), "app/run": b"#!"}, {"blobs/sha256/" + "a" * 64: b"{}"}]
    return [*_tars(), *packed, *archives, *map(making.archive, mixed), bytes(1024)]


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
