"""Where each target starts from: golden dumps and their images, tars with one trap each, documents and envelopes."""

from __future__ import annotations

import base64
import json
import struct
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from cfstools import native
from cfstools.errors import CfsError
from cfstools.formats.composefs.overlay_xattrs import HIDING_NAMES
from cfstools.formats.dump.parse import parse_dump
from cfstools.mount.lazy.trace import Touch, format_trace
from cfstools.oci.descriptor import Digest
from cfstools.oci.layer import LayerReport
from cfstools.oci.layer_record import LayerRecord
from cfstools.oci.pushed.documents import describe
from cfstools.oci.pushed.layout import IMAGE_PART, MANIFEST, MapLayer, MapObject, RangesRow
from cfstools.oci.pushed.map import ObjectMap
from cfstools.oci.pushed.metadata import Parts, pack_metadata
from cfstools.oci.pushed.ranges import RangeTable
from cfstools.oci.pushed.referrers import bundle_artifact, envelope_artifact
from cfstools.signing import ImageDigests, make_statement, sign_envelope
from cfstools.signing.keys import PrivateKey
from cfstools.store.care.kept import KeptImage, kept_text
from cfstools.streams.decompress import Compression
from cfstools.tree.model import Device, Directory, External, Fifo, Leaf, RegularFile, Symlink
from cfstools.verity import object_path
from tests.formats.images import write_image
from tests.formats.tar import tarbytes
from tests.fuzz.mount_targets import KNOWN
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
        "access": _access,
        "answer": _answer,
        "remembered": _remembered,
        "pushed": _pushed,
        "trace": _traces,
        "requests": _requests,
        "hashing": lambda: plain,
        "files": lambda: [*plain, (b"\x10\x27" + b"z" * 10_000) * 4 + b"\1\6d/file" * 30],
    }
    return makers[target]()


def _traces() -> list[bytes]:
    known = sorted(KNOWN)
    touches = [Touch(digest, 7 * place) for place, digest in enumerate(known)]
    lines = [digest.hex().encode() for digest in known] + [object_path(digest) for digest in known]
    return [format_trace(bytes(32), touches), format_trace(bytes(32), []), b"\n".join(lines)]


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


def _answer() -> list[bytes]:
    heads = [
        "206\nContent-Range: bytes 3-8/20\n\nabcdef",
        '206\nContent-Length: 6\nContent-Range: bytes 3-8/*\nETag: "x"\n\nabcdef',
        "200\n\n" + "x" * 40,
        '200-\nTransfer-Encoding: chunked\nWarning: 299 - "old"\n\nwhole',
        "302\nLocation: https://cdn.example/x?sig=1\n\n",
        "307\nLocation: //127.1:80/../x\n\n",
        "429\nRetry-After: Sat, 28 Nov 2026 20:01:30 GMT\nDate: Sat, 28 Nov 2026 20:00:00 GMT\n\n",
        '403\nContent-Type: application/json\nWWW-Authenticate: Basic\n\n{"errors":[{"code":"A","message":"b"}]}',
        "200\nContent-Length: 5\nContent-Length: 6\n\nabcdef",
        "200\nContent-Encoding: gzip\nLast-Modified: x\n\nabcdef",
    ]
    return [head.encode() for head in heads]


def _requests() -> list[bytes]:
    """Each kind of request for each kind of node, and all that mount and read a tree one after the other."""
    reading = struct.pack("=2Q2IQ2I", 0, 0, 8192, 0, 0, 0, 0)
    bodies = {1: b"leaf\0", 15: reading, 22: struct.pack("=2I", 400, 0) + b"user.a\0", 23: bytes(8), 28: reading}
    bodies |= {26: struct.pack("=5I44x", 7, 45, 1 << 17, 0xFFFFFFFF, 0), 36: struct.pack("=Q", 2), 44: reading}

    def request(number: int, node: int) -> bytes:
        body = bodies.get(number, bytes(16))
        return struct.pack("=2I2Q4I", 40 + len(body), number, number * 2, node, 0, 0, 0, 0) + body

    session = b"".join(request(number, node) for number in (26, 3, 1, 44, 5, 15, 22, 23, 17) for node in range(1, 8))
    return [session, *(request(number, 1) for number in range(1, 54)), session[:-3]]


def _access() -> list[bytes]:
    auth = base64.b64encode(b"me:s3cret").decode()
    texts = [
        "docker://reg.example:5000/team/app:1@sha256:" + "0" * 64,
        'Bearer realm="https://a.example/t?a=b",service="s\\"x", Basic realm=x\nNegotiate YWJj==',
        json.dumps(
            {"auths": {"https://reg.example/v1/": {"auth": auth}}, "credsStore": "x", "credHelpers": {"b": "y"}}
        ),
        json.dumps({"auths": {"reg.example/team": {"identitytoken": "t"}, "docker.io": {}}}),
        json.dumps({"ServerURL": "x", "Username": "<token>", "Secret": "t", "token": "t", "expires_in": 60}),
        '[[registry]]\nprefix = "*.example"\nlocation = "a.example/b"\n[[registry.mirror]]\nlocation = "c.example"\n',
    ]
    return [*(text.encode() for text in texts), *_JSON]


def _remembered() -> list[bytes]:
    inodes: list[tuple[bytes, Directory | Leaf | bytes]] = [
        (b"usr", Directory(mode=0o40755, xattrs={b"user.a": b"b"})),
        (b"usr/a", RegularFile(mode=0o100644, size=100, content=External(bytes(32), object_path(bytes(32))))),
        (b"usr/b", RegularFile(mode=0o104755, uid=5, gid=6, mtime_sec=-1, mtime_nsec=7, size=3, content=b"abc")),
        (b"usr/c", Symlink(mode=0o120777, target=b"a")),
        (b"usr/d", Fifo(mode=0o010600)),
        (b"usr/e", Device(mode=0o020666, rdev=259)),
        (b"usr/f", b"usr/a"),
    ]
    report = LayerReport(
        path="p",
        media_type=None,
        compression="gzip",
        digest="sha256:0",
        size=1,
        diff_id="sha256:1",
        uncompressed_size=2,
        members=7,
    )
    found = [LayerRecord(report, [("where", "what")], 1, inodes[:count]).pack() for count in (0, 3, 7)]
    return [data for data in found if data is not None]


def _pushed() -> list[bytes]:
    layer = MapLayer(bytes(32), 1000)
    rows = [MapObject(10 * number, 10, 0, bytes(6)) for number in range(3)]
    packed = ObjectMap(image=bytes(32), digest_size=32, layers=(layer,), objects=rows).pack()
    layers = [pack_metadata(Parts(image=b"i" * 300, map=b"m"), kind) for kind in (Compression.ZSTD, Compression.GZIP)]
    (envelope, *_) = _envelopes()
    subject = describe(MANIFEST, b"")._replace(digest=Digest("sha256", "0" * 64))
    artifacts = [envelope_artifact(envelope, subject, "urn:x"), bundle_artifact(envelope, subject, "urn:x")]
    return [
        packed,
        RangeTable(piece=1 << 18, rows=[RangesRow(number, bytes(4), number) for number in range(3)]).pack(),
        *(places[IMAGE_PART].encode() + b"\n" + blob for blob, places in layers),
        *(artifact.data for artifact in artifacts),
        artifacts[1].blobs[1][1],
        *_JSON,
    ]


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
